"""Score predictions in NumPy; exact, and with little memory also for 50,030 classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15  # of confidence, for the expected calibration error (Guo et al., 2017)
# Training images: a class with more is in the head, with fewer in the tail (Liu et al., 2019).
MIN_MIDDLE_IMAGES, MAX_MIDDLE_IMAGES = 20, 100
MAX_AUC_CLASSES = 1000  # with more there is no ROC-AUC, which needs every probability
MIN_PROBABILITY = float(np.finfo(np.float32).tiny)  # one that fp32 rounded to 0 must not make a mean infinite
MAX_ROW_VALUES = 100_000_000  # of whole rows that are kept: 400 MB
MAX_TOP = 5  # likeliest classes that are kept of each image


@dataclass(frozen=True)
class ProbabilityRows:
    """Whole rows of probabilities of all images or a sample: `row` int64 (M,), `probability` float32 (M, C)."""

    row: NDArray[np.int64]
    probability: NDArray[np.float32]


@dataclass
class Predictions:
    """The predictions for N listed images; unreadable ones are marked, and count in no score.

    Attributes:
        index: int64 (N,), positions in the list.
        label: int64 (N,), -1 if unknown.
        top: int64 (N, K), the likeliest classes in order.
        probability: float32 (N, K), theirs.
        true_probability: float32 (N,), that of the label.
        readable: bool (N,).
        rows: whole rows, if they were asked for; of all N images only if N * C is at most MAX_ROW_VALUES.
    """

    index: NDArray[np.int64]
    label: NDArray[np.int64]
    top: NDArray[np.int64]
    probability: NDArray[np.float32]
    true_probability: NDArray[np.float32]
    readable: NDArray[np.bool_]
    rows: ProbabilityRows | None = None

    @property
    def scorable(self) -> NDArray[np.bool_]:
        """Return which images count in the scores, bool (N,): those that are readable and have a label."""
        return self.readable & (self.label >= 0)


def score(predictions: Predictions, num_classes: int) -> dict[str, float]:
    """Return the basic scores, which are fast enough for every epoch.

    Returns:
        top1, top5 (shares), mean_class_accuracy (mean over the classes that occur), macro_f1, weighted_f1 (over the
        classes that occur as a label or a prediction, as scikit-learn's f1_score), log_loss and loss (the same: mean
        -log p, natural), count (images scored), unreadable, num_classes. All are 0 if nothing could be scored.
    """
    scorable = predictions.scorable
    label, top = predictions.label[scorable], predictions.top[scorable]
    hit = top == label[:, None]
    total = np.bincount(label, minlength=num_classes)
    right = np.bincount(label[hit[:, 0]], minlength=num_classes)
    loss = _mean(-np.log(np.maximum(predictions.true_probability[scorable].astype(np.float64), MIN_PROBABILITY)))
    return {
        "top1": _mean(hit[:, 0]),
        "top5": _mean(hit[:, :5].any(axis=1)),
        **class_scores(total, np.bincount(top[:, 0], minlength=num_classes), right),
        "log_loss": loss,
        "loss": loss,
        "count": int(scorable.sum()),
        "unreadable": int((~predictions.readable).sum()),
        "num_classes": num_classes,
    }


def extended_scores(
    predictions: Predictions, num_classes: int, train_counts: list[int] | None = None
) -> dict[str, float]:
    """Return the scores that an evaluation adds to those of `score`.

    Args:
        train_counts: training images per class, (C,), for head, middle and tail; None leaves these out.

    Returns:
        mean_class_error: 1 - mean_class_accuracy, by which AliProducts ranked.
        ece: expected calibration error over 15 equal bins of the confidence (Guo et al., 2017).
        roc_auc: macro, one class against the rest; only with whole rows, at most MAX_AUC_CLASSES classes, all present.
        head_accuracy, middle_accuracy, tail_accuracy: mean class accuracy of the classes with more than 100, 20 to 100,
        fewer than 20 training images.
        Empty if nothing could be scored.
    """
    scorable = predictions.scorable
    if not scorable.any():
        return {}
    label, first = predictions.label[scorable], predictions.top[scorable][:, 0]
    counts = per_class(predictions, num_classes)
    groups = shot_groups(train_counts) if train_counts else {}
    found = {
        "mean_class_error": 1 - _mean(counts["accuracy"][counts["count"] > 0]),
        "ece": ece(predictions.probability[scorable, 0], first == label),
    }
    auc = roc_auc(predictions, num_classes)
    if auc is not None:
        found["roc_auc"] = auc
    for name, member in groups.items():
        inside = member & (counts["count"] > 0)
        if inside.any():
            found[f"{name}_accuracy"] = _mean(counts["accuracy"][inside])
    return found


def class_scores(count: NDArray[Any], predicted: NDArray[Any], correct: NDArray[Any]) -> dict[str, float]:
    """Return the scores that follow from counts per class, (C,) each: labels, predictions, hits; 0 without images.

    Their intervals and `--blend greedy` use this function, too.
    """
    recall = correct[count > 0] / count[count > 0]
    both = count + predicted
    each = np.divide(2.0 * correct, both, out=np.zeros(len(both)), where=both > 0)  # F1
    return {
        "mean_class_accuracy": _mean(recall),
        "macro_f1": _mean(each[both > 0]),
        "weighted_f1": float((each * count).sum() / max(count.sum(), 1)),
    }


def reliability(confidence: NDArray[np.floating], hit: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """Return `count`, mean `confidence` and `accuracy` of 15 equal bins of the confidence, (15,) each; 0 in empty bins.

    `confidence` and `hit` are (N,). A bin includes its upper edge, not its lower (torchmetrics puts a confidence on an
    edge one bin higher).
    """
    bin_of = np.clip(np.ceil(confidence.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(bin_of, minlength=BINS)
    of = np.maximum(count, 1)
    mean = np.bincount(bin_of, weights=confidence, minlength=BINS) / of
    return {"count": count, "confidence": mean, "accuracy": np.bincount(bin_of, weights=hit, minlength=BINS) / of}


def ece(confidence: NDArray[np.float32], hit: NDArray[np.bool_]) -> float:
    """Return the expected calibration error, L1 (Guo et al., 2017, eq. 3), of confidences and hits, (N,) each."""
    bins = reliability(confidence, hit)
    return float((np.abs(bins["accuracy"] - bins["confidence"]) * bins["count"]).sum() / max(len(hit), 1))


def roc_auc(predictions: Predictions, num_classes: int) -> float | None:
    """Return the macro ROC-AUC, one class against the rest.

    None with too many classes, missing rows, or an absent class.
    """
    rows, scorable = predictions.rows, predictions.scorable
    if rows is None or num_classes > MAX_AUC_CLASSES or len(rows.row) < len(scorable):
        return None
    label = predictions.label[rows.row][scorable[rows.row]]
    if len(np.unique(label)) < num_classes or num_classes < 2:
        return None
    from scipy.stats import rankdata

    probability = rows.probability[scorable[rows.row]]
    areas = []
    for k in range(num_classes):
        mine = label == k
        positive = int(mine.sum())
        # Mann-Whitney; ties count half. SciPy 1.18 ranks float32 in float32, which ends at 2**24 images
        ranks = rankdata(probability[:, k].astype(np.float64))[mine].sum()
        areas.append((ranks - positive * (positive + 1) / 2) / (positive * (len(label) - positive)))
    return float(np.mean(areas))


def shot_groups(train_counts: list[int]) -> dict[str, NDArray[np.bool_]]:
    """Return which classes are "head", "middle" and "tail" by training images, bool (C,) each (Liu et al., 2019)."""
    count = np.asarray(train_counts)
    return {
        "head": count > MAX_MIDDLE_IMAGES,
        "middle": (count <= MAX_MIDDLE_IMAGES) & (count >= MIN_MIDDLE_IMAGES),
        "tail": count < MIN_MIDDLE_IMAGES,
    }


def per_class(predictions: Predictions, num_classes: int) -> dict[str, NDArray[Any]]:
    """Return `count`, `predicted`, `correct` and `accuracy` per class, (C,) each.

    `count` is of readable images, `predicted` of images predicted as the class. The accuracy is the recall; it is NaN
    for a class without images.
    """
    scorable = predictions.scorable
    label, first = predictions.label[scorable], predictions.top[scorable][:, 0]
    count = np.bincount(label, minlength=num_classes)
    correct = np.bincount(label[label == first], minlength=num_classes)
    accuracy = np.divide(correct, count, out=np.full(num_classes, np.nan), where=count > 0)
    return {
        "count": count,
        "predicted": np.bincount(first, minlength=num_classes),
        "correct": correct,
        "accuracy": accuracy,
    }


def confused_pairs(predictions: Predictions, num_classes: int, max_pairs: int) -> NDArray[np.int64]:
    """Return the most frequent confusions in order, int64 (P, 3): true class, predicted class, images.

    They are sparse: P grows with the errors, not with the square of the classes, and is at most `max_pairs`.
    """
    scorable = predictions.scorable
    label, first = predictions.label[scorable], predictions.top[scorable][:, 0]
    wrong = label != first
    keys, counts = np.unique(label[wrong] * num_classes + first[wrong], return_counts=True)
    order = np.lexsort((keys, -counts))[:max_pairs]
    return np.stack([keys[order] // num_classes, keys[order] % num_classes, counts[order]], axis=1)


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else 0.0
