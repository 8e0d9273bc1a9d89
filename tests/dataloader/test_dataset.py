"""From indices to batches: what they hold, and what comes in an unreadable image's place."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

import dataloader
from dataloader import dataset
from dataloader.dataset import EvalDataset, TrainDataset, as_images
from dataloader.decode import read_image
from dataloader.file_list import read_list
from dataloader.geometry import EvalGeometry
from dataloader.reader import FileReader
from dataloader.sampler import BatchIndices
from dataloader.transforms import build_stages
from options import parse_train
from utils.errors import ImageError, UserError
from utils.preprocess import Preprocess
from utils.rng import sample_rng

MEAN = (0.485, 0.456, 0.406)
WAY = Preprocess(32, "squash", MEAN, MEAN)
BAD = {2: b"", 5: b"not an image", 6: None, 11: b"\xff\xd8\xff\xe0 cut short"}  # None: there is no such file


@pytest.fixture(scope="module")
def folder(photos, tmp_path_factory):
    """Twelve images, labels 0 to 11, one a line after a blank first line; those of BAD cannot be read."""
    folder = tmp_path_factory.mktemp("some bad")
    for k in range(12):
        path = folder / f"{k}.jpg"
        if BAD.get(k, b"") is not None:
            path.write_bytes(BAD.get(k, b""))
        if k not in BAD:
            cv2.imwrite(str(path), photos[k % 3][20 * k : 20 * k + 90, 20 * k : 20 * k + 120])
    (folder / "train.txt").write_text("\n" + "".join(f"{k}.jpg {k}\n" for k in range(12)))
    (folder / "none.txt").write_text("".join(f"{k}.jpg 0\n" for k in BAD))
    return folder


def training(folder, *words, name="train.txt"):
    files = read_list(folder / name)
    return TrainDataset(
        files, FileReader(files), build_stages(parse_train(["--transform", "light", *words]), WAY), seed=4
    )


def evaluation(folder, *ways, name="train.txt"):
    files = read_list(folder / name)
    return EvalDataset(files, FileReader(files), ways or (WAY,))


def key(*indices, epoch=1, copies=None):
    return BatchIndices(epoch, 7, np.array(indices), np.array(copies or [0] * len(indices)))


# ------------------------------------------------------------------------ training


def test_train_batch_has_documented_shapes_and_dtypes(folder):
    batch = training(folder).__getitems__(key(3, 0, 8, epoch=5))
    assert batch.image.shape == (3, 3, 32, 32)
    assert batch.image.dtype == torch.uint8
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    assert batch.image.stride() == (32 * 32 * 3, 1, 32 * 3, 3)
    assert batch.label.dtype == batch.index.dtype == torch.int64
    assert batch.label.tolist() == batch.index.tolist() == [3, 0, 8]
    assert (batch.epoch, batch.number, batch.bad) == (5, 7, ())


def test_train_image_in_any_batch_is_the_same(folder):
    data = training(folder)
    batch = data.__getitems__(key(0, 1, 3, 4, 7, 8))
    pipeline = data.pipeline(1)
    for row, index in enumerate(batch.index.tolist()):
        wanted = pipeline(lambda need, index=index: data.reader.read(index, need), sample_rng(4, 1, index))
        assert np.array_equal(batch.image[row].permute(1, 2, 0).numpy(), wanted)
    other = data.__getitems__(key(8, 0))
    assert torch.equal(other.image, batch.image[[5, 0]])


def test_train_image_per_epoch_and_copy_differs(folder):
    data = training(folder)
    images = [data.__getitems__(key(0, epoch=epoch, copies=[copy])).image for epoch in (1, 2) for copy in (0, 1)]
    assert len({image.numpy().tobytes() for image in images}) == 4


def test_train_unreadable_image_is_replaced_by_next_with_its_label(folder):
    data = training(folder)
    batch = data.__getitems__(key(5, 1, 2, 11))
    # 5 and 6 are bad; after the last comes the first
    assert batch.index.tolist() == batch.label.tolist() == [7, 1, 3, 0]
    assert torch.equal(batch.image, data.__getitems__(key(7, 1, 3, 0)).image)
    assert [index for index, _ in batch.bad] == [5, 6, 2, 11]
    for index, text in batch.bad:
        assert f"{folder}/{index}.jpg: " in text
        assert f"({folder}/train.txt, line {index + 2})" in text  # the first line is blank


def test_train_unreadable_image_has_a_reason(folder):
    reasons = dict(training(folder).__getitems__(key(2, 5, 6, 11)).bad)
    assert "empty" in reasons[2]
    assert "not a readable image" in reasons[5]
    assert "No such file" in reasons[6]
    assert "Truncated" in reasons[11]


def test_train_nothing_readable_raises_naming_first(folder):
    with pytest.raises(ImageError, match=r"4 images in a row cannot be read; the first: .*6\.jpg.*none\.txt, line 3"):
        training(folder, name="none.txt").__getitems__(key(2))


def test_train_too_many_unreadable_in_a_row_raises(folder, tmp_path, monkeypatch):
    (tmp_path / "train.txt").write_text("".join(f"gone{k}.jpg 0\n" for k in range(50)) + f"{folder}/0.jpg 1\n")
    monkeypatch.setattr(dataset, "MAX_REPLACEMENTS", 20)
    with pytest.raises(ImageError, match=r"20 images in a row.*gone3\.jpg"):
        training(tmp_path).__getitems__(key(3))
    assert training(tmp_path).__getitems__(key(31)).index.tolist() == [50]


@pytest.mark.parametrize("words", [("-w", "0"), ("-w", "1"), ("-w", "1", "--loader", "process")], ids=" ".join)
def test_train_loader_unreadable_images_are_all_reported(folder, words):
    opt = parse_train(["-b", "6", "--epochs", "1", "--gpu", "-1", "--transform", "light", *words])
    batches = list(dataloader.train_loader(opt, read_list(folder / "train.txt"), WAY).batches(1))
    assert {index for batch in batches for index, _ in batch.bad} == set(BAD)
    assert not {index for batch in batches for index in batch.index.tolist()} & set(BAD)
    assert [len(batch.index) for batch in batches] == [6, 6]


@pytest.mark.parametrize("workers", [0, 1])
def test_train_loader_nothing_readable_is_user_error(folder, workers):
    opt = parse_train(["-b", "4", "--gpu", "-1", "-w", str(workers)])
    with pytest.raises(UserError, match=r"4 images in a row cannot be read.*\n.*tools\.doctor"):
        list(dataloader.train_loader(opt, read_list(folder / "none.txt"), WAY).batches(1))


def test_train_scale_schedule_changes_size_at_its_epochs(folder):
    data = training(folder, "--scale_schedule", "1:16,3:24")
    assert [data.pipeline(epoch).size for epoch in (0, 1, 2, 3, 9)] == [16, 16, 16, 24, 24]
    assert data.__getitems__(key(0, epoch=3)).image.shape == (1, 3, 24, 24)
    assert data.batch_bytes(5) == 5 * 3 * 24 * 24


# ------------------------------------------------------------------------ evaluation


def test_eval_batch_has_documented_shapes_and_dtypes(folder):
    batch = evaluation(folder).__getitems__(key(0, 1, 3))
    assert isinstance(batch.images, tuple)
    assert [image.shape for image in batch.images] == [(3, 3, 32, 32)]
    assert batch.images[0].dtype == torch.uint8
    assert batch.images[0].is_contiguous(memory_format=torch.channels_last)
    assert batch.label.dtype == batch.index.dtype == torch.int64
    assert batch.label.tolist() == batch.index.tolist() == [0, 1, 3]
    assert batch.readable.dtype == torch.bool
    assert batch.readable.all()
    assert batch.bad == ()


def test_eval_unreadable_image_is_black_and_marked(folder):
    ways = (WAY, Preprocess(24, "pad", MEAN, MEAN))
    batch = evaluation(folder, *ways).__getitems__(key(*range(12)))
    assert batch.index.tolist() == batch.label.tolist() == list(range(12))
    assert batch.readable.tolist() == [k not in BAD for k in range(12)]
    for images in batch.images:
        black = (images == 0).flatten(1).all(dim=1)
        assert black.tolist() == [k in BAD for k in range(12)]
    assert dict(batch.bad).keys() == BAD.keys()
    for index, text in batch.bad:
        assert f"{folder}/{index}.jpg: " in text
        assert f"({folder}/train.txt, line {index + 2})" in text


def test_eval_nothing_readable_is_no_error(folder):
    batch = evaluation(folder, name="none.txt").__getitems__(key(0, 1, 2, 3))
    assert not batch.readable.any()
    assert not batch.images[0].any()
    assert len(batch.bad) == 4


def test_eval_several_preprocessings_read_each_file_once(folder, monkeypatch):
    ways = (
        WAY,
        Preprocess(48, "crop", MEAN, MEAN),
        Preprocess(40, "pad", MEAN, MEAN),
        Preprocess(16, "squash", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    )
    read = []
    real = FileReader.read
    monkeypatch.setattr(FileReader, "read", lambda self, index, need: read.append(index) or real(self, index, need))
    batch = evaluation(folder, *ways).__getitems__(key(0, 1))
    assert read == [0, 1]
    assert [tuple(image.shape) for image in batch.images] == [(2, 3, side, side) for side in (32, 48, 40, 16)]
    for way, images in zip(ways, batch.images, strict=True):
        alone = evaluation(folder, way).__getitems__(key(0, 1)).images[0]
        assert (alone.float() - images.float()).abs().mean() < 3  # it may have been decoded at another eighth
        image, full = read_image(f"{folder}/0.jpg")
        fit, whole = EvalGeometry(way), np.empty((way.scale, way.scale, 3), np.uint8)
        fit.render(image, full, fit.choose_region(*full), whole)
        assert np.abs(images[0].permute(1, 2, 0).numpy().astype(int) - whole).mean() < 3
    assert evaluation(folder, *ways).batch_bytes(7) == 7 * 3 * (32**2 + 48**2 + 40**2 + 16**2)


def test_eval_loader_unlabelled_list_gives_minus_one_twice(folder, tmp_path):
    (tmp_path / "test.txt").write_text("".join(f"{folder}/{k}.jpg\n" for k in range(7)))
    opt = parse_train(["-b", "3", "--gpu", "-1", "-w", "2"])
    loader = dataloader.eval_loader(opt, read_list(tmp_path / "test.txt", labelled=False), (WAY,))
    first, second = list(loader), list(loader)
    assert len(loader) == len(first) == 3
    assert torch.cat([batch.label for batch in first]).tolist() == [-1] * 7
    assert torch.cat([batch.index for batch in first]).tolist() == list(range(7))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.images[0], other.images[0])
        assert one.bad == other.bad


# ------------------------------------------------------------------------ memory


def test_as_images_shares_memory():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    batch = as_images(torch.from_numpy(images))
    assert batch.data_ptr() == images.ctypes.data
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(batch.permute(0, 2, 3, 1).numpy(), images)


def test_eval_reader_is_asked_for_largest_size_needed(folder):
    asked = []
    files = read_list(folder / "train.txt")

    def read(index, need):
        asked.append(need(1000, 2000))
        return np.zeros((1000, 2000, 3), np.uint8), (1000, 2000)

    ways = (
        Preprocess(100, "squash", MEAN, MEAN),
        Preprocess(140, "crop", MEAN, MEAN),
        Preprocess(90, "pad", MEAN, MEAN),
    )
    EvalDataset(files, SimpleNamespace(read=read), ways).__getitems__(key(0))
    assert asked == [pytest.approx(0.16)]  # 140 of the 875 pixels that the crop shows
