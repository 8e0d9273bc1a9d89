"""The nearest images of an out-of-fold prediction, by features that the networks of the folds computed.

Features of two networks cannot be compared. So the neighbours of an image are of its own fold, whose network has seen
neither the image nor them.
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.features import nearest
from tools.folds.plan import FoldsRun


class FoldFeatures:
    """The features that lie beside the probabilities of each fold; some folds may have none."""

    def __init__(self, run: FoldsRun) -> None:
        self.run = run

    def nearest_neighbours(
        self, places: NDArray[np.int64], readable: NDArray[np.bool_], image: NDArray[np.integer], k: int
    ) -> dict[int, list[tuple[int, float]]]:
        """Find the k images nearest to each of `places`, int64 (M,), among those of the same fold.

        The arguments and the result are those of inference.Features.nearest_neighbours.
        """
        found: dict[int, list[tuple[int, float]]] = {}
        for fold in self.run.folds:
            own = np.flatnonzero(self.run.fold_of == fold.number - 1)
            asked = np.flatnonzero(np.isin(own, places))
            rows = _read(fold.probs)
            if rows is None or len(rows) != len(own) or not len(asked):
                continue
            for place, near in nearest(rows, asked, readable[own], image[own], k).items():
                found[int(own[place])] = [(int(own[other]), cosine) for other, cosine in near]
        return found


def _read(path: Path) -> NDArray[Any] | None:
    """Return the features in a file of probabilities, float16 (N, D); None if there are none."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return content["features"] if "features" in content.files else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
