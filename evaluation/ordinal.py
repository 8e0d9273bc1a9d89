"""Score classes that have an order."""

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import Predictions
from options.choices import ORDER_METRICS


def score(predictions: Predictions, num_classes: int) -> dict[str, float]:
    """Return what an order adds to metrics.score: qwk and mae of the likeliest classes; 0 if nothing could be scored.

    qwk: the quadratic weighted kappa (Cohen, 1968). mae: the mean distance in classes.
    """
    scorable = predictions.scorable
    label, first = predictions.label[scorable], predictions.top[scorable][:, 0]
    return order_scores(label, first, np.ones(len(label)), num_classes)


def order_scores(
    label: NDArray[np.int64], predicted: NDArray[np.int64], weight: NDArray[np.number], num_classes: int
) -> dict[str, float]:
    """Return qwk and mae of classes, int64 (N,) each, in which image i counts weight[i] times."""
    total = weight.sum()
    if not total:
        return dict.fromkeys(ORDER_METRICS, 0.0)
    distance = np.abs(label - predicted)
    return {
        "qwk": quadratic_weighted_kappa(label, predicted, weight, num_classes),
        "mae": float((weight * distance).sum() / total),
    }


def quadratic_weighted_kappa(
    label: NDArray[np.int64], predicted: NDArray[np.int64], weight: NDArray[np.number], num_classes: int
) -> float:
    """Return 1 - sum of squared distances / that of independent draws with the same frequencies; 1 if both are 0.

    `label` and `predicted` are classes, int64 (N,); image i counts weight[i] times, (N,).
    """
    true = np.bincount(label, weights=weight, minlength=num_classes)
    found = np.bincount(predicted, weights=weight, minlength=num_classes)
    place = np.arange(num_classes, dtype=np.float64)
    total = weight.sum()
    observed = float((weight * (label - predicted).astype(np.float64) ** 2).sum())
    # sum over i, j of true_i found_j (i - j)^2, without the matrix
    expected = float(
        (true @ place**2) * found.sum() + (found @ place**2) * true.sum() - 2 * (true @ place) * (found @ place)
    ) / float(total)
    if expected <= 0:
        return 1.0 if observed == 0 else 0.0
    return 1 - observed / expected
