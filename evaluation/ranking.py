"""Which scores are better, by one of the metrics of --metric."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from options import choices
from utils.errors import UserError

MAX_TOP5_CLASSES = 5  # with no more classes, the right one is always among the five likeliest

Row = TypeVar("Row", bound=Mapping[str, Any])


def merit(scores: Mapping[str, Any], metric: str, prefix: str = "") -> float:
    """Return the score `prefix + metric` of `scores`, negative where lower is better: a higher merit is better."""
    value = float(scores[prefix + metric])
    return -value if choices.METRICS[metric].lower_is_better else value


def is_constant(metric: str, classes: int) -> bool:
    """Return whether every network of this number of `classes` has the same `metric`."""
    return metric == "top5" and classes <= MAX_TOP5_CLASSES


def check_decides(metric: str, classes: int, chosen: str) -> None:
    """Raise UserError where every network of this number of `classes` has the same `metric`, which then cannot choose.

    Args:
        chosen: what it would choose, for the message.
    """
    if not is_constant(metric, classes):
        return
    others = ", ".join(name for name in choices.SINGLE_METRICS if name != metric)
    raise UserError(
        f"--metric top5 is 1 for every network of {classes} classes, so it cannot choose {chosen}; allowed with "
        f"{MAX_TOP5_CLASSES} classes or fewer: {others}. Try: --metric top1"
    )


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
