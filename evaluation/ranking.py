"""Which scores are better, by one of the metrics of --metric."""

from collections.abc import Mapping, Sequence
from typing import Any

from options import choices


def merit(scores: Mapping[str, Any], metric: str, prefix: str = "") -> float:
    """Return the score `prefix + metric` of `scores`, negative where lower is better: a higher merit is better."""
    value = float(scores[prefix + metric])
    return -value if metric in choices.LOWER_IS_BETTER else value


def metrics_in_order(metric: str) -> Sequence[str]:
    """Return the names of all metrics, `metric` first."""
    return [metric, *(name for name in choices.METRICS if name != metric)]


def scores_text(scores: Mapping[str, Any], metric: str, prefix: str = "") -> str:
    """Return the metrics on one line, `metric` first, with six digits, so that two runs can be compared by eye.

    Scores of earlier versions lack some of the metrics.
    """
    names = [name for name in metrics_in_order(metric) if prefix + name in scores]
    return "  ".join(f"{name} {scores[prefix + name]:.6f}" for name in names)
