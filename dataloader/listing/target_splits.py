"""Folds of images that have several labels or numbers: labels spread evenly, numbers by quantiles."""

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_BINS, MIN_BIN_IMAGES = 10, 5  # of the quantiles of a number


def iterative_folds(
    sets: Sequence[Sequence[int]], groups: NDArray[np.int64], shares: Sequence[float], seed: int
) -> NDArray[np.int64]:
    """Return the fold of each image, int64 (N,), by iterative stratification (Sechidis et al., 2011).

    The rarest label that is left is spread first: each group with it goes to the fold that lacks that label most, then
    to the one that lacks most images. A group goes as a whole, the largest first.

    Args:
        sets: the labels of each image. groups: numbers of the images' groups, from 0 without gaps, int64 (N,).
        shares: of the images in each fold, of sum 1. seed: of the order of groups of the same size, and of ties.
    """
    rng = np.random.default_rng(seed)
    count = int(groups.max()) + 1
    size = np.bincount(groups, minlength=count)
    rank = np.lexsort((rng.random(count), -size))  # the largest groups first
    of_group: list[dict[int, int]] = [{} for _ in range(count)]
    for group, labels in zip(groups.tolist(), sets, strict=True):
        for label in labels:
            of_group[group][label] = of_group[group].get(label, 0) + 1
    members: dict[int, list[int]] = {}
    left: dict[int, int] = {}
    for group in rank.tolist():
        for label, images in of_group[group].items():
            members.setdefault(label, []).append(group)
            left[label] = left.get(label, 0) + images
    share = np.array(shares)
    wanted = {label: share * images for label, images in left.items()}
    room = share * len(groups)
    fold = np.full(count, -1)

    def assign(group: int, label: int | None) -> None:
        lacks = room if label is None else wanted[label]
        best = np.flatnonzero(lacks >= lacks.max() - 1e-9)
        best = best[room[best] >= room[best].max() - 1e-9]
        chosen = int(rng.choice(best))
        fold[group] = chosen
        room[chosen] -= size[group]
        for other, images in of_group[group].items():
            wanted[other][chosen] -= images
            left[other] -= images
            heapq.heappush(queue, (left[other], other))

    queue = [(images, label) for label, images in left.items()]
    heapq.heapify(queue)
    while queue:
        images, label = heapq.heappop(queue)
        if images != left[label]:  # an older entry of the label
            continue
        for group in members[label]:
            if fold[group] < 0:
                assign(group, label)
    for group in rank.tolist():
        if fold[group] < 0:
            assign(group, None)
    return fold[groups]


def quantile_bins(values: Sequence[Sequence[float]]) -> NDArray[np.int64]:
    """Return a class for each image, int64 (N,), by the quantiles of its first number, for a split that spreads them.

    There are at most MAX_BINS bins, and fewer where a bin would have less than MIN_BIN_IMAGES images.
    """
    first = np.array([row[0] for row in values], np.float64)
    bins = max(1, min(MAX_BINS, len(first) // MIN_BIN_IMAGES))
    edges = np.unique(np.quantile(first, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.searchsorted(edges, first, side="right").astype(np.int64)
