"""Hints for paths that do not exist: what a mistyped name was likely to mean."""

from dataloader.list_advice import missing_list
from utils.errors import path_hint


def test_path_hint_of_a_file_in_the_wrong_folder_names_the_one_beside_it(tmp_path):
    for name in ("a+b", "a+b_flip", "other"):
        (tmp_path / name).mkdir()
    for name in ("a+b_flip", "other"):
        (tmp_path / name / "ensemble.yaml").touch()
    assert path_hint(tmp_path / "a+b" / "ensemble.yaml") == f" Did you mean {tmp_path}/a+b_flip/ensemble.yaml?"
    assert path_hint(tmp_path / "a+b" / "none.yaml") == ""


def test_missing_list_in_a_mistyped_folder_names_the_folder(tmp_path):
    (tmp_path / "datasets").mkdir()
    said = missing_list(tmp_path / "dataset" / "train.txt", labelled=True)
    assert f"The folder {tmp_path}/dataset does not exist. Did you mean {tmp_path}/datasets?" in said
