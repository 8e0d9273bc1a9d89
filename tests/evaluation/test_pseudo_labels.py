"""submit.py --pseudo_label of several labels per image: what is sure, the list, and what is refused."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dataloader.file_list import read_list
from evaluation.calibration import labels_at_temperature
from evaluation.scored import TargetScored
from evaluation.target_submission import sureness, write_pseudo_labels
from evaluation.targets import TargetPredictions
from utils.classes import Classes


def test_sureness_of_one_half_is_the_probability_of_the_decision():
    values = np.array([0.0, 0.1, 0.5, 0.8, 1.0])
    assert sureness(values, np.full(5, 0.5)) == pytest.approx([1, 0.9, 0.5, 0.8, 1])


def test_sureness_moves_the_threshold_to_one_half():
    """It is one half at any threshold, grows on both sides of it, and a temperature scales its log odds alone."""
    threshold = np.array([0.1, 0.3, 0.9])
    assert sureness(threshold, threshold) == pytest.approx(0.5)
    assert (sureness(threshold * 1.05, threshold) > 0.5).all() and (sureness(threshold * 0.95, threshold) > 0.5).all()
    warm = sureness(labels_at_temperature(np.full(3, 0.6), 2.0), labels_at_temperature(threshold, 2.0))
    assert labels_at_temperature(warm, 0.5) == pytest.approx(sureness(np.full(3, 0.6), threshold))
    assert sureness(np.array([0.0, 1.0]), np.array([0.0, 1.0])).tolist() == [0, 0]  # odds that are no number


def scored(folder: Path, thresholds: list[float] | None = None) -> TargetScored:
    value = np.array(
        [[0.97, 0.02, 0.99], [0.01, 0.03, 0.04], [0.99, 0.5, 0.99], [0.2, 0.96, 0.01], [0.99, 0.99, 0.99]], np.float32
    )
    readable = np.array([True, True, True, True, False])
    files = SimpleNamespace(path=lambda index: f"{folder}/a b/{index}.png")
    return TargetScored(
        TargetPredictions(np.arange(5), value, readable, None),
        files,
        Classes(3, task="multilabel", thresholds=thresholds),
    )


def test_pseudo_labels_read_back_as_multilabel_training_list(tmp_path):
    path = tmp_path / "deep/p.txt"
    write_pseudo_labels(path, scored(tmp_path), 0.95)
    files = read_list(path, task="multilabel")
    assert [files.path(k) for k in range(len(files))] == [f"{tmp_path}/a b/{k}.png" for k in (0, 1)]
    assert [files.target_text(k) for k in range(2)] == ["0,2", "-"]
    write_pseudo_labels(path, scored(tmp_path, [0.01, 0.5, 0.5]), 0.95)
    assert path.read_text() == f"{tmp_path}/a b/0.png 0,2\n{tmp_path}/a b/3.png 0,1\n"  # 0.2 is far above 0.01
    write_pseudo_labels(path, scored(tmp_path), 0.999)
    assert not path.exists()


def test_submit_pseudo_labels_are_the_labels_of_the_submission_and_train(task_checkpoint, colours, script, small):
    words = ["--tag", "s", "--load", task_checkpoint("multilabel"), "--gpu", "-1", "-w", "0"]
    plain = script("submit.py", *words, "--probabilities", "--out", "p.csv")
    assert plain.code == 0, plain.err
    values = [[float(row["red"]), float(row["green"])] for row in csv.DictReader(Path("p.csv").open())]
    sure = [min(max(p, 1 - p) for p in row) for row in values]
    edge = sorted(sure)[1]  # three of four images
    for _ in range(2):  # the second time, it replaces a list that begins with `-` or `0,1`
        result = script("submit.py", *words, "--pseudo_label", f"{edge - 1e-9:.12f}")
        assert result.code == 0 and "3 of 4 images" in result.out, result.err
    path = Path("results/s/submission.pseudo.txt")
    listed = dict(line.rsplit(" ", 1) for line in path.read_text().splitlines())
    rows = list(csv.DictReader(Path("results/s/submission.csv").open()))
    wanted = [row["predicted"].replace(" ", ",") or "-" for row, one in zip(rows, sure, strict=True) if one >= edge]
    assert list(listed.values()) == wanted and all(Path(name).is_absolute() for name in listed)
    again = ["--task", "multilabel", "--data_root", colours / "multilabel", "--num_classes", 2, "-b", 3]
    result = script("train.py", "--tag", "next", *again, *small, "--epochs", 1, "--train_list", path)
    assert result.code == 0, result.err


@pytest.mark.parametrize(("first", "taken"), [("/a/b.png 0,1", True), ("/a/b.png -", True), ("my notes", False)])
def test_submit_pseudo_labels_replace_only_a_list(task_checkpoint, script, first, taken):
    Path("results/s").mkdir(parents=True)
    Path("results/s/submission.pseudo.txt").write_text(f"{first}\n")
    words = ["--tag", "s", "--load", task_checkpoint("multilabel"), "--gpu", "-1", "-w", "0"]
    result = script("submit.py", *words, "--pseudo_label", "0")
    assert (result.code == 0) == taken
    assert taken or "does not look like a list of pseudo-labels" in result.err


def test_submit_pseudo_labels_of_numbers_are_refused(task_checkpoint, script):
    network = task_checkpoint("regression")
    result = script("submit.py", "--load", network, "--gpu", "-1", "--pseudo_label", "0.9")
    assert result.code == 2 and f"--pseudo_label is for probabilities; the task of {network} is regr" in result.err
