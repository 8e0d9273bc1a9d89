"""The batches that the data loader yields, and their conversion to floats."""

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK_VALUES = 1 << 18  # float32 values of one pass on the CPU: 1 MB, which stays in the cache
Unreadable = tuple[tuple[int, str], ...]  # images that cannot be read: (index, reason with the path)


class Batch(NamedTuple):
    """A training batch, on the CPU. Every batch has the same size B: an epoch leaves out a smaller last one.

    Attributes:
        image: uint8 (B, 3, S, S), RGB, channels_last in memory.
        label: int64 (B,); of a multi-label task uint8 (B, K), of a regression float32 (B, T).
        index: int64 (B,), the position of each sample in its list.
        epoch: from 1.
        number: that of the batch in its epoch, from 0.
        bad: images that could not be read. The next image of the list replaces each, with its own label and index.
    """

    image: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # it hides tuple.index, which nobody calls
    epoch: int
    number: int
    bad: Unreadable


class EvalBatch(NamedTuple):
    """Images to predict, each prepared for one or several networks.

    Attributes:
        images: one uint8 (B, 3, S, S) per Preprocess.
        label: int64 (B,), -1 if the list has no labels, or more than one class per image.
        index: int64 (B,), the position of each sample in its list.
        readable: bool (B,). An unreadable image is black and must not count.
        bad: the unreadable images.
    """

    images: tuple[Tensor, ...]
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # it hides tuple.index, which nobody calls
    readable: Tensor
    bad: Unreadable


def to_float(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return images * scale + shift as float32 (B, 3, S, S), channels_last.

    Each row of pixels is one long vector: broadcasting over the channels, which are innermost in memory, would run
    loops of three at half the speed. On the CPU, a few images at a time are converted, so that they stay in the cache.

    Args:
        images: uint8 (B, 3, S, S), channels_last.
        scale: float (3,).
        shift: float (3,).
    """
    rows = images.permute(0, 2, 3, 1).flatten(2)
    width = images.shape[-1]
    scale, shift = scale.repeat(width), shift.repeat(width)
    out = torch.empty(rows.shape, device=rows.device)
    chunk = len(rows) if images.is_cuda else max(1, CHUNK_VALUES // max(1, rows[0].numel()))
    for source, target in zip(rows.split(chunk), out.split(chunk), strict=True):
        torch.addcmul(shift, target.copy_(source), scale, out=target)
    return out.unflatten(2, (width, images.shape[1])).permute(0, 3, 1, 2)
