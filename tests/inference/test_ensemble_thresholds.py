"""Thresholds of labels in ensemble.yaml: eval.py writes them, --ensemble uses them, --threshold comes first."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.calibration import labels_at_temperature
from options.plain_yaml import read_yaml
from utils.files import write_yaml

COMMON = ["--gpu", "-1", "-w", "0"]
SCORE = [*COMMON, "--resamples", "0", "--no-report"]


@pytest.fixture
def fitted(task_checkpoint, script):
    """`fitted(*words)` runs eval.py over two members, which fits thresholds; the ensemble.yaml and its metrics."""

    def run(*words: object):
        load = ["--load", *(task_checkpoint("multilabel") for _ in range(2))]
        result = script("eval.py", "--tag", "t", *load, *SCORE, "--scale", "24", "--fit_thresholds", *words)
        assert result.code == 0, result.err
        (path,) = Path("results/t").glob("*/ensemble.yaml")
        return path, json.loads((path.parent / "metrics.json").read_text())

    return run


def scored(script, path: Path, *words: object) -> tuple[dict, str]:
    result = script("eval.py", "--tag", "again", "--ensemble", path, *SCORE, *words)
    assert result.code == 0, result.err
    return json.loads(next(Path("results/again").glob("*/metrics.json")).read_text()), result.out


@pytest.mark.parametrize("rule", ["one", "per_label"])
def test_ensemble_file_holds_the_thresholds_and_all_commands_use_them(fitted, script, rule):
    path, metrics = fitted(rule)
    stored = read_yaml(path)["thresholds"]
    assert stored["rule"] == rule and stored["images"] == "8" and len(stored["values"]) == (1 if rule == "one" else 2)
    assert float(stored["values"][0]) == pytest.approx(metrics["threshold"], rel=1e-8) and metrics["threshold"] != 0.5
    again, shown = scored(script, path)
    assert again["micro_f1"] == metrics["micro_f1"] and again["threshold"] == pytest.approx(metrics["threshold"])
    assert f"as {path} says (fitted to 8 images)" in shown and "now it is" not in shown

    for out, words in (("l.csv", []), ("p.csv", ["--probabilities"]), ("half.csv", ["--threshold", "0.5"])):
        result = script("submit.py", "--tag", "s", "--ensemble", path, *COMMON, "--out", out, *words)
        assert result.code == 0, result.err
        assert (f"as {path} says" in result.out) == (out != "half.csv")
    labels, probabilities, half = (list(csv.DictReader(Path(f"{name}.csv").open())) for name in ("l", "p", "half"))
    for file, edge in ((labels, metrics["threshold"]), (half, 0.5)):
        for one, other in zip(file, probabilities, strict=True):
            above = [str(k) for k, name in enumerate(("red", "green")) if float(other[name]) >= edge]
            assert one["predicted"].split() == above
    assert labels != half


def test_ensemble_thresholds_hold_for_temperature_1_and_move_with_it(fitted, script):
    path, metrics = fitted("one", "--temperature", "2")
    (stored,) = map(float, read_yaml(path)["thresholds"]["values"])
    at_one = labels_at_temperature(np.array([metrics["threshold"]]), 0.5)[0]
    assert stored == pytest.approx(at_one) != metrics["threshold"]
    again, _ = scored(script, path, "--temperature", "2")
    assert again["threshold"] == pytest.approx(metrics["threshold"])
    assert again["micro_f1"] == metrics["micro_f1"]
    cold, _ = scored(script, path)
    assert cold["threshold"] == pytest.approx(stored)


def test_ensemble_thresholds_of_other_views_are_used_with_a_warning(fitted, script):
    path, _ = fitted("one")
    _, shown = scored(script, path, "--tta", "flip")
    assert f"The thresholds of {path} were fitted with --tta none; now it is flip." in shown
    _, shown = scored(script, path, "--tta", "flip", "--threshold", "0.4")
    assert "The thresholds of" not in shown


def test_ensemble_file_without_thresholds_counts_labels_from_one_half(fitted, script):
    path, _ = fitted("one")
    content = read_yaml(path)
    del content["thresholds"]
    write_yaml(path, content)
    again, shown = scored(script, path)
    assert again["threshold"] == 0.5 and "says" not in shown


@pytest.mark.parametrize(
    ("thresholds", "problem"),
    [
        ("0.5", "thresholds.values is None; allowed: numbers from 0 to 1"),
        ({"values": []}, "thresholds.values is []"),
        ({"values": ["0.2", "1.5"]}, "thresholds.values is ['0.2', '1.5']"),
        ({"values": ["a"]}, "thresholds.values is ['a']"),
        ({"values": ["0.1", "0.2", "0.3"]}, "3 numbers; allowed: one, or one for each of the 2 labels"),
    ],
)
def test_ensemble_file_with_damaged_thresholds_is_refused(fitted, script, thresholds, problem):
    path, _ = fitted("one")
    write_yaml(path, read_yaml(path) | {"thresholds": thresholds})
    result = script("submit.py", "--ensemble", path, *COMMON)
    assert result.code == 2 and problem in result.err


def test_ensemble_thresholds_of_numbers_are_refused(task_checkpoint, script):
    load = ["--load", *(task_checkpoint("regression") for _ in range(2))]
    assert script("eval.py", "--tag", "t", *load, *SCORE, "--blend", "optimal").code == 0
    (path,) = Path("results/t").glob("*/ensemble.yaml")
    write_yaml(path, read_yaml(path) | {"thresholds": {"values": ["0.5"]}})
    result = script("submit.py", "--ensemble", path, *COMMON)
    assert result.code == 2 and "holds thresholds, and the task of its members is regression" in result.err
