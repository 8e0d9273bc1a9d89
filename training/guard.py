"""What happens when numbers are not finite: skipped steps, and the search for the layer where it began."""

import contextlib
import enum
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from utils import distributed
from utils.batch import Batch
from utils.errors import UserError

if TYPE_CHECKING:
    from training.engine import Engine

MAX_SAMPLES = 8  # A message names this many samples of a batch.


class Diverged(UserError):  # noqa: N818  # what happened, not a kind of mistake
    """Raised after --max_nan steps in a row whose gradient was not finite."""


class Skip(enum.Enum):
    """What a skipped step asks for."""

    QUIET = "nothing: it is not counted, or another step has been explained just before"
    EXPLAIN = "a warning that says where the numbers stopped being finite"
    GIVE_UP = "the end of this attempt: as many steps in a row were skipped as are allowed"


class NonFiniteGuard:
    """Looks at each step's gradient without waiting for the device, and restores batch norm after a skipped step.

    Attributes:
        skipped: skipped steps of the run.
        in_row: how many of them came last, in a row.
        kept: {id of a floating buffer of the network: its value after the last step that was taken}.
    """

    def __init__(self, net: nn.Module, max_consecutive: int, device: torch.device) -> None:
        """`max_consecutive`: how many skipped steps in a row end the run; 0 checks no gradient."""
        self.max_consecutive, self.on = max_consecutive, max_consecutive > 0
        self.skipped = self.in_row = 0
        buffers = [buffer for buffer in net.buffers() if buffer.is_floating_point()] if self.on else []
        # Buffers of one type go together, in a few operations: flat views of them, one copy of all, and its parts.
        self._groups: list[tuple[list[Tensor], Tensor, list[Tensor]]] = []
        self.kept: dict[int, Tensor] = {}
        plain = [buffer for buffer in buffers if buffer.is_contiguous()]
        for dtype in sorted({buffer.dtype for buffer in plain}, key=str):
            ours = [buffer for buffer in plain if buffer.dtype == dtype]
            flat = [buffer.view(-1) for buffer in ours]
            copy = torch.cat(flat)
            parts = list(copy.split([len(part) for part in flat]))
            self._groups.append((flat, copy, parts))
            self.kept |= {id(one): part.view_as(one) for one, part in zip(ours, parts, strict=True)}
        for buffer in buffers:
            if not buffer.is_contiguous():
                copy = buffer.clone()
                self._groups.append(([buffer], copy, [copy]))
                self.kept[id(buffer)] = copy
        self._seen = HostCopy(device, 2)

    def snapshot_buffers(self) -> None:
        """Keep the buffers as they are now, for the next step that is skipped."""
        for flat, copy, _ in self._groups:
            torch.cat(flat, out=copy)

    def check_and_restore(self, norm: Tensor, scaler: torch.amp.GradScaler) -> Tensor | None:
        """Return whether a gradient norm (a scalar) is finite, a boolean on the device; None if the guard is off.

        The network's buffers become those of the last finite step. `was_finite` gives the answer on the host.
        """
        if not self.on:
            return None
        finite = norm.isfinite()
        for flat, copy, parts in self._groups:
            torch.where(finite, torch.cat(flat), copy, out=copy)
            torch._foreach_copy_(flat, parts)
        scale = scaler._get_scale_async() if scaler.is_enabled() else None
        self._seen.send(finite, finite if scale is None else scale)
        return finite

    def was_finite(self) -> bool:
        """Return whether the gradient of the last `check_and_restore` was finite."""
        if not self.on:
            return True
        finite = self._seen.read()[0] == 1
        self.in_row = 0 if finite else self.in_row
        return finite

    def record_skip(self) -> Skip:
        """Count the skipped step; return what it asks for. The first in a row is explained, and the last allowed one.

        The scaler of fp16 starts with a scale that is too large. The steps that it skips to find the right one do not
        count.
        """
        scale = self._seen.read()[1]
        if scale > 1:
            return Skip.QUIET
        self.skipped += 1
        self.in_row += 1
        if self.in_row == self.max_consecutive:
            self.in_row = 0  # the run may go back to a checkpoint, and counts from there
            return Skip.GIVE_UP
        return Skip.EXPLAIN if self.in_row == 1 else Skip.QUIET


