"""-b auto: the largest batch that the GPU holds, found by whole steps with the settings of the run."""

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from training.engine import Engine
from training.memory import fits_step, leave_processes
from utils import faults, task
from utils.batch import Batch
from utils.logger import log

GRAIN = 8  # images; GPUs like multiples of it
FREE_SHARE = 0.1  # This share of GPU memory stays free: cuDNN's algorithms and fragmentation vary between runs.
MAX_IMAGES = 1024  # Images per process; few recipes gain from more.


def find_batch(fits: Callable[[int], bool], limit: int) -> int | None:
    """Return the largest batch up to `limit` that fits: 2, 4, or a multiple of 8; None if 2 images do not fit.

    It doubles the batch while it fits, then halves the interval down to an eighth of the batch, so that about ten
    batches are tried. Above 128 images the answer is therefore a multiple of 16, 32 and so on.

    Args:
        fits: whether a batch fits; if one does, so does each smaller one.
    """
    fitting, failing = 0, limit + 1
    size = 2
    while size <= limit and size < failing:
        if fits(size):
            fitting, size = size, 2 * size
        else:
            failing = size
    grain = max(GRAIN, fitting // 8)
    low, high = fitting // grain, -(-failing // grain)  # grains that fit, and that do not
    while fitting >= GRAIN and high - low > 1:
        middle = (low + high) // 2
        if fits(middle * grain):
            low, fitting = middle, middle * grain
        else:
            high = middle
    return fitting or None


def largest_trial_batch(start: Callable[[], tuple[Engine, int]], device: torch.device, limit: int) -> int | None:
    """Return the largest batch per process, up to `limit`, whose steps fit; None if not even 2 images do.

    The random numbers of the run do not change.

    Args:
        start: builds an engine to try steps with, which is then thrown away; it returns the side of its images, too.
    """
    gpus = [device] if device.type == "cuda" else []
    found = None
    with torch.random.fork_rng(devices=gpus), _quiet(), faults.suppress_gpu_full():
        found = find_batch(_steps_of(*start()), limit)
    gc.collect()
    torch.cuda.empty_cache()
    if gpus:
        torch.cuda.reset_peak_memory_stats(device)  # the progress shows the run's own peak
    return found


def _steps_of(engine: Engine, side: int) -> Callable[[int], bool]:
    """Return what tells whether steps over batches of a size fit into the memory that may be used."""
    device = engine.model.device
    kept = leave_processes(engine)
    if device.type == "cuda":
        share = int(FREE_SHARE * torch.cuda.get_device_properties(device).total_memory)
        kept.append(torch.empty(share, dtype=torch.uint8, device=device))

    def fits(size: int, kept: list[Tensor] = kept) -> bool:  # `kept` is held as long as steps are tried
        images = torch.zeros(size, 3, side, side, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
        return fits_step(engine, Batch(images, trial_targets(engine, size), torch.arange(size), 1, 0, ()), size)

    return fits


def trial_targets(engine: Engine, size: int) -> Tensor:
    """Return targets of `size` images, of the type and shape that the task of the network has."""
    count, activation = engine.model.num_classes, engine.model.settings.activation
    if activation == task.SIGMOID:
        return torch.zeros(size, count, dtype=torch.uint8)
    if activation == task.LINEAR:
        return torch.zeros(size, count)
    return torch.arange(size) % (count + (activation == task.CORN))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Log no messages in the body: building the run's own engine gives them again."""
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
