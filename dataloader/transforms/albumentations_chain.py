"""A chain of albumentations, for users who know that library and need its eighty transforms. Edit `steps`.

On its own, albumentations 2.0.8 repeats its augmentations in every worker and epoch; here, each sample seeds it.
"""

import argparse
import os
import threading
from typing import Any

import numpy as np

from dataloader.decode import Image
from dataloader.transforms.ops import Op


def chain(opt: argparse.Namespace) -> Op:
    """Return the chain of `steps` as an operation on uint8 RGB (S, S, 3); it draws from the sample's generator."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer version
    import albumentations as A

    per_thread = threading.local()  # a composed transform holds its generator, so threads must not share one

    def operation(image: Image, rng: np.random.Generator) -> Image:
        if not hasattr(per_thread, "compose"):
            per_thread.compose = A.Compose(steps(opt))
        per_thread.compose.set_random_seed(int(rng.integers(2**31)))
        return per_thread.compose(image=image)["image"]

    return operation


def steps(opt: argparse.Namespace) -> list[Any]:
    """Return the transforms in order: this is the function to edit."""
    import albumentations as A

    box = (min(0.1, opt.cutout_size), opt.cutout_size)
    return [
        A.HorizontalFlip(p=opt.hflip),
        A.VerticalFlip(p=opt.vflip),
        A.Transpose(p=opt.transpose),
        A.HueSaturationValue(round(180 * opt.hue), round(255 * opt.saturation), 0, p=opt.jitter),
        A.RandomBrightnessContrast(opt.brightness, opt.contrast, p=opt.jitter),
        A.OneOf([A.MotionBlur(p=1), A.GaussianBlur(p=1), A.GaussNoise(p=1)], p=opt.blur),
        A.CoarseDropout((1, 1), box, box, fill=127, p=opt.cutout),
    ]
