"""Train with timm as its users do, for benchmarks.train: its model, loader, optimizer, and documented loop."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.input_baselines import PipelineTask, timm_batches


def timm_training(
    arch: str, task: PipelineTask, lr: float, best: str | None, repeat: bool = False, compiled: bool = False
) -> Iterator[int]:
    """Train timm's `arch` on the device of `task`; yield the number of images of each step.

    `best`: None for timm's defaults (fp32, contiguous), or "fp32" or "bf16", in channels_last. SGD with momentum 0.9.
    `repeat`: train on the first batch again and again. `compiled`: by torch.compile.
    """
    import timm
    from timm.optim import create_optimizer_v2

    model: Any = timm.create_model(arch, num_classes=max(task.labels) + 1)
    model = model.to(task.device)
    if best:
        model = model.to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=lr, momentum=0.9, weight_decay=1e-4)
    loss_function = torch.nn.CrossEntropyLoss()
    model.train()
    run = torch.compile(model) if compiled else model
    batches: Iterator[Any] = timm_batches(task)
    for images, targets in itertools.repeat(next(batches)) if repeat else batches:
        if best:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(task.device.type, torch.bfloat16, enabled=best == "bf16"):
            loss = loss_function(run(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield len(targets)
