"""Score predictions of several labels per image; exact, in memory that grows with the labels, not with images times
labels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.targets import TargetPredictions, label_sets
from utils.classes import Classes

THRESHOLD = 0.5
MIN_P = float(np.finfo(np.float32).eps)  # probabilities nearer to 0 or 1 count as this far away, in the log loss


@dataclass(frozen=True)
class LabelCounts:
    """What was counted per label, (K,) each, over the scorable images.

    Attributes:
        positive: images with the label, int64.
        predicted: images predicted to have it.
        right: both.
        average_precision: float64, NaN without a positive image (sklearn's average_precision_score).
    """

    positive: NDArray[np.int64]
    predicted: NDArray[np.int64]
    right: NDArray[np.int64]
    average_precision: NDArray[np.float64]

    def f1(self) -> NDArray[np.float64]:
        """Return the F1 of each label, float64 (K,); NaN where neither the targets nor the predictions have it."""
        both = self.positive + self.predicted
        return np.divide(2.0 * self.right, both, out=np.full(len(both), np.nan), where=both > 0)


def thresholds_of(classes: Classes) -> NDArray[np.float64]:
    """Return the probability of each label from which it counts as predicted, float64 (K,)."""
    return np.full(classes.count, THRESHOLD) if classes.thresholds is None else np.array(classes.thresholds)


def short_thresholds(classes: Classes) -> float | list[float]:
    """Return the one threshold of all labels, or one for each label, as plain data."""
    values = thresholds_of(classes).tolist()
    return values[0] if len(set(values)) == 1 else values


def describe_thresholds(values: Sequence[float]) -> str:
    """Return in words from which probabilities on labels count as predicted."""
    low, high = min(values), max(values)
    return f"from probability {low:.4f} on" if low == high else f"from {low:.4f} to {high:.4f} on, each by its own"


def count_labels(predictions: TargetPredictions, threshold: float | NDArray[np.float64] = THRESHOLD) -> LabelCounts:
    """Count hits and misses per label. A label is predicted if its probability is `threshold` or more, (K,) or one."""
    return LabelCounts(*count_hits(predictions, threshold), average_precisions(predictions))


def count_hits(
    predictions: TargetPredictions, threshold: float | NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return `positive`, `predicted` and `right` of LabelCounts, int64 (K,) each; `threshold` is (K,) or one."""
    sets, count = label_sets(predictions), predictions.value.shape[1]
    positive, predicted, right = (np.zeros(count, np.int64) for _ in range(3))
    for rows, values in predictions.blocks():
        present = sets.rows(rows).astype(bool)
        above = values >= threshold
        positive += present.sum(axis=0)
        predicted += above.sum(axis=0)
        right += (present & above).sum(axis=0)
    return positive, predicted, right


def average_precisions(predictions: TargetPredictions) -> NDArray[np.float64]:
    """Return the average precision of each label, float64 (K,); NaN for a label without a positive image.

    It is the sum of precision times the gain in recall over the thresholds, which are the probabilities of the
    positive images.
    """
    found = np.full(predictions.value.shape[1], np.nan)
    for label, scores, at_least in ranked_positives(predictions):
        found[label] = _average_precision(scores, at_least)
    return found


def ranked_positives(
    predictions: TargetPredictions,
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.int64]]]:
    """Yield what decides every score of a label, for each label that occurs, in their order.

    One pass counts how many images reach the probability of each positive image. So the memory is that of the positive
    images, not of all predictions.

    Yields:
        The label; the probabilities of its positive images, ascending, float32 (P,); and how many images of the list
        have such a probability or a higher one, int64 (P,).
    """
    count = predictions.value.shape[1]
    scores, label = positive_scores(predictions)
    order = np.lexsort((scores, label))
    scores, start = scores[order], np.searchsorted(label[order], np.arange(count + 1))
    reached = np.zeros(len(scores) + count, np.int64)  # of label k: one more place than it has positive images
    occurring = np.flatnonzero(np.diff(start)).tolist()
    for _, values in predictions.blocks():
        for k in occurring:
            places = np.searchsorted(scores[start[k] : start[k + 1]], values[:, k], side="right")
            reached[start[k] + k : start[k + 1] + k + 1] += np.bincount(places, minlength=start[k + 1] - start[k] + 1)
    for k in occurring:
        counted = reached[start[k] + k : start[k + 1] + k + 1]
        yield k, scores[start[k] : start[k + 1]], counted[:0:-1].cumsum()[::-1]


