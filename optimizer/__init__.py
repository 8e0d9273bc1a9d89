"""Optimizers: a name, a builder; each takes parameter groups and the options.

Add one of your own: write a builder, add its name to `optimizers`, run `python train.py --optimizer <name>`.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from utils.errors import unknown_name

Groups = list[dict[str, Any]]
Builder = Callable[[Groups, argparse.Namespace], torch.optim.Optimizer]


def _sgd(groups: Groups, opt: argparse.Namespace) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=opt.lr, momentum=opt.momentum, nesterov=opt.momentum > 0)


def _adam(groups: Groups, opt: argparse.Namespace) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=opt.lr)


def _adamw(groups: Groups, opt: argparse.Namespace) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=opt.lr)


def _radam(groups: Groups, opt: argparse.Namespace) -> torch.optim.Optimizer:
    """Rectified Adam (Liu et al., 2020)."""
    return torch.optim.RAdam(groups, lr=opt.lr)


def _lookahead(groups: Groups, opt: argparse.Namespace) -> torch.optim.Optimizer:
    """Lookahead (Zhang et al., 2019) around Adam, k = 6, alpha = 0.5."""
    return _with_lookahead(_adam(groups, opt))


def _ranger(groups: Groups, opt: argparse.Namespace) -> torch.optim.Optimizer:
    """Ranger (Wright, 2019): Lookahead around RAdam, k = 6, alpha = 0.5."""
    return _with_lookahead(_radam(groups, opt))


def _lamb(groups: Groups, opt: argparse.Namespace) -> torch.optim.Optimizer:
    """LAMB (You et al., 2020), for large batches."""
    from timm.optim import Lamb

    return Lamb(groups, lr=opt.lr)


def _lion(groups: Groups, opt: argparse.Namespace) -> torch.optim.Optimizer:
    """Lion (Chen et al., 2023); wants about a third of AdamW's rate."""
    from timm.optim import Lion

    return Lion(groups, lr=opt.lr)


def _with_lookahead(inner: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """pytorch_optimizer's Lookahead: its slow weights begin at the initial ones, as in the paper's algorithm 1.

    timm's begin at the weights of the k-th step, which makes the first look back an empty one.
    """
    from pytorch_optimizer import Lookahead

    return Lookahead(inner, k=6, alpha=0.5)


optimizers: dict[str, Builder] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
    "radam": _radam,
    "lookahead": _lookahead,
    "ranger": _ranger,
    "lamb": _lamb,
    "lion": _lion,
}
DECOUPLED = ("adamw", "lion")  # weight decay acts on the weights, not through the gradient: it takes larger values


def get_optimizer(net: nn.Module, opt: argparse.Namespace) -> torch.optim.Optimizer:
    """The optimizer that --optimizer names, over the parameters of `net` that want a gradient.

    Raises:
        UserError: unknown name; the message lists what there is.
    """
    if opt.optimizer not in optimizers:
        raise unknown_name("optimizer", opt.optimizer, optimizers)
    return optimizers[opt.optimizer](parameter_groups(net, weight_decay(opt)), opt)


def weight_decay(opt: argparse.Namespace) -> float:
    """--weight_decay, or the optimizer's own default."""
    if opt.weight_decay is not None:
        return float(opt.weight_decay)
    return 0.05 if opt.optimizer in DECOUPLED else 1e-4


def parameter_groups(net: nn.Module, decay: float) -> Groups:
    """Two groups: weights of two or more dimensions decay; biases and norms (one dimension) do not."""
    wanted = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in wanted if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in wanted if p.ndim < 2], "weight_decay": 0.0},
    ]
