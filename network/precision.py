"""Which precision is the faster: measured, for no rule serves every network and machine."""

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import nn

from utils import distributed
from utils.logger import log, progress

ENOUGH = 2.0  # seconds of timed steps a precision
MOST = 8  # or so many of them
ONE_STEP = 0.5  # seconds that a step may take


def choose(model: Any, precision: str, kept: bool = False) -> tuple[str, str]:
    """Return what to train a BaseModel in, and why: `precision`, or for "auto" on CUDA bf16 or fp16, on the CPU the faster of fp32, bf16.

    `kept`: nobody asked for `precision`, it is what a resumed run was trained in until now. It stays, so that the run is
    as if it had not been cut, unless this device has to emulate it: then it is chosen as for "auto", with a warning.
    """
    on_cpu = model.device.type == "cpu"
    no_bf16 = not on_cpu and bool(
        distributed.all_reduce_max(int(not torch.cuda.is_bf16_supported(including_emulation=False)))
    )
    emulated = precision == "fp16" if on_cpu else precision == "bf16" and no_bf16
    if emulated and kept:
        log.warning(
            f"The run was in {precision}, which {_name(model.device)} emulates: it goes on in another, and no longer to the bit."
        )
        precision = "auto"
    if precision != "auto":
        if emulated:
            than = "fp32 or bf16" if on_cpu else "fp16"
            log.warning(f"{_name(model.device)} emulates {precision}, which works, but is far slower than {than}.")
        if kept:
            log.info(f"Precision: {precision} (as until now; --precision to choose).")
        return precision, f"--precision {precision}"
    if on_cpu:
        precision, why = for_training(model.net, model.opt.scale, model.opt.batch_size // distributed.world_size())
        precision = ("fp32", "bf16")[distributed.all_reduce_max(int(precision == "bf16"))]
    elif not no_bf16:
        precision, why = "bf16", "the GPU has it"
    else:
        precision, why = "fp16", "the GPU has no bf16"
    log.info(f"Precision: {precision} ({why}; --precision to choose).")
    return precision, why


def _name(device: torch.device) -> str:
    return "the CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)


def faster(step: Callable[[str], Any], names: tuple[str, ...] = ("fp32", "bf16")) -> tuple[str, str]:
    """Time `step(name)` for each precision, in turn; returns the fastest name, and why in words.

    The first call of each is not counted. The median decides.
    """
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in progress(names, "choosing a precision"):
        step(name)
    spent = 0.0
    while spent < ENOUGH * len(names) and len(times[names[0]]) < MOST:
        for name in names:
            began = time.perf_counter()
            step(name)
            times[name].append(time.perf_counter() - began)
            spent += times[name][-1]
    median = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    best = min(median, key=lambda name: median[name])
    return best, ", ".join(f"{name} {1000 * median[name]:.0f} ms" for name in names) + " a step"


def for_training(net: torch.nn.Module, scale: int, batch: int) -> tuple[str, str]:
    """The faster precision to train `net` in, on the CPU, at `scale` px and at most `batch` images; and why. `net` stays as it is."""
    images = torch.rand(2, 3, scale, scale, generator=torch.Generator().manual_seed(0))

    def step(name: str) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "bf16"):
            loss = net(images).float().square().mean()
        loss.backward()
        net.zero_grad(set_to_none=True)

    kept = [(buffer, buffer.clone()) for buffer in net.buffers()]
    try:
        began = time.perf_counter()
        step("fp32")
        size = int(min(batch, max(2, 2 * ONE_STEP / (time.perf_counter() - began))))
        images = images.repeat(-(-size // 2), 1, 1, 1)[:size].contiguous(memory_format=torch.channels_last)
        best, why = faster(step)
        return best, f"{why} of {size} images"
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


def for_inference(model: Any, scale: int, batch: int) -> tuple[str, str]:
    """The faster precision to predict in on the CPU, at `scale` px and `batch` images (fewer where a step is long); and why.

    `model`: a BaseModel, whose precision is left as it was.
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

    began = time.perf_counter()
    step("fp32", 2)
    count = int(min(batch, max(2, 2 * ONE_STEP / (time.perf_counter() - began))))
    best, why = faster(lambda name: step(name, count))
    return best, f"{why} of {count} images"


def cast_weights(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Parameters of convolutions and linear layers to `dtype`, in place, which autocast would do anew in each pass; returns `net`."""
    for module in net.modules():
        if type(module) in (nn.Conv2d, Conv2dSame, nn.Linear):
            module.to(dtype)
    return net
