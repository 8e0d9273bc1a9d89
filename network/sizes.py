"""Which sizes of images a network takes: transformers have a fixed one, patches and windows need a divisor."""

import torch
from torch import nn

from utils import faults
from utils.errors import UserError


class SizeRefused(Exception):  # noqa: N818  # what happened, not a kind of mistake
    """A network does not take images of a size; the message is its reason, on one line."""


def output_shape(net: nn.Module, side: int) -> tuple[int, ...]:
    """Return the shape of what `net`, in eval mode, gives for one black image of `side` px.

    Networks fail in more ways than can be foreseen, so it is tried.

    Raises:
        SizeRefused: it fails.
    """
    device = next((one.device for one in net.parameters()), torch.device("cpu"))
    modes = [(part, part.training) for part in net.modules()]
    try:
        with torch.no_grad():
            return tuple(net.eval()(torch.zeros(1, 3, side, side, device=device)).shape)
    except Exception as error:
        if faults.is_gpu_full(error):  # which says nothing about the network
            raise
        raise SizeRefused(" ".join(str(error).split())[:200].rstrip(".") or type(error).__name__) from error
    finally:
        for part, mode in modes:  # one by one: some of a network's modules may be frozen
            part.training = mode


def takes_size(net: nn.Module, side: int) -> bool:
    """Return whether `net` takes images of `side` px."""
    try:
        output_shape(net, side)
    except SizeRefused:
        return False
    return True


def check_size(net: nn.Module, side: int, name: str, flag: str, advice: str) -> tuple[int, ...]:
    """Return `output_shape`; a size that `net` does not take is the user's mistake.

    Args:
        name: of the network. flag: what asks for this size. advice: what to do instead; it ends the message.

    Raises:
        UserError: `net` does not take images of `side` px.
    """
    try:
        return output_shape(net, side)
    except SizeRefused as refused:
        raise UserError(f"{name} does not work with images of {side} px ({flag}): {refused}; {advice}.") from refused


def own_size(net: nn.Module) -> int:
    """Return the side of the images that the weights of timm's `net` were made for; 0 where it does not say."""
    config = getattr(net, "pretrained_cfg", None) or {}
    return int(config.get("input_size", (3, 0, 0))[-1])
