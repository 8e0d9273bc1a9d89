"""Gradient checkpointing (Chen et al., 2016): the backward pass recomputes most activations instead of keeping them."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from timm.layers import set_reentrant_ckpt
from torch import nn

from utils.errors import UserError
from utils.tensors import clones


def enable_grad_checkpointing(net: nn.Module, model: str) -> None:
    """Let `net` keep only the inputs of its blocks in training, through timm's `set_grad_checkpointing`.

    The recomputation draws the random numbers of the first pass (dropout, stochastic depth), since torch restores the
    state of its generators. `buffers_kept` is needed around the backward pass.

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


@contextlib.contextmanager
def buffers_kept(net: nn.Module) -> Iterator[None]:
    """Restore the buffers of `net` after the body, a backward pass that runs parts of the forward pass once more.

    Batch norm would count each batch twice in its running statistics. Its layers must not be told to leave them alone
    instead: torch checks that the recomputation saves the same tensors, and they are among these.
    """
    buffers = list(net.buffers())
    with torch.no_grad():
        kept = clones(buffers)
    yield
    if buffers:
        with torch.no_grad():
            torch._foreach_copy_(buffers, kept)
