"""Checkpoints into models: for fine-tuning, for going on, and for prediction."""

import argparse
from typing import Any

import torch

from network.backbones import load_matching
from network.base_model import BaseModel
from utils.errors import UserError
from utils.logger import log


def load_into(model: BaseModel, content: dict[str, Any], source: str, strict: bool = False) -> None:
    """Load the weights of a checkpoint (as utils.checkpoint.load gives it) into `model`.

    Args:
        strict: an error where the classifier has another size; else it is left out, and said which tensors were.

    Raises:
        UserError: the checkpoint is of another model, or does not fit.
    """
    check_name(content, model.name, source)
    shown = "raw" if strict else content.get("showing", "ema")  # to go on wants the raw weights; to start anew, the best
    left_out = load_matching(model.net, content.get(shown) or content["weights"], source)
    if left_out and strict:
        raise UserError(
            f"{source} has a classifier of another size than {model.num_classes} classes ({', '.join(left_out)}); --resume goes on "
            "with the same classes.\nGive the lists it was trained on, or start anew from its backbone: --load without --resume."
        )
    if left_out:
        log.warning(f"{source}: the classifier has another size and starts anew; left out: {', '.join(left_out)}.")


def check_name(content: dict[str, Any], name: str | None, source: str) -> None:
    """Raise UserError where the checkpoint says that it is of another model than `name`."""
    held = content.get("model")
    if held and name and held != name:
        raise UserError(f"{source} holds {held}, --model says {name}. Give --model {held}, or another --load.")


def rebuild_options(content: dict[str, Any], num_classes: int, model: str) -> argparse.Namespace:
    """The options to build a checkpoint's network from: those it was trained with, without fetching weights."""
    from options import parse_train  # the defaults, for what an older checkpoint or a plain state dict does not say

    opt = parse_train([])
    vars(opt).update(content.get("opt", {}))
    opt.model, opt.num_classes, opt.pretrained = model, num_classes, False
    opt.rebuilt = True  # it was trained so; or, of a plain state dict, the size is yet to be said
    return opt


def plain_classes(content: dict[str, Any], head: set[str]) -> int:
    """The number of classes of a plain state dict, from its classifier's bias or weight. Raises UserError without one."""
    for name in head & content["weights"].keys():
        tensor: torch.Tensor = content["weights"][name]
        if tensor.ndim in (1, 2):
            return int(tensor.shape[0])
    raise UserError("The state dict holds no classifier, so it can be trained on (train.py --load), not evaluated.")
