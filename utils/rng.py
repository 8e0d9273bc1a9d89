"""The source of all randomness: counters, not states. A draw depends on (seed, epoch, sample) or (seed, epoch, batch).

The loader's streams are Philox generators whose 128-bit key holds the seed and the purpose of the stream. For the
network, torch's generators are seeded for each batch. The order of calls, the number of workers and an interruption of
the run cannot change a draw.
"""

import numpy as np
import torch

ORDER = 1 << 63  # upper half of the second key word: the samples of the first 32,768 epochs stay below it


def sample_rng(seed: int, epoch: int, index: int, copy: int = 0) -> np.random.Generator:
    """Return the generator of a sample's augmentation in an epoch; `copy` counts its earlier draws in that epoch."""
    return _stream(seed, epoch << 48 | (copy & 0xFFFF) << 32 | index)


def order_rng(seed: int, epoch: int) -> np.random.Generator:
    """Return the generator of an epoch's order."""
    return _stream(seed, ORDER | epoch)


def _stream(seed: int, purpose: int) -> np.random.Generator:
    # An explicit uint64: NumPy turns a list of small and very large integers into float64, which drops the low bits.
    return np.random.Generator(np.random.Philox(key=np.array([seed, purpose], np.uint64)))


def seed_batch(seed: int, epoch: int, batch: int, rank: int = 0) -> None:
    """Seed torch's global generators for a batch (dropout, stochastic depth, mixup), differently in each process."""
    torch.manual_seed(
        ((seed * 1_000_003 + epoch) * 1_000_003 + batch) * (1 if not rank else 1_000_003) + rank & (1 << 63) - 1
    )
