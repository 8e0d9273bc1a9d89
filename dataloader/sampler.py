"""Which samples make up which batch: pure functions of (seed, epoch), so a run can be taken up anywhere."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils import distributed
from utils.rng import order_rng


class BatchKey(NamedTuple):
    """What a worker needs to make a batch: `indices` (int64, (B,)) in epoch `epoch`, batch `step` of it.

    copies: int64 (B,), how often the epoch has drawn the same sample before, so that each copy is augmented otherwise.
    """

    epoch: int
    step: int
    indices: NDArray[np.int64]
    copies: NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """How an epoch draws its samples.

    balance: "none" (each once), "sqrt" or "class" (as many draws, shared among the classes by the square root of
    their size, or evenly). repeat: each draw stands so often in a row (repeated augmentation, Hoffer et al., 2020),
    and the epoch has so many fewer draws.
    """

    seed: int
    balance: str = "none"
    repeat: int = 1


class TrainSampler:
    """Shuffled batches of all epochs, one after another: the next epoch's are being loaded while one is evaluated.

    Of several processes each gets its part of every batch: `batch_size` is that of all of them together.
    """

    def __init__(
        self, labels: NDArray[np.int32], batch_size: int, epochs: int, draw: Draw, limit: int | None = None
    ) -> None:
        """`labels`: int32 (N,). `limit`: at most so many batches an epoch (--debug)."""
        self.labels, self.draw, self.epochs = labels, draw, epochs
        self.batch_size = min(batch_size, len(labels) // distributed.world_size() * distributed.world_size())
        distributed.per_process_batch(self.batch_size)
        batches = len(labels) // self.batch_size
        self.batches = batches if limit is None else min(batches, limit)

    def __len__(self) -> int:
        """Batches an epoch."""
        return self.batches

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The samples that epoch `epoch` (from 1) shows, in order; int64, (N,)."""
        count, repeat = len(self.labels), self.draw.repeat
        rng = order_rng(self.draw.seed, epoch)
        balance = self.draw.balance
        order = rng.permutation(count if balance == "none" else balanced(self.labels, balance, rng))
        return np.repeat(order[: -(-count // repeat)], repeat)[:count] if repeat > 1 else order

    def __iter__(self) -> Iterator[BatchKey]:
        return self.iterate(1, 0)

    def iterate(self, first: int, skip: int) -> Iterator[BatchKey]:
        """Yield the batches of the run from epoch `first` (from 1), batch `skip` of it (from 0), to the end."""
        plain = self.draw.balance == "none" and self.draw.repeat == 1
        for epoch in range(first, self.epochs + 1):
            order = self.order(epoch)
            copies = np.zeros(len(order), np.int64) if plain else occurrences(order)
            for step in range(skip if epoch == first else 0, self.batches):
                part = slice(
                    step * self.batch_size + distributed.rank(), (step + 1) * self.batch_size, distributed.world_size()
                )
                yield BatchKey(epoch, step, order[part], copies[part])


def balanced(labels: NDArray[np.int32], how: str, rng: np.random.Generator) -> NDArray[np.int64]:
    """As many draws as there are labels, by weights; int64 (N,), ascending.

    Systematic sampling: a sample of weight w is drawn floor(w) or ceil(w) times, so that an epoch strays from the
    balance asked for by at most one draw a sample, where independent draws would stray by the square root.
    """
    size = np.bincount(labels)
    present = size > 0
    share = np.zeros(len(size))
    share[present] = np.sqrt(size[present]) if how == "sqrt" else 1.0
    weight = np.divide(share, size, out=np.zeros(len(size)), where=present)[labels]
    order = rng.permutation(len(labels))  # which of a class's samples get the extra draw
    order = order[stable_order(labels[order])]  # class by class, so that each class's draws add up too
    edges = np.cumsum(weight[order])
    ticks = (np.arange(len(labels)) + rng.random()) * (edges[-1] / len(labels))
    return np.sort(order[np.minimum(np.searchsorted(edges, ticks, side="right"), len(labels) - 1)])


def occurrences(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each entry, how many equal ones stand before it; int64, of the same shape."""
    by_value = stable_order(order)
    ranked = order[by_value]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    before = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    out = np.empty(len(order), np.int64)
    out[by_value] = before
    return out


def stable_order(values: NDArray[np.integer]) -> NDArray[np.int64]:
    """`np.argsort(values, kind="stable")` of values from 0 below 2^31, (N,), N below 2^32: several times as fast.

    Value and place make one number each, and NumPy sorts plain numbers by vector instructions, which no stable sort has.
    """
    return np.sort(values.astype(np.int64) << 32 | np.arange(len(values))) & 0xFFFFFFFF


class EvalSampler:
    """Every sample once, in the order of the list; the last batch may be small. Several processes take turns."""

    def __init__(self, count: int, batch_size: int, limit: int | None = None) -> None:
        batch_size = distributed.per_process_batch(batch_size)
        batches = -(-count // batch_size)
        self.count, self.batch_size = count, batch_size
        self.batches = batches if limit is None else min(batches, limit * distributed.world_size())

    def __len__(self) -> int:
        return len(self._mine())

    def _mine(self) -> range:
        return range(distributed.rank(), self.batches, distributed.world_size())

    def __iter__(self) -> Iterator[BatchKey]:
        for step in self._mine():
            first = step * self.batch_size
            indices = np.arange(first, min(first + self.batch_size, self.count))
            yield BatchKey(0, step, indices, np.zeros_like(indices))
