"""Fine-tuning by depth: which layers are frozen, and how fast the others learn.

Depth is timm's own: a network's `group_matcher` says by regular expressions which parameters make up the stem, each
stage (coarse) or each block (fine), and what comes last, with the classifier.
"""

import re
from typing import Any

from timm.models._manipulate import group_parameters
from torch import nn

from network.backbones import head_names
from utils.errors import UserError

ALL_BUT_HEAD = -1


def layer_ids(net: nn.Module, coarse: bool) -> dict[str, int]:
    """Return {parameter's name: its layer}, from 0 (the stem) up; a layer is a stage if `coarse`, else a block.

    Raises:
        UserError: the network does not define the order of its layers.
    """
    net_: Any = net
    try:
        return group_parameters(net, net_.group_matcher(coarse=coarse), reverse=True)
    except (AttributeError, AssertionError, NotImplementedError, re.error) as error:
        raise UserError(
            f"{type(net).__name__} does not define the order of its layers (timm's group_matcher), "
            "so it cannot be divided by depth.\n"
            "Allowed with it: --freeze -1 (all but the classifier) and --head_lr; leave --layer_decay out."
        ) from error


def freeze(net: nn.Module, stages: int | None) -> list[nn.Module]:
    """Freeze the stem and the first `stages` stages; -1: everything but the classifier; None: nothing.

    Returns:
        The modules all of whose parameters are frozen. Keep them in eval mode, so that batch norm keeps its statistics.

    Raises:
        UserError: the network has fewer stages (the message says how many), or no classifier.
    """
    if stages is None:
        return []
    head = head_names(net)
    if stages == ALL_BUT_HEAD:
        if not head:
            raise UserError(f"--freeze -1 leaves nothing to train: {type(net).__name__} has no classifier.")
        still = {name for name, _ in net.named_parameters()} - head
    else:
        at = layer_ids(net, coarse=True)
        last = min((at[name] for name in head if name in at), default=max(at.values()))
        if stages > last - 1:
            raise UserError(
                f"--freeze {stages}: {type(net).__name__} has {last - 1} stages. "
                f"Allowed: 0 (the stem alone) to {last - 1}, or -1 (all but the classifier)."
            )
        still = {name for name, layer in at.items() if layer <= stages}
    for name, parameter in net.named_parameters():
        if name in still:
            parameter.requires_grad_(False)
    return [module for module in net.modules() if _is_frozen(module)]


def lr_scales(net: nn.Module, head_lr: float, layer_decay: float) -> dict[str, float]:
    """Return {parameter's name: the factor of its learning rate}.

    Layer l of L has layer_decay ** (L - l), as in ELECTRA (Clark et al., 2020) and BEiT (Bao et al., 2022). So the last
    layer, which holds the classifier, has 1. The factor of the classifier is also multiplied by head_lr.

    Raises:
        UserError: layer_decay is not 1, and the network does not define the order of its layers.
    """
    scales = {name: 1.0 for name, _ in net.named_parameters()}
    if layer_decay != 1:
        at = layer_ids(net, coarse=False)
        last = max(at.values())
        scales = {name: layer_decay ** (last - at[name]) for name in scales}
    for name in head_names(net) & scales.keys():
        scales[name] *= head_lr
    return scales


def _is_frozen(module: nn.Module) -> bool:
    learning = [parameter.requires_grad for parameter in module.parameters()]
    return bool(learning) and not any(learning)
