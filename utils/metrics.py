"""Scores from what a network said, in NumPy; exact, and small enough for 50,030 classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Predictions:
    """What was predicted for N listed images; unreadable ones are marked, and count in no score.

    index: int64 (N,), places in the list. label: int64 (N,), -1 where unknown. top: int64 (N, K), classes, likeliest
    first. probability: float32 (N, K), theirs. true_probability: float32 (N,), that of the label. readable: bool (N,).
    """

    index: NDArray[np.int64]
    label: NDArray[np.int64]
    top: NDArray[np.int64]
    probability: NDArray[np.float32]
    true_probability: NDArray[np.float32]
    readable: NDArray[np.bool_]


def score(predictions: Predictions, num_classes: int) -> dict[str, Any]:
    """Scores of the readable images.

    Returns:
        top1, top5 (shares), mean_class_accuracy (mean over the classes that occur), loss (mean -log p, natural),
        count (images scored), unreadable, num_classes. All 0 where nothing could be scored.
    """
    seen = predictions.readable & (predictions.label >= 0)
    label, top = predictions.label[seen], predictions.top[seen]
    hit = top == label[:, None]
    total = np.bincount(label, minlength=num_classes)
    right = np.bincount(label[hit[:, 0]], minlength=num_classes)
    occurs = total > 0
    floor = np.finfo(np.float32).tiny  # a probability that fp32 rounded to 0 must not make the mean infinite
    return {
        "top1": _mean(hit[:, 0]),
        "top5": _mean(hit[:, :5].any(axis=1)),
        "mean_class_accuracy": _mean(right[occurs] / total[occurs]),
        "loss": _mean(-np.log(np.maximum(predictions.true_probability[seen].astype(np.float64), floor))),
        "count": int(seen.sum()),
        "unreadable": int((~predictions.readable).sum()),
        "num_classes": num_classes,
    }


def per_class(predictions: Predictions, num_classes: int) -> dict[str, NDArray[Any]]:
    """For each class: `count` (readable images of it), `predicted` (images called so), `correct`, `accuracy` (recall)."""
    seen = predictions.readable & (predictions.label >= 0)
    label, first = predictions.label[seen], predictions.top[seen][:, 0]
    count = np.bincount(label, minlength=num_classes)
    correct = np.bincount(label[label == first], minlength=num_classes)
    accuracy = np.divide(correct, count, out=np.full(num_classes, np.nan), where=count > 0)
    return {"count": count, "predicted": np.bincount(first, minlength=num_classes), "correct": correct, "accuracy": accuracy}


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else 0.0
