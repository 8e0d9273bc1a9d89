"""Bootstrap intervals of the scores of several labels, or of numbers, per image; see evaluation/bootstrap.py."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from evaluation import regression
from evaluation.bootstrap import MAX_AUC_VALUES, ImageDraws, bounds, interval
from evaluation.multilabel import cross_entropy, thresholds_of
from evaluation.targets import TargetPredictions, label_sets
from utils.classes import Classes
from utils.logger import progress

MIN_UNEXPLAINED = 1e-12  # share of the variance; its logarithm is finite
Scorer = Callable[[NDArray[np.int64]], dict[str, float]]  # how often each scorable image counts -> scores


def intervals(
    predictions: TargetPredictions,
    classes: Classes,
    seed: int,
    resamples: int,
    image: NDArray[np.integer] | None = None,
) -> dict[str, list[float]]:
    """Return the 95 % interval of each score, {name: [low, high]}, from `resamples` draws of images with replacement.

    Scores of labels that need whole columns, mAP and macro_f1, have one only up to MAX_AUC_VALUES probabilities. A
    score that is equal in all resamples has no interval.

    Args:
        image: (N,), equal where predictions are of one image; see ImageDraws.
    """
    rows = np.flatnonzero(predictions.scorable)
    if not len(rows):
        return {}
    if classes.task == "multilabel":
        score = _label_scores(predictions, rows, thresholds_of(classes))
    else:
        score = _number_scores(predictions, rows)
    rng, draws = np.random.default_rng([seed, 95]), ImageDraws.of(None if image is None else image[rows], len(rows))
    drawn: dict[str, list[float]] = {}
    for _ in progress(range(resamples), "bootstrap", resamples):
        for name, value in score(draws.weights(rng)).items():
            drawn.setdefault(name, []).append(value)
    scores = score(np.ones(len(rows), np.int64))
    return {
        name: _interval(name, scores[name], np.array(values)) for name, values in drawn.items() if np.ptp(values) > 1e-9
    }


def _interval(name: str, score: float, values: NDArray[np.float64]) -> list[float]:
    """Return the interval of a score from its resamples.

    That of r2 is computed on the scale of log(1 - r2). A resample of nearly equal numbers has an r2 far below 0, and
    one such value would shift the mean of all.
    """
    if name != "r2":
        return interval(score, values, bounds(name))
    unexplained = np.log(np.maximum(1 - np.append(values, score), MIN_UNEXPLAINED))
    low, high = interval(unexplained[-1], unexplained[:-1], (-np.inf, np.inf))
    return [1 - float(np.exp(high)), 1 - float(np.exp(low))]


def _number_scores(predictions: TargetPredictions, rows: NDArray[np.int64]) -> Scorer:
    def score(weight: NDArray[np.int64]) -> dict[str, float]:
        each = regression.per_target(predictions, np.repeat(rows, weight))
        return {name: float(each[name].mean()) for name in regression.NAMES}

    return score


def _label_scores(predictions: TargetPredictions, rows: NDArray[np.int64], threshold: NDArray[np.float64]) -> Scorer:
    """Return what scores a resample; of many labels, only from sums per image. The thresholds stay what they are."""
    sets, count = label_sets(predictions), predictions.value.shape[1]
    whole = len(rows) * count <= MAX_AUC_VALUES
    sums, present_parts, value_parts = [], [], []
    for some, values in predictions.blocks():
        present = sets.rows(some).astype(bool)
        above, loss = values >= threshold, cross_entropy(values, present).mean(axis=1)
        sums.append(np.stack([(present & above).sum(axis=1), present.sum(axis=1) + above.sum(axis=1), loss], axis=1))
        if whole:
            present_parts.append(present)
            value_parts.append(values)
    per_image = np.concatenate(sums)
    columns = _Columns(np.concatenate(present_parts), np.concatenate(value_parts), threshold) if whole else None

    def score(weight: NDArray[np.int64]) -> dict[str, float]:
        right, both, loss = weight @ per_image
        found = {"micro_f1": 2 * right / both if both else 0.0, "log_loss": loss / weight.sum()}
        return found | (columns.scores(weight) if columns is not None else {})

    return score


class _Columns:
    """Weighted mAP and macro F1 of whole columns: present bool (N, K), value float32 (N, K), threshold (K,)."""

    def __init__(self, present: NDArray[np.bool_], value: NDArray[np.float32], threshold: NDArray[np.float64]) -> None:
        order = np.argsort(-value, axis=0, kind="stable")
        self.order, self.present = order, np.take_along_axis(present, order, axis=0)
        ranked = np.take_along_axis(value, order, axis=0)
        self.ends = np.concatenate([ranked[1:] != ranked[:-1], np.ones((1, value.shape[1]), bool)])
        above = value >= threshold
        self.hit, self.both = present & above, present.astype(np.int64) + above

    def scores(self, weight: NDArray[np.int64]) -> dict[str, float]:
        """Return mAP and macro_f1 where image i counts weight[i] times."""
        weights = weight[self.order]
        found = (weights * self.present).cumsum(axis=0)
        seen, positives = weights.cumsum(axis=0), found[-1]
        occurs = positives > 0
        # recall rises at the last of equal scores alone
        at_end = np.where(self.ends, found, 0)
        before = np.concatenate([np.zeros((1, found.shape[1])), np.maximum.accumulate(at_end, axis=0)[:-1]])
        gain = np.where(self.ends, found - before, 0)
        precision = np.divide(found, seen, out=np.zeros(found.shape), where=seen > 0)
        average = (gain * precision).sum(axis=0)[occurs] / positives[occurs]
        right, both = weight @ self.hit, weight @ self.both
        f1 = 2 * right[both > 0] / both[both > 0]
        return {
            "mAP": float(average.mean()) if occurs.any() else 0.0,
            "macro_f1": float(f1.mean()) if len(f1) else 0.0,
        }
