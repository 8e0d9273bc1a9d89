"""--calibrate for labels, which have a probability each, and for ordered classes; numbers have none."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import Script
from dataloader.targets import LabelSets, joined
from evaluation import calibration, targets
from evaluation.metrics import Predictions, ProbabilityRows, ece
from evaluation.targets import TargetPredictions
from inference.blend import with_temperature
from inference.temperature import calibrate
from utils import checkpoint


def drawn(temperature: float, images: int = 3000) -> tuple[TargetPredictions, np.ndarray]:
    """Predictions whose logits are `temperature` times too large, and what is present, bool (N, 4)."""
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 2, (images, 4))
    present = rng.random((images, 4)) < 1 / (1 + np.exp(-logits))
    found = joined("multilabel", [np.flatnonzero(row).tolist() for row in present])
    value = (1 / (1 + np.exp(-logits * temperature))).astype(np.float32)
    sets = LabelSets(found.start, found.label, 4)
    return TargetPredictions(np.arange(images), value, rng.random(images) < 0.95, sets), present


def test_fit_label_temperature_finds_the_factor_of_the_logits(monkeypatch):
    monkeypatch.setattr(targets, "BLOCK_VALUES", 900)  # many blocks
    predictions, present = drawn(2.5)
    fitted = calibration.fit_label_temperature(predictions)
    assert fitted.temperature == pytest.approx(2.5, rel=0.05) and fitted.images == predictions.readable.sum()
    assert fitted.loss_after < fitted.loss_before and fitted.ece_after < 0.02 < 0.05 < fitted.ece_before
    value, hit = predictions.value[predictions.readable].ravel(), present[predictions.readable].ravel()
    assert fitted.ece_before == pytest.approx(ece(value, hit), abs=1e-9)
    p = np.where(hit, value, 1 - value).astype(np.float64)
    assert fitted.loss_before == pytest.approx(-np.log(p).mean(), abs=1e-6)


def test_fit_label_temperature_of_a_long_list_uses_a_sample(monkeypatch):
    monkeypatch.setattr(calibration, "MAX_VALUES_AT_ONCE", 4000)
    fitted = calibration.fit_label_temperature(drawn(2.0)[0], seed=3)
    assert fitted.images == 1000 and fitted.temperature == pytest.approx(2.0, rel=0.15)


def test_with_temperature_of_labels_divides_their_logits():
    logits = torch.linspace(-9, 9, 40)[:, None]
    found = with_temperature(logits.sigmoid(), 3.0, "multilabel")
    assert torch.allclose(found, (logits / 3).sigmoid(), atol=2e-5)
    assert with_temperature(torch.tensor([[0.0, 0.5, 1.0]]), 0.05, "multilabel").tolist() == [[0.0, 0.5, 1.0]]
    rows = torch.randn(5, 4)
    assert torch.allclose(with_temperature(rows.softmax(1), 3.0, "ordinal"), (rows / 3).softmax(1), atol=1e-6)


def test_calibrate_temperature_at_the_end_of_its_range_is_warned_of(monkeypatch, caplog):
    """Labels of chance under sure probabilities: the loss falls with every higher temperature."""
    monkeypatch.setattr("utils.logger.log.propagate", True)
    run = SimpleNamespace(opt=SimpleNamespace(seed=0))
    fitted = calibrate(run, drawn(2.0)[0])
    assert not fitted.is_at_end and "at the end of what is tried" not in caplog.text
    sure = drawn(1.0)[0]
    sure.value[:] = np.where(np.random.default_rng(0).random(sure.value.shape) < 0.5, 0.001, 0.999)
    fitted = calibrate(run, sure)
    assert fitted.is_at_end and "The temperature is at the end of what is tried, 0.05 to 20" in caplog.text


@pytest.mark.parametrize(
    "value, flat",
    [((0.9, 0.99), True), ((0.99, 0.999), True), ((0.999, 0.9999), True), ((0.5, 0.9), True), ((0.2, 0.99), False)],
)
@pytest.mark.parametrize("fit", ["classes", "labels"])
def test_calibrate_where_no_prediction_is_wrong_is_warned_of(value, flat, fit, monkeypatch, caplog):
    """The loss is 0 from some temperature down; the search stopped anywhere there, without a word."""
    monkeypatch.setattr("utils.logger.log.propagate", True)
    rng = np.random.default_rng(0)
    p, label = rng.uniform(*value, 50), rng.integers(2, size=50)
    probability = np.where(np.arange(2) == label[:, None], p[:, None], 1 - p[:, None]).astype(np.float32)
    rows, every = np.arange(50), np.ones(50, bool)
    if fit == "labels":
        found = joined("multilabel", [[one] for one in label])
        predictions = TargetPredictions(rows, probability, every, LabelSets(found.start, found.label, 2))
    else:
        top = probability.argmax(1)[:, None]
        predictions = Predictions(
            rows, label, top, np.take_along_axis(probability, top, 1), p.astype(np.float32), every
        )
        predictions.rows = ProbabilityRows(rows, probability)
    fitted = calibrate(SimpleNamespace(opt=SimpleNamespace(seed=0)), predictions)
    assert fitted.is_at_end == (fitted.temperature < 0.051) == flat
    assert ("No prediction is wrong here" in caplog.text) == flat


def test_with_temperature_of_numbers_is_a_fault_of_the_caller():
    """A softmax of one number is 1.0, whatever the number is."""
    values = torch.tensor([[118.67], [3.0]])
    assert torch.equal(with_temperature(values, 1, "regression"), values)
    with pytest.raises(AssertionError, match="not of --task regression"):
        with_temperature(values, 2.0, "regression")


@pytest.mark.parametrize("task", ["multilabel", "ordinal", "corn"])
def test_eval_calibrate_stores_a_temperature_that_changes_no_prediction(task, task_checkpoint, script: Script):
    path = task_checkpoint(task)
    words = ["--tag", "t", "--load", path, "--gpu", "-1", "-w", "0"]
    fast = ["--resamples", "0", "--no-report"]
    before = checkpoint.load(path)
    if task == "multilabel":
        assert script("eval.py", *words, *fast, "--fit_thresholds", "one").code == 0
    result = script("eval.py", *words, "--resamples", "0", "--calibrate")
    assert result.code == 0, result.err
    assert f"--calibrate adds the temperature to {path}: that file is rewritten" in result.out
    folder = next(Path("results/t").iterdir())
    fitted = json.loads((folder / "metrics.json").read_text())["calibration"]
    assert "Temperature {:.4f}".format(fitted["temperature"]) in (folder / "report.html").read_text()
    after = checkpoint.load(path)
    assert after["calibration"]["temperature"] == fitted["temperature"] != 1
    assert checkpoint.identity(after) == checkpoint.identity(before)
    if task != "multilabel":
        return
    assert script("submit.py", *words, "--out", "plain.csv").code == 0
    warm = script("submit.py", *words, "--out", "warm.csv", "--temperature", "ckpt")
    assert warm.code == 0, warm.err
    assert Path("plain.csv").read_bytes() == Path("warm.csv").read_bytes()
    edges = [json.loads(Path(f"{name}.provenance.json").read_text())["threshold"] for name in ("plain", "warm")]
    assert edges[0] != edges[1]
    assert script("eval.py", *words, *fast, "--temperature", "ckpt").code == 0
    warmed = json.loads((folder / "metrics.json").read_text())
    assert warmed["log_loss"] == pytest.approx(fitted["loss_after"], abs=1e-6)
    assert warmed["ece"] == pytest.approx(fitted["ece_after"], abs=1e-6)


@pytest.mark.parametrize("words", ["--calibrate", "--temperature 2"])
def test_eval_temperature_of_numbers_is_refused(words, task_checkpoint, script: Script):
    result = script("eval.py", "--load", task_checkpoint("regression"), "--gpu", "-1", *words.split())
    assert result.code == 2 and f"{words.split()[0]} is for probabilities; the task" in result.err
