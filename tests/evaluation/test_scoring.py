"""The metrics: none can be forgotten in a table, and each has a score, an interval and a row in the report."""

import numpy as np
import pytest

from dataloader.targets import LabelSets, joined
from evaluation import bootstrap, target_intervals
from evaluation.metrics import Predictions
from evaluation.report.page import headline_rows, interval_note
from evaluation.scoring import score
from evaluation.targets import TargetPredictions
from options.choices import METRICS, TASK_METRICS
from utils.classes import Classes

COUNT, CLASSES = 200, 8


def predictions_of(task: str, readable: bool = True) -> Predictions | TargetPredictions:
    """Good predictions of 200 images; with 8 classes, 8 labels or 2 numbers."""
    rng, rows = np.random.default_rng(0), np.arange(COUNT)
    is_readable = np.full(COUNT, readable)
    if task == "regression":
        true = rng.normal(size=(COUNT, 2))
        return TargetPredictions(rows, (true + rng.normal(size=true.shape)).astype(np.float32), is_readable, true)
    if task == "multilabel":
        present = rng.random((COUNT, CLASSES)) < 0.4
        found = joined("multilabel", [np.flatnonzero(row).tolist() for row in present])
        value = np.clip(rng.normal(0.4 + 0.2 * present, 0.25), 0.01, 0.99).astype(np.float32)
        return TargetPredictions(rows, value, is_readable, LabelSets(found.start, found.label, CLASSES))
    label = rng.integers(CLASSES, size=COUNT)
    power = np.exp(rng.normal(size=(COUNT, CLASSES)) + 1.5 * np.eye(CLASSES)[label])
    probability = (power / power.sum(axis=1, keepdims=True)).astype(np.float32)
    top = np.argsort(-probability, axis=1)[:, :5]
    mine = probability[rows, label]
    return Predictions(rows, label, top, np.take_along_axis(probability, top, 1), mine, is_readable)


def classes_of(task: str) -> Classes:
    """The classes of `predictions_of`."""
    return Classes(2, task=task, std=[1.0, 1.0]) if task == "regression" else Classes(CLASSES, task=task)


def intervals_of(task: str) -> dict[str, list[float]]:
    """The bootstrap intervals of `predictions_of`."""
    predictions = predictions_of(task)
    if isinstance(predictions, TargetPredictions):
        return target_intervals.intervals(predictions, classes_of(task), 0, 50)
    return bootstrap.intervals(predictions, classes_of(task), 0, 50)


def test_metrics_are_those_of_the_tasks():
    assert set(METRICS) == {name for names in TASK_METRICS.values() for name in names}


@pytest.mark.parametrize("readable", [True, False])
@pytest.mark.parametrize("task", TASK_METRICS)
def test_score_has_each_metric_of_its_task_within_its_bounds(task, readable):
    found = score(predictions_of(task, readable), classes_of(task))
    for name in TASK_METRICS[task]:
        low, high = METRICS[name].bounds
        assert low <= found[name] <= high, name
        assert readable or found[name] == 0, name


@pytest.mark.parametrize("task", TASK_METRICS)
def test_intervals_have_each_metric_of_their_task_around_its_score(task):
    found, scores = intervals_of(task), score(predictions_of(task), classes_of(task))
    for name in TASK_METRICS[task]:
        low, high = found[name]
        assert low < scores[name] < high, name


@pytest.mark.parametrize("task", TASK_METRICS)
def test_report_has_a_row_of_each_metric_of_its_task_and_the_chosen_one_first(task):
    scores = score(predictions_of(task), classes_of(task))
    for metric in TASK_METRICS[task]:
        rows = headline_rows(scores, task, metric)
        assert [row["name"] for row in rows] == [metric, *(name for name in TASK_METRICS[task] if name != metric)]
        assert rows[0]["value"].endswith(" %") == METRICS[metric].in_percent, "shares alone are shown in per cent"


@pytest.mark.parametrize(
    ("known", "num_classes", "reasons"),
    [
        ({"top1": 0.5, "roc_auc": 0.9}, 100, ["ROC-AUC (macro) of more than 500,000 probabilities has none"]),
        ({"top1": 0.5, "roc_auc": 0.9}, 10, ["A score that is equal in all resamples has no interval."]),
        (
            {"mAP": 0.5, "macro_f1": 0.5, "ece": 0.1},
            10,
            ["A score that is", "The calibration error of labels has none"],
        ),
        (
            {"mAP": 0.5, "macro_f1": 0.5, "ece": 0.1},
            100,
            ["Mean average precision of more", "Macro F1 of more", "The calibration error of"],
        ),
    ],
)
def test_report_says_why_a_score_has_no_interval(known, num_classes, reasons):
    """It said of ROC-AUC, which takes too long for many probabilities, that it is equal in all resamples."""
    metrics = {**known, "count": 6000, "unreadable": 1, "num_classes": num_classes, "options": {"resamples": 1000}}
    task = "multilabel" if "mAP" in known else "single"
    rows = headline_rows(metrics, task, next(iter(known)))
    assert interval_note(metrics, rows) == ""
    metrics["intervals"] = {"top1": [0.4, 0.6], "micro_f1": [0.4, 0.6]}
    note = interval_note(metrics, headline_rows(metrics, task, next(iter(known))))
    assert note.startswith("Below each score is its 95 % bootstrap interval, from 1,000 resamples of the images. ")
    assert [reason in note for reason in reasons] == [True] * len(reasons) and note.count(". ") == len(reasons), note
