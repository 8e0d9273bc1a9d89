"""The parts of a cross-fit: of equal size, and all rows of an image in one."""

import numpy as np

from dataloader.file_list import FileList
from evaluation.cross_fit import FOLDS, draw_parts, image_keys


def test_draw_parts_of_distinct_images_are_equal_shares_by_the_seed():
    hashes = np.random.default_rng(0).permutation(103).astype(np.uint64)
    part = draw_parts(hashes, 7, 6)
    assert sorted(np.bincount(part).tolist()) == [20, 20, 21, 21, 21]
    assert part.tolist() == (np.random.default_rng([7, 6]).permutation(103) % FOLDS).tolist()
    assert part.tolist() != draw_parts(hashes, 8, 6).tolist()


def test_draw_parts_of_images_listed_again_share_a_part():
    image = np.random.default_rng(1).integers(40, size=200)
    part = draw_parts(image, 0, 6)
    assert all(len(set(part[image == one].tolist())) == 1 for one in set(image.tolist()))
    _, first = np.unique(image, return_index=True)
    assert np.bincount(part[first]).tolist() == [8] * FOLDS


def test_image_keys_of_one_path_written_in_two_ways_are_equal_with_a_note(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("utils.logger.log.propagate", True)
    caplog.set_level("INFO")
    names = ["a.jpg", "b.jpg", f"{tmp_path}/a.jpg", "./b.jpg", "c.jpg"]
    keys = image_keys(FileList.of_paths([f"{tmp_path}/{name}" if name[0] != "/" else name for name in names], "images"))
    assert keys[0] == keys[2] and keys[1] == keys[3] and len(set(keys.tolist())) == 3
    assert "2 image(s) of images are listed again; all lines of an image are in one part" in caplog.text
    assert [record.levelname for record in caplog.records] == ["INFO"], "open_list has warned of them"
