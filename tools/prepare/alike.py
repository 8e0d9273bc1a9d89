"""Which images show one drawing: other sizes, other colours of little difference, mirror images, near copies.

They become a group, so that a split cannot put one into training and another into validation.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from dataloader.decode import Image

SIDE = 16  # of a sketch, in pixels
MIN_SIMILARITY = 0.95  # correlation of sketches: all mirrored stamps are above; other pairs are coins, or b and d
MIN_SKETCH_STD = 3.0  # levels; below, a sketch is too plain to be compared
MAX_ASPECT_RATIO = 1.1  # between the height-to-width ratios of two images of one drawing
BLOCK = 1024  # sketches compared with all others at a time


def sketch(image: Image) -> NDArray[np.float32]:
    """Return the image (H, W, 3), uint8 RGB, at SIDE x SIDE pixels, as float32 (SIDE, SIDE, 3)."""
    return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)


def alike_groups(sketches: NDArray[np.float32], aspects: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return a group number for each image, int64 (N,): the smallest index in its group.

    Two images are of one group if one looks like the other or like its mirror image, or over a chain of such images.

    Args:
        sketches: from `sketch`, (N, SIDE, SIDE, 3).
        aspects: height over width of each image, (N,).
    """
    upright, comparable = _normalised(sketches)
    mirrored, _ = _normalised(sketches[:, :, ::-1])
    shape = np.log(aspects)
    parent = np.arange(len(sketches))
    for start in range(0, len(sketches), BLOCK):
        block = slice(start, start + BLOCK)
        alike = np.maximum(upright[block] @ upright.T, upright[block] @ mirrored.T) >= MIN_SIMILARITY
        alike &= np.abs(shape[block, None] - shape[None]) <= np.log(MAX_ASPECT_RATIO)
        alike &= comparable[block, None] & comparable[None]
        for one, two in np.argwhere(alike).tolist():
            first, second = sorted((_root(parent, one + start), _root(parent, two)))
            parent[second] = first
    return np.array([_root(parent, k) for k in range(len(parent))], np.int64)


def _normalised(sketches: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return sketches as rows of mean 0 and length 1, (N, SIDE * SIDE * 3), and which are not too plain, (N,)."""
    rows = sketches.reshape(len(sketches), SIDE * SIDE * 3)
    centred = rows - rows.mean(axis=1, keepdims=True)
    length = np.sqrt((centred * centred).sum(axis=1, keepdims=True))
    return centred / np.maximum(length, 1e-6), rows.std(axis=1) >= MIN_SKETCH_STD


def _root(parent: NDArray[np.int64], index: int) -> int:
    """Return the smallest index of the group, and shorten the way to it."""
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = int(parent[index])
    return index
