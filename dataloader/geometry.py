"""Which part of an image is shown, and at what size. Everything is drawn before decoding, from the header's size."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import PIL.Image
import torch
from torch.nn.functional import interpolate

from dataloader.decode import Image
from utils.preprocess import CROP_SHARE, Preprocess

BILINEAR_TO = 1.5  # input pixels an output pixel; beyond it bilinear skips too much of them
BREATH = 1 + 1e-12  # a factor that is rounded down grows by it, so that no rounding error costs a pixel
TRIES = 10  # draws of a crop before the centre is taken, as in torchvision


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
        most = math.log(self.ratio)
        down, across, *draws = rng.random(2 + 2 * TRIES).tolist()  # in one call: one at a time they take 20 µs
        for share, turn in zip(draws[::2], draws[1::2], strict=True):
            area = height * width * (self.zoom + (1 - self.zoom) * share)
            ratio = math.exp(most * (1 - 2 * turn))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return Region(int(down * (height - h + 1)), int(across * (width - w + 1)), h, w, self.scale, self.scale)
        w = min(width, max(1, round(height / self.ratio)))  # a long, thin image: the widest allowed crop, centred
        h = min(height, max(1, round(width / self.ratio)))
        return Region((height - h) // 2, (width - w) // 2, h, w, self.scale, self.scale)

    def show(self, image: Image, full: tuple[int, int], region: Region, out: Image) -> None:
        """Fill the square `out`, uint8 (S, S, 3), with the region of an image that was `full` (height, width)."""
        cut_near(image, full, region, out)

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
            return Region(
                0, 0, height, width, max(1, round(scale * height / longest)), max(1, round(scale * width / longest))
            )
        return Region(0, 0, height, width, scale, scale)

    def show(self, image: Image, full: tuple[int, int], region: Region, out: Image) -> None:
        """Fill the square `out`, uint8 (S, S, 3), with the region of an image that was `full` (height, width).

        What the region leaves of it ("pad") has the colour that normalises to zero.
        """
        height, width = region.out_height, region.out_width
        if (height, width) != out.shape[:2]:
            out[...] = [round(255 * value) for value in self.preprocess.mean]
        top, left = (out.shape[0] - height) // 2, (out.shape[1] - width) // 2
        out[top : top + height, left : left + width] = cut(image, full, region)


def cut(image: Image, full: tuple[int, int], region: Region) -> Image:
    """Crop and resize once, antialiased, at fractions of a pixel, as evaluation wants it.

    `image` may have been decoded smaller than its `full` size (height, width), in which `region` counts. A region that
    begins within a pixel of what was decoded, which torch's resize knows nothing of, is warped where little is left to
    shrink (up to BILINEAR_TO), and Pillow's at up to four times the cost where there is more.
    """
    down, right = shares(image.shape[:2], full)
    top, left, height, width = region.top * down, region.left * right, region.height * down, region.width * right
    row, column = int(top), int(left)
    part = image[row : math.ceil(top + height), column : math.ceil(left + width)]
    if (row, column) == (top, left):
        return resize(part, (height, width), (region.out_height, region.out_width))
    high, wide = height / region.out_height, width / region.out_width  # input pixels an output pixel
    size = region.out_width, region.out_height
    if max(high, wide) <= BILINEAR_TO:
        place = np.array([[wide, 0, left + wide / 2 - 0.5], [0, high, top + high / 2 - 0.5]])
        way = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(image, place, size, flags=way, borderMode=cv2.BORDER_REPLICATE)
    box = left - column, top - row, min(left - column + width, part.shape[1]), min(top - row + height, part.shape[0])
    return np.array(PIL.Image.fromarray(part).resize(size, PIL.Image.Resampling.BILINEAR, box))


def cut_near(image: Image, full: tuple[int, int], region: Region, out: Image) -> None:
    """As `cut`, into `out`, of the nearest whole pixels of what was decoded: a random crop that is drawn on their grid.

    A crop moves by half a pixel at most, far less than chance moves it. OpenCV's bilinear resize takes half of the
    time of the antialiased one, and up to BILINEAR_TO it is as near to it as the JPEG is to the picture.
    """
    top, left, height, width = whole_pixels(image.shape[:2], full, region)
    part = image[top : top + height, left : left + width]
    if max(height / out.shape[0], width / out.shape[1]) <= BILINEAR_TO:
        cv2.resize(part, out.shape[1::-1], dst=out, interpolation=cv2.INTER_LINEAR)
    else:
        out[...] = resize(part, (height, width), out.shape[:2])


def resize(image: Image, size: tuple[float, float], out: tuple[int, int]) -> Image:
    """The upper left `size` (height, width, in pixels, perhaps broken) of an image at `out` (height, width).

    torch's antialiased resize of uint8 is as exact as Pillow's in a third of the time. It runs in the calling thread.
    """
    if size == image.shape[:2] == out:
        return image
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).unsqueeze(0).permute(0, 3, 1, 2)
    if size == image.shape[:2]:
        small = interpolate(pixels, out, mode="bilinear", antialias=True)
    else:  # the size that comes of it may be larger than asked
        factor = BREATH * out[0] / size[0], BREATH * out[1] / size[1]
        small = interpolate(pixels, scale_factor=factor, mode="bilinear", antialias=True, recompute_scale_factor=False)
    return small[0, :, : out[0], : out[1]].permute(1, 2, 0).numpy()


def whole_pixels(size: tuple[int, int], full: tuple[int, int], region: Region) -> tuple[int, int, int, int]:
    """`region` of an image that was `full` (height, width) and is now `size`: (top, left, height, width), at least 1 x 1."""
    down, right = shares(size, full)
    top, left = min(round(region.top * down), size[0] - 1), min(round(region.left * right), size[1] - 1)
    height, width = max(1, round(region.height * down)), max(1, round(region.width * right))
    return top, left, min(height, size[0] - top), min(width, size[1] - left)


def shares(size: tuple[int, int], full: tuple[int, int]) -> tuple[float, float]:
    """The scales (down, across) of an image of `size` (height, width) that was `full`.

    A JPEG decoded at n/8 has its sizes rounded up: the last row and column hold less than a pixel, so the scale is
    n/8 itself; the quotient of the sizes would shift the far end by up to a pixel.
    """
    for eighths in range(8, 0, -1):
        if -(-full[0] * eighths // 8) == size[0] and -(-full[1] * eighths // 8) == size[1]:
            return eighths / 8, eighths / 8
    return size[0] / full[0], size[1] / full[1]
