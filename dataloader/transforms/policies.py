"""Augmentation policies: which operation an image gets, and at what strength, is drawn from a fixed table.

Tables, directions and signs are torchvision's (transforms/v2/_auto_augment.py). The operations differ: they stay in
uint8, and shear, rotation and translation fill with mid-grey, as in the authors' code. Reflection would copy what is at
the border; black is a strong signal once it is normalised, and grey is almost none.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dataloader.decode import Image
from dataloader.transforms.ops import GREY, TO_YIQ, Op, color_matrix

ImageOp = Callable[[Image, float], Image]

FILL = (round(GREY),) * 3
LUMA = TO_YIQ[0]
LEVELS = np.arange(256, dtype=np.uint8)
NUM_BINS = 31  # strengths of RandAugment and TrivialAugment, from none (0) to the strongest (30)
AUGMIX_NUM_BINS, AUGMIX_SEVERITY, AUGMIX_WIDTH, AUGMIX_MAX_DEPTH = 10, 3, 3, 3


# ------------------------------------------------------------------------------------------------ operations


def identity(image: Image, _: float = 0.0) -> Image:
    """Return the image unchanged."""
    return image


def shear_x(image: Image, slope: float) -> Image:
    """Move each row left by `slope` times its distance from the upper edge."""
    return _warp(image, np.array([[1, slope, slope / 2], [0, 1, 0]], np.float64))


def shear_y(image: Image, slope: float) -> Image:
    """Move each column up by `slope` times its distance from the left edge."""
    return _warp(image, np.array([[1, 0, 0], [slope, 1, slope / 2]], np.float64))


def translate_x(image: Image, pixels: float) -> Image:
    """Move the image right by whole pixels: a fraction is truncated."""
    width = image.shape[1]
    shift = max(-width, min(width, int(pixels)))
    out = np.full_like(image, FILL[0])
    out[:, max(shift, 0) : width + min(shift, 0)] = image[:, max(-shift, 0) : width - max(shift, 0)]
    return out


def translate_y(image: Image, pixels: float) -> Image:
    """Move the image down by whole pixels: a fraction is truncated."""
    height = image.shape[0]
    shift = max(-height, min(height, int(pixels)))
    out = np.full_like(image, FILL[0])
    out[max(shift, 0) : height + min(shift, 0)] = image[max(-shift, 0) : height - max(shift, 0)]
    return out


def rotate(image: Image, degrees: float) -> Image:
    """Rotate counter-clockwise about the centre."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), degrees, 1.0)
    return _warp(image, np.asarray(cv2.invertAffineTransform(matrix), np.float64))


def brightness(image: Image, change: float) -> Image:
    """Multiply by 1 + `change`: -1 gives black."""
    return cv2.transform(image, color_matrix(1 + change, 1, 1, 0))


def color(image: Image, change: float) -> Image:
    """Multiply the distance from grey by 1 + `change`: -1 removes all colour."""
    return cv2.transform(image, color_matrix(1, 1, 1 + change, 0))


def contrast(image: Image, change: float) -> Image:
    """Multiply the distance from the image's mean grey by 1 + `change`."""
    offset = -change * float(LUMA @ cv2.mean(image)[:3])
    return cv2.transform(image, np.hstack([np.eye(3) * (1 + change), np.full((3, 1), offset)]))


def sharpness(image: Image, change: float) -> Image:
    """Multiply the distance from PIL's smoothed image by 1 + `change`: -1 smooths. The outermost pixels stay.

    PIL's kernel (a centre of 5 among ones, over 13) is 9/13 of a box plus 4/13 of the pixel, and the box is fast.
    """
    box = -change * 9 / 13
    out = image.copy()
    out[1:-1, 1:-1] = cv2.addWeighted(image, 1 - box, cv2.blur(image, (3, 3)), box, 0)[1:-1, 1:-1]
    return out


def posterize(image: Image, bits: float) -> Image:
    """Keep the upper `bits` of each value."""
    return np.bitwise_and(image, np.uint8(0xFF << 8 - int(bits) & 0xFF))


def solarize(image: Image, threshold: float) -> Image:
    """Invert values of at least `threshold`, a share of 255."""
    return image ^ np.negative((image >= np.uint8(math.ceil(255 * threshold))).view(np.uint8))


def autocontrast(image: Image, _: float = 0.0) -> Image:
    """Stretch each channel to 0..255; a channel of a single value stays."""
    rows = image.reshape(len(image), -1)
    low = rows.min(0).reshape(-1, 3).min(0).astype(np.float32)
    high = rows.max(0).reshape(-1, 3).max(0).astype(np.float32)
    flat = low == high
    scale = np.where(flat, np.float32(1), (high - low) * np.float32(1 / 255))
    table = (LEVELS[:, None] - np.where(flat, np.float32(0), low)) / scale
    return cv2.LUT(image, table.clip(0, 255).astype(np.uint8)[None])


