"""Features: the input of a network's classifier; and the images whose features are nearest."""

from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from inference.predictor import Predictor
from network.heads import final_layer

MAX_BYTES = 1 << 30  # The report keeps this much in memory: 2,048 features of 260,000 images in float16.
BLOCK_ROWS = 1 << 14  # compared at a time


class Features:
    """Collects, in a `with`, the features of each image's first view in a predictor's first network.

    `rows`: (N, D) of `dtype`, each of length 1, in the order of the list. None without a network, without a classifier
    of one layer, with `collect` False, or where float16 features would take more than MAX_BYTES.
    """

    def __init__(self, predictor: Predictor, count: int, dtype: type = np.float16, collect: bool = True) -> None:
        self.head = final_layer(predictor.members[0].model.net) if predictor.members and collect else None
        self.count, self.dtype = count, dtype
        self.rows: NDArray[Any] | None = None
        self.done = 0
        self._seen: list[torch.Tensor] = []

    def __enter__(self) -> "Features":
        if self.head is not None:
            self._hook = self.head.register_forward_pre_hook(lambda _, inputs: self._seen.append(inputs[0]))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.head is not None:
            self._hook.remove()

    def take(self, size: int) -> torch.Tensor | None:
        """Return the features of the batch of `size` images that was predicted last, float32 (size, D), to `add` them.

        None where there are none, or too many to keep.
        """
        if not self._seen:
            return None
        found = torch.nn.functional.normalize(torch.cat(self._seen)[:size].float())
        self._seen.clear()
        too_large = self.count * found.shape[1] * np.dtype(self.dtype).itemsize > MAX_BYTES
        return None if too_large and self.dtype == np.float16 else found

    def add(self, found: torch.Tensor) -> None:
        """Keep the features of the next batch of the list, float32 (B, D)."""
        if self.rows is None:
            self.rows = np.empty((self.count, found.shape[1]), self.dtype)
        self.rows[self.done : self.done + len(found)] = found.cpu().numpy()
        self.done += len(found)

    def nearest_neighbours(
        self, places: NDArray[np.int64], readable: NDArray[np.bool_], image: NDArray[np.integer], k: int
    ) -> dict[int, list[tuple[int, float]]]:
        """Find the k images nearest to each of `places` by cosine, among the other readable ones, each once.

        Args:
            places: int64 (M,), images by their place in the list. readable: bool (N,).
            image: (N,), equal where lines of the list name one image.

        Returns:
            {place: [(place, cosine), nearest first]}; {} where there are no features.
        """
        return {} if self.rows is None else nearest(self.rows[: self.done], places, readable, image, k)


class FindsNeighbours(Protocol):
    """What finds the images nearest to others of a list."""

    def nearest_neighbours(
        self, places: NDArray[np.int64], readable: NDArray[np.bool_], image: NDArray[np.integer], k: int
    ) -> dict[int, list[tuple[int, float]]]:
        """Find the k images nearest to each of `places`, int64 (M,): see Features.nearest_neighbours."""


def nearest(
    rows: NDArray[Any], places: NDArray[np.int64], readable: NDArray[np.bool_], image: NDArray[np.integer], k: int
) -> dict[int, list[tuple[int, float]]]:
    """Find the k rows nearest to each of `places` by cosine, as Features.nearest_neighbours does.

    Args:
        rows: (N, D), each of length 1.
    """
    queries = rows[places].astype(np.float32)
    found = np.flatnonzero(readable)
    candidate = np.zeros(len(rows), bool)
    candidate[found[np.unique(image[found], return_index=True)[1]]] = True  # one line of each image
    best: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []
    for first in range(0, len(rows), BLOCK_ROWS):
        cosine = queries @ rows[first : first + BLOCK_ROWS].astype(np.float32).T
        others = np.arange(first, first + cosine.shape[1])
        cosine[:, ~candidate[others]] = -np.inf
        cosine[image[places][:, None] == image[others]] = -np.inf
        chosen = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
        best.append((np.take_along_axis(cosine, chosen, 1), others[chosen]))
    values, near = (np.concatenate(part, axis=1) for part in zip(*best, strict=True))
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    pairs = zip(np.take_along_axis(near, order, 1).tolist(), np.take_along_axis(values, order, 1).tolist(), strict=True)
    return {
        place: [(other, cosine) for other, cosine in zip(*pair, strict=True) if cosine > -np.inf]
        for place, pair in zip(places.tolist(), pairs, strict=True)
    }
