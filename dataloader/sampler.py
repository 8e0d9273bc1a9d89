"""Which samples make up which batch: pure functions of (seed, epoch), so that a run can continue from any batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils import distributed
from utils.rng import order_rng


class BatchIndices(NamedTuple):
    """The samples of one batch.

    Attributes:
        epoch: from 1; 0 in evaluation.
        number: that of the batch in the epoch, from 0.
        indices: int64 (B,), into the list.
        repeat_index: int64 (B,), how often the epoch drew the same sample before; each repeat is augmented differently.
    """

    epoch: int
    number: int
    indices: NDArray[np.int64]
    repeat_index: NDArray[np.int64]


@dataclass(frozen=True)
class SamplingConfig:
    """How an epoch draws its samples.

    Attributes:
        balance: "none" draws each sample once. "sqrt" and "class" draw as many, divided among the classes by the square
            root of their size, or evenly.
        repeats: every draw occurs that many times in a row (repeated augmentation, Hoffer et al., 2020), and the epoch
            has as many times fewer draws.
    """

    seed: int
    balance: str = "none"
    repeats: int = 1


class TrainSampler:
    """Yields the shuffled batches of all epochs in one sequence, so that workers load ahead across epoch boundaries.

    With several processes, each gets its part of every batch; `batch_size` is the size of the whole batch.
    """

    def __init__(
        self,
        labels: NDArray[np.int32],
        batch_size: int,
        epochs: int,
        sampling: SamplingConfig,
        max_batches: int | None = None,
    ) -> None:
        """`labels`: int32 (N,). `max_batches`: the most batches per epoch (--debug)."""
        self.labels, self.sampling, self.epochs = labels, sampling, epochs
        self.batch_size = min(batch_size, len(labels) // distributed.world_size() * distributed.world_size())
        distributed.per_process_batch(self.batch_size)
        batches = len(labels) // self.batch_size
        self.batches_per_epoch = batches if max_batches is None else min(batches, max_batches)

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[BatchIndices]:
        return self.iterate(1, 0)

    def iterate(self, epoch: int, first: int) -> Iterator[BatchIndices]:
        """Yield the batches from epoch `epoch` (from 1), batch `first` of it (from 0), to the end of the run."""
        no_repeats = self.sampling.balance == "none" and self.sampling.repeats == 1
        world, rank = distributed.world_size(), distributed.rank()
        for current in range(epoch, self.epochs + 1):
            order = self.order(current)
            repeats = np.zeros(len(order), np.int64) if no_repeats else repeat_index(order)
            for number in range(first if current == epoch else 0, self.batches_per_epoch):
                part = slice(number * self.batch_size + rank, (number + 1) * self.batch_size, world)
                yield BatchIndices(current, number, order[part], repeats[part])

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the samples of epoch `epoch` (from 1) in the order they are shown, int64 (N,)."""
        count, repeats, balance = len(self.labels), self.sampling.repeats, self.sampling.balance
        rng = order_rng(self.sampling.seed, epoch)
        order = rng.permutation(count if balance == "none" else balanced_indices(self.labels, balance, rng))
        return np.repeat(order[: -(-count // repeats)], repeats)[:count] if repeats > 1 else order


def balanced_indices(labels: NDArray[np.int32], balance: str, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw as many samples as there are labels, weighted by class; return their indices, int64 (N,), ascending.

    Systematic sampling: a sample of weight w is drawn floor(w) or ceil(w) times. An epoch therefore strays from the
    requested balance by at most one draw per sample; independent draws would stray by the square root of the count.
    """
    class_size = np.bincount(labels)
    present = class_size > 0
    share = np.zeros(len(class_size))
    share[present] = np.sqrt(class_size[present]) if balance == "sqrt" else 1.0
    weight = np.divide(share, class_size, out=np.zeros(len(class_size)), where=present)[labels]
    order = rng.permutation(len(labels))  # which samples of a class get the extra draw
    order = order[stable_order(labels[order])]  # class by class, so that the draws of each class add up too
    edges = np.cumsum(weight[order])
    ticks = (np.arange(len(labels)) + rng.random()) * (edges[-1] / len(labels))
    return np.sort(order[np.minimum(np.searchsorted(edges, ticks, side="right"), len(labels) - 1)])


def repeat_index(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return, for each entry of `order`, how many equal entries precede it; int64, of the same shape."""
    by_value = stable_order(order)
    ranked = order[by_value]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    before = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    out = np.empty(len(order), np.int64)
    out[by_value] = before
    return out


def stable_order(values: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return `np.argsort(values, kind="stable")`, several times faster, for values (N,) below 2^31 and N below 2^32.

    Values are 0 or more. Value and index are packed into one integer each: NumPy sorts plain integers with vector
    instructions, which its stable sort lacks.
    """
    return np.sort(values.astype(np.int64) << 32 | np.arange(len(values))) & 0xFFFFFFFF


class EvalSampler:
    """Yields every sample once, in list order; the last batch may be smaller. Several processes take turns.

    Batch k is that of one process whose batch has the size of each process's part, so its predictions are the same.
    """

    def __init__(
        self, count: int, batch_size: int, max_batches: int | None = None, shared: bool = True, alone: bool = False
    ) -> None:
        """Divide `count` samples into batches.

        Args:
            batch_size: of all processes together; with `alone`, of this process.
            max_batches: the most batches per process (--debug).
            shared: whether the processes take turns; else the main process has all batches, and the others none.
            alone: whether this process has all batches, whatever other processes there are.
        """
        self.world, self.rank = (1, 0) if alone else (distributed.world_size(), distributed.rank())
        batch_size = batch_size if alone else distributed.per_process_batch(batch_size)
        batches = -(-count // batch_size)
        self.count, self.batch_size, self.shared = count, batch_size, shared
        self.batches = batches if max_batches is None else min(batches, max_batches * self.world)

    def __len__(self) -> int:
        """Return the number of batches of this process."""
        return len(self._own_batches())

    def samples(self) -> int:
        """Return the number of samples in the batches of all processes."""
        return min(self.count, self.batches * self.batch_size)

    def _own_batches(self) -> range:
        """Return the numbers of the batches of this process."""
        if not self.shared:
            return range(0 if self.rank else self.batches)
        return range(self.rank, self.batches, self.world)

    def __iter__(self) -> Iterator[BatchIndices]:
        for number in self._own_batches():
            first = number * self.batch_size
            indices = np.arange(first, min(first + self.batch_size, self.count))
            yield BatchIndices(0, number, indices, np.zeros_like(indices))
