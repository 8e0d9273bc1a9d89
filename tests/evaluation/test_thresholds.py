"""Fitted thresholds of labels, held against a search over every cut; and eval.py --fit_thresholds as a command."""

import csv
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

import inference.thresholds
from conftest import Script
from dataloader.targets import LabelSets, joined
from evaluation import targets, thresholds
from evaluation.calibration import labels_at_temperature
from evaluation.targets import TargetPredictions
from inference.thresholds import threshold_flag
from utils import checkpoint
from utils.errors import UserError


def labelled(images: int = 200, steps: int = 0) -> tuple[TargetPredictions, np.ndarray, np.ndarray]:
    """Predictions of five labels, and what is present and predicted of the readable images; label 0 is rare."""
    rng = np.random.default_rng(4)
    present = rng.random((images, 5)) < (0.02, 0.1, 0.3, 0.5, 0.9)
    value = np.clip(rng.normal(0.2 + 0.2 * present, 0.12), 0.001, 0.999).astype(np.float32)
    value = (np.round(value * steps) / steps).astype(np.float32) if steps else value
    readable = rng.random(images) < 0.9
    found = joined("multilabel", [np.flatnonzero(row).tolist() for row in present])
    predictions = TargetPredictions(np.arange(images), value, readable, LabelSets(found.start, found.label, 5))
    return predictions, present[readable], value[readable]


@pytest.mark.parametrize("steps", [0, 6])
def test_fit_thresholds_give_the_highest_f1_of_all_cuts(steps, monkeypatch):
    monkeypatch.setattr(targets, "BLOCK_VALUES", 40)  # many blocks
    predictions, present, value = labelled(steps=steps)
    cuts = np.unique(value)
    one = thresholds.fit_thresholds(predictions, "one", np.arange(200))
    best = max(f1_score(present, value >= cut, average="micro") for cut in cuts)
    assert len(set(one.values)) == 1 and one.after["micro_f1"] == pytest.approx(best, abs=1e-12)
    assert np.abs(value - one.values[0]).min() > 1e-9  # between two probabilities, not on one
    assert one.before["micro_f1"] == pytest.approx(f1_score(present, value >= 0.5, average="micro"), abs=1e-12)
    each = thresholds.fit_thresholds(predictions, "per_label", np.arange(200))
    for k in range(1, 5):
        best = max(f1_score(present[:, k], value[:, k] >= cut) for cut in cuts)
        assert f1_score(present[:, k], value[:, k] >= each.values[k]) == pytest.approx(best, abs=1e-12)
    assert np.abs(value[:, 1:] - np.array(each.values[1:])).min() > 1e-9
    assert 0 < present[:, 0].sum() < thresholds.MIN_POSITIVES and each.values[0] == one.values[0]
    assert (one.shared, each.shared, each.images) == (0, 1, len(value))
    assert each.after["macro_f1"] == pytest.approx(f1_score(present, value >= np.array(each.values), average="macro"))


def test_fit_thresholds_cross_fitted_scores_are_of_images_left_out():
    """Labels of chance: the best cuts of a list gain on it, and next to nothing on other images."""
    rng = np.random.default_rng(0)
    found = joined("multilabel", [np.flatnonzero(row).tolist() for row in rng.random((60, 30)) < 0.25])
    value = rng.random((60, 30)).astype(np.float32)
    predictions = TargetPredictions(np.arange(60), value, np.ones(60, bool), LabelSets(found.start, found.label, 30))
    fitted = thresholds.fit_thresholds(predictions, "per_label", np.arange(60), seed=1)
    assert fitted.shared == 0 or fitted.shared < 10
    assert fitted.after["macro_f1"] > fitted.cross_fitted["macro_f1"] + 0.03
    assert fitted == thresholds.fit_thresholds(predictions, "per_label", np.arange(60), seed=1)


def test_fit_thresholds_of_images_listed_twice_cross_fits_as_of_each_image_once():
    """In a doubled list, each line was scored at a threshold fitted to the other one."""
    rng = np.random.default_rng(0)
    present, value = rng.random((60, 3)) < 0.25, rng.random((60, 3)).astype(np.float32)

    def cross_fitted(times: int, image: np.ndarray) -> dict[str, float]:
        found = joined("multilabel", [np.flatnonzero(row).tolist() for row in np.tile(present, (times, 1))])
        shown = np.tile(value, (times, 1)), np.ones(60 * times, bool), LabelSets(found.start, found.label, 3)
        predictions = TargetPredictions(np.arange(60 * times), *shown)
        return thresholds.fit_thresholds(predictions, "one", image).cross_fitted

    once = cross_fitted(1, np.arange(60))
    assert cross_fitted(2, np.arange(120) % 60) == once
    assert cross_fitted(2, np.arange(120))["micro_f1"] > once["micro_f1"]


def test_fit_thresholds_without_a_label_is_refused():
    none = LabelSets(np.zeros(4, np.int64), np.zeros(0, np.int32), 2)
    predictions = TargetPredictions(np.arange(3), np.full((3, 2), 0.3, np.float32), np.ones(3, bool), none)
    with pytest.raises(UserError, match="--fit_thresholds needs readable images with labels"):
        thresholds.fit_thresholds(predictions, "one", np.arange(3))


