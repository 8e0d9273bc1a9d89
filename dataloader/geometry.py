"""Which part of an image is shown, and at what size. Everything is drawn before decoding, from the header's size."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from dataloader.decode import Image
from utils.preprocess import CROP_SHARE, Preprocess

AREA_FROM = 1.5  # beyond it bilinear skips pixels


class Region(NamedTuple):
    """A rectangle of the full-size image, in pixels, and the size it is brought to."""

    top: int
    left: int
    height: int
    width: int
    out_height: int
    out_width: int

    def factor(self) -> float:
        """The share of the full size at which the rectangle still has every pixel that its output needs; at most 1."""
        return min(1.0, max(self.out_height / self.height, self.out_width / self.width))


@dataclass(frozen=True)
class RandomCrop:
    """RandomResizedCrop (Szegedy et al., 2015), by torchvision's rule: share of the area in [zoom, 1], log-uniform ratio."""

    scale: int
    zoom: float
    ratio: float

    def place(self, height: int, width: int, rng: np.random.Generator) -> Region:
        """Draw the region for an image of that size."""
        low, high = math.log(self.ratio), -math.log(self.ratio)
        for _ in range(10):
            area = height * width * rng.uniform(self.zoom, 1.0)
            ratio = math.exp(rng.uniform(low, high))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
                return Region(top, left, h, w, self.scale, self.scale)
        w = min(width, max(1, round(height / self.ratio)))  # a long, thin image: the widest allowed crop, centred
        h = min(height, max(1, round(width / self.ratio)))
        return Region((height - h) // 2, (width - w) // 2, h, w, self.scale, self.scale)

    def side(self) -> int:
        """The short side of an image whose smallest crop still has `scale` pixels."""
        return math.ceil(self.scale / math.sqrt(self.zoom))


@dataclass(frozen=True)
class Fit:
    """The geometry of evaluation, without chance: see Preprocess."""

    preprocess: Preprocess

    def side(self) -> int:
        """The short side of an image whose square has `scale` pixels."""
        return math.ceil(self.preprocess.scale / (CROP_SHARE if self.preprocess.fit == "crop" else 1))

    def place(self, height: int, width: int, rng: np.random.Generator | None = None) -> Region:
        """The region for an image of that size; `rng` is not used."""
        scale = self.preprocess.scale
        if self.preprocess.fit == "crop":
            side = max(1, round(min(height, width) * CROP_SHARE))
            return Region((height - side) // 2, (width - side) // 2, side, side, scale, scale)
        if self.preprocess.fit == "pad":
            longest = max(height, width)
            return Region(0, 0, height, width, max(1, round(scale * height / longest)), max(1, round(scale * width / longest)))
        return Region(0, 0, height, width, scale, scale)

    def finish(self, image: Image) -> Image:
        """Pad to the square, in the colour that normalises to zero; nothing to do for the other fits."""
        scale = self.preprocess.scale
        height, width = image.shape[:2]
        if (height, width) == (scale, scale):
            return image
        top, left = (scale - height) // 2, (scale - width) // 2
        colour = [round(255 * value) for value in self.preprocess.mean]
        sides = (top, scale - height - top, left, scale - width - left)
        return cv2.copyMakeBorder(image, *sides, cv2.BORDER_CONSTANT, value=colour)


def cut(image: Image, full: tuple[int, int], region: Region) -> Image:
    """Crop and resize once.

    `image` may have been decoded smaller than its `full` size (height, width), in which `region` counts. What is left
    to shrink by up to AREA_FROM is bilinear, at fractions of a pixel: rounding the region to whole pixels of a small
    image would shift fine textures by up to half of one. More than that averages over areas.
    """
    down, right = image.shape[0] / full[0], image.shape[1] / full[1]
    high, wide = region.height * down / region.out_height, region.width * right / region.out_width  # input pixels an output pixel
    if max(high, wide) <= AREA_FROM and (high, wide) != (1, 1):
        place = [[wide, 0, region.left * right + wide / 2 - 0.5], [0, high, region.top * down + high / 2 - 0.5]]
        way = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(image, np.array(place), (region.out_width, region.out_height), flags=way, borderMode=cv2.BORDER_REPLICATE)
    top, left = round(region.top * down), round(region.left * right)
    bottom = max(top + 1, round((region.top + region.height) * down))
    end = max(left + 1, round((region.left + region.width) * right))
    part = image[min(top, image.shape[0] - 1) : bottom, min(left, image.shape[1] - 1) : end]
    if part.shape[:2] == (region.out_height, region.out_width):
        return part
    return cv2.resize(part, (region.out_width, region.out_height), interpolation=cv2.INTER_AREA)
