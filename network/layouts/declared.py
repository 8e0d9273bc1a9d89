"""What a file says of its network, held against the one that is to take its weights.

timm has networks with the same names and shapes that compute other things: efficientnet_b0 and tf_efficientnet_b0 have
other padding, and resnetaa50 smooths where resnet50 does not. Names cannot tell them apart; what the file says can.
"""

import timm
import torch
from timm.models._registry import get_deprecated_models
from torch import nn


def check_architecture(net: nn.Module, declared: str) -> str:
    """Return why weights of the architecture `declared` mean something else in `net`, or "".

    Args:
        declared: a name of timm, with a tag or without, as timm's files and config.json have it. A name that timm does
            not know says nothing.
    """
    own = str((getattr(net, "pretrained_cfg", None) or {}).get("architecture", ""))
    name = (get_deprecated_models().get(declared) or declared).split(".")[0]
    if not own or name == own or not timm.is_model(name) or not timm.is_model(own):
        return ""
    if _structure(name) == _structure(own):
        return ""
    return f"the file says that it is of {name}, and this network is {own}"


def twin_of(net: nn.Module) -> str:
    """Return the network of timm with the same names and shapes but other padding, such as efficientnet_b0, or ""."""
    own = str((getattr(net, "pretrained_cfg", None) or {}).get("architecture", ""))
    other = own.removeprefix("tf_") if own.startswith("tf_") else f"tf_{own}"
    if not own or not timm.is_model(own) or not timm.is_model(other) or _structure(own) == _structure(other):
        return ""
    return other


def _structure(name: str) -> str:
    """Return the modules of a network as text: kinds, sizes, strides, padding, eps."""
    with torch.device("meta"):
        return str(timm.create_model(name, num_classes=2))
