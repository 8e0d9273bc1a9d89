"""The four scripts, one after another, as a user runs them."""

import csv
import json
import re

import pytest


@pytest.fixture
def trained(script, photo_set, small, tmp_path):
    """A finished run of two epochs, tag `run`, in the current folder."""
    result = script("train.py", "--tag", "run", "--data_root", photo_set, "--epochs", 2, *small)
    assert result.code == 0, result.err + result.out
    return tmp_path


def test_train_leaves_what_it_promises(trained):
    assert {path.name for path in (trained / "checkpoints/run").iterdir()} == {"2_ResNet18.pt", "last.pt", "best.pt"}
    names = {path.name for path in (trained / "logs/run").iterdir()}
    assert {"log.txt", "metrics.csv", "curves.png", "options.yaml"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    with open(trained / "logs/run/metrics.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    assert re.search(r"pid \d+\ttag run\tdone in \d+ s\tpython train.py --tag run ", (trained / "run_log.txt").read_text())


def test_eval_gives_the_score_that_training_printed(trained, script, photo_set):
    with open(trained / "logs/run/metrics.csv") as file:
        last = list(csv.DictReader(file))[-1]
    checkpoint = "checkpoints/run/2_ResNet18.pt"
    result = script("eval.py", "--tag", "run", "--load", checkpoint, "--data_root", photo_set, "-b", 12, "--gpu", -1, "-w", 0)
    assert result.code == 0, result.err
    metrics = json.loads((trained / "results/run/2/metrics.json").read_text())
    for name in ("top1", "top5", "mean_class_accuracy", "loss"):
        assert abs(metrics[name] - float(last[f"val_{name}"])) < 1e-6
    assert metrics["count"] == 12
    assert f"top1 {metrics['top1']:.6f}" in (trained / "logs/run/log.txt").read_text()


def test_submission_has_every_test_image_in_order(trained, script, photo_set):
    assert script("submit.py", "--tag", "run", "--load", "checkpoints/run/best.pt", "--data_root", photo_set, "--gpu", -1).code == 0
    lines = (trained / "results/run/submission.csv").read_text().splitlines()
    listed = (photo_set / "test.txt").read_text().splitlines()
    assert lines[0] == "id,predicted"
    assert [line.split(",")[0] for line in lines[1:]] == [path.split("/")[-1] for path in listed]
    assert all(line.split(",")[1] in ("0", "1", "2") for line in lines[1:])
