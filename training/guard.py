"""What happens when numbers go wrong: steps skipped, the layer found, the largest batch that fits."""

import contextlib
import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.batch import Batch
from utils.errors import UserError
from utils.logger import log

if TYPE_CHECKING:
    from network.base_model import BaseModel


class Diverged(UserError):  # noqa: N818  # what happened, not a kind of mistake
    """So many steps in a row had a gradient that was not finite."""


class Guard:
    """Lets a step pass only with a finite gradient; else the batch-norm statistics that the batch spoilt are put back.

    skipped: how many steps of the run were not taken. in_row: how many of them last, one after another.
    """

    def __init__(self, net: nn.Module, most: int) -> None:
        """`most`: Diverged after so many in a row; 0 looks at nothing, and so waits for no card."""
        self.on, self.most = most > 0, most
        self.skipped = self.in_row = 0
        self._buffers = [buffer for buffer in net.buffers() if buffer.is_floating_point()] if self.on else []
        self._good = [buffer.clone() for buffer in self._buffers]

    def remember(self) -> None:
        """Take the statistics as they are now for good."""
        if self._buffers:
            torch._foreach_copy_(self._good, self._buffers)

    def passes(self, model: "BaseModel", norm: Tensor, batch: Batch) -> bool:
        """Whether a step with this gradient norm (a scalar) may be taken; if not, the first in a row is explained in the log.

        Raises:
            Diverged: it was the last that --max_nan bears.
        """
        if not self.on:
            return True
        if bool(norm.isfinite()):
            self.in_row = 0
            self.remember()
            return True
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._good)
        if model.scaler.is_enabled() and model.scaler.get_scale() > 1:
            return False  # fp16 finds its scale by trying one that is too large
        self.skipped += 1
        self.in_row += 1
        if self.in_row in (1, self.most):
            shown = ", ".join(map(str, batch.index[:8].tolist())) + (" …" if len(batch.index) > 8 else "")
            what = (
                f"The gradient is not finite at epoch {batch.epoch}, batch {batch.step + 1}, samples {shown} of the training list "
                f"(from 0): {explain(model, batch)}."
            )
            if self.in_row == self.most:
                self.in_row = 0
                raise Diverged(f"{what} {self.most} steps in a row were skipped")
            log.warning(f"{what} The step is skipped.")
        return False


def explain(model: "BaseModel", batch: Batch) -> str:
    """Where numbers stop being finite: the first weight, layer output, or else gradient; in words.

    Raises:
        NotFinite: it was the teacher of --teacher.
    """
    for name, parameter in model.net.named_parameters():
        if not bool(parameter.isfinite().all()):
            return f"the weight {name} holds {_kind(parameter)}"
    found: list[str] = []

    def look(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if not found and isinstance(output, Tensor) and not bool(output.isfinite().all()):
                found.append(
                    f"first seen in the output of layer {name} ({type(module).__name__}), which holds {_kind(output)}"
                )

        return module.register_forward_hook(hook)

    with _left_alone(model):
        hooks = [look(name, module) for name, module in model.net.named_modules() if not list(module.children())]
        try:
            with torch.no_grad(), model.autocast():
                images = model.prepare(batch)[0]
                teacher = getattr(model.criterion, "teacher", None)
                if teacher is not None:
                    teacher.check(images)
                model.net(images)
        finally:
            for hook in hooks:
                hook.remove()
    if found:
        return found[0]
    for name, parameter in reversed(list(model.net.named_parameters())):
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            return f"every layer's output is finite; going backward, the gradient of {name} is the first that holds {_kind(parameter.grad)}"
    return "it is no longer so when looked at again"


def largest_batch(model: "BaseModel", batch: Batch) -> int | None:
    """Return the largest part of `batch` (images) of which a step fits into memory, to a sixteenth; None: not even two.

    Call it outside of the handler of the torch.OutOfMemoryError, whose traceback holds the failed step's graph. The run is
    over then: what is tried are whole steps, at a learning rate of 0.
    """
    gc.collect()
    model.zero_gradients()
    try:
        buckets = _leave_processes(model)
    except torch.OutOfMemoryError:
        return None
    if not _fits(model, batch, 2):  # the optimizer has its state from now on
        return None
    whole = len(batch.label)
    grain = max(1, whole // 16)
    low, high = 0, whole // grain  # so many grains fit; so many do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _fits(model, batch, middle * grain) else (low, middle)
    largest = low * grain or next((few for few in (grain // 2, grain // 4) if few > 2 and _fits(model, batch, few)), 2)
    del buckets  # held until here
    return largest


def _leave_processes(model: "BaseModel") -> list[Tensor]:
    """Take the network out of its group, for the others are within a step; return as much memory as the group's buckets took."""
    if not isinstance(model.runner, DistributedDataParallel):
        return []
    model.runner = None
    gc.collect()  # DistributedDataParallel goes, and with it its hooks on the gradients
    for module in model.net.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.eval()  # in training it asks the others for their batch
    return [torch.empty_like(parameter) for parameter in model.net.parameters() if parameter.requires_grad]


def _fits(model: "BaseModel", batch: Batch, count: int) -> bool:
    """Whether a step over several batches of `count` images fits, with the optimizer's state and the averages."""
    part = batch._replace(image=batch.image[:count], label=batch.label[:count], index=batch.index[:count])
    torch.cuda.empty_cache()
    fits = True
    try:
        _try_step(model, part)
    except torch.OutOfMemoryError:
        fits = False
    model.zero_gradients()  # here, where the handler has been left, and with it the graph
    return fits


def _try_step(model: "BaseModel", batch: Batch) -> None:
    """Forward and backward, again with the gradients of the first in memory, as --accumulate does, and the optimizer's step."""

    def gradients() -> None:
        images, targets = model.prepare(batch)
        with model.autocast():
            loss = model.criterion(model.net(images), targets)
        loss.backward()

    gradients()
    if model.sam is not None:
        model.sam.climb()
    gradients()
    if model.sam is not None:
        model.sam.back()
    for group in model.optimizer.param_groups:
        group["lr"] = 0.0
    model.optimizer.step()
    model.averages.after_step(model.net, model.step_count + 1)


@contextlib.contextmanager
def _left_alone(model: "BaseModel") -> Iterator[None]:
    """Buffers are afterwards as they were."""
    kept = [(buffer, buffer.clone()) for buffer in model.net.buffers()]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)


def _kind(tensor: Tensor) -> str:
    return "NaN" if bool(tensor.isnan().any()) else "infinity"
