"""Gradient checkpointing (Chen et al., 2016): the backward pass recomputes most activations instead of keeping them."""

import contextlib
from typing import Any

from timm.layers import set_reentrant_ckpt
from torch import nn

from utils.errors import UserError


def enable_grad_checkpointing(net: nn.Module, model: str) -> None:
    """Let `net` keep only the inputs of its blocks in training, through timm's `set_grad_checkpointing`.

    The recomputation draws the random numbers of the first pass (dropout, stochastic depth), since torch restores the
    state of its generators. `utils.tensors.buffers_kept` is needed around the backward pass.

    Args:
        model: its name, for the message.

    Raises:
        UserError: the network has no such method, or the method refuses.
    """
    set_reentrant_ckpt(False)  # the older kind gives a block no gradient if its input needs none, as with --freeze
    enable: Any = getattr(net, "set_grad_checkpointing", None)
    if enable is not None:
        with contextlib.suppress(AssertionError):  # timm asserts `not enable` where it has none
            enable(True)
            return
    raise UserError(
        f"--checkpoint_grad: {model} has no gradient checkpointing (timm's set_grad_checkpointing). "
        "Leave it out; a smaller -b with --accumulate needs less memory too."
    )
