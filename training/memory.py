"""After running out of GPU memory in training: the largest batch that fits."""

import gc

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.engine import Engine
from utils import distributed, faults
from utils.batch import Batch
from utils.errors import UserError


def out_of_memory(engine: Engine, batch: Batch) -> UserError:
    """Return the error for a batch that the GPU has no room for, with the batch that fits, and the flags for it."""
    size, settings = len(batch.label), engine.settings
    fits = largest_batch(engine, batch)
    if fits is None:
        return UserError(
            "The GPU has no room for a single step, not even with a batch of 2. "
            "Give a smaller --scale or --model, or --gpu -1."
        )
    parts = -(-size // fits)
    batch_size = -(-size // parts) * distributed.world_size()  # -b is that of all processes together
    advice = f"Give -b {batch_size} --accumulate {parts * settings.accumulate}, which takes steps over as many images."
    if settings.sam_radius:
        advice = (
            f"Give -b {batch_size}; --sam does not work with --accumulate, so each step takes fewer images, "
            "and --lr may have to be lower."
        )
    return UserError(
        f"The GPU has no room for a batch of {size} at {batch.image.shape[-1]} px; the largest that fitted is {fits}.\n"
        f"{advice}"
    )


def largest_batch(engine: Engine, batch: Batch) -> int | None:
    """Return how many images of `batch` fit into a step, to a sixteenth of the batch; None if not even two fit.

    Call it outside of the handler of the error, whose traceback holds the failed step's graph. The run cannot continue
    afterwards: whole steps are tried, at a learning rate of 0. One process of several may call it.
    """
    gc.collect()
    engine.zero_gradients()
    buckets = None
    with faults.suppress_gpu_full():
        buckets = leave_processes(engine)
    if buckets is None or not fits_step(engine, batch, 2):  # the optimizer has its state from now on
        return None
    whole = len(batch.label)
    grain = max(1, whole // 16)
    low, high = 0, whole // grain  # grains that fit; grains that do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits_step(engine, batch, middle * grain) else (low, middle)
    small = [count for count in (grain // 2, grain // 4) if count > 2]
    largest = low * grain or next((count for count in small if fits_step(engine, batch, count)), 2)
    del buckets  # held until here
    return largest


def leave_processes(engine: Engine) -> list[Tensor]:
    """Take the network out of its process group, whose other processes are within a step.

    Returns:
        As much memory as the buckets of the group took: an empty tensor like each trainable parameter, or none.
    """
    if not isinstance(engine.train_net, DistributedDataParallel):
        return []
    engine.train_net = engine.model.train_net = None
    gc.collect()  # DistributedDataParallel goes, and with it its hooks on the gradients
    for module in engine.model.net.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.eval()  # in training it asks the others for their batch
    return [torch.empty_like(parameter) for parameter in engine.model.net.parameters() if parameter.requires_grad]


def fits_step(engine: Engine, batch: Batch, count: int) -> bool:
    """Return whether a step over batches of `count` images fits, with the optimizer's state and the averages."""
    part = batch._replace(image=batch.image[:count], label=batch.label[:count], index=batch.index[:count])
    torch.cuda.empty_cache()
    fits = False
    with faults.suppress_gpu_full():
        _try_step(engine, part)
        fits = True
    engine.zero_gradients()  # here, where the handler has been left, and with it the graph
    return fits


def _try_step(engine: Engine, batch: Batch) -> None:
    """Go forward and backward twice, as --accumulate does, and step the optimizer."""

    def add_gradients() -> None:
        images, targets = engine.prepare(batch)
        engine.model.update(images, targets, lambda loss: loss.backward())

    add_gradients()
    if engine.sam is not None:
        engine.sam.ascend()
    add_gradients()
    if engine.sam is not None:
        engine.sam.restore()
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.0
    engine.optimizer.step()
    engine.averages.update_ema(engine.model.net, engine.step_count + 1, {})
