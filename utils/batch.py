"""What the data loader hands over."""

from typing import NamedTuple

from torch import Tensor

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
