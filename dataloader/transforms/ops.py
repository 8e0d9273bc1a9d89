"""Augmentations of uint8 RGB (S, S, 3): each is a function of the image and the sample's own random generator alone.

An operation owns the image that it gets, and may write to it. A `probability` is that of changing the image at all.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from dataloader.decode import Image

Op = Callable[[Image, np.random.Generator], Image]

# RGB to luma and two colour-difference axes (YIQ): hue rotates the latter, saturation scales them.
TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
FROM_YIQ = np.linalg.inv(TO_YIQ)
GREY = 127.5
MIN_ERASE_AREA = 0.02  # share of the image
MAX_ERASE_ATTEMPTS = 10  # then the image stays as it is, as in torchvision
MIN_ERASE_RATIO = 0.3  # of the box's sides; at most 1 / 0.3


def _sometimes(probability: float, op: Op) -> Op:
    """Return `op`, applied with this probability; one draw decides, before those of `op`."""
    return lambda image, rng: op(image, rng) if rng.random() < probability else image


def random_flip_transpose(hflip: float, vflip: float, transpose: float) -> Op:
    """Return a horizontal flip, a vertical flip and a transpose, each with its own probability."""

    def op(image: Image, rng: np.random.Generator) -> Image:
        draw = rng.random(3)
        across, down = draw[0] < hflip, draw[1] < vflip
        if draw[2] < transpose:
            image = cv2.transpose(image)
        if across or down:
            cv2.flip(image, -1 if across and down else 1 if across else 0, image)
        return image

    return op


def rotate(degrees: float) -> Op:
    """Return a rotation about the centre by up to `degrees` either way; the border is filled by reflection."""

    def op(image: Image, rng: np.random.Generator) -> Image:
        height, width = image.shape[:2]
        matrix = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), rng.uniform(-degrees, degrees), 1.0)
        return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)

    return op


def color_jitter(probability: float, brightness: float, contrast: float, saturation: float, hue: float) -> Op:
    """Return a colour jitter: factors 1 ± x of brightness, contrast and saturation, and a hue shift of ± `hue` turns.

    All four are one affine map of RGB, so each pixel is read once and rounded once: an order of magnitude less work
    than a conversion to HSV and back.
    """

    def op(image: Image, rng: np.random.Generator) -> Image:
        drawn = rng.uniform(-1, 1, 4) * (brightness, contrast, saturation, hue)
        return cv2.transform(image, color_matrix(1 + drawn[0], 1 + drawn[1], 1 + drawn[2], drawn[3]))

    return _sometimes(probability, op)


def color_matrix(brightness: float, contrast: float, saturation: float, hue: float) -> NDArray[np.float64]:
    """Return the affine map of RGB in 0..255, float64 (3, 4).

    It applies hue (in turns) and saturation, then contrast about mid-grey, then brightness.
    """
    cos, sin = saturation * math.cos(2 * math.pi * hue), saturation * math.sin(2 * math.pi * hue)
    rotation = FROM_YIQ @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ TO_YIQ
    matrix = np.empty((3, 4))
    matrix[:, :3] = brightness * contrast * rotation
    matrix[:, 3] = brightness * (1 - contrast) * GREY
    return matrix


def blur(probability: float) -> Op:
    """Return a Gaussian blur of 3 or 5 pixels."""

    def op(image: Image, rng: np.random.Generator) -> Image:
        side = int(rng.choice((3, 5)))
        return cv2.GaussianBlur(image, (side, side), 0)

    return _sometimes(probability, op)


def cutout(probability: float, size: float) -> Op:
    """Return cutout (DeVries & Taylor, 2017): a mid-grey box whose sides are up to `size` of the image's."""

    def op(image: Image, rng: np.random.Generator) -> Image:
        height, width = image.shape[:2]
        h, w = (max(1, round(side * size * rng.uniform(0.5, 1))) for side in (height, width))
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        image[top : top + h, left : left + w] = round(GREY)
        return image

    return _sometimes(probability, op)


def erase(probability: float, area: float) -> Op:
    """Return random erasing (Zhong et al., 2020) by torchvision's rule: noise in a box of up to `area` of the image."""

    def op(image: Image, rng: np.random.Generator) -> Image:
        height, width = image.shape[:2]
        for _ in range(MAX_ERASE_ATTEMPTS):
            size = height * width * rng.uniform(MIN_ERASE_AREA, area)
            ratio = math.exp(rng.uniform(-1, 1) * math.log(MIN_ERASE_RATIO))
            h, w = round(math.sqrt(size * ratio)), round(math.sqrt(size / ratio))
            if 0 < h < height and 0 < w < width:
                top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
                image[top : top + h, left : left + w] = rng.integers(256, size=(h, w, 3), dtype=np.uint8)
                break
        return image

    return _sometimes(probability, op)
