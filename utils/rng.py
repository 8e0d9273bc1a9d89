"""Where all randomness comes from: counters, not states. What is drawn depends on (seed, epoch, sample) alone.

Each stream is a Philox generator whose 128-bit key holds the seed and what the stream is for, so that no order of
calls, number of workers or place where a run was cut can change it.
"""

import numpy as np
import torch

ORDER = 1 << 63  # the upper half of the second key word, which no sample of the first 32,768 epochs reaches


def sample_rng(seed: int, epoch: int, index: int, copy: int = 0) -> np.random.Generator:
    """The generator of one sample's augmentation in one epoch; `copy` counts how often the epoch drew it before."""
    return _stream(seed, epoch << 48 | (copy & 0xFFFF) << 32 | index)


def order_rng(seed: int, epoch: int) -> np.random.Generator:
    """The generator of an epoch's order."""
    return _stream(seed, ORDER | epoch)


def _stream(seed: int, purpose: int) -> np.random.Generator:
    # uint64 said outright: NumPy makes a list that mixes small and very large integers float64, which drops the low bits
    return np.random.Generator(np.random.Philox(key=np.array([seed, purpose], np.uint64)))


def seed_step(seed: int, epoch: int, step: int, rank: int = 0) -> None:
    """Seed torch's generators for one training step: dropout, stochastic depth, mixup; each process (`rank`) otherwise."""
    torch.manual_seed(
        ((seed * 1_000_003 + epoch) * 1_000_003 + step) * (1 if not rank else 1_000_003) + rank & (1 << 63) - 1
    )
