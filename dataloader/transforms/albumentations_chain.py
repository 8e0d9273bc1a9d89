"""A chain of albumentations, for users who know that library and need its eighty transforms. Edit `steps`.

On its own, albumentations 2.0.8 repeats its augmentations in every worker and epoch; here, each sample seeds it.
"""

import os
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataloader.decode import Image
from dataloader.transforms.ops import Op


@dataclass(frozen=True)
class Strength:
    """The flags of these names. Add a flag of yours here, and in `_albumentations` of transforms/__init__.py."""

    hflip: float
    vflip: float
    transpose: float
    jitter: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    blur: float
    cutout: float
    cutout_size: float


def chain(strength: Strength) -> Op:
    """Return the chain of `steps` as an operation on uint8 RGB (S, S, 3); it draws from the sample's generator."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer version
    import albumentations as A

    per_thread = threading.local()  # a composed transform holds its generator, so threads must not share one

    def operation(image: Image, rng: np.random.Generator) -> Image:
        if not hasattr(per_thread, "compose"):
            per_thread.compose = A.Compose(steps(strength))
        per_thread.compose.set_random_seed(int(rng.integers(2**31)))
        return per_thread.compose(image=image)["image"]

    return operation


def steps(strength: Strength) -> list[Any]:
    """Return the transforms in order: this is the function to edit."""
    import albumentations as A

    box = (min(0.1, strength.cutout_size), strength.cutout_size)
    return [
        A.HorizontalFlip(p=strength.hflip),
        A.VerticalFlip(p=strength.vflip),
        A.Transpose(p=strength.transpose),
        A.HueSaturationValue(round(180 * strength.hue), round(255 * strength.saturation), 0, p=strength.jitter),
        A.RandomBrightnessContrast(strength.brightness, strength.contrast, p=strength.jitter),
        A.OneOf([A.MotionBlur(p=1), A.GaussianBlur(p=1), A.GaussNoise(p=1)], p=strength.blur),
        A.CoarseDropout((1, 1), box, box, fill=127, p=strength.cutout),
    ]