class HostCopy:
    """A few numbers on their way from the device to the host. Sending does not wait; reading waits only for them."""

    def __init__(self, device: torch.device, count: int) -> None:
        on_gpu = device.type == "cuda"
        self._host = torch.zeros(count, pin_memory=on_gpu)
        self._numbers = self._host.numpy()
        self._event = torch.cuda.Event() if on_gpu else None

    def send(self, *values: Tensor) -> None:
        """Send scalars, as many as `count`, of any dtype; they arrive as float32."""
        self._host.copy_(torch.stack([value.float() for value in values]), non_blocking=True)
        if self._event is not None:
            self._event.record()

    def read(self) -> list[float]:
        """Return what was sent last."""
        if self._event is not None:
            self._event.synchronize()
        return self._numbers.tolist()


def explain_non_finite(engine: "Engine", batches: Sequence[Batch]) -> str:
    """Return in words which batch made the step over `batches` not finite, and where: see `locate_non_finite`.

    Every process calls it. The samples are those of the first process that finds something, else those of all of them.
    """
    batch, where = locate_non_finite(engine, batches) or (batches[-1], None)
    found = distributed.all_gather_object((batch.number, batch.index.tolist(), where))
    process = next((k for k, (*_, where) in enumerate(found) if where is not None), None)
    if process is None:
        number, samples = batch.number, [index for _, part, _ in found for index in part]
        where = "the same step, computed again, is finite"
    else:
        number, samples, where = found[process]
    shown = ", ".join(map(str, samples[:MAX_SAMPLES])) + (" …" if len(samples) > MAX_SAMPLES else "")
    part = f", the part of process {process}" if process is not None and len(found) > 1 else ""
    return (
        f"The gradient is not finite at epoch {batch.epoch}, batch {number + 1}, "
        f"samples {shown} of the training list (from 0){part}: {where}."
    )


def locate_non_finite(engine: "Engine", batches: Sequence[Batch]) -> tuple[Batch, str] | None:
    """Return in words where the step over `batches` stopped being finite, with the batch; None if it is finite.

    That is the first weight, layer output, or gradient. The step is computed again, with the batches of this process.
    All processes do so together, since mixing a batch takes all of them. Gradients, buffers and weights are restored
    afterwards.

    Raises:
        NotFinite: the outputs of --teacher are not finite.
    """
    model = engine.model
    for name, parameter in model.net.named_parameters():
        if not bool(parameter.isfinite().all()):
            return batches[-1], f"the weight {name} holds {_kind(parameter)}"
    seen: list[str] = []

    def look(name: str, module: nn.Module) -> RemovableHandle:
        def hook(_: nn.Module, inputs: object, output: object) -> None:
            if not seen and isinstance(output, Tensor) and not bool(output.isfinite().all()):
                what = f"layer {name} ({type(module).__name__}), which holds {_kind(output)}"
                seen.append(f"first seen in the output of {what}")

        return module.register_forward_hook(hook)

    found: tuple[Batch, str] | None = None
    with _as_it_was(engine):
        hooks = [look(name, module) for name, module in model.net.named_modules() if not list(module.children())]
        try:
            for batch in batches:
                images, targets = engine.prepare(batch)
                if engine.teacher is not None:
                    engine.teacher.check(images)
                model.update(images, targets, lambda loss: engine.scaler.scale(loss).backward())
                where = seen[0] if seen else _non_finite_gradient(model.net)
                if found is None and where is not None:
                    found = batch, where
        finally:
            for hook in hooks:
                hook.remove()
    return found


def _non_finite_gradient(net: nn.Module) -> str | None:
    """Return in words which gradient, going backward, is the first that is not finite; None if all are."""
    for name, parameter in reversed(list(net.named_parameters())):
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            what = f"the gradient of {name} is the first that holds {_kind(parameter.grad)}"
            return f"every layer's output is finite; going backward, {what}"
    return None


@contextlib.contextmanager
def _as_it_was(engine: "Engine") -> Iterator[None]:
    """Run the network itself in the body; restore its buffers and gradients afterwards."""
    model = engine.model
    buffers = [(buffer, buffer.clone()) for buffer in model.net.buffers()]
    # On the host, so that the step finds as much memory as any other.
    parameters = list(model.net.parameters())
    gradients = [(parameter, None if parameter.grad is None else parameter.grad.cpu()) for parameter in parameters]
    for parameter, _ in gradients:
        parameter.grad = None
    train_net, model.train_net = model.train_net, None
    try:
        yield
    finally:
        model.train_net = train_net
        for buffer, value in buffers:
            buffer.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = None if gradient is None else gradient.to(parameter.device)


def _kind(tensor: Tensor) -> str:
    return "NaN" if bool(tensor.isnan().any()) else "infinity"