def test_at_temperature_divides_the_logits_and_is_undone_by_its_inverse():
    p = torch.linspace(0.001, 0.999, 50, dtype=torch.float64)
    assert labels_at_temperature(p.numpy(), 2.5) == pytest.approx((p.logit() / 2.5).sigmoid().numpy(), abs=1e-12)
    assert labels_at_temperature(labels_at_temperature(p.numpy(), 2.5), 1 / 2.5) == pytest.approx(p.numpy(), abs=1e-12)
    assert labels_at_temperature(np.array([0.0, 0.5, 1.0]), 7.0).tolist() == [0, 0.5, 1]


# ------------------------------------------------------------------------------------------------ as a command


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_eval_fit_thresholds_stores_them_and_all_commands_use_them(task_checkpoint, script: Script):
    path = task_checkpoint("multilabel")
    words = ["--tag", "t", "--load", path, "--gpu", "-1", "-w", "0", "--resamples", "20"]
    before = checkpoint.load(path)
    plain = script("eval.py", *words)
    assert plain.code == 0 and "thresholds" not in plain.out
    folder = next(Path("results/t").iterdir())
    assert json.loads((folder / "metrics.json").read_text())["threshold"] == 0.5

    result = script("eval.py", *words, "--fit_thresholds", "one")
    assert result.code == 0, result.err
    assert f"--fit_thresholds adds the thresholds to {path}: that file is rewritten" in result.out
    assert "which is optimistic; cross-fitted: " in result.out and "--threshold" not in result.out.split("Next:")[1]
    after = checkpoint.load(path)
    stored = after.pop("thresholds")
    assert checkpoint.identity(after) == checkpoint.identity(before) and set(after) == set(before)
    assert all(torch.equal(value, after["weights"][name]) for name, value in before["weights"].items())
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["threshold"] == stored["values"][0] != 0.5
    assert metrics["micro_f1"] == pytest.approx(metrics["fitted_thresholds"]["after"]["micro_f1"])
    assert "so the F1 scores are optimistic" in (folder / "report.html").read_text()
    predicted = rows_of(folder / "predictions.csv")
    assert {row["threshold"] for row in rows_of(folder / "per_class.csv")} == {f"{stored['values'][0]:.6f}"}

    again = script("eval.py", *words)
    assert again.code == 0 and f"as {path} says" in again.out
    unfitted = json.loads((folder / "metrics.json").read_text())
    assert unfitted["micro_f1"] == metrics["micro_f1"] and "fitted_thresholds" not in unfitted
    assert rows_of(folder / "predictions.csv") == predicted
    half = script("eval.py", *words, "--threshold", "0.5")
    assert half.code == 0 and json.loads((folder / "metrics.json").read_text())["threshold"] == 0.5

    words = words[:-2]
    assert "fitted with" not in again.out
    other = script("eval.py", *words, "--resamples", 0, "--no-report", "--scale", stored["scale"] + 16)
    assert f"The thresholds were fitted with --scale {stored['scale']}; now it is {stored['scale'] + 16}." in other.out

    assert script("submit.py", *words, "--out", "l.csv").code == 0
    assert script("submit.py", *words, "--out", "p.csv", "--probabilities").code == 0
    assert json.loads(Path("l.provenance.json").read_text())["threshold"] == metrics["threshold"]
    for one, other in zip(rows_of(Path("l.csv")), rows_of(Path("p.csv")), strict=True):
        above = [str(k) for k, name in enumerate(("red", "green")) if float(other[name]) >= metrics["threshold"]]
        assert one["predicted"].split() == above
    assert script("eval.py", *words, "--resamples", 0, "--no-report", "--fit_thresholds", "half").code == 0
    assert checkpoint.load(path)["thresholds"] is None


def test_eval_thresholds_that_cannot_be_fitted_leave_the_checkpoint_without_a_temperature(
    task_checkpoint, colours, script: Script, tmp_path
):
    """No label occurs in the list: a temperature can be fitted to it, thresholds cannot."""
    path = task_checkpoint("multilabel")
    images = [line.rpartition(" ")[0] for line in (colours / "multilabel/val.txt").read_text().splitlines()]
    (tmp_path / "bare.txt").write_text("".join(f"{colours / 'multilabel' / image} -\n" for image in images))
    before = path.read_bytes()
    words = ["--load", path, "--val_list", "bare.txt", "--gpu", "-1", "-w", "0", "--resamples", "0", "--no-report"]
    result = script("eval.py", *words, "--calibrate", "--fit_thresholds", "one")
    assert result.code == 2 and "--fit_thresholds needs readable images with labels" in result.err
    assert "Temperature " in result.out and path.read_bytes() == before


