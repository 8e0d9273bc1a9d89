"""Score predictions of numbers."""

import numpy as np
from numpy.typing import NDArray

from evaluation.targets import TargetPredictions, numbers
from options.choices import TASK_METRICS

NAMES = TASK_METRICS["regression"]


def score(predictions: TargetPredictions, std: list[float] | None = None) -> dict[str, float]:
    """Return the scores of predicted numbers.

    Args:
        std: of each target on the training list, by which `loss` measures errors; None: of the scored images.

    Returns:
        mae, rmse, r2, spearman: the means of those of each target (see `per_target`). loss: the mean squared error in
        units of `std`. count (images scored), unreadable, num_classes (the number of targets). All are 0 if nothing
        could be scored.
    """
    return scores_of(predictions, per_target(predictions), std)


def scores_of(
    predictions: TargetPredictions, each: dict[str, NDArray[np.float64]], std: list[float] | None = None
) -> dict[str, float]:
    """Return `score` from `each`, what `per_target` gave already: float64 (T,) by name."""
    scorable = predictions.scorable
    scale = np.array(std) if std is not None else np.maximum(numbers(predictions)[scorable].std(axis=0), 1e-12)
    return {
        **{name: float(np.nanmean(each[name])) if scorable.any() else 0.0 for name in NAMES},
        "loss": float(((each["rmse"] / scale) ** 2).mean()) if scorable.any() else 0.0,
        "count": int(scorable.sum()),
        "unreadable": int((~predictions.readable).sum()),
        "num_classes": predictions.value.shape[1],
    }


def per_target(predictions: TargetPredictions, rows: NDArray[np.int64] | None = None) -> dict[str, NDArray[np.float64]]:
    """Return the scores of each target, float64 (T,) each.

    Args:
        rows: which images to score, int64 (n,), in any number; None: all scorable ones.

    Returns:
        mae: mean absolute error. rmse: root of the mean squared error. r2: 1 - squared error / variance, 0 where the
        targets are all equal. spearman: the correlation of ranks, with equal values sharing a rank; 0 where targets or
        predictions are all equal.
    """
    rows = np.flatnonzero(predictions.scorable) if rows is None else rows
    true = numbers(predictions)[rows]
    found = np.asarray(predictions.value[rows], np.float64)
    columns = range(true.shape[1])
    if not len(rows):
        return {name: np.zeros(true.shape[1]) for name in NAMES}
    error = found - true
    spread = ((true - true.mean(axis=0)) ** 2).sum(axis=0)
    spread[np.ptp(true, axis=0) == 0] = 0.0  # the mean of equal numbers may be rounded
    squared = (error**2).sum(axis=0)
    r2 = 1 - np.divide(squared, spread, out=np.ones_like(squared), where=spread > 0)
    return {
        "mae": np.abs(error).mean(axis=0),
        "rmse": np.sqrt((error**2).mean(axis=0)),
        "r2": r2,
        "spearman": np.array([spearman(found[:, k], true[:, k]) for k in columns]),
    }


def spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return Spearman's correlation of two columns, (N,) each; 0 where one of them is constant."""
    from scipy.stats import rankdata  # here: half a second that no other task needs

    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    first, second = (rankdata(column) - (len(column) + 1) / 2 for column in (one, other))
    norm = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / norm) if norm else 0.0
