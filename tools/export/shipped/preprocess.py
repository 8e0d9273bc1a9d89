"""From the bytes of an image file to what the network was trained on. It needs NumPy and Pillow alone.

It repeats the training framework to the bit, so the decoder, the rounding and the order of the steps are part of the
model. A JPEG is decoded at n/8 of its size where that suffices, the region is cut to fractions of a pixel, and the
resize is antialiased, in the integer arithmetic of torch's.
"""

import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image

CROP_FRACTION = 0.875  # fit "crop": side of the square over the short side
JPEG_EIGHTHS = (1, 2, 3, 4)
MAX_BILINEAR_SHRINK = 1.5
ROUNDING_SLACK = 1 + 1e-12
WHITE_LEVELS = (1, 255, 1023, 4095, 16383, 65535)
MAX_DARK_BYTE = 63
ORIENTATION, SAMPLE_FORMAT = 274, 339  # tags of TIFF and EXIF
Wanted = Callable[[int, int], float]  # (height, width) of the upright image -> the smallest scale that suffices
TURNS = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}


class ImageError(Exception):
    """An image cannot be read; the message says why."""


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a square of `scale` pixels: `fit` is "squash", "crop" or "pad"; `mean` and `std` of 0..1."""

    scale: int
    fit: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    max_pixels: int = 178_956_970

    def square(self, data: bytes) -> np.ndarray:
        """Return the bytes of an image file as uint8 RGB (scale, scale, 3)."""
        return squares(data, [self])[0]

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """Return uint8 (B, 3, S, S) as normalised float32 of the same shape."""
        scale = (1 / (255 * np.array(self.std, np.float32))).astype(np.float32)
        shift = -np.array(self.mean, np.float32) / np.array(self.std, np.float32)
        return images.astype(np.float32) * scale[:, None, None] + shift[:, None, None]

    def region(self, height: int, width: int) -> tuple[int, int, int, int, int, int]:
        """Return (top, left, height, width, height after resizing, width after resizing) for an upright image."""
        size = self.scale
        if self.fit == "crop":
            side = max(1, round(min(height, width) * CROP_FRACTION))
            return (height - side) // 2, (width - side) // 2, side, side, size, size
        if self.fit == "pad":
            longest = max(height, width)
            return 0, 0, height, width, max(1, round(size * height / longest)), max(1, round(size * width / longest))
        return 0, 0, height, width, size, size

    def render(self, image: np.ndarray, full: tuple[int, int]) -> np.ndarray:
        """Return the square of a decoded image, uint8 (h, w, 3), as uint8 (scale, scale, 3).

        `full` is its (height, width) before it was decoded smaller.
        """
        region = self.region(*full)
        height, width = region[4:]
        out = np.empty((self.scale, self.scale, 3), np.uint8)
        if (height, width) != out.shape[:2]:
            out[...] = [round(255 * value) for value in self.mean]
        top, left = (self.scale - height) // 2, (self.scale - width) // 2
        out[top : top + height, left : left + width] = crop_resize(image, full, region)
        return out


def squares(data: bytes, ways: list[Preprocess]) -> list[np.ndarray]:
    """Return the bytes of an image file prepared in several ways, uint8 (S, S, 3) each; it is decoded once.

    Raises:
        ImageError: it is not an image, is cut short, or has too many pixels.
    """

    def wanted(height: int, width: int) -> float:
        regions = [way.region(height, width) for way in ways]
        return max(min(1.0, max(region[4] / region[2], region[5] / region[3])) for region in regions)

    image, full = decode(data, wanted, ways[0].max_pixels)
    return [way.render(image, full) for way in ways]


# ------------------------------------------------------------------------------------------------ decoding


def decode(data: bytes, wanted: Wanted, max_pixels: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Return an image as uint8 RGB, upright, and the (height, width) that it has in full size.

    `wanted(height, width)` gives the smallest scale that suffices, for an upright image of this full size.
    """
    if not data:
        raise ImageError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(data, wanted, max_pixels)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        raise ImageError(f"not a readable image ({type(error).__name__}: {error})") from error


def _decode(data: bytes, wanted: Wanted, max_pixels: int) -> tuple[np.ndarray, tuple[int, int]]:
    image: Any = PIL.Image.open(io.BytesIO(data))
    width, height = image.size
    if height * width > max_pixels:
        raise ImageError(f"{width}x{height} is over {max_pixels} pixels: a decompression bomb?")
    packing, turn = _packing(image), _orientation(image)
    full = (width, height) if turn >= 5 else (height, width)
    is_jpeg = data[:3] == b"\xff\xd8\xff" and image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")
    if is_jpeg:
        _decode_smaller(image, wanted(*full))
    image.load()
    turn = _orientation(image)  # Pillow turns a TIFF upright while it loads it, and removes the tag
    pixels = _upright(_to_rgb(image, data, packing), turn)
    return pixels, full if is_jpeg else pixels.shape[:2]


