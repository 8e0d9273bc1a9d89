"""The parts of a cross-fit: each is scored with what was fitted to the others."""

import numpy as np
from numpy.typing import NDArray

from dataloader.file_list import FileList
from dataloader.list_checks import listed_images

FOLDS = 5


def image_keys(files: FileList) -> NDArray[np.integer]:
    """Return what `draw_parts` needs of the images of a list, (N,); log where an image is listed again.

    A group is in one part, as it is in one fold of tools.folds.
    """
    if files.group is not None:
        return files.group
    return listed_images(files, "all lines of an image are in one part of the cross-fit")


def draw_parts(image: NDArray[np.integer], *seed: int) -> NDArray[np.int64]:
    """Return the part of each row, int64 (N,), from 0 to FOLDS - 1: equal shares of the images, drawn by `seed`.

    Args:
        image: (N,), equal where rows are of one image. They share a part, so what is fitted to the others has not seen
            the image.
    """
    _, first, place = np.unique(image, return_index=True, return_inverse=True)
    drawn = np.random.default_rng(seed).permutation(len(first)) % FOLDS
    return drawn[np.argsort(np.argsort(first))[place]]  # images are numbered in the order of the list
