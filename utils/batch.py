"""What the data loader hands over."""

from typing import NamedTuple

import torch
from torch import Tensor

IN_CACHE = 1 << 18  # float32 values: 1 MB
Bad = tuple[tuple[int, str], ...]  # unreadable images: (index, what is wrong, with the path)


class Batch(NamedTuple):
    """Training images, on the CPU. Every batch has the full B: a ragged last one is left out of the epoch.

    image: uint8 (B, 3, S, S), RGB, channels_last in memory. label: int64 (B,). index: int64 (B,), the sample's
    place in its list. epoch, step: which epoch (from 1) and which batch of it (from 0). bad: images that could not
    be read; the next of the list stand in their places, under their own labels and indices.
    """

    image: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # the contract's name; tuple.index is not missed
    epoch: int
    step: int
    bad: Bad


def to_float(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """uint8 (B, 3, S, S), channels_last -> float32 images * scale + shift, channels_last; scale and shift are float (3,).

    A row of pixels is taken as one long vector: broadcasting over the channels, which are innermost in memory, would
    run loops of three, at half the speed. On the CPU a few images at a time, so that both passes run in the cache.
    """
    rows = images.permute(0, 2, 3, 1).flatten(2)
    width = images.shape[-1]
    scale, shift = scale.repeat(width), shift.repeat(width)
    out = torch.empty(rows.shape, device=rows.device)
    few = len(rows) if images.is_cuda else max(1, IN_CACHE // max(1, rows[0].numel()))
    for part, done in zip(rows.split(few), out.split(few), strict=True):
        torch.addcmul(shift, done.copy_(part), scale, out=done)
    return out.unflatten(2, (width, images.shape[1])).permute(0, 3, 1, 2)


class EvalBatch(NamedTuple):
    """Images to predict, each prepared in one or several ways.

    images: a tuple of uint8 (B, 3, S, S), one for each Preprocess asked for. label: int64 (B,), -1 where the list
    has none. index: int64 (B,). readable: bool (B,); an unreadable image is black and must not count.
    """

    images: tuple[Tensor, ...]
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # the contract's name; tuple.index is not missed
    readable: Tensor
    bad: Bad
