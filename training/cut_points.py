"""The cut points of a network that learns ordered classes as numbers: fitted at each validation."""

from evaluation import cut_points
from evaluation.metrics import Predictions


class CutPoints:
    """Fits the cut points of each set of weights ("raw", "ema", "swa") to the predictions of a validation.

    values: the last fit of each; nothing before the first validation.
    """

    def __init__(self, count: int) -> None:
        """`count`: of classes."""
        self.count = count
        self.values: dict[str, list[float]] = {}

    def fit(self, weights: str, predictions: Predictions) -> Predictions:
        """Fit the cut points of `weights` to predictions that were made without any, and return those with them."""
        self.values[weights] = cut_points.fit(predictions, self.count)
        return cut_points.cut(predictions, self.values[weights], self.count)