def _decode_smaller(image: Any, scale: float) -> None:
    """Let libjpeg decode at the smallest n/8 that is at least `scale`, for n of JPEG_EIGHTHS, else in full size."""
    eighths = next((eighths for eighths in JPEG_EIGHTHS if eighths / 8 >= scale), 8)
    if eighths == 8:
        return
    # libjpeg takes the smallest n/8 that is at least 1/denominator: 8, 4, 3, 2 for n = 1, 2, 3, 4
    denominator = {1: 8, 2: 4, 3: 3, 4: 2}[eighths]
    width, height = -(-image.width * eighths // 8), -(-image.height * eighths // 8)
    (tile,) = image.tile
    image.tile = [tile._replace(extents=(0, 0, width, height))]
    image._size = (width, height)
    image.decoderconfig = (denominator, 0)


def _packing(image: Any) -> str:
    """Return how the samples of an image that is not loaded yet are packed, such as "RGB;16B"; "" if unknown."""
    for tile in image.tile[:1]:
        parts = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        return next((part for part in parts if isinstance(part, str)), "")
    return ""


def _orientation(image: Any) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged block; the image itself is intact
        return 1
    return next((known for known in range(2, 9) if value == known), 1)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return the pixels turned upright from an EXIF orientation, 1 to 8."""
    if orientation == 1:
        return pixels
    turns, mirrored = TURNS[orientation]
    pixels = np.rot90(pixels, turns)
    return np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels)


def _to_rgb(image: Any, data: bytes, packing: str) -> np.ndarray:
    """Return a loaded image as uint8 (H, W, 3) RGB: alpha over white, deep samples by their range."""
    if image.mode[0] in "IF":
        return _grey_to_rgb(image)
    if ";16" in packing and image.mode in ("RGB", "RGBA", "RGBX", "LA"):
        colours = image.getextrema()[: 1 if image.mode == "LA" else 3]
        if max(high for _, high in colours) <= MAX_DARK_BYTE:
            return _decode_16_bit(data)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _to_8_bits(samples: np.ndarray) -> np.ndarray:
    """Return samples of any type as uint8, scaled by their range: white is the smallest level that none exceeds."""
    low, high = samples.min(), samples.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("it holds samples that are NaN or infinite")
    low, high = min(low.item(), 0), high.item()
    if low < 0:
        samples, high = samples.astype(np.float64) - low, high - low
    white = next((white for white in WHITE_LEVELS if white >= high), high)
    white = high if low < 0 or 4 * high < white else white
    if not white:
        return np.zeros(samples.shape, np.uint8)
    if samples.dtype == np.uint16:
        return (np.arange(65536) * 255 // white).clip(0, 255).astype(np.uint8)[samples]
    return np.floor(samples.astype(np.float64) * 255 / white).astype(np.uint8)


def _grey_to_rgb(image: Any) -> np.ndarray:
    samples = np.asarray(image)
    tags = getattr(image, "tag_v2", None)
    if image.mode == "I" and tags is not None and tags.get(SAMPLE_FORMAT, (1,))[0] == 1:
        samples = samples.view(np.uint32)
    elif samples.dtype.kind == "u":
        samples = samples.astype(np.uint16, copy=False)
    grey = _to_8_bits(samples)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey = np.where(samples == transparent, np.uint8(255), grey)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _decode_16_bit(data: bytes) -> np.ndarray:
    """Return a 16-bit colour image that uses the lower bits, of which Pillow keeps the upper ones. OpenCV keeps all."""
    try:
        import cv2
    except ImportError:
        raise ImageError("its 16-bit samples are dark; try: pip install opencv-python-headless") from None
    samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if samples is None or samples.dtype != np.uint16 or samples.ndim != 3:
        raise ImageError("its 16-bit samples are too dark to be shown in 8; save it with 8 bits per channel")
    colours = _to_8_bits(samples[..., 2::-1])
    if samples.shape[2] == 3:
        return np.ascontiguousarray(colours)
    opaque = 4095 if samples[..., 3].max() <= 4095 else 65535
    alpha = samples[..., 3:].astype(np.float64) / opaque
    return np.round(colours * alpha + 255 * (1 - alpha)).astype(np.uint8)


# ------------------------------------------------------------------------------------------------ cropping, resizing


def crop_resize(image: np.ndarray, full: tuple[int, int], region: tuple[int, int, int, int, int, int]) -> np.ndarray:
    """Return the region of a uint8 (h, w, 3) image, cropped and resized in one step.

    `region` is what Preprocess.region gives; it counts in pixels of the `full` size (height, width).
    """
    down, right = _decode_ratios(image.shape[:2], full)
    top, left, height, width = region[0] * down, region[1] * right, region[2] * down, region[3] * right
    out = region[4:]
    row, column = int(top), int(left)
    part = image[row : math.ceil(top + height), column : math.ceil(left + width)]
    if (row, column) == (top, left):
        return resize(part, (height, width), out)
    high, wide = height / out[0], width / out[1]
    if max(high, wide) <= MAX_BILINEAR_SHRINK:
        return warp(image, (top, left), (high, wide), out)
    right_end, lower_end = left - column + width, top - row + height
    box = left - column, top - row, min(right_end, part.shape[1]), min(lower_end, part.shape[0])
    return np.array(PIL.Image.fromarray(part).resize(out[::-1], PIL.Image.Resampling.BILINEAR, box))


def _decode_ratios(size: tuple[int, int], full: tuple[int, int]) -> tuple[float, float]:
    """Return the scales (down, across) of an image decoded to `size` from `full`: n/8 for a JPEG."""
    for eighths in range(8, 0, -1):
        if -(-full[0] * eighths // 8) == size[0] and -(-full[1] * eighths // 8) == size[1]:
            return eighths / 8, eighths / 8
    return size[0] / full[0], size[1] / full[1]


def warp(image: np.ndarray, start: tuple[float, float], step: tuple[float, float], out: tuple[int, int]) -> np.ndarray:
    """Return the image, uint8 (h, w, 3), sampled bilinearly from `start` (top, left), `step` pixels apart.

    The result is uint8, of `out` (height, width) pixels. Edges are repeated.
    """
    places = [np.float32(s * (np.arange(n) + 0.5) + first - 0.5) for s, n, first in zip(step, out, start, strict=True)]
    rows, columns = (np.floor(place).astype(np.int64) for place in places)
    down, right = places[0] - rows, places[1] - columns
    last = image.shape[0] - 1, image.shape[1] - 1
    upper, lower = rows.clip(0, last[0]), (rows + 1).clip(0, last[0])
    first, second = columns.clip(0, last[1]), (columns + 1).clip(0, last[1])
    pixels = image.astype(np.float32)
    right, down = right[None, :, None], down[:, None, None]
    above = pixels[upper][:, first] + right * (pixels[upper][:, second] - pixels[upper][:, first])
    below = pixels[lower][:, first] + right * (pixels[lower][:, second] - pixels[lower][:, first])
    return np.rint(above + down * (below - above)).clip(0, 255).astype(np.uint8)


def resize(image: np.ndarray, size: tuple[float, float], out: tuple[int, int]) -> np.ndarray:
    """Return the upper left `size` (height, width, with fractions of pixels) of a uint8 (h, w, 3) image.

    It is resized to `out` (height, width), antialiased.
    """
    if size == image.shape[:2] == out:
        return image
    lengths, counts, steps = image.shape[:2], list(out), [image.shape[axis] / out[axis] for axis in (0, 1)]
    if size != lengths:  # the result may be larger than `out`
        factors = [ROUNDING_SLACK * out[axis] / size[axis] for axis in (0, 1)]
        counts = [math.floor(lengths[axis] * factors[axis]) for axis in (0, 1)]
        steps = [1 / factor for factor in factors]
    across = _resize_rows(image.transpose(1, 0, 2), steps[1], counts[1])[: out[1]]
    return _resize_rows(across.transpose(1, 0, 2), steps[0], counts[0])[: out[0]]


def _resize_rows(image: np.ndarray, step: float, count: int) -> np.ndarray:
    """Return `count` rows, `step` rows of the image apart, in torch's 16-bit integer arithmetic."""
    if count == len(image):
        return image
    first, weights, bits = _weights(len(image), step, count)
    total = np.full((count, *image.shape[1:]), 1 << (bits - 1), np.int32)
    for tap in range(weights.shape[1]):
        row = np.minimum(first + tap, len(image) - 1)  # beyond the last one, the weight is 0
        total += weights[:, tap, None, None] * image[row].astype(np.int32)
    return (total >> bits).clip(0, 255).astype(np.uint8)


def _weights(length: int, step: float, count: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return each row's first source row, the integer weights (count, taps), and their binary places."""
    support, inverse = (step, 1 / step) if step >= 1 else (1.0, 1.0)
    centre = step * (np.arange(count) + 0.5)
    first = np.maximum(np.trunc(centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum(np.trunc(centre + support + 0.5).astype(np.int64), length)
    taps = np.arange(math.ceil(support) * 2 + 1)
    place = (taps + first[:, None] - centre[:, None] + 0.5) * inverse
    weights = np.where(taps < (last - first)[:, None], np.maximum(1 - np.abs(place), 0), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    bits = 0
    while bits < 22 and int(0.5 + weights.max() * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    return first, np.trunc(weights * (1 << bits) + 0.5).astype(np.int32), bits
