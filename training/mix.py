"""Blends the samples of a batch: mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019), by torchvision."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import v2

from utils import distributed

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def get_mix(mixup: float, cutmix: float, num_classes: int) -> Mix | None:
    """Return what --mixup and --cutmix (their alphas) ask for; if both are set, each step draws one; None for neither.

    It takes normalised images (B, 3, S, S) and labels int64 (B,), and returns images and soft labels (B, C). It draws
    from torch's CPU generator, which `seed_batch` sets for each batch.
    """
    mixes: list[Mix] = []
    if mixup:
        mixes.append(v2.MixUp(alpha=mixup, num_classes=num_classes))
    if cutmix:
        mixes.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))
    if len(mixes) < 2:
        return mixes[0] if mixes else None
    return v2.RandomChoice(mixes)


def mix_batch(
    mix: Mix | None, images: Tensor, labels: Tensor, normalise: Callable[[Tensor], Tensor], alone: bool
) -> tuple[Tensor, Tensor]:
    """Return normalised images (B, 3, S, S) and targets for uint8 images and labels int64 (B,), all on the device.

    A sample is mixed with the one before it in the batch of all processes. All processes draw the same numbers, so the
    number of processes changes nothing. With `alone`, a process mixes its own samples and communicates with no other.
    """
    if mix is None:
        return normalise(images), labels
    if alone or distributed.world_size() == 1:
        return mix(normalise(images), labels)
    images, targets = mix(normalise(_with_previous(images)), _with_previous(labels))
    return images[1::2].contiguous(memory_format=torch.channels_last), targets[1::2]


def _with_previous(own: Tensor) -> Tensor:
    """Return (2B, …): each row of `own` (B, …), after the row before it in the batch of all processes.

    The processes take the rows of that batch in turn. So the rows before mine are those of the process before me, and
    the rows before the first process's are the last process's, of one turn earlier.
    """
    mine = own.permute(0, 2, 3, 1).contiguous() if own.ndim == 4 else own  # channels_last: the order of memory
    theirs = torch.empty_like(mine)
    rank, world = distributed.rank(), distributed.world_size()
    to = torch.distributed.P2POp(torch.distributed.isend, mine, (rank + 1) % world)
    fro = torch.distributed.P2POp(torch.distributed.irecv, theirs, (rank - 1) % world)
    for travelling in torch.distributed.batch_isend_irecv([to, fro]):
        travelling.wait()
    theirs = theirs if rank else theirs.roll(1, 0)
    both = torch.stack([theirs, mine], dim=1).flatten(0, 1)
    return both.permute(0, 3, 1, 2) if own.ndim == 4 else both
