"""Scores from what a network said, in NumPy; exact, and small enough for 50,030 classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15  # of confidence, for the expected calibration error (Guo et al., 2017)
HEAD, TAIL = 100, 20  # more training images than HEAD: head; fewer than TAIL: tail (Liu et al., 2019)
AUC_CLASSES = 1000  # more classes than these: no ROC-AUC, which needs every probability
TINY = float(np.finfo(np.float32).tiny)  # a probability that fp32 rounded to 0 must not make a mean infinite
MOST_FLOATS = 100_000_000  # probabilities of whole rows that are kept: 400 MB


@dataclass(frozen=True)
class Rows:
    """Whole rows of probabilities, of all images or of a drawn sample: `row` int64 (M,), `probability` float32 (M, C)."""

    row: NDArray[np.int64]
    probability: NDArray[np.float32]


@dataclass
class Predictions:
    """What was predicted for N listed images; unreadable ones are marked, and count in no score.

    index: int64 (N,), places in the list. label: int64 (N,), -1 where unknown. top: int64 (N, K), classes, likeliest
    first. probability: float32 (N, K), theirs. true_probability: float32 (N,), that of the label. readable: bool (N,).
    rows: whole rows, where they were asked for; of all N images only where N * C is at most MOST_FLOATS.
    """

    index: NDArray[np.int64]
    label: NDArray[np.int64]
    top: NDArray[np.int64]
    probability: NDArray[np.float32]
    true_probability: NDArray[np.float32]
    readable: NDArray[np.bool_]
    rows: Rows | None = None

    @property
    def seen(self) -> NDArray[np.bool_]:
        """bool (N,): the images that count: they could be read, and have a label."""
        return self.readable & (self.label >= 0)


def score(predictions: Predictions, num_classes: int) -> dict[str, Any]:
    """Scores of the readable images, quick enough for every epoch.

    Returns:
        top1, top5 (shares), mean_class_accuracy (mean over the classes that occur), loss (mean -log p, natural),
        count (images scored), unreadable, num_classes. All 0 where nothing could be scored.
    """
    seen = predictions.seen
    label, top = predictions.label[seen], predictions.top[seen]
    hit = top == label[:, None]
    total = np.bincount(label, minlength=num_classes)
    right = np.bincount(label[hit[:, 0]], minlength=num_classes)
    occurs = total > 0
    return {
        "top1": _mean(hit[:, 0]),
        "top5": _mean(hit[:, :5].any(axis=1)),
        "mean_class_accuracy": _mean(right[occurs] / total[occurs]),
        "loss": _mean(-np.log(np.maximum(predictions.true_probability[seen].astype(np.float64), TINY))),
        "count": int(seen.sum()),
        "unreadable": int((~predictions.readable).sum()),
        "num_classes": num_classes,
    }


def more_scores(predictions: Predictions, num_classes: int, images: list[int] | None = None) -> dict[str, float]:
    """The scores that an evaluation adds to those of `score`.

    Args:
        images: training images of each class (C,), for head, middle and tail; None: unknown, and they are left out.

    Returns:
        mean_class_error (1 - mean_class_accuracy, by which AliProducts ranked); macro_f1, weighted_f1 (over the classes
        that occur as a label or a prediction; scikit-learn's f1_score); ece (expected calibration error, 15 equal bins
        of the confidence, Guo et al. 2017); roc_auc (macro, one against the rest, where there are whole rows, at most
        AUC_CLASSES classes, and each class occurs); head_, middle_, tail_accuracy (mean class accuracy of the classes
        with more than 100, 20 to 100, fewer than 20 training images). {} where nothing could be scored.
    """
    seen = predictions.seen
    if not seen.any():
        return {}
    label, first = predictions.label[seen], predictions.top[seen][:, 0]
    counts = per_class(predictions, num_classes)
    macro, weighted = f1(counts["count"], counts["predicted"], counts["correct"])
    groups = shot_groups(images) if images else {}
    found = {
        "mean_class_error": 1 - _mean(counts["accuracy"][counts["count"] > 0]),
        "macro_f1": macro,
        "weighted_f1": weighted,
        "ece": ece(predictions.probability[seen, 0], first == label),
    }
    auc = roc_auc(predictions, num_classes)
    if auc is not None:
        found["roc_auc"] = auc
    for name, member in groups.items():
        inside = member & (counts["count"] > 0)
        if inside.any():
            found[f"{name}_accuracy"] = _mean(counts["accuracy"][inside])
    return found


def f1(count: NDArray[Any], predicted: NDArray[Any], correct: NDArray[Any]) -> tuple[float, float]:
    """Macro and weighted F1 from the counts of each class, (C,) each: labels, predictions, hits."""
    both = count + predicted
    each = np.divide(2.0 * correct, both, out=np.zeros(len(both)), where=both > 0)
    return float(each[both > 0].mean()), float((each * count).sum() / count.sum())


def reliability(confidence: NDArray[np.float32], hit: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """For each of 15 equal bins of the confidence, (15,): `count`, mean `confidence`, `accuracy` (0 in empty bins).

    A bin holds its upper edge, not its lower (torchmetrics puts a confidence of exactly an edge one bin higher).
    """
    place = np.clip(np.ceil(confidence.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(place, minlength=BINS)
    of = np.maximum(count, 1)
    mean = np.bincount(place, weights=confidence, minlength=BINS) / of
    return {"count": count, "confidence": mean, "accuracy": np.bincount(place, weights=hit, minlength=BINS) / of}


def ece(confidence: NDArray[np.float32], hit: NDArray[np.bool_]) -> float:
    """Expected calibration error, L1 (Guo et al., 2017, eq. 3), of N confidences and whether each was right."""
    bins = reliability(confidence, hit)
    return float((np.abs(bins["accuracy"] - bins["confidence"]) * bins["count"]).sum() / max(len(hit), 1))


def roc_auc(predictions: Predictions, num_classes: int) -> float | None:
    """Macro ROC-AUC, one against the rest; None where it makes no sense: too many classes, rows missing, a class absent."""
    rows, seen = predictions.rows, predictions.seen
    if rows is None or num_classes > AUC_CLASSES or len(rows.row) < len(seen):
        return None
    label = predictions.label[rows.row][seen[rows.row]]
    if len(np.unique(label)) < num_classes or num_classes < 2:
        return None
    from scipy.stats import rankdata

    probability = rows.probability[seen[rows.row]]
    areas = []
    for k in range(num_classes):
        mine = label == k
        positive = int(mine.sum())
        ranks = rankdata(probability[:, k])[mine].sum()  # Mann-Whitney; ties count half
        areas.append((ranks - positive * (positive + 1) / 2) / (positive * (len(label) - positive)))
    return float(np.mean(areas))


def shot_groups(images: list[int]) -> dict[str, NDArray[np.bool_]]:
    """bool (C,) for "head", "middle" and "tail", by the training images of each class (Liu et al., 2019)."""
    count = np.asarray(images)
    return {"head": count > HEAD, "middle": (count <= HEAD) & (count >= TAIL), "tail": count < TAIL}


def per_class(predictions: Predictions, num_classes: int) -> dict[str, NDArray[Any]]:
    """For each class: `count` (readable images of it), `predicted` (images called so), `correct`, `accuracy` (recall)."""
    seen = predictions.seen
    label, first = predictions.label[seen], predictions.top[seen][:, 0]
    count = np.bincount(label, minlength=num_classes)
    correct = np.bincount(label[label == first], minlength=num_classes)
    accuracy = np.divide(correct, count, out=np.full(num_classes, np.nan), where=count > 0)
    return {
        "count": count,
        "predicted": np.bincount(first, minlength=num_classes),
        "correct": correct,
        "accuracy": accuracy,
    }


def confused_pairs(predictions: Predictions, num_classes: int, most: int) -> NDArray[np.int64]:
    """The commonest confusions, int64 (P, 3): true class, predicted class, images; at most `most`, commonest first.

    Sparse: it grows with the errors, never with the square of the classes.
    """
    seen = predictions.seen
    label, first = predictions.label[seen], predictions.top[seen][:, 0]
    wrong = label != first
    keys, counts = np.unique(label[wrong] * num_classes + first[wrong], return_counts=True)
    order = np.lexsort((keys, -counts))[:most]
    return np.stack([keys[order] // num_classes, keys[order] % num_classes, counts[order]], axis=1)


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else 0.0
