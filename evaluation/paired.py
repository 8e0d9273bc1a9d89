"""The difference of a metric between two evaluations of the same images, with its paired bootstrap interval."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.bootstrap import ImageDraws, interval
from evaluation.ordinal import quadratic_weighted_kappa
from options import choices
from options.wording import count_of
from utils.logger import progress

BLOCK_WEIGHTS = 1 << 20  # resamples are scored together, in blocks that fit in a processor's cache
# How often each of N images counts in R resamples, int32 (N, R) -> the metric of both evaluations, float64 (R,) each.
PairedScorer = Callable[[NDArray[np.int32]], tuple[NDArray[np.float64], NDArray[np.float64]]]


class Difference(NamedTuple):
    """How a metric differs between these predictions and others, on the images that both could read.

    Attributes:
        metric: its name. this, other: its values. difference: this - other.
        interval: the 95 % interval of the difference, low and high; None: there is none.
        images: how many were scored.
        reason: why there is no interval; "" if there is one.
    """

    metric: str
    this: float
    other: float
    difference: float
    interval: list[float] | None
    images: int
    reason: str = ""

    def as_dict(self) -> dict[str, object]:
        """Return plain data for metrics.json."""
        return {name: value for name, value in self._asdict().items() if name != "reason"}


def paired_scores(
    metric: str, scores: PairedScorer, image: NDArray[np.integer], seed: int, resamples: int
) -> Difference:
    """Return the difference of `metric` with its interval, from `resamples` draws of images with replacement.

    Each draw scores both evaluations on the same images. A difference that is equal in all resamples, such as that of
    one image, has no interval, unless it is 0.

    Args:
        image: (N,), equal where rows are of one image; see ImageDraws.
    """
    images = len(image)
    this, other = (float(value[0]) for value in scores(np.ones((images, 1), np.int32)))
    difference = this - other
    if not resamples:
        return Difference(metric, this, other, difference, None, images, "--resamples is 0")
    rng, drawn, draws = np.random.default_rng([seed, 98]), np.empty(resamples), ImageDraws.of(image, images)
    step = max(1, BLOCK_WEIGHTS // images)
    for first in progress(range(0, resamples, step), "paired bootstrap", -(-resamples // step)):
        count = min(step, resamples - first)
        weights = [draws.weights(rng) for _ in range(count)]
        one, two = scores(np.stack(weights, axis=1).astype(np.int32))
        drawn[first : first + count] = one - two
    if np.ptp(drawn) <= 1e-12 and abs(difference) > 1e-12:
        return Difference(metric, this, other, difference, None, images, "all resamples are equal")
    return Difference(metric, this, other, difference, interval(difference, drawn, (-np.inf, np.inf)), images)


def describe(path: str, found: Difference) -> str:
    """Return on one line which of two evaluations is better, and whether the interval excludes 0."""
    start = (
        f"Compared with {path} by {found.metric} on {count_of(found.images, 'image')}: {found.this:.6f} here, "
        f"{found.other:.6f} there, difference {found.difference:+.6f}"
    )
    if found.interval is None:
        return f"{start}. There is no interval ({found.reason}), so this may be chance"
    low, high = found.interval
    if low <= 0 <= high:
        verdict = "holds 0: neither is shown to be better"
    else:
        better = (low > 0) != choices.METRICS[found.metric].lower_is_better
        verdict = f"excludes 0: {'this' if better else 'the other'} evaluation is better"
    return f"{start}, 95 % interval [{low:+.6f}, {high:+.6f}], which {verdict}"


def kappa_scores(
    label: NDArray[np.int64], first: NDArray[np.int64], other: NDArray[np.int64], num_classes: int
) -> PairedScorer:
    """Return what scores resamples by qwk; label, and the classes of both predictions: int64 (N,) each."""

    def scores(weights: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        columns = [np.ascontiguousarray(weight) for weight in weights.T]
        one, two = (
            np.array([quadratic_weighted_kappa(label, found, weight, num_classes) for weight in columns])
            for found in (first, other)
        )
        return one, two

    return scores


def error_scores(this: NDArray[np.float64], other: NDArray[np.float64]) -> PairedScorer:
    """Return what scores resamples by the mean of one error per image, float64 (N,) of both evaluations."""

    def scores(weights: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        count = weights.sum(axis=0)
        return this @ weights / count, other @ weights / count

    return scores


def precision_scores(present: NDArray[np.bool_], this: NDArray[np.float32], other: NDArray[np.float32]) -> PairedScorer:
    """Return what scores resamples by mAP; whether labels are present, and both probabilities of them: (N, K) each."""
    ranked = [[_Ranked.of(present[:, k], value[:, k]) for k in range(value.shape[1])] for value in (this, other)]

    def scores(weights: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        one, two = (_mean_average_precision(labels, weights) for labels in ranked)
        return one, two

    return scores


class _Ranked(NamedTuple):
    """A label's images by falling probability, up to the last that has it.

    Attributes:
        images: int32 (M,). starts: where an image follows the last of those with the probability of a positive one,
            so that each part ends with such a probability, int64 (G,).
        positives: those that have the label, int32 (P,). positive_starts: where each of the G parts begins in them.
    """

    images: NDArray[np.int32]
    starts: NDArray[np.int64]
    positives: NDArray[np.int32]
    positive_starts: NDArray[np.int64]

    @classmethod
    def of(cls, present: NDArray[np.bool_], value: NDArray[np.float32]) -> "_Ranked | None":
        """Rank the images; None if none has the label, bool (N,)."""
        order = np.argsort(-value, kind="stable")
        places = np.flatnonzero(present[order])
        if not len(places):
            return None
        ranked = -value[order]
        ends = np.searchsorted(ranked, ranked[places], side="right")  # behind all images of an equal probability
        distinct, positive_starts = np.unique(ends, return_index=True)
        starts = np.concatenate([[0], distinct[:-1]])
        images = order.astype(np.int32)
        return cls(images[: distinct[-1]], starts, images[places], positive_starts)


def _mean_average_precision(labels: list[_Ranked | None], weights: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return the mAP of each resample, float64 (R,), over the labels that occur in it; 0 if none does."""
    total, occurring = np.zeros(weights.shape[1]), np.zeros(weights.shape[1], np.int64)
    for label in labels:
        if label is None:
            continue
        gained = np.add.reduceat(weights[label.positives], label.positive_starts, axis=0, dtype=np.int64)
        seen = np.add.reduceat(weights[label.images], label.starts, axis=0, dtype=np.int64).cumsum(axis=0)
        found = gained.cumsum(axis=0)
        positives = found[-1]
        area = (gained * found / np.maximum(seen, 1)).sum(axis=0)
        total += area / np.maximum(positives, 1)
        occurring += positives > 0
    return total / np.maximum(occurring, 1)
