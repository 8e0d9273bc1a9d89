"""Which scores are better, by one of the metrics of --metric."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from options import choices

Row = TypeVar("Row", bound=Mapping[str, Any])


def merit(scores: Mapping[str, Any], metric: str, prefix: str = "") -> float:
    """Return the score `prefix + metric` of `scores`, negative where lower is better: a higher merit is better."""
    value = float(scores[prefix + metric])
    return -value if metric in choices.LOWER_IS_BETTER else value


def best_row(history: Iterable[Row], metric: str) -> Row | None:
    """Return the scores of the epoch that is the best by `metric` (the first of equals); None before any validation.

    Epochs without the metric, or with NaN, do not count. Nor do those before the last `scored_from`: they
    were scored on other images.
    """
    name, rows = f"val_{metric}", list(history)
    first = max((row.get("scored_from", 1) for row in rows), default=1)
    rows = [row for row in rows if row["epoch"] >= first and not math.isnan(row.get(name, math.nan))]
    return max(rows, key=lambda row: merit(row, metric, "val_"), default=None)


def metrics_in_order(metric: str) -> Sequence[str]:
    """Return the names of all metrics, `metric` first."""
    return [metric, *(name for name in choices.METRICS if name != metric)]


def scores_text(scores: Mapping[str, Any], metric: str, prefix: str = "") -> str:
    """Return the metrics on one line, `metric` first, with six digits, so that two runs can be compared by eye.

    Scores of earlier versions lack some of the metrics.
    """
    names = [name for name in metrics_in_order(metric) if prefix + name in scores]
    return "  ".join(f"{name} {scores[prefix + name]:.6f}" for name in names)