def positive_scores(predictions: TargetPredictions) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return the probability of each label of each scorable image, float32 (M,), and the label, int32 (M,)."""
    sets, scorable = label_sets(predictions), predictions.scorable
    image, label = sets.image(), sets.label
    known = scorable[image]
    image, label = image[known], label[known]
    scores = np.empty(len(label), np.float32)
    for rows, values in predictions.blocks():
        first, last = np.searchsorted(image, (rows[0], rows[-1] + 1))
        scores[first:last] = values[np.searchsorted(rows, image[first:last]), label[first:last]]
    return scores, label


def _average_precision(scores: NDArray[np.float32], at_least: NDArray[np.int64]) -> float:
    """Return the average precision of a label.

    Args:
        scores: of its positive images, ascending, float32 (P,). at_least: how many images have such a score or a higher
            one, int64 (P,).
    """
    first = np.flatnonzero(np.diff(scores, prepend=-np.inf) > 0)  # of equal scores
    positives = len(scores) - first
    gains = np.diff(np.append(first, len(scores)))
    return float((gains * positives / at_least[first]).sum() / len(scores))


def cross_entropy(values: NDArray[np.floating], present: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the binary cross entropy, natural, of each probability, (n, K), of a label that is `present` or not."""
    p = np.clip(values.astype(np.float64), MIN_P, 1 - MIN_P)
    return -np.where(present, np.log(p), np.log1p(-p))


def likeliest_labels(values: NDArray[np.float32], threshold: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the labels whose probability, of (K,), is `threshold`, (K,), or more, the likeliest first."""
    above = np.flatnonzero(values >= threshold)
    return above[np.argsort(-values[above], kind="stable")]


def log_loss(predictions: TargetPredictions) -> float:
    """Return the mean binary cross entropy over images and labels, natural; 0 without scorable images."""
    total, images = 0.0, 0
    sets = label_sets(predictions)
    for rows, values in predictions.blocks():
        total += float(cross_entropy(values, sets.rows(rows).astype(bool)).sum())
        images += len(rows)
    return total / (images * predictions.value.shape[1]) if images else 0.0


def score(predictions: TargetPredictions, threshold: float | NDArray[np.float64] = THRESHOLD) -> dict[str, float]:
    """Return the scores of several labels per image.

    Returns:
        mAP: the mean of the average precisions of the labels that occur. micro_f1: F1 over all images and labels.
        macro_f1: the mean over the labels that occur in targets or predictions. log_loss and loss (the same): the mean
        binary cross entropy. count (images scored), unreadable, num_classes. All are 0 if nothing could be scored.
    """
    return scores_of(predictions, count_labels(predictions, threshold))


def scores_of(predictions: TargetPredictions, counts: LabelCounts) -> dict[str, float]:
    """Return `score` from what is counted already."""
    each, found = counts.f1(), counts.average_precision
    both = int((counts.positive + counts.predicted).sum())
    loss = log_loss(predictions)
    return {
        "mAP": mean_of_known(found),
        "micro_f1": 2 * int(counts.right.sum()) / both if both else 0.0,
        "macro_f1": mean_of_known(each),
        "log_loss": loss,
        "loss": loss,
        "count": int(predictions.scorable.sum()),
        "unreadable": int((~predictions.readable).sum()),
        "num_classes": predictions.value.shape[1],
    }


def mean_of_known(values: NDArray[np.float64]) -> float:
    """Return the mean of the values, (K,), that are no NaN; 0 without any."""
    return float(values[~np.isnan(values)].mean()) if not np.isnan(values).all() else 0.0


def commonest_mistakes(counts: LabelCounts, limit: int) -> dict[str, list[tuple[int, int]]]:
    """Return the labels that are missed and invented most often: {"missed", "invented"}: [(label, images)], sorted."""
    found = {}
    for name, many in (("missed", counts.positive - counts.right), ("invented", counts.predicted - counts.right)):
        order = np.argsort(-many, kind="stable")[:limit]
        found[name] = [(int(k), int(many[k])) for k in order if many[k] > 0]
    return found
