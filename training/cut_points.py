"""The cut points of a network that learns ordered classes as numbers: fitted at each validation."""

from evaluation import cut_points
from evaluation.metrics import Predictions


class CutPoints:
    """Fits the cut points of each set of weights ("raw", "ema", "swa") to the predictions of a validation.

    Attributes:
        values: the last fit of each; nothing before the first validation.
        step: the optimizer step that they belong to.
    """

    def __init__(self, count: int) -> None:
        """`count`: of classes."""
        self.count = count
        self.values: dict[str, list[float]] = {}
        self.step = -1

    def keep(self, weights: str, values: list[float], step: int) -> None:
        """Keep the cut points of `weights` after optimizer step `step`; those of earlier steps are dropped."""
        self.values = {**(self.values if step == self.step else {}), weights: values}
        self.step = step

    def of(self, weights: str, step: int) -> list[float] | None:
        """Return the cut points of `weights` after optimizer step `step`; None: they were not fitted there."""
        return self.values.get(weights) if step == self.step else None

    def fit(self, weights: str, step: int, predictions: Predictions) -> Predictions:
        """Fit the cut points of `weights` to predictions that were made without any, and return those with them."""
        self.keep(weights, cut_points.fit(predictions, self.count), step)
        return cut_points.cut(predictions, self.values[weights], self.count)
