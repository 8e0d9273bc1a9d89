"""Which samples make up which batch: pure functions of (seed, epoch), so a run can be taken up anywhere."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils.rng import order_rng


class BatchKey(NamedTuple):
    """What a worker needs to make a batch: `indices` (int64, (B,)) in epoch `epoch`, batch `step` of it."""

    epoch: int
    step: int
    indices: NDArray[np.int64]


class TrainSampler:
    """Shuffled batches of all epochs, one after another: the next epoch's are being loaded while one is evaluated."""

    def __init__(self, count: int, batch_size: int, seed: int, epochs: int, limit: int | None = None) -> None:
        """`limit`: at most so many batches an epoch (--debug)."""
        self.count, self.batch_size, self.seed, self.epochs = count, min(batch_size, count), seed, epochs
        self.batches = self.count // self.batch_size
        self.batches = self.batches if limit is None else min(self.batches, limit)
        self.start = (1, 0)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The order in which epoch `epoch` (from 1) shows all samples; int64, (count,)."""
        return order_rng(self.seed, epoch).permutation(self.count)

    def __iter__(self) -> Iterator[BatchKey]:
        first, skip = self.start
        for epoch in range(first, self.epochs + 1):
            order = self.order(epoch)
            for step in range(skip if epoch == first else 0, self.batches):
                yield BatchKey(epoch, step, order[step * self.batch_size : (step + 1) * self.batch_size])


class EvalSampler:
    """Every sample once, in the order of the list; the last batch may be small."""

    def __init__(self, count: int, batch_size: int, limit: int | None = None) -> None:
        batches = -(-count // batch_size)
        self.count, self.batch_size = count, batch_size
        self.batches = batches if limit is None else min(batches, limit)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[BatchKey]:
        for step in range(self.batches):
            first = step * self.batch_size
            yield BatchKey(0, step, np.arange(first, min(first + self.batch_size, self.count)))
