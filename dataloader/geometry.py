"""Which part of an image is shown, and at what size. It is drawn before decoding, from the size in the header."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import PIL.Image
import torch
from torch.nn.functional import interpolate

from dataloader.decode import Image
from utils.preprocess import CROP_FRACTION, Preprocess

MAX_BILINEAR_SHRINK = 1.5  # input pixels per output pixel; above it, bilinear interpolation skips too many of them
ROUNDING_SLACK = 1 + 1e-12  # enlarges a factor that will be rounded down, so that no rounding error costs a pixel
MAX_CROP_ATTEMPTS = 10  # then the centre is taken, as in torchvision


class Region(NamedTuple):
    """A rectangle of the full-size image, and the size to which it is resized; all in pixels."""

    top: int
    left: int
    height: int
    width: int
    out_height: int
    out_width: int

    def decode_scale(self) -> float:
        """Return the smallest scale, at most 1, at which the rectangle still has every pixel that its output needs."""
        return min(1.0, max(self.out_height / self.height, self.out_width / self.width))


@dataclass(frozen=True)
class RandomCrop:
    """RandomResizedCrop (Szegedy et al., 2015) by torchvision's rule.

    The crop's share of the area is uniform in [zoom, 1]; its aspect ratio is log-uniform in [1 / ratio, ratio]. The
    result is a square of `size` pixels.
    """

    size: int
    zoom: float
    ratio: float

    def choose_region(self, height: int, width: int, rng: np.random.Generator) -> Region:
        """Draw the region for an image of `height` and `width`."""
        log_ratio = math.log(self.ratio)
        # in one call: drawn one at a time, they take 20 µs
        down, across, *draws = rng.random(2 + 2 * MAX_CROP_ATTEMPTS).tolist()
        for area_draw, ratio_draw in zip(draws[::2], draws[1::2], strict=True):
            area = height * width * (self.zoom + (1 - self.zoom) * area_draw)
            ratio = math.exp(log_ratio * (1 - 2 * ratio_draw))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = int(down * (height - h + 1)), int(across * (width - w + 1))
                return Region(top, left, h, w, self.size, self.size)
        w = min(width, max(1, round(height / self.ratio)))  # a long, thin image: the widest allowed crop, centred
        h = min(height, max(1, round(width / self.ratio)))
        return Region((height - h) // 2, (width - w) // 2, h, w, self.size, self.size)

    def render(self, image: Image, full: tuple[int, int], region: Region, out: Image) -> None:
        """Fill the square `out`, uint8 (S, S, 3), with the region of an image that was `full` (height, width)."""
        crop_resize_fast(image, full, region, out)

    def min_source_side(self) -> int:
        """Return the short side of an image whose smallest crop still has `size` pixels."""
        return math.ceil(self.size / math.sqrt(self.zoom))


@dataclass(frozen=True)
class EvalGeometry:
    """The geometry of evaluation, without randomness; Preprocess describes it."""

    preprocess: Preprocess

    @property
    def size(self) -> int:
        """Return the side of the square in pixels."""
        return self.preprocess.scale

    def min_source_side(self) -> int:
        """Return the short side of an image whose square still has `size` pixels."""
        return math.ceil(self.size / (CROP_FRACTION if self.preprocess.fit == "crop" else 1))

    def choose_region(self, height: int, width: int, rng: np.random.Generator | None = None) -> Region:
        """Return the region for an image of `height` and `width`; `rng` is not used."""
        size = self.size
        if self.preprocess.fit == "crop":
            side = max(1, round(min(height, width) * CROP_FRACTION))
            return Region((height - side) // 2, (width - side) // 2, side, side, size, size)
        if self.preprocess.fit == "pad":
            longest = max(height, width)
            out_height, out_width = max(1, round(size * height / longest)), max(1, round(size * width / longest))
            return Region(0, 0, height, width, out_height, out_width)
        return Region(0, 0, height, width, size, size)

    def render(self, image: Image, full: tuple[int, int], region: Region, out: Image) -> None:
        """Fill the square `out`, uint8 (S, S, 3), with the region of an image that was `full` (height, width).

        What the region leaves empty ("pad") gets the colour that normalises to zero.
        """
        height, width = region.out_height, region.out_width
        if (height, width) != out.shape[:2]:
            out[...] = [round(255 * value) for value in self.preprocess.mean]
        top, left = (out.shape[0] - height) // 2, (out.shape[1] - width) // 2
        out[top : top + height, left : left + width] = crop_resize(image, full, region)


def crop_resize(image: Image, full: tuple[int, int], region: Region) -> Image:
    """Return the region, cropped and resized in one step, antialiased and exact to fractions of a pixel.

    `region` counts in pixels of the `full` size (height, width); `image` may have been decoded smaller. torch's resize
    cannot begin within a pixel of the decoded image. Such a region is warped where it shrinks little (up to
    MAX_BILINEAR_SHRINK); where it shrinks more, Pillow resizes it, at up to four times the cost.
    """
    down, right = decode_ratios(image.shape[:2], full)
    top, left, height, width = region.top * down, region.left * right, region.height * down, region.width * right
    row, column = int(top), int(left)
    part = image[row : math.ceil(top + height), column : math.ceil(left + width)]
    if (row, column) == (top, left):
        return resize(part, (height, width), (region.out_height, region.out_width))
    high, wide = height / region.out_height, width / region.out_width  # input pixels per output pixel
    size = region.out_width, region.out_height
    if max(high, wide) <= MAX_BILINEAR_SHRINK:
        matrix = np.array([[wide, 0, left + wide / 2 - 0.5], [0, high, top + high / 2 - 0.5]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(image, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    right_end, lower_end = left - column + width, top - row + height
    box = left - column, top - row, min(right_end, part.shape[1]), min(lower_end, part.shape[0])
    return np.array(PIL.Image.fromarray(part).resize(size, PIL.Image.Resampling.BILINEAR, box))


def crop_resize_fast(image: Image, full: tuple[int, int], region: Region, out: Image) -> None:
    """Write to `out` what `crop_resize` returns for the nearest whole pixels of the decoded image.

    The crop moves by half a pixel at most, far less than a random crop varies. OpenCV's bilinear resize takes half the
    time of the antialiased one, and up to MAX_BILINEAR_SHRINK it is as close to it as the JPEG is to the original.
    """
    top, left, height, width = snap_region(image.shape[:2], full, region)
    part = image[top : top + height, left : left + width]
    if max(height / out.shape[0], width / out.shape[1]) <= MAX_BILINEAR_SHRINK:
        cv2.resize(part, out.shape[1::-1], dst=out, interpolation=cv2.INTER_LINEAR)
    else:
        out[...] = resize(part, (height, width), out.shape[:2])


def resize(image: Image, size: tuple[float, float], out: tuple[int, int]) -> Image:
    """Return the upper left `size` (height, width, with fractions of pixels), resized to `out` (height, width).

    torch's antialiased resize of uint8 is as exact as Pillow's in a third of the time. It runs in the calling thread.
    """
    if size == image.shape[:2] == out:
        return image
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).unsqueeze(0).permute(0, 3, 1, 2)
    if size == image.shape[:2]:
        small = interpolate(pixels, out, mode="bilinear", antialias=True)
    else:  # the result may be larger than `out`
        factor = ROUNDING_SLACK * out[0] / size[0], ROUNDING_SLACK * out[1] / size[1]
        small = interpolate(pixels, scale_factor=factor, mode="bilinear", antialias=True, recompute_scale_factor=False)
    return small[0, :, : out[0], : out[1]].permute(1, 2, 0).numpy()


def snap_region(size: tuple[int, int], full: tuple[int, int], region: Region) -> tuple[int, int, int, int]:
    """Return `region` in whole pixels of an image decoded to `size` from `full` (height, width).

    Returns:
        (top, left, height, width), at least 1 x 1.
    """
    down, right = decode_ratios(size, full)
    top, left = min(round(region.top * down), size[0] - 1), min(round(region.left * right), size[1] - 1)
    height, width = max(1, round(region.height * down)), max(1, round(region.width * right))
    return top, left, min(height, size[0] - top), min(width, size[1] - left)


def decode_ratios(size: tuple[int, int], full: tuple[int, int]) -> tuple[float, float]:
    """Return the scales (down, across) of an image decoded to `size` from `full` (height, width).

    A JPEG decoded at n/8 has its sides rounded up: the last row and column cover less than a pixel. Its scale is
    therefore n/8 itself; the quotient of the sizes would shift the far end by up to a pixel.
    """
    for eighths in range(8, 0, -1):
        if -(-full[0] * eighths // 8) == size[0] and -(-full[1] * eighths // 8) == size[1]:
            return eighths / 8, eighths / 8
    return size[0] / full[0], size[1] / full[1]
