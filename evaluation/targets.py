"""Predictions of images that have several labels or numbers instead of one class, and what their scores need.

"Targets" in a module's name means these tasks: target_results.py here does what results.py does for one class, and
inference/targets.py what `predict` of inference/predictor.py does.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataloader.targets import LabelSets, Targets, take

BLOCK_VALUES = 1 << 22  # predictions that are scored together: 16 MB


@dataclass
class TargetPredictions:
    """The predictions for N listed images; unreadable ones are marked, and count in no score.

    Attributes:
        index: int64 (N,), positions in the list.
        value: float32 (N, K), the probability of each label, or the numbers; of a large list in a file
            (inference.targets).
        readable: bool (N,).
        targets: those of the N images; None: unknown.
    """

    index: NDArray[np.int64]
    value: NDArray[np.float32]
    readable: NDArray[np.bool_]
    targets: Targets | None

    @property
    def scorable(self) -> NDArray[np.bool_]:
        """Return which images count in the scores, bool (N,): those that are readable and have targets."""
        return self.readable & (self.targets is not None)

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield the scorable rows in parts: their numbers, int64 (n,), and their predictions, float32 (n, K)."""
        rows = np.flatnonzero(self.scorable)
        step = max(1, BLOCK_VALUES // max(1, self.value.shape[1]))
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            yield part, np.asarray(self.value[part])


def of_list(
    index: NDArray[np.int64], value: NDArray[np.float32], readable: NDArray[np.bool_], targets: Targets | None
) -> TargetPredictions:
    """Return the predictions of the images at `index` of a list, whose targets are `targets`.

    The shapes are those of TargetPredictions, but `targets` is of the whole list.
    """
    return TargetPredictions(index, value, readable, None if targets is None else take(targets, index))


def label_sets(predictions: TargetPredictions) -> LabelSets:
    """Return the labels of the images of a multi-label task."""
    assert isinstance(predictions.targets, LabelSets)
    return predictions.targets


def numbers(predictions: TargetPredictions) -> NDArray[np.float64]:
    """Return the targets of the images of a regression, float64 (N, T)."""
    assert isinstance(predictions.targets, np.ndarray)
    return predictions.targets
