"""What fits the weights of members that predict several labels per image, or numbers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dataloader.targets import LabelSets, Targets, select
from evaluation import multilabel
from evaluation.scoring import score
from evaluation.targets import BLOCK_VALUES, TargetPredictions
from inference.blend import mean_by_image
from utils.classes import Classes


@dataclass(frozen=True)
class TargetCandidates:
    """What a fit needs of N labelled images: every prediction of M members, float32 (M, N, K), and the targets."""

    each: NDArray[np.float32]
    targets: Targets
    classes: Classes
    shown: ClassVar[tuple[str, ...]] = ()  # metrics that are measured beside the one to improve

    @property
    def members(self) -> int:
        """Return M."""
        return len(self.each)

    @property
    def images(self) -> int:
        """Return N."""
        return self.each.shape[1]

    def select(self, keep: NDArray[np.bool_]) -> "TargetCandidates":
        """Return the candidates of the images that `keep`, bool (N,), marks."""
        targets = select(self.targets, keep)
        assert targets is not None  # as `self` has targets
        return replace(self, each=self.each[:, keep], targets=targets)

    def blended(self, weights: NDArray[np.float64]) -> "TargetCandidates":
        """Return the candidates of one member: the mean of all by `weights`, (M, N), those of each image."""
        return replace(self, each=mean_by_image(self.each, weights))

    def value(self, weights: NDArray[np.float64], metric: str) -> float:
        """Return `metric`, a metric of the task in options.choices, of the mean by `weights`, float64 (M,)."""
        found = self._mean(weights)
        if metric == "mAP":
            return multilabel.mean_of_known(multilabel.average_precisions(found))
        if metric == "log_loss":
            return multilabel.log_loss(found)
        return score(found, self.classes)[metric]

    def loss(self, weights: NDArray[np.float64]) -> float:
        """Return the loss of the mean by `weights`, float64 (M,), as `convex_loss` computes it."""
        return self.convex_loss()(weights)[0]

    def convex_loss(self) -> Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]]:
        """Return a function of the weights that gives the loss of the weighted mean and its slope, float64 (M,).

        It is the mean binary cross entropy over images and labels, or the mean squared error of the numbers in units
        of their standard deviation on the training list.
        """
        return self._cross_entropy if isinstance(self.targets, LabelSets) else self._squared_error()

    def _mean(self, weights: NDArray[np.float64]) -> TargetPredictions:
        mean = np.tensordot(weights.astype(np.float32), self.each, 1)
        return TargetPredictions(np.arange(self.images), mean, np.ones(self.images, bool), self.targets)

    def _cross_entropy(self, weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        sets = self.targets
        assert isinstance(sets, LabelSets)
        total, slope = 0.0, np.zeros(self.members)
        step = max(1, BLOCK_VALUES // max(1, self.each.shape[2]))
        for first in range(0, self.images, step):
            part = self.each[:, first : first + step]
            present = sets.rows(np.arange(first, first + part.shape[1])).astype(bool)
            p = np.tensordot(weights, part, 1)
            total += float(multilabel.cross_entropy(p, present).sum())
            p = np.clip(p, multilabel.MIN_P, 1 - multilabel.MIN_P)
            slope -= np.tensordot(part, np.where(present, 1 / p, 1 / (p - 1)), 2)
        count = self.each[0].size
        return total / count, slope / count

    def _squared_error(self) -> Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]]:
        assert isinstance(self.targets, np.ndarray)
        scale = np.array(self.classes.std if self.classes.std is not None else 1.0)
        errors = ((self.each - self.targets) / scale).reshape(self.members, -1)
        products = errors @ errors.T / errors.shape[1]  # as the weights sum to 1, the error of the mean is that mean

        def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            return float(weights @ products @ weights), 2 * products @ weights

        return loss
