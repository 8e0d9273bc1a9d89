"""Blending the samples of a batch: mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019), by torchvision."""

import argparse
from collections.abc import Callable

from torch import Tensor
from torchvision.transforms import v2

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def get_mix(opt: argparse.Namespace, num_classes: int) -> Mix | None:
    """What --mixup and --cutmix ask for, a coin choosing where both do; None where neither.

    It takes normalised images (B, 3, S, S) and labels int64 (B,), and returns images and soft labels (B, C). It draws
    from torch's CPU generator, which `seed_step` sets anew each step.
    """
    mixes: list[Mix] = []
    if opt.mixup:
        mixes.append(v2.MixUp(alpha=opt.mixup, num_classes=num_classes))
    if opt.cutmix:
        mixes.append(v2.CutMix(alpha=opt.cutmix, num_classes=num_classes))
    if len(mixes) < 2:
        return mixes[0] if mixes else None
    return v2.RandomChoice(mixes)
