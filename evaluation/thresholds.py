"""Fit the probability from which a label counts as predicted: one for all labels, or one for each."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.cross_fit import FOLDS, draw_parts
from evaluation.multilabel import THRESHOLD, count_hits, mean_of_known, positive_scores, ranked_positives
from evaluation.targets import TargetPredictions
from utils.errors import UserError

HALF, ONE, PER_LABEL = "half", "one", "per_label"
MIN_POSITIVES = 10  # images of a label; the best cut among fewer is chance, so it shares the threshold of all labels
SCORES = ("micro_f1", "macro_f1")


class FittedThresholds(NamedTuple):
    """Thresholds, and what they gain.

    Attributes:
        rule: ONE or PER_LABEL.
        values: one for each label, from 0 to 1.
        images: how many they were fitted on.
        shared: how many labels have too few images for a threshold of their own; 0 with ONE.
        before, after: micro_f1 and macro_f1 at 0.5 and at `values`, on the images that `values` were fitted on.
        cross_fitted: the same, each fifth of the images scored at thresholds fitted on the others.
    """

    rule: str
    values: list[float]
    images: int
    shared: int
    before: dict[str, float]
    after: dict[str, float]
    cross_fitted: dict[str, float]


def fit_thresholds(
    predictions: TargetPredictions, rule: str, image: NDArray[np.integer], seed: int = 0
) -> FittedThresholds:
    """Fit thresholds that give the highest F1: of all labels together (ONE), or of each label (PER_LABEL).

    Args:
        image: (N,), what evaluation.cross_fit.draw_parts needs of the images of `predictions`.
        seed: of the division into FOLDS parts.

    Raises:
        UserError: no scorable image has a label.
    """
    values, shared = _fit(predictions, rule)
    return FittedThresholds(
        rule,
        values.tolist(),
        int(predictions.scorable.sum()),
        shared,
        _scores(*count_hits(predictions, THRESHOLD)),
        _scores(*count_hits(predictions, values)),
        _cross_fit(predictions, rule, draw_parts(image, seed, 11)),
    )


def _fit(predictions: TargetPredictions, rule: str) -> tuple[NDArray[np.float64], int]:
    """Return the thresholds, float64 (K,), and how many labels share that of all labels though each may have one."""
    values = np.full(predictions.value.shape[1], _common_threshold(predictions))
    if rule == ONE:
        return values, 0
    cut = np.full(len(values), np.nan)
    for label, scores, at_least in ranked_positives(predictions):
        if len(scores) >= MIN_POSITIVES:
            cut[label] = _best_cut(scores, at_least)
    lower = np.zeros(len(cut))
    for _, some in predictions.blocks():
        np.maximum(lower, np.where(some < cut, some, 0).max(axis=0), out=lower)
    own = ~np.isnan(cut)
    values[own] = (cut[own] + lower[own]) / 2
    return values, int((~own).sum())


def _common_threshold(predictions: TargetPredictions) -> float:
    """Return the threshold with the highest F1 over all images and labels.

    It is halfway between two probabilities that occur, so that rounding on another machine changes no prediction.
    """
    scores = np.sort(positive_scores(predictions)[0])
    if not len(scores):
        raise UserError("--fit_thresholds needs readable images with labels; the validation list has none.")
    reached = np.zeros(len(scores) + 1, np.int64)
    for _, values in predictions.blocks():
        reached += np.bincount(np.searchsorted(scores, values.ravel(), side="right"), minlength=len(reached))
    cut = _best_cut(scores, reached[:0:-1].cumsum()[::-1])
    lower = max(float(np.where(values < cut, values, 0).max()) for _, values in predictions.blocks())
    return (cut + lower) / 2


def _best_cut(scores: NDArray[np.float32], at_least: NDArray[np.int64]) -> float:
    """Return the score with the highest F1 where it and all higher ones count; of several, the nearest to 0.5.

    F1 is highest at the score of a positive image: the next lower score adds only images that are wrong.

    Args:
        scores, at_least: of a label, as evaluation.multilabel.ranked_positives yields them.
    """
    first = np.flatnonzero(np.diff(scores, prepend=-np.inf) > 0)  # of equal scores
    right = len(scores) - first
    f1 = 2 * right / (at_least[first] + len(scores))
    best = scores[first[f1 == f1.max()]]
    return float(best[np.abs(best - THRESHOLD).argmin()])


def _cross_fit(predictions: TargetPredictions, rule: str, part: NDArray[np.int64]) -> dict[str, float]:
    """Return the scores where each image is scored at thresholds that were fitted to the other parts."""
    total = np.zeros((3, predictions.value.shape[1]), np.int64)
    for fold in range(FOLDS):
        rest = replace(predictions, readable=predictions.readable & (part != fold))
        held = replace(predictions, readable=predictions.readable & (part == fold))
        try:
            values = _fit(rest, rule)[0]
        except UserError:  # all labels of a tiny list are in one part
            values = np.full(total.shape[1], THRESHOLD)
        total += count_hits(held, values)
    return _scores(*total)


def _scores(positive: NDArray[np.int64], predicted: NDArray[np.int64], right: NDArray[np.int64]) -> dict[str, float]:
    """Return micro_f1 and macro_f1 of what evaluation.multilabel.count_hits counts."""
    both = positive + predicted
    each = np.divide(2.0 * right, both, out=np.full(len(both), np.nan), where=both > 0)
    micro = 2 * int(right.sum()) / int(both.sum()) if both.any() else 0.0
    return {"micro_f1": micro, "macro_f1": mean_of_known(each)}
