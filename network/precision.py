"""Chooses a precision. Which one is faster is measured: no rule holds for every network and machine."""

import copy
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from timm.layers import Conv2dSame
from torch import nn

from utils import distributed
from utils.logger import log, progress
from utils.tensors import buffers_kept

if TYPE_CHECKING:
    from network.base_model import BaseModel

TIMING_SECONDS = 2.0  # of timed steps per precision
MIN_TIMED_STEPS, MAX_TIMED_STEPS = 2, 8  # per precision
TIMED_BATCH = 64  # where no batch size is known
MAX_STEP_SECONDS = 0.5  # of a timed step; its batch is as large as this allows


def resolve_precision(
    model: "BaseModel", precision: str, kept: bool = False, batch_size: int = TIMED_BATCH
) -> tuple[str, str]:
    """Return the precision to train `model` in, and the reason.

    Args:
        precision: "fp32", "bf16", "fp16", or "auto": bf16 or fp16 on CUDA, the faster of fp32 and bf16 on the CPU.
        kept: `precision` is that of a resumed run, which no flag asks for. It stays, so that the run equals an
            uninterrupted one, unless this device emulates it: then it is chosen as for "auto", with a warning.
        batch_size: that of all processes; on the CPU, "auto" times no more images than one process gets of it.
    """
    on_cpu = model.device.type == "cpu"
    no_bf16 = not on_cpu and bool(
        distributed.all_reduce_max(int(not torch.cuda.is_bf16_supported(including_emulation=False)))
    )
    emulated = precision == "fp16" if on_cpu else precision == "bf16" and no_bf16
    if emulated and kept:
        log.warning(
            f"The run used {precision}, which {_name(model.device)} emulates: it resumes in another precision, "
            "no longer equal to the uninterrupted run."
        )
        precision = "auto"
    if precision != "auto":
        if emulated:
            than = "fp32 or bf16" if on_cpu else "fp16"
            log.warning(f"{_name(model.device)} emulates {precision}, which works but is far slower than {than}.")
        if kept:
            log.info(f"Precision: {precision} (as before; --precision to choose).")
        return precision, f"--precision {precision}"
    if on_cpu:
        precision, why = fastest_for_training(model.net, model.settings.scale, batch_size // distributed.world_size())
        precision = ("fp32", "bf16")[distributed.all_reduce_max(int(precision == "bf16"))]
    elif not no_bf16:
        precision, why = "bf16", "the GPU has it"
    else:
        precision, why = "fp16", "the GPU has no bf16"
    log.info(f"Precision: {precision} ({why}; --precision to choose).")
    return precision, why


def _name(device: torch.device) -> str:
    return "the CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)


def pick_fastest(step: Callable[[str], object], names: tuple[str, ...] = ("fp32", "bf16")) -> tuple[str, str]:
    """Time `step(name)` for each precision, in turn, and return the fastest name and the times in words.

    The first call of each is not counted. The median decides. The timing ends early where every step of one precision
    was faster than all steps of the others.
    """
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in progress(names, "choosing a precision"):
        step(name)
    timed_seconds = 0.0
    while timed_seconds < TIMING_SECONDS * len(names) and len(times[names[0]]) < MAX_TIMED_STEPS:
        for name in names:
            start = time.perf_counter()
            step(name)
            times[name].append(time.perf_counter() - start)
            timed_seconds += times[name][-1]
        if len(times[names[0]]) >= MIN_TIMED_STEPS and _is_decided(list(times.values())):
            break
    median = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    best = min(median, key=lambda name: median[name])
    return best, ", ".join(f"{name} {1000 * median[name]:.0f} ms" for name in names) + " per step"


def _is_decided(times: list[list[float]]) -> bool:
    """Return whether all times of one list are below those of every other."""
    first, *others = sorted(times, key=max)
    return all(max(first) < min(other) for other in others)


def fastest_for_training(net: torch.nn.Module, scale: int, batch: int) -> tuple[str, str]:
    """Return the faster precision to train `net` in on the CPU, and the times. `net` is left as it was.

    Args:
        scale: side of the images, px. batch: the most images per step.
    """
    images = torch.rand(2, 3, scale, scale, generator=torch.Generator().manual_seed(0))

    def step(name: str) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "bf16"):
            loss = net(images).float().square().mean()
        loss.backward()
        net.zero_grad(set_to_none=True)

    with buffers_kept(net):
        start = time.perf_counter()
        step("fp32")
        size = int(min(batch, max(2, 2 * MAX_STEP_SECONDS / (time.perf_counter() - start))))
        images = images.repeat(-(-size // 2), 1, 1, 1)[:size].contiguous(memory_format=torch.channels_last)
        best, why = pick_fastest(step)
        return best, f"{why} of {size} images"


def fastest_for_inference(model: "BaseModel", scale: int, batch: int) -> tuple[str, str]:
    """Return the faster precision to predict in on the CPU, and the times.

    Args:
        model: its precision is left as it was.
        scale: side of the images, px.
        batch: the most images per step.
    """
    images = torch.randint(
        0, 256, (batch, 3, scale, scale), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    images = images.contiguous(memory_format=torch.channels_last)
    nets = {"fp32": model.net, "bf16": cast_weights(copy.deepcopy(model.net), torch.bfloat16)}

    @torch.inference_mode()
    def step(name: str, count: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "bf16"):
            nets[name](model.normalise(images[:count]))

    start = time.perf_counter()
    step("fp32", 2)
    count = int(min(batch, max(2, 2 * MAX_STEP_SECONDS / (time.perf_counter() - start))))
    best, why = pick_fastest(lambda name: step(name, count))
    return best, f"{why} of {count} images"


def cast_weights(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast the weights of convolutions and linear layers in place, once instead of in each pass. Return `net`."""
    for module in net.modules():
        if type(module) in (nn.Conv2d, Conv2dSame, nn.Linear):
            module.to(dtype)
    return net
