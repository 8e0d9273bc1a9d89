"""Augmentation policies: which operation an image gets, and how strong, is left to chance within a fixed table.

Tables, directions and signs are torchvision's (transforms/v2/_auto_augment.py). The operations are not its: they stay
in uint8, and what shear, rotation and translation bring in from outside is mid-grey, as in the authors' code. A mirrored
rim would make of a shift a second copy of what stands at the edge; black is a strong signal once normalised, grey almost none.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from dataloader.decode import Image
from dataloader.transforms.ops import GREY, TO_YIQ, Op, colour_matrix

Change = Callable[[Image, float], Image]

FILL = (round(GREY),) * 3
LUMA = TO_YIQ[0]
LEVELS = np.arange(256, dtype=np.uint8)
BINS = 31  # strengths of RandAugment and TrivialAugment, from none (0) to the strongest (30)
AUGMIX_BINS, SEVERITY, WIDTH, DEPTH = 10, 3, 3, 3


# ------------------------------------------------------------------------------------------------ operations on an image


def identity(image: Image, _: float = 0.0) -> Image:
    """The image as it is."""
    return image


def shear_x(image: Image, slope: float) -> Image:
    """Each row moves left by `slope` of its distance from the upper edge."""
    return _warp(image, np.array([[1, slope, slope / 2], [0, 1, 0]]))


def shear_y(image: Image, slope: float) -> Image:
    """Each column moves up by `slope` of its distance from the left edge."""
    return _warp(image, np.array([[1, 0, 0], [slope, 1, slope / 2]]))


def translate_x(image: Image, pixels: float) -> Image:
    """To the right, by whole pixels: a fraction is cut off."""
    width = image.shape[1]
    shift = max(-width, min(width, int(pixels)))
    out = np.full_like(image, FILL[0])
    out[:, max(shift, 0) : width + min(shift, 0)] = image[:, max(-shift, 0) : width - max(shift, 0)]
    return out


def translate_y(image: Image, pixels: float) -> Image:
    """Downwards, by whole pixels: a fraction is cut off."""
    height = image.shape[0]
    shift = max(-height, min(height, int(pixels)))
    out = np.full_like(image, FILL[0])
    out[max(shift, 0) : height + min(shift, 0)] = image[max(-shift, 0) : height - max(shift, 0)]
    return out


def rotate(image: Image, degrees: float) -> Image:
    """Counter-clockwise about the centre."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), degrees, 1.0)
    return _warp(image, cv2.invertAffineTransform(matrix))


def brightness(image: Image, change: float) -> Image:
    """Times 1 + `change`: -1 is black."""
    return cv2.transform(image, colour_matrix(1 + change, 1, 1, 0))


def colour(image: Image, change: float) -> Image:
    """The distance from grey times 1 + `change`: -1 is without colour."""
    return cv2.transform(image, colour_matrix(1, 1, 1 + change, 0))


def contrast(image: Image, change: float) -> Image:
    """The distance from the image's mean grey times 1 + `change`."""
    offset = -change * float(LUMA @ cv2.mean(image)[:3])
    return cv2.transform(image, np.hstack([np.eye(3) * (1 + change), np.full((3, 1), offset)]))


def sharpness(image: Image, change: float) -> Image:
    """The distance from PIL's smoothed image times 1 + `change`: -1 is smoothed. The outermost pixels stay.

    Its kernel (a centre of 5 among ones, over 13) is 9/13 of a box and 4/13 of the pixel, and the box is quick.
    """
    box = -change * 9 / 13
    out = image.copy()
    out[1:-1, 1:-1] = cv2.addWeighted(image, 1 - box, cv2.blur(image, (3, 3)), box, 0)[1:-1, 1:-1]
    return out


def posterize(image: Image, bits: float) -> Image:
    """The upper `bits` of each value."""
    return np.bitwise_and(image, np.uint8(0xFF << 8 - int(bits) & 0xFF))


def solarize(image: Image, threshold: float) -> Image:
    """Values of at least `threshold`, a share of 255, become their negative."""
    return image ^ np.negative((image >= np.uint8(math.ceil(255 * threshold))).view(np.uint8))


def autocontrast(image: Image, _: float = 0.0) -> Image:
    """Each channel stretched to 0..255; one of a single value stays."""
    rows = image.reshape(len(image), -1)
    low, high = (
        rows.min(0).reshape(-1, 3).min(0).astype(np.float32),
        rows.max(0).reshape(-1, 3).max(0).astype(np.float32),
    )
    flat = low == high
    scale = np.where(flat, np.float32(1), (high - low) * np.float32(1 / 255))
    table = (LEVELS[:, None] - np.where(flat, np.float32(0), low)) / scale
    return cv2.LUT(image, table.clip(0, 255).astype(np.uint8)[None])