def equalize(image: Image, _: float = 0.0) -> Image:
    """Spread the values of each channel evenly, by PIL's rule of whole-pixel steps (cv2.equalizeHist has another)."""
    table = np.empty((1, 256, 3), np.uint8)
    for channel in range(3):
        counts = cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
        step = int(counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
        below = np.cumsum(counts) - counts
        table[0, :, channel] = np.minimum((below + step // 2) // step, 255) if step else LEVELS
    return cv2.LUT(image, table)


def _warp(image: Image, inverse: NDArray[np.float64]) -> Image:
    """Warp by `inverse`, (2, 3), which maps a pixel of the result to its source.

    With a fourth channel, OpenCV takes half the time.
    """
    padded = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(padded, inverse, image.shape[1::-1], flags=flags, borderValue=(*FILL, 255))
    return cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB)


# ------------------------------------------------------------------------------------------------ strengths


@dataclass(frozen=True)
class PolicyOp:
    """An operation of a policy, with one magnitude per bin; where it is `signed`, the sign is random."""

    op: ImageOp
    magnitudes: tuple[float, ...]
    signed: bool = False

    def __call__(self, image: Image, level: int, rng: np.random.Generator) -> Image:
        """Return the image with the operation applied at bin `level`."""
        magnitude = self.magnitudes[level]
        return self.op(image, -magnitude if self.signed and rng.random() < 0.5 else magnitude)


@dataclass(frozen=True)
class MagnitudeRange:
    """The largest magnitude of each kind: slope, pixels, degrees, change of tone; and the bits that posterize keeps.

    Attributes:
        bits: in the first and in the last bin.
    """

    slope: float
    pixels: float
    degrees: float
    tone: float
    bits: tuple[int, int]


def policy_ops(largest: MagnitudeRange, bins: int) -> tuple[PolicyOp, ...]:
    """Return the fourteen operations, identity first, with their magnitudes in `bins` even steps."""
    first, last = largest.bits

    def rising(magnitude: float) -> tuple[float, ...]:
        return tuple(np.linspace(0, magnitude, bins).tolist())

    none = (0.0,) * bins
    bits = tuple(np.round(first - np.arange(bins) / ((bins - 1) / (first - last))).tolist())
    return (
        PolicyOp(identity, none),
        PolicyOp(shear_x, rising(largest.slope), signed=True),
        PolicyOp(shear_y, rising(largest.slope), signed=True),
        PolicyOp(translate_x, rising(largest.pixels), signed=True),
        PolicyOp(translate_y, rising(largest.pixels), signed=True),
        PolicyOp(rotate, rising(largest.degrees), signed=True),
        PolicyOp(brightness, rising(largest.tone), signed=True),
        PolicyOp(color, rising(largest.tone), signed=True),
        PolicyOp(contrast, rising(largest.tone), signed=True),
        PolicyOp(sharpness, rising(largest.tone), signed=True),
        PolicyOp(posterize, bits),
        PolicyOp(solarize, tuple(np.linspace(1, 0, bins).tolist())),
        PolicyOp(autocontrast, none),
        PolicyOp(equalize, none),
    )


def randaugment_ops(side: int) -> tuple[PolicyOp, ...]:
    """Return RandAugment's operations for images of `side` pixels."""
    return policy_ops(MagnitudeRange(0.3, 150 / 331 * side, 30, 0.9, (8, 4)), NUM_BINS)


def trivialaugment_ops(side: int) -> tuple[PolicyOp, ...]:
    """Return TrivialAugmentWide's operations; they translate by up to 32 pixels, whatever the side."""
    return policy_ops(MagnitudeRange(0.99, 32, 135, 0.99, (8, 2)), NUM_BINS)


def augmix_ops(side: int) -> tuple[PolicyOp, ...]:
    """Return AugMix's operations, without identity.

    As in torchvision, they include the four changes of tone that are also corruptions of ImageNet-C.
    """
    return policy_ops(MagnitudeRange(0.3, side / 3, 30, 0.9, (4, 0)), AUGMIX_NUM_BINS)[1:]


# ------------------------------------------------------------------------------------------------ policies


def randaugment(count: int, magnitude: int, side: int) -> Op:
    """Return RandAugment (Cubuk et al., 2020): `count` operations, drawn uniformly, all at bin `magnitude`."""
    table = randaugment_ops(side)

    def op(image: Image, rng: np.random.Generator) -> Image:
        for choice in rng.integers(len(table), size=count).tolist():
            image = table[choice](image, magnitude, rng)
        return image

    return op


def trivialaugment(side: int) -> Op:
    """Return TrivialAugmentWide (Müller & Hutter, 2021): one operation at one strength, both drawn uniformly."""
    table = trivialaugment_ops(side)

    def op(image: Image, rng: np.random.Generator) -> Image:
        choice, level = rng.integers((len(table), NUM_BINS)).tolist()
        return table[choice](image, level, rng)

    return op


def augmix(side: int) -> Op:
    """Return AugMix (Hendrycks et al., 2020): the image mixed with three chains of one to three mild operations.

    The consistency loss of the paper is not part of it.
    """
    table = augmix_ops(side)

    def op(image: Image, rng: np.random.Generator) -> Image:
        kept = rng.beta(1, 1)
        mixed, share = image, kept  # `share` weights the image once; afterwards `mixed` holds weighted values
        for weight in (rng.dirichlet(np.ones(AUGMIX_WIDTH)) * (1 - kept)).tolist():
            chain = image
            for choice in rng.integers(len(table), size=int(rng.integers(1, AUGMIX_MAX_DEPTH + 1))).tolist():
                chain = table[choice](chain, int(rng.integers(AUGMIX_SEVERITY)), rng)
            mixed, share = cv2.addWeighted(mixed, share, chain, weight, 0), 1.0
        return mixed

    return op
