"""Measure how certain a score is, or the difference of two: percentile bootstrap intervals (Efron, 1979)."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import BINS, MIN_PROBABILITY, Predictions, class_scores, shot_groups
from evaluation.ordinal import order_scores
from evaluation.scoring import SCORES
from utils.classes import Classes
from utils.logger import progress

RESAMPLES = 1000
MAX_AUC_VALUES = 500_000  # with more probabilities ROC-AUC has no interval, for its resamples would take minutes


class ImageDraws(NamedTuple):
    """Draws of images with replacement, where a list has several lines of an image: they are drawn together.

    Drawn by themselves, copies would make an interval narrower without telling anything new.

    Attributes:
        image_of: int64 (N,), the image of each row. images: how many there are.
    """

    image_of: NDArray[np.int64]
    images: int

    @classmethod
    def of(cls, image: NDArray[np.integer] | None, count: int) -> "ImageDraws":
        """Return the draws for `count` rows.

        Args:
            image: (count,), equal where rows are of one image; None: all are different.
        """
        if image is not None:
            unique, image_of = np.unique(image, return_inverse=True)
            if len(unique) < count:
                return cls(image_of, len(unique))
        return cls(np.arange(count), count)

    def weights(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return how often each row occurs in a resample, int64 (N,)."""
        return np.bincount(rng.integers(0, self.images, self.images), minlength=self.images)[self.image_of]

    def uniform(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return a number from 0 to 1 for each row, float64 (N,), the same for all rows of an image."""
        return rng.random(self.images)[self.image_of]


class _PerImage(NamedTuple):
    label: NDArray[np.int64]
    first: NDArray[np.int64]
    share: NDArray[np.float64]  # (N, 3): top1, top5, loss
    confidence: NDArray[np.float64]
    bin_of: NDArray[np.int64]
    groups: dict[str, NDArray[np.bool_]]


def intervals(
    predictions: Predictions,
    classes: Classes,
    seed: int,
    resamples: int = RESAMPLES,
    image: NDArray[np.integer] | None = None,
) -> dict[str, list[float]]:
    """Return the 95 % interval of each score, {name: [low, high]}, from `resamples` draws of images with replacement.

    With few images per class, a resample has a lower macro F1 and a higher calibration error than its list, and the
    list differs from the truth in the same way. With b = mean(resamples) - score, the percentiles are shifted by -b, so
    that the resamples' mean is the score, and the interval also covers a second shift, for the bias of the score
    itself: low = min(q2.5 - b, q2.5 - 2b), high = max(q97.5 - b, q97.5 - 2b). A calibration error near 0 needs more:
    its interval starts at 0 if a calibrated network would show as much. dev/LOG.md says how often each interval holds
    the truth.

    The names are those of `scoring.score` and `metrics.extended_scores`; the same seed gives the same intervals. A
    score that is equal in all resamples, such as that of three wrong images, has no interval: it would have no width.

    Args:
        image: (N,), equal where predictions are of one image; see ImageDraws.
    """
    scorable = predictions.scorable
    if not scorable.any():
        return {}
    columns = _per_image(predictions, scorable, classes.train_counts)
    area = _auc_of_weights(predictions, classes.count)
    rng = np.random.default_rng([seed, 95])
    count = len(columns.label)
    draws = ImageDraws.of(None if image is None else image[scorable], count)

    def scores_of(weight: NDArray[np.int64]) -> dict[str, float]:
        more = {"roc_auc": area(weight)} if area else {}
        if classes.task == "ordinal":
            more |= order_scores(columns.label, columns.first, weight, classes.count)
        return {**_resample(columns, weight, classes.count), **more}

    drawn: dict[str, list[float]] = {}
    for _ in progress(range(resamples), "bootstrap", resamples):
        for name, value in scores_of(draws.weights(rng)).items():
            drawn.setdefault(name, []).append(value)
    scores = scores_of(np.ones(count, np.int64))
    varying = [name for name, values in drawn.items() if _varies(scores[name], values)]
    found = {name: interval(scores[name], np.array(drawn[name]), bounds(name)) for name in varying}
    if "ece" in found and scores["ece"] <= _chance_ece(columns, draws, np.random.default_rng([seed, 96]), resamples):
        found["ece"][0] = 0.0
    return found


def _varies(score: float, values: list[float]) -> bool:
    """Return whether resamples differ by more than rounding, so that they tell how certain `score` is."""
    known = [value for value in values if not np.isnan(value)]
    return not np.isnan(score) and bool(known) and max(known) - min(known) > 1e-9


def bounds(name: str) -> tuple[float, float]:
    """Return the lowest and the highest value of a score, or of the loss."""
    return SCORES[name].bounds if name in SCORES else (0, np.inf)


def interval(score: float, values: NDArray[np.float64], bounds: tuple[float, float]) -> list[float]:
    """Return low and high of `values`, (R,) of as many resamples, within `bounds`.

    They are shifted by the resamples' bias once or twice: see `intervals`.
    """
    bias = np.nanmean(values) - score
    low, high = np.nanpercentile(values, (2.5, 97.5)) - bias
    moved = np.array([min(low, low - bias), max(high, high - bias)])
    return np.clip(moved, *bounds).tolist()


def _chance_ece(columns: _PerImage, draws: ImageDraws, rng: np.random.Generator, resamples: int) -> float:
    """Return the calibration error below which a calibrated network stays in 97.5 % of lists like this one.

    Hits are drawn with the confidences as their chances (consistency resampling; Bröcker & Smith, 2007).
    """
    count = len(columns.label)
    drawn = np.empty(resamples)
    for k in range(resamples):
        gap = np.bincount(
            columns.bin_of, weights=(draws.uniform(rng) < columns.confidence) - columns.confidence, minlength=BINS
        )
        drawn[k] = np.abs(gap).sum() / count
    return float(np.percentile(drawn, 97.5))


def _per_image(predictions: Predictions, scorable: NDArray[np.bool_], train_counts: list[int] | None) -> _PerImage:
    label, top = predictions.label[scorable], predictions.top[scorable]
    hit = top == label[:, None]
    loss = -np.log(np.maximum(predictions.true_probability[scorable].astype(np.float64), MIN_PROBABILITY))
    share = np.stack([hit[:, 0], hit[:, :5].any(axis=1), loss], axis=1)
    confidence = predictions.probability[scorable, 0].astype(np.float64)
    bin_of = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    return _PerImage(label, top[:, 0], share, confidence, bin_of, shot_groups(train_counts) if train_counts else {})


def _resample(columns: _PerImage, weight: NDArray[np.int64], num_classes: int) -> dict[str, float]:
    """Return every score of one resample, in which row i occurs weight[i] times."""
    count = weight.sum()
    hit = weight * columns.share[:, 0]
    total = np.bincount(columns.label, weights=weight, minlength=num_classes)
    right = np.bincount(columns.label, weights=hit, minlength=num_classes)
    recall = np.divide(right, total, out=np.full(num_classes, np.nan), where=total > 0)
    by_class = class_scores(total, np.bincount(columns.first, weights=weight, minlength=num_classes), right)
    gap = np.bincount(columns.bin_of, weights=hit - weight * columns.confidence, minlength=BINS)
    top1, top5, loss = (weight @ columns.share / count).tolist()
    scores = {
        "top1": top1,
        "top5": top5,
        "loss": loss,
        "log_loss": loss,
        **by_class,
        "mean_class_error": 1 - by_class["mean_class_accuracy"],
        "ece": float(np.abs(gap).sum() / count),
    }
    for name, member in columns.groups.items():
        inside = recall[member & (total > 0)]
        scores[f"{name}_accuracy"] = float(inside.mean()) if len(inside) else np.nan
    return scores


def _auc_of_weights(predictions: Predictions, num_classes: int) -> Callable[[NDArray[np.int64]], float] | None:
    """Return a function from weights to the macro ROC-AUC; None if there is no ROC-AUC or it would take too long."""
    rows, scorable = predictions.rows, predictions.scorable
    if rows is None or len(rows.row) < len(scorable) or rows.probability.size > MAX_AUC_VALUES:
        return None
    label = predictions.label[rows.row][scorable[rows.row]]
    if len(np.unique(label)) < num_classes:
        return None
    probability = rows.probability[scorable[rows.row]]
    order = [np.argsort(probability[:, k], kind="stable") for k in range(num_classes)]
    steps = [np.flatnonzero(np.diff(probability[order[k], k], prepend=-1)) for k in range(num_classes)]

    def area(weight: NDArray[np.int64]) -> float:
        found = []
        for k in range(num_classes):
            sorted_weight = weight[order[k]]
            mine = label[order[k]] == k
            positive = np.add.reduceat(sorted_weight * mine, steps[k])  # ties count as one step
            negative = np.add.reduceat(sorted_weight * ~mine, steps[k])
            pairs = positive.sum() * negative.sum()
            if pairs:
                found.append((positive * (negative.cumsum() - negative / 2)).sum() / pairs)
        return float(np.mean(found)) if found else np.nan  # a draw of one class

    return area


# ------------------------------------------------------------------------------------------------ two predictions


def paired_difference(
    these: NDArray[np.bool_],
    others: NDArray[np.bool_],
    seed: int,
    resamples: int = RESAMPLES,
    image: NDArray[np.integer] | None = None,
) -> tuple[float, float, float]:
    """Return how much larger the share of `these` hits is than of the `others`, bool (N,), with its 95 % interval.

    Images are drawn with replacement, each with both of its hits. An image counts 1, 0 or -1, so that a resample is a
    draw of three counts. If the two agree on every image, both ends of the interval are 0.

    Args:
        image: (N,), equal where rows are of one image; see ImageDraws.
    """
    count, rng = len(these), np.random.default_rng([seed, 97])
    draws = ImageDraws.of(image, count)
    if draws.images < count:
        lead = these.astype(np.int64) - others
        weights = (draws.weights(rng) for _ in range(resamples))
        low, high = np.percentile([weight @ lead / weight.sum() for weight in weights], (2.5, 97.5))
        return float(lead.mean()), float(low), float(high)
    ahead, behind = int((these & ~others).sum()), int((others & ~these).sum())
    share = np.array([ahead, behind, count - ahead - behind]) / count
    drawn = rng.multinomial(count, share, size=resamples)
    low, high = np.percentile((drawn[:, 0] - drawn[:, 1]) / count, (2.5, 97.5))
    return (ahead - behind) / count, float(low), float(high)
