"""Augmentations on uint8 RGB (S, S, 3): each a function of the image and its own random generator, nothing else.

An operation owns the image that it is given, and may write to it.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

from dataloader.decode import Image

Op = Callable[[Image, np.random.Generator], Image]

# RGB to luma and two colour-difference axes (YIQ); hue is a rotation of the latter, saturation their length.
TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
FROM_YIQ = np.linalg.inv(TO_YIQ)
GREY = 127.5
ERASE_LEAST = 0.02  # of the image's area


def orient(hflip: float, vflip: float, transpose: float) -> Op:
    """Each of a left-right flip, an upside-down flip and a transpose with its own probability: the eight views."""

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
    """A rotation about the centre by up to `degrees` either way; the rim is mirrored in."""

    def op(image: Image, rng: np.random.Generator) -> Image:
        height, width = image.shape[:2]
        matrix = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), rng.uniform(-degrees, degrees), 1.0)
        return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)

    return op


def colour(probability: float, brightness: float, contrast: float, saturation: float, hue: float) -> Op:
    """With `probability`: brightness, contrast, saturation factors in 1 ± x, and a hue turn in ± `hue` of a full circle.

    All four are one affine map of RGB, so a pixel is rounded once and read once: an order of magnitude less work
    than a way through HSV.
    """

    def op(image: Image, rng: np.random.Generator) -> Image:
        if rng.random() >= probability:
            return image
        light, stretch, vivid, turn = rng.uniform(-1, 1, 4) * (brightness, contrast, saturation, hue)
        return cv2.transform(image, colour_matrix(1 + light, 1 + stretch, 1 + vivid, turn))

    return op


def colour_matrix(brightness: float, contrast: float, saturation: float, hue: float) -> np.ndarray:
    """The (3, 4) affine map of RGB in 0..255: hue (share of a turn) and saturation, then contrast about mid-grey, then brightness."""
    cos, sin = saturation * math.cos(2 * math.pi * hue), saturation * math.sin(2 * math.pi * hue)
    rotation = FROM_YIQ @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ TO_YIQ
    matrix = np.empty((3, 4))
    matrix[:, :3] = brightness * contrast * rotation
    matrix[:, 3] = brightness * (1 - contrast) * GREY
    return matrix


def blur(probability: float) -> Op:
    """With `probability`, a Gaussian blur of 3 or 5 pixels."""

    def op(image: Image, rng: np.random.Generator) -> Image:
        if rng.random() >= probability:
            return image
        side = int(rng.choice((3, 5)))
        return cv2.GaussianBlur(image, (side, side), 0)

    return op


def cutout(probability: float, size: float) -> Op:
    """With `probability`, blank a box (DeVries & Taylor, 2017): sides of up to `size` of the image's, mid-grey."""

    def op(image: Image, rng: np.random.Generator) -> Image:
        if rng.random() >= probability:
            return image
        height, width = image.shape[:2]
        h, w = (max(1, round(side * size * rng.uniform(0.5, 1))) for side in (height, width))
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        image[top : top + h, left : left + w] = round(GREY)
        return image

    return op


def erase(probability: float, area: float) -> Op:
    """With `probability`, noise in a box (Zhong et al., 2020): 0.02 to `area` of the image's, sides as 0.3 to 1/0.3; torchvision's rule."""

    def op(image: Image, rng: np.random.Generator) -> Image:
        if rng.random() >= probability:
            return image
        height, width = image.shape[:2]
        for _ in range(10):
            size, ratio = height * width * rng.uniform(ERASE_LEAST, area), math.exp(rng.uniform(-1, 1) * math.log(0.3))
            h, w = round(math.sqrt(size * ratio)), round(math.sqrt(size / ratio))
            if 0 < h < height and 0 < w < width:
                top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
                image[top : top + h, left : left + w] = rng.integers(256, size=(h, w, 3), dtype=np.uint8)
                break
        return image

    return op
