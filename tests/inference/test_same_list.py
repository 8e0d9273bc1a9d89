"""A list is itself from any folder and by any of its names; a list of the same name elsewhere may be another."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from dataloader.file_list import read_list
from evaluation import compare, results
from inference import saved_probs
from utils.classes import Classes
from utils.errors import UserError

CLASSES = Classes(2, ["a", "b"])
IMAGES = 3


@pytest.fixture
def named(tmp_path, monkeypatch):
    """Make one/lists/val.txt, with paths into its folder and beside it; the working folder is one/."""
    (tmp_path / "one/lists").mkdir(parents=True)
    (tmp_path / "one/lists/val.txt").write_text("0.png 0\n../images/1.png 1\nimages/2.png 0\n")
    monkeypatch.chdir(tmp_path / "one")
    return tmp_path


def saved(path: Path, list_file: str) -> saved_probs.SavedProbs:
    """Write probabilities for a list, and read them."""
    values = np.zeros((IMAGES, 2), np.float16)
    saved_probs.write(path, values, np.ones(IMAGES, bool), read_list(list_file), CLASSES)
    return saved_probs.read(str(path))


def names(folder: Path) -> list[str]:
    """Return what the list can be called from one/."""
    return ["lists/val.txt", "./lists/val.txt", "lists/../lists/val.txt", str(folder / "one/lists/val.txt")]


@pytest.mark.parametrize("first", range(4))
def test_saved_probabilities_fit_their_list_by_every_name(named, monkeypatch, caplog, first):
    """An absolute path of the list, as a checkpoint records it, was another list than the relative one."""
    probs = saved(named / "probs.npz", names(named)[first])
    for name in names(named):
        saved_probs.check_same_list(read_list(name), probs)
    monkeypatch.chdir("lists")
    saved_probs.check_same_list(read_list("val.txt"), probs)
    assert not caplog.records
    Path("val.txt").write_text("0.png 0\n../images/1.png 1\nimages/2.png 1\n")
    with pytest.raises(UserError, match="another list than val.txt"):
        saved_probs.check_same_list(read_list("val.txt"), probs)


def test_saved_probabilities_of_a_list_of_the_same_name_elsewhere_cause_a_warning(named, monkeypatch, caplog):
    """A second version of a data set, named alike from its own folder, passed in silence for the first one."""
    monkeypatch.setattr(saved_probs.log, "propagate", True)
    probs = saved(named / "probs.npz", "lists/val.txt")
    shutil.copytree(named / "one", named / "two")
    monkeypatch.chdir(named / "two")
    saved_probs.check_same_list(read_list("lists/val.txt"), probs)
    assert "in another folder than lists/val.txt" in caplog.text
    with pytest.raises(UserError, match="another list"):
        saved_probs.check_same_list(read_list(str(named / "two/lists/val.txt")), probs)


def test_saved_probabilities_of_an_earlier_version_fit_their_list_as_it_was_named(named, caplog):
    path = named / "probs.npz"
    for name in (names(named)[0], names(named)[3]):
        saved(path, name)
        with np.load(path) as content:
            arrays = {key: content[key] for key in content.files if key != "list_hash_absolute"}
        np.savez(path, **arrays)
        saved_probs.check_same_list(read_list(name), saved_probs.read(str(path)))
    assert not caplog.records


def test_compare_takes_the_predictions_of_the_list_by_another_name(named):
    """eval.py --compare refused an evaluation that was not given --val_list as this one was."""
    table = named / "predictions.csv"
    for name in names(named):
        files = read_list(name)
        with open(table, "w", newline="") as file:
            rows = [[files.path(k), files.label[k], 1] for k in range(IMAGES)]
            csv.writer(file).writerows([["path", "label", "predicted"], *rows])
        for other in names(named):
            found = compare.read_classes(str(table), read_list(other), CLASSES, IMAGES)
            assert found.predicted.tolist() == [1, 1, 1]
    table.write_text(table.read_text().replace("images/2.png", "images/3.png"))
    with pytest.raises(UserError, match="row 4 of"):
        compare.read_classes(str(table), read_list("lists/val.txt"), CLASSES, IMAGES)


def test_runs_of_a_list_are_set_side_by_side_whatever_it_was_called(named):
    """report.html left them out as evaluations of another list."""

    def noted(name: str) -> dict[str, str]:
        return read_list(name).hashes()

    runs = [noted(name) for name in names(named)]
    assert len({run["list_hash"] for run in runs}) > 1
    assert all(results._same_list(run, made_by) for run in runs for made_by in runs)
    earlier = {"list_hash": runs[0]["list_hash"]}
    assert results._same_list(earlier, runs[0]) and not results._same_list({}, runs[0])
    Path("lists/val.txt").write_text("0.png 0\n../images/1.png 1\nimages/2.png 1\n")
    assert not results._same_list(noted("lists/val.txt"), runs[0])