@pytest.mark.parametrize("flag", ["--calibrate", "--fit_thresholds one"])
def test_eval_that_cannot_write_the_checkpoint_says_so_before_the_work(
    flag, task_checkpoint, script: Script, monkeypatch
):
    path, access = task_checkpoint("multilabel"), os.access
    monkeypatch.setattr(os, "access", lambda at, *rest, **more: Path(at) != path.parent and access(at, *rest, **more))
    result = script("eval.py", "--load", path, "--gpu", "-1", "-w", "0", *flag.split())
    assert result.code == 2 and f"{path} cannot be written" in result.err and "Traceback" not in result.err
    assert "Temperature " not in result.out and "Labels count as" not in result.out


def test_eval_fits_in_debug_change_no_checkpoint(task_checkpoint, script: Script):
    """The temperature and the thresholds of a few batches were stored, and submit.py used them."""
    path = task_checkpoint("multilabel")
    content = path.read_bytes()
    words = ["--tag", "t", "--load", path, "--gpu", "-1", "-w", "0", "--resamples", "0", "--no-report"]
    result = script("eval.py", *words, "--calibrate", "--fit_thresholds", "one", "--debug")
    assert result.code == 0 and path.read_bytes() == content, result.err
    assert (
        "--debug: no checkpoint is changed, as a few batches are too few for --calibrate and --fit_thresholds."
        in result.out
    )
    assert "Labels count as predicted" in result.out and "Stored" not in result.out
    assert not re.search("Next:.*(--temperature|--threshold)", result.out)


def test_eval_fit_thresholds_of_a_blend_changes_no_checkpoint_and_writes_an_ensemble(task_checkpoint, script: Script):
    path = task_checkpoint("multilabel")
    words = ["--tag", "t", "--load", path, path, "--gpu", "-1", "-w", "0", "--resamples", "0", "--no-report"]
    content = path.read_bytes()
    result = script("eval.py", *words, "--fit_thresholds", "per_label")
    assert result.code == 0, result.err
    assert "No checkpoint was changed" in result.out and path.read_bytes() == content
    (written,) = Path("results/t").glob("*/ensemble.yaml")
    assert f"--ensemble {written}" in result.out.split("Next:")[1] and "--threshold" not in result.out.split("Next:")[1]
    debug = script("eval.py", *words, "--tag", "d", "--fit_thresholds", "one", "--debug")
    assert debug.code == 0 and "is not written" in debug.err + debug.out and not [*Path("results/d").rglob("*.yaml")]


def test_eval_blend_without_a_test_list_prints_a_command_with_a_place_for_one(
    task_checkpoint, colours, tmp_path, script: Script
):
    path, folder = task_checkpoint("multilabel"), tmp_path / "lists"
    folder.mkdir()
    listed = (colours / "multilabel/val.txt").read_text()
    (folder / "val.txt").write_text(listed.replace("../", f"{colours}/"))
    words = ["--tag", "t", "--load", path, path, "--gpu", "-1", "-w", "0", "--resamples", "0", "--no-report"]
    result = script("eval.py", *words, "--data_root", folder, "--blend", "greedy")
    assert result.code == 0 and "Next:" not in result.out, result.err
    assert re.search(r"ensemble.yaml; use it with python submit.py .*--test_list TEST_LIST", result.out)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--threshold 0.1 0.2 0.3", "--threshold has 3 numbers; allowed: one, or one for each of the 2 labels"),
        ("--threshold 1.5", "--threshold is 1.5; allowed: from 0 to 1"),
        ("--threshold 0.5 --fit_thresholds one", "--fit_thresholds and --threshold contradict"),
    ],
)
def test_eval_threshold_that_does_not_fit_is_refused(words, problem, task_checkpoint, script: Script):
    result = script("eval.py", "--load", task_checkpoint("multilabel"), "--gpu", "-1", *words.split())
    assert result.code == 2 and problem in result.err


def test_eval_fit_thresholds_of_numbers_is_refused(task_checkpoint, script: Script):
    result = script("eval.py", "--load", task_checkpoint("regression"), "--gpu", "-1", "--fit_thresholds", "one")
    assert result.code == 2 and "--fit_thresholds is for several labels per image" in result.err


def test_checkpoint_with_thresholds_of_another_count_is_refused(task_checkpoint, script: Script):
    path = task_checkpoint("multilabel")
    content = checkpoint.load(path)
    torch.save({**content, "thresholds": {"rule": "one", "values": [0.5], "tta": "none"}}, path)
    result = script("eval.py", "--load", path, "--gpu", "-1")
    assert result.code == 2 and "thresholds.values: 1 for 2 labels" in result.err


def test_threshold_flag_is_moved_to_the_temperature_of_the_next_command(monkeypatch):
    monkeypatch.setattr(inference.thresholds, "rewritten_file", lambda run: None)
    run = SimpleNamespace(opt=SimpleNamespace(debug=False), predictor=SimpleNamespace(temperature=1.0))
    fitted = SimpleNamespace(values=[0.2, 0.7])
    assert threshold_flag(run, fitted, None) == [0.2, 0.7]
    moved = threshold_flag(run, fitted, 2.0)
    assert moved == pytest.approx(labels_at_temperature(np.array([0.2, 0.7]), 2.0)) and moved != [0.2, 0.7]
    assert threshold_flag(run, SimpleNamespace(values=[0.2, 0.2]), 2.0) == pytest.approx(moved[:1])
