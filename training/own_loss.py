"""Notices that a model's `update` computes a loss of its own, so that --loss has no effect."""

import traceback
from typing import Any

from torch import Tensor

from network.base_model import BaseModel, Step
from utils import faults
from utils.errors import UserError
from utils.logger import log


def first_update(model: BaseModel, images: Tensor, targets: Any, step: Step) -> tuple[Tensor, Tensor]:
    """Call `model.update` as the first step of a run does; warn if it does not call `model.criterion`.

    The tensors are those that BaseModel.update takes and returns.

    Raises:
        UserError: its own loss fails on targets that are not those of --task single.
    """
    criterion, events = model.criterion, set()

    def watched_criterion(logits: Tensor, targets: Any) -> Tensor:
        events.add("criterion")
        return criterion(logits, targets)

    def watched_step(loss: Tensor) -> None:
        events.add("step")
        step(loss)

    hook = model.register_forward_hook(lambda *_: events.add("forward"))
    vars(model)["criterion"] = watched_criterion  # not by setattr, which refuses it where a loss is an nn.Module
    try:
        result = model.update(images, targets, watched_step)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        if events == {"forward"} and _has_other_targets(model) and not faults.is_gpu_full(error):
            raise _failed(model, error) from error
        raise
    finally:
        hook.remove()
        del vars(model)["criterion"]
        model.criterion = criterion
    if "criterion" not in events:
        log.warning(_own_loss(model))
    return result


def _has_other_targets(model: BaseModel) -> bool:
    return bool(model.opt.task != "single" or model.opt.teacher)


def _own_loss(model: BaseModel) -> str:
    """Return the warning that the loss of the model is its own."""
    opt = model.opt
    text = (
        f"{type(model).__module__}: update() does not call self.criterion, so the loss that it computes itself is "
        f"trained. --loss {opt.loss}, --smooth, --class_weight and the other flags of the loss have no effect."
    )
    if opt.task != "single":
        text += (
            f" Predictions take its logits for those of --task {opt.task} --loss {opt.loss}, and are wrong if it "
            "trains others."
        )
    return f"{text} Try there: loss = self.criterion(logits, targets)"


def _failed(model: BaseModel, error: Exception) -> UserError:
    """Return the error that the model's own loss does not take the targets of the run."""
    opt = model.opt
    line = next(
        (frame.lineno for frame in reversed(traceback.extract_tb(error.__traceback__)) if frame.name == "update"), 0
    )
    flags = f"--task {opt.task} --loss {opt.loss}" + (" --teacher" if opt.teacher else "")
    return UserError(
        f"{type(model).__module__}: update() computes a loss of its own, which fails on the targets of {flags}, "
        f"in line {line}: {type(error).__name__}: {error}\n"
        "Try there: loss = self.criterion(logits, targets)"
    )
