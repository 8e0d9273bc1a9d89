"""The scores of labels, numbers and ordered classes, held against scikit-learn, SciPy and torchmetrics."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn import metrics as sklearn
from torchmetrics.functional.classification import multilabel_average_precision

from dataloader.targets import LabelSets, joined, take
from evaluation import multilabel, ordinal, regression, targets
from evaluation.target_intervals import intervals
from evaluation.targets import TargetPredictions
from utils.classes import Classes


def sets_of(present: np.ndarray) -> LabelSets:
    """The labels of bool (N, K)."""
    found = joined("multilabel", [np.flatnonzero(row).tolist() for row in present])
    return LabelSets(found.start, found.label, present.shape[1])


def labelled(images: int = 90, labels: int = 7, seed: int = 0, steps: int = 0) -> tuple[TargetPredictions, np.ndarray]:
    """Predictions, and what is present, bool (N, K). `steps`: how many values probabilities take, so that some tie."""
    rng = np.random.default_rng(seed)
    present = rng.random((images, labels)) < np.linspace(0.02, 0.6, labels)
    present[:, -1] = False  # a label that never occurs
    value = np.clip(rng.normal(0.35 + 0.3 * present, 0.25), 0.001, 0.999).astype(np.float32)
    value = (np.round(value * steps) / steps).clip(0.01, 0.99).astype(np.float32) if steps else value
    readable = rng.random(images) < 0.9
    return TargetPredictions(np.arange(images), value, readable, sets_of(present)), present


@pytest.mark.parametrize("steps", [0, 5])
def test_multilabel_score_equals_sklearn_and_torchmetrics(monkeypatch, steps):
    monkeypatch.setattr(targets, "BLOCK_VALUES", 50)  # many blocks
    predictions, present = labelled(steps=steps)
    found = multilabel.score(predictions)
    true, value = present[predictions.readable], predictions.value[predictions.readable]
    occurs = true.any(axis=0)
    each = [sklearn.average_precision_score(true[:, k], value[:, k]) for k in np.flatnonzero(occurs)]
    assert found["mAP"] == pytest.approx(np.mean(each), abs=1e-6)
    theirs = multilabel_average_precision(
        torch.from_numpy(value[:, occurs]), torch.from_numpy(true[:, occurs].astype(int)), int(occurs.sum())
    )
    assert found["mAP"] == pytest.approx(float(theirs), abs=1e-6)
    above = value >= 0.5
    assert found["micro_f1"] == pytest.approx(sklearn.f1_score(true, above, average="micro"), abs=1e-6)
    some = (true | above).any(axis=0)
    assert found["macro_f1"] == pytest.approx(
        sklearn.f1_score(true[:, some], above[:, some], average="macro"), abs=1e-6
    )
    losses = [sklearn.log_loss(true[:, k], value[:, k].astype(float), labels=[0, 1]) for k in range(true.shape[1])]
    assert found["log_loss"] == pytest.approx(np.mean(losses), abs=1e-6)
    assert found["count"] == predictions.readable.sum() and found["unreadable"] == (~predictions.readable).sum()


def test_multilabel_score_of_50_030_labels_needs_no_matrix(monkeypatch):
    """The blocks are the only arrays of images times labels: none is larger than BLOCK_VALUES."""
    count, images = 50_030, 40
    rng = np.random.default_rng(1)
    rows = [sorted(rng.choice(count, 3, replace=False).tolist()) for _ in range(images)]
    found = joined("multilabel", rows)
    value = rng.random((images, count)).astype(np.float32)
    predictions = TargetPredictions(
        np.arange(images), value, np.ones(images, bool), LabelSets(found.start, found.label, count)
    )
    monkeypatch.setattr(targets, "BLOCK_VALUES", 4 * count)
    sizes = []
    whole = LabelSets.rows
    monkeypatch.setattr(LabelSets, "rows", lambda self, index: sizes.append(len(index)) or whole(self, index))
    scores = multilabel.score(predictions)
    assert max(sizes) == 4
    label = rows[0][0]
    true = np.array([label in row for row in rows])
    each = multilabel.average_precisions(predictions)
    assert each[label] == pytest.approx(sklearn.average_precision_score(true, value[:, label]), abs=1e-6)
    assert scores["mAP"] == pytest.approx(np.nanmean(each))


def test_multilabel_intervals_hold_the_score_and_resample_as_the_scores():
    predictions, _ = labelled(120)
    classes = Classes(predictions.value.shape[1], task="multilabel")
    found, scores = intervals(predictions, classes, seed=3, resamples=200), multilabel.score(predictions)
    assert set(found) == {"mAP", "micro_f1", "macro_f1", "log_loss"}
    assert all(low < scores[name] < high for name, (low, high) in found.items())
    assert found == intervals(predictions, classes, seed=3, resamples=200)


def test_multilabel_intervals_of_lines_of_one_image_are_those_of_the_image():
    predictions, _ = labelled(60)
    classes, lines = Classes(predictions.value.shape[1], task="multilabel"), np.tile(np.arange(60), 3)
    sets = take(predictions.targets, lines)
    again = TargetPredictions(lines, predictions.value[lines], predictions.readable[lines], sets)
    once = intervals(predictions, classes, seed=3, resamples=50)
    assert intervals(predictions, classes, 3, 50, np.arange(60)[::-1]) == once
    found = intervals(again, classes, 3, 50, lines)
    assert found.keys() == once.keys() and all(found[name] == pytest.approx(once[name]) for name in once)


def test_multilabel_intervals_of_one_draw_equal_the_score_of_the_drawn_images():
    """What a resample scores is what the scores of a list with repeated images are, ties included."""
    from evaluation.target_intervals import _label_scores

    predictions, present = labelled(60, steps=6)
    threshold = np.linspace(0.2, 0.8, 7)
    rows = np.flatnonzero(predictions.readable)
    weight = np.random.default_rng(5).integers(0, 4, len(rows))
    again = np.repeat(rows, weight)
    drawn = TargetPredictions(
        np.arange(len(again)), predictions.value[again], np.ones(len(again), bool), sets_of(present[again])
    )
    wanted = multilabel.score(drawn, threshold)
    found = _label_scores(predictions, rows, threshold)(weight)
    assert found == pytest.approx({name: wanted[name] for name in found}, abs=1e-9)


def test_regression_score_equals_sklearn_and_scipy():
    rng = np.random.default_rng(2)
    true = np.column_stack([rng.normal(3, 2, 80), rng.integers(0, 4, 80)]).astype(float)
    value = (true + rng.normal(0, 1, true.shape)).astype(np.float32)
    readable = rng.random(80) < 0.9
    found = regression.score(TargetPredictions(np.arange(80), value, readable, true), [2.0, 4.0])
    true, value = true[readable], value[readable].astype(float)
    assert found["mae"] == pytest.approx(sklearn.mean_absolute_error(true, value), abs=1e-6)
    assert found["rmse"] == pytest.approx(sklearn.root_mean_squared_error(true, value), abs=1e-6)
    assert found["r2"] == pytest.approx(sklearn.r2_score(true, value), abs=1e-6)
    wanted = np.mean([spearmanr(true[:, k], value[:, k]).statistic for k in range(2)])
    assert found["spearman"] == pytest.approx(wanted, abs=1e-6)
    assert found["loss"] == pytest.approx(np.mean(((true - value) / [2, 4]) ** 2), abs=1e-6)


def test_regression_score_of_constant_targets_or_predictions_is_finite():
    true = np.full((5, 1), 2.0)
    found = regression.score(TargetPredictions(np.arange(5), np.ones((5, 1), np.float32), np.ones(5, bool), true))
    assert found["r2"] == 0 and found["spearman"] == 0 and found["mae"] == 1
    true = np.full((7, 1), 0.1)  # whose mean is not 0.1
    found = regression.score(TargetPredictions(np.arange(7), np.ones((7, 1), np.float32), np.ones(7, bool), true))
    assert found["r2"] == 0 and found["spearman"] == 0


def test_order_scores_equal_sklearns_kappa():
    rng = np.random.default_rng(3)
    label, predicted = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    found = ordinal.order_scores(label, predicted, np.ones(200), 6)
    assert found["qwk"] == pytest.approx(sklearn.cohen_kappa_score(label, predicted, weights="quadratic"), abs=1e-9)
    assert found["mae"] == pytest.approx(np.abs(label - predicted).mean())
    weight = rng.integers(0, 3, 200)
    found = ordinal.order_scores(label, predicted, weight, 6)
    again = np.repeat(np.arange(200), weight)
    wanted = sklearn.cohen_kappa_score(label[again], predicted[again], weights="quadratic")
    assert found["qwk"] == pytest.approx(wanted, abs=1e-9)


def test_order_scores_of_one_class_are_perfect_only_if_right():
    ones = np.ones(4, np.int64)
    assert ordinal.order_scores(ones, ones, ones, 3) == {"qwk": 1.0, "mae": 0.0}
    assert ordinal.order_scores(ones, ones * 0, ones, 3)["qwk"] == 0.0


def test_interval_of_r2_holds_the_score_where_a_resample_has_hardly_any_variance():
    """Such a resample has an r2 far below 0; a mean over all resamples would move the interval away."""
    true = np.concatenate([np.arange(13) * 1e-6, np.ones(5)])[:, None]
    found = TargetPredictions(np.arange(18), (true + 0.1).astype(np.float32), np.ones(18, bool), true)
    low, high = intervals(found, Classes(1, task="regression"), 0, 1000)["r2"]
    assert low < regression.score(found)["r2"] < high <= 1
