"""Optimizers by name: a builder takes parameter groups and the settings, and returns a torch optimizer.

To add one, write a builder, add its name to `optimizers`, and run `python train.py --optimizer <name>`.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from optimizer.state import check_state
from options.choices import default_weight_decay
from utils.errors import look_up


@dataclass(frozen=True)
class OptimizerSettings:
    """What an optimizer is built from: the flags of those names.

    Attributes:
        weight_decay: None means the optimizer's own default.
    """

    optimizer: str
    lr: float
    momentum: float = 0.9
    weight_decay: float | None = None


Groups = list[dict[str, Any]]
Builder = Callable[[Groups, OptimizerSettings], torch.optim.Optimizer]
GROUP_OPTIONS = ("weight_decay", "momentum", "nesterov", "lr_scale")  # settings of a group that come from flags


def _sgd(groups: Groups, settings: OptimizerSettings) -> torch.optim.Optimizer:
    sgd = torch.optim.SGD(
        groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=True
    )
    sgd.register_step_pre_hook(_begin_momentum)
    return align_grad_strides(sgd)


def _adam(groups: Groups, settings: OptimizerSettings) -> torch.optim.Optimizer:
    return align_grad_strides(torch.optim.Adam(groups, lr=settings.lr, fused=True))


def _adamw(groups: Groups, settings: OptimizerSettings) -> torch.optim.Optimizer:
    return align_grad_strides(torch.optim.AdamW(groups, lr=settings.lr, fused=True))


def _radam(groups: Groups, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Build rectified Adam (Liu et al., 2020)."""
    return torch.optim.RAdam(groups, lr=settings.lr)


def _lookahead(groups: Groups, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Build Lookahead (Zhang et al., 2019) around Adam, k = 6, alpha = 0.5."""
    return _with_lookahead(_adam(groups, settings))


def _ranger(groups: Groups, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Build Ranger (Wright, 2019): Lookahead around RAdam, k = 6, alpha = 0.5."""
    return _with_lookahead(_radam(groups, settings))


def _lamb(groups: Groups, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Build LAMB (You et al., 2020), for large batches."""
    from timm.optim import Lamb

    return Lamb(groups, lr=settings.lr)


def _lion(groups: Groups, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Build Lion (Chen et al., 2023); it takes about a third of AdamW's learning rate."""
    from timm.optim import Lion

    return Lion(groups, lr=settings.lr, foreach=True)


def _muon(groups: Groups, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Build Muon (Jordan et al., 2024) for matrices and kernels, as (out, in * h * w), with AdamW for all else.

    Steps are scaled to AdamW's size (Liu et al., 2025, equation 4), so AdamW's learning rate and weight decay fit. This
    is timm's Muon: torch's takes only two-dimensional parameters, and would leave a convolutional network to AdamW.
    """
    from timm.optim import Muon

    for group in groups:  # timm's fallback with Nesterov momentum would be NAdamW
        group["nesterov"] = group["use_muon"]
    return Muon(groups, lr=settings.lr, betas=(0.9, 0.999), ns_coefficients="original", adjust_lr_fn="match_rms_adamw")


def _with_lookahead(inner: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Wrap `inner` in pytorch_optimizer's Lookahead, k = 6, alpha = 0.5.

    Its slow weights begin at the initial weights, as in the paper's algorithm 1. timm's begin at the weights of the
    k-th step, so that its first look back changes nothing.
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
    "muon": _muon,
}


def find_optimizer(name: str) -> Builder:
    """Return what builds the optimizer called `name`.

    Raises:
        UserError: the name is unknown; the message lists the known ones.
    """
    return look_up("optimizer", name, optimizers, "--optimizer ")


def get_optimizer(
    net: nn.Module, settings: OptimizerSettings, scales: Mapping[str, float] | None = None, head: Collection[str] = ()
) -> torch.optim.Optimizer:
    """Return the optimizer that --optimizer names, over the parameters of `net` that need a gradient.

    Args:
        scales: {parameter's name: factor of its learning rate}, 1 for a missing name. The factor goes into the group's
            "lr_scale"; the code that sets a group's "lr" multiplies by it.
        head: the names of the classifier's parameters, which Muon leaves to AdamW.

    Raises:
        UserError: the name is unknown; the message lists the known ones.
    """
    build = find_optimizer(settings.optimizer)
    kinds = None if settings.optimizer != "muon" else muon_params(net, head)
    return build(parameter_groups(net, weight_decay(settings), scales, kinds), settings)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any], settings: OptimizerSettings) -> None:
    """Load a state_dict, except for GROUP_OPTIONS: on --resume, the flags of this run override the checkpoint's.

    Raises:
        UserError: the state is of another optimizer, or of other parameters.
    """
    state = check_state(optimizer, state, get_optimizer, settings)
    chosen = [{name: group[name] for name in GROUP_OPTIONS if name in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, flags in zip(optimizer.param_groups, chosen, strict=True):
        group.update(flags)


def weight_decay(settings: OptimizerSettings) -> float:
    """Return --weight_decay, or the optimizer's own default."""
    if settings.weight_decay is not None:
        return float(settings.weight_decay)
    return default_weight_decay(settings.optimizer)


def parameter_groups(
    net: nn.Module, decay: float, scales: Mapping[str, float] | None = None, matrices: Collection[str] | None = None
) -> Groups:
    """Return the parameters of `net` that need a gradient, grouped by learning rate and weight decay.

    Weights of two or more dimensions decay. Biases, norms and what the network exempts (timm's `no_weight_decay`, such
    as position embeddings) do not.

    Args:
        matrices: names of parameters that get separate groups. Then each group has `use_muon`, which is true for these.

    Returns:
        Groups with `params`, `lr_scale` and `weight_decay`.
    """
    found: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    exempt = no_decay_names(net)
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            free = parameter.ndim < 2 or name in exempt
            key = (scales or {}).get(name, 1.0), free, matrices is not None and name not in matrices
            found.setdefault(key, []).append(parameter)
    groups: Groups = []
    for scale, free, other in sorted(found):
        groups.append({"params": found[scale, free, other], "lr_scale": scale, "weight_decay": 0.0 if free else decay})
        if matrices is not None:
            groups[-1]["use_muon"] = not other
    return groups


def no_decay_names(net: nn.Module) -> Collection[str]:
    """Return the names of the parameters that a network of timm exempts from weight decay."""
    names: Callable[[], Collection[str]] = getattr(net, "no_weight_decay", set)
    return names()


def muon_params(net: nn.Module, head: Collection[str]) -> set[str]:
    """Return the names of the parameters that Muon steps: weights between several inputs and several outputs.

    Embeddings, depthwise kernels and the classifier `head` are left to AdamW.
    """
    apart = {*no_decay_names(net), *head}
    return {name for name, p in net.named_parameters() if p.ndim >= 2 and min(p.shape[:2]) > 1 and name not in apart}


def _begin_momentum(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Give a momentum of zeros to each parameter that is about to move and has none yet.

    torch's fused SGD allocates it without writing to it, and does not write to it at all if fp16's scaler finds an
    overflow in that step.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def align_grad_strides(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Give each gradient its parameter's strides before every step of `optimizer`; return the optimizer.

    torch's fused kernels read both in the order of memory. They would mix up a channels_last weight with a gradient in
    another layout. Autograd makes no such gradient, but a hook or DistributedDataParallel's buckets may.
    """

    def align(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.stride() != parameter.stride():
                    parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)

    optimizer.register_step_pre_hook(align)
    return optimizer