def equalize(image: Image, _: float = 0.0) -> Image:
    """Each channel's values spread evenly, by PIL's rule, whose steps are whole pixels (cv2.equalizeHist has another)."""
    table = np.empty((1, 256, 3), np.uint8)
    for channel in range(3):
        counts = cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
        step = int(counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
        below = np.cumsum(counts) - counts
        table[0, :, channel] = np.minimum((below + step // 2) // step, 255) if step else LEVELS
    return cv2.LUT(image, table)


def _warp(image: Image, inverse: np.ndarray) -> Image:
    """`inverse`, (2, 3), takes a pixel of the result to where it comes from. With a fourth channel it takes half the time."""
    padded = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.cvtColor(
        cv2.warpAffine(padded, inverse, image.shape[1::-1], flags=flags, borderValue=(*FILL, 255)), cv2.COLOR_RGBA2RGB
    )


# ------------------------------------------------------------------------------------------------ their strengths


@dataclass(frozen=True)
class Entry:
    """An operation of a policy: a magnitude a bin, whose sign a coin turns where it is `signed`."""

    change: Change
    magnitudes: tuple[float, ...]
    signed: bool = False

    def __call__(self, image: Image, level: int, rng: np.random.Generator) -> Image:
        """Apply the operation at strength `level`."""
        magnitude = self.magnitudes[level]
        return self.change(image, -magnitude if self.signed and rng.random() < 0.5 else magnitude)


@dataclass(frozen=True)
class Strengths:
    """The strongest magnitude of each kind: slope, pixels, degrees, change of tone; and the bits that posterizing keeps, first and last."""

    slope: float
    pixels: float
    degrees: float
    tone: float
    bits: tuple[int, int]


def entries(most: Strengths, bins: int) -> tuple[Entry, ...]:
    """The fourteen operations, identity first, with their magnitudes in `bins` even steps."""
    first, last = most.bits

    def rising(strongest: float) -> tuple[float, ...]:
        return tuple(np.linspace(0, strongest, bins).tolist())

    none = (0.0,) * bins
    bits = tuple(np.round(first - np.arange(bins) / ((bins - 1) / (first - last))).tolist())
    return (
        Entry(identity, none),
        Entry(shear_x, rising(most.slope), signed=True),
        Entry(shear_y, rising(most.slope), signed=True),
        Entry(translate_x, rising(most.pixels), signed=True),
        Entry(translate_y, rising(most.pixels), signed=True),
        Entry(rotate, rising(most.degrees), signed=True),
        Entry(brightness, rising(most.tone), signed=True),
        Entry(colour, rising(most.tone), signed=True),
        Entry(contrast, rising(most.tone), signed=True),
        Entry(sharpness, rising(most.tone), signed=True),
        Entry(posterize, bits),
        Entry(solarize, tuple(np.linspace(1, 0, bins).tolist())),
        Entry(autocontrast, none),
        Entry(equalize, none),
    )


def randaugment_entries(side: int) -> tuple[Entry, ...]:
    """RandAugment's table for images of `side` pixels."""
    return entries(Strengths(0.3, 150 / 331 * side, 30, 0.9, (8, 4)), BINS)


def trivialaugment_entries(side: int) -> tuple[Entry, ...]:
    """TrivialAugmentWide's table: up to 32 pixels, whatever the side."""
    return entries(Strengths(0.99, 32, 135, 0.99, (8, 2)), BINS)


def augmix_entries(side: int) -> tuple[Entry, ...]:
    """AugMix's table, without identity; like torchvision's, with the four changes of tone that ImageNet-C has too."""
    return entries(Strengths(0.3, side / 3, 30, 0.9, (4, 0)), AUGMIX_BINS)[1:]


# ------------------------------------------------------------------------------------------------ policies


def randaugment(count: int, magnitude: int, side: int) -> Op:
    """RandAugment (Cubuk et al., 2020): `count` operations, drawn evenly, each at strength `magnitude` of 0..30."""
    table = randaugment_entries(side)

    def op(image: Image, rng: np.random.Generator) -> Image:
        for choice in rng.integers(len(table), size=count).tolist():
            image = table[choice](image, magnitude, rng)
        return image

    return op


def trivialaugment(side: int) -> Op:
    """TrivialAugmentWide (Müller & Hutter, 2021): one operation, at one strength, both drawn evenly."""
    table = trivialaugment_entries(side)

    def op(image: Image, rng: np.random.Generator) -> Image:
        choice, level = rng.integers((len(table), BINS)).tolist()
        return table[choice](image, level, rng)

    return op


def augmix(side: int) -> Op:
    """AugMix (Hendrycks et al., 2020): the image mixed with three chains of one to three mild operations; without its loss."""
    table = augmix_entries(side)

    def op(image: Image, rng: np.random.Generator) -> Image:
        kept = rng.beta(1, 1)
        mixed, share = image, kept  # `share` weighs `mixed` once: what it holds already is weighed
        for weight in (rng.dirichlet(np.ones(WIDTH)) * (1 - kept)).tolist():
            chain = image
            for choice in rng.integers(len(table), size=int(rng.integers(1, DEPTH + 1))).tolist():
                chain = table[choice](chain, int(rng.integers(SEVERITY)), rng)
            mixed, share = cv2.addWeighted(mixed, share, chain, weight, 0), 1.0
        return mixed

    return op
