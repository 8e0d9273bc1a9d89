"""Low-rank adapters (LoRA; Hu et al., 2022), through peft: which layers get one, how it is merged, what is saved.

An adapted layer computes W x + SCALE * B A x. W stays as it is; A and B learn. Every checkpoint holds the merged
weights W + SCALE * B A, under the names of the plain network; W, A and B are kept beside them for --resume.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from network.backbones import head_names
from network.base_model import BaseModel
from options.wording import count_of
from utils.errors import UserError
from utils.logger import format_count, log

ADAPTER = "default"  # peft's name of an only adapter
SCALE = 2.0  # peft's lora_alpha is SCALE * rank, so that another rank does not ask for another learning rate
BASE = ".base_layer."  # peft's name of the layer that it wraps
ADAPTERS = (f"lora_A.{ADAPTER}.weight", f"lora_B.{ADAPTER}.weight")
PARTS = ("base_layer.weight", *ADAPTERS)
MISSING = "--lora needs the package peft, which is not installed. Try: python -m pip install peft"


def is_target(layer: nn.Module, rank: int) -> bool:
    """Return whether `layer` can have an adapter of `rank`: the one place that decides which layers do.

    They are linear layers and convolutions, the classifier apart. These are left out:
    - subclasses, whose forward pass may use the weight in another way (timm's ScaledStdConv2d standardises it);
    - grouped and depthwise convolutions, which peft cannot merge; dilated ones, for which it has no adapter;
    - layers so small that A and B would hold as many numbers as W.
    """
    if type(layer) is nn.Conv2d:
        if layer.groups > 1 or layer.dilation != (1, 1) or layer.padding_mode != "zeros":
            return False
    elif type(layer) is not nn.Linear:
        return False
    outputs, inputs = layer.weight.flatten(1).shape
    return rank * (outputs + inputs) < outputs * inputs


def target_names(model: BaseModel, rank: int) -> list[str]:
    """Return the names of the layers to adapt: those that `is_target` allows, which learn and which are called.

    A black image shows which layers are called. Where a network reads a layer's weight instead, as in
    nn.MultiheadAttention, peft's layer would never run.

    Raises:
        UserError: there is none.
    """
    net, head = model.net, head_names(model.net)
    layers = {
        layer: name
        for name, layer in net.named_modules()
        if is_target(layer, rank) and layer.weight.requires_grad and f"{name}.weight" not in head
    }
    called: set[nn.Module] = set()
    hooks = [layer.register_forward_hook(lambda layer, *_: called.add(layer)) for layer in layers]
    scale = model.settings.scale
    try:
        with torch.no_grad(), model.evaluating():
            net(torch.zeros(1, 3, scale, scale, device=model.device))
    finally:
        for hook in hooks:
            hook.remove()
    if not called:
        raise UserError(
            f"--lora {rank}: no layer of {model.name} that learns is large enough for adapters of this rank. "
            "Try: a smaller one, such as --lora 4"
        )
    return [name for layer, name in layers.items() if layer in called]


def add_adapters(model: BaseModel, rank: int, seed: int) -> "Adapters":
    """Give the layers of `model.net` adapters, in place; they and the classifier learn, and nothing else does.

    What is frozen already (--freeze) gets none. B starts at 0, so the network's outputs are the same as before.

    Args:
        seed: that of A.

    Raises:
        UserError: peft is not installed, or no layer can have an adapter.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(MISSING) from error
    net, names = model.net, target_names(model, rank)
    learning = head_names(net) & {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    total = sum(parameter.numel() for parameter in net.parameters())
    pattern = "|".join(name.replace(".", r"\.") for name in names)  # peft would match a list by the ends of names
    config = LoraConfig(r=rank, lora_alpha=int(SCALE * rank), target_modules=pattern)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, net, ADAPTER)
    model.to_device(model.device)  # the new weights, too, in channels_last
    for name, parameter in net.named_parameters():
        if name in learning:
            parameter.requires_grad_(True)
    count = sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
    log.info(
        f"--lora {rank}: adapters on {count_of(len(names), 'layer')}. With those of the classifier, "
        f"{format_count(count)} parameters learn, beside {format_count(total)} of the network."
    )
    return Adapters(rank)


@dataclass(frozen=True)
class Adapters:
    """What is done with a network that has adapters of `rank`: the network itself, or an average of it (--ema)."""

    rank: int

    def merged(self, net: nn.Module) -> nn.Module:
        """Return the plain network that computes what `net` does. It shares every tensor but the merged weights."""
        plain = copy.deepcopy(net, {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())})
        for name, layer in list(adapted_layers(plain)):
            weight = layer.base_layer.weight
            with torch.no_grad():
                total = weight + layer.get_delta_weight(ADAPTER).to(weight.dtype)
            layer.base_layer.weight = nn.Parameter(torch.empty_like(weight).copy_(total), requires_grad=False)
            owner, _, last = name.rpartition(".")
            setattr(plain.get_submodule(owner), last, layer.base_layer)
        return plain

    def state_dict(self, net: nn.Module, ema: nn.Module | None) -> dict[str, Any]:
        """Return, for a checkpoint, what its merged weights do not tell: W, A and B of each layer; of `ema` A and B.

        W is the same in `ema`, the average of what never changes.
        """
        parts = _parts(net)
        average = None if ema is None else {name: t for name, t in _parts(ema).items() if name.endswith(ADAPTERS)}
        return {"rank": self.rank, "weights": parts, "ema": average}

    def split(self, content: dict[str, Any], net: nn.Module) -> dict[str, Any]:
        """Return the checkpoint `content` with `weights` and `ema` as state dicts of `net`, from the merged ones.

        Raises:
            UserError: it was trained without adapters, or with others.
        """
        saved, own = content["training"].get("lora"), _parts(net)
        parts: dict[str, Tensor] = {} if saved is None else saved["weights"]
        if _shapes(parts) != _shapes(own):
            without = "without adapters" if saved is None else f"with adapters of rank {saved['rank']} on other layers"
            raise UserError(
                f"The checkpoint was trained {without}, so --lora {self.rank} cannot continue it.\n"
                "Start a new run from its weights: --load CHECKPOINT without --resume."
            )
        split = {**content, "weights": _renamed(net, content["weights"], parts)}
        if content.get("ema") is not None:
            parts = {**parts, **(saved.get("ema") or {})}
            if _shapes(parts) != _shapes(own):
                raise UserError(
                    "The checkpoint is damaged: its adapters of --ema are others than those of its weights."
                )
            split["ema"] = _renamed(net, content["ema"], parts)
        return split


def adapted_layers(net: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the name and the module of each layer with an adapter."""
    for name, module in net.named_modules():
        if hasattr(module, "lora_A"):
            yield name, module


def _parts(net: nn.Module) -> dict[str, Tensor]:
    """Return W, A and B of each adapted layer, by their names in net.state_dict()."""
    state, names = net.state_dict(), [name for name, _ in adapted_layers(net)]
    return {f"{name}.{part}": state[f"{name}.{part}"] for name in names for part in PARTS}


def _shapes(parts: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in parts.items()}


def _renamed(net: nn.Module, plain: dict[str, Tensor], parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of `net`, which has adapters: `parts`, and for the rest what `plain` holds."""
    return {name: parts[name] if name in parts else plain[name.replace(BASE, ".")] for name in net.state_dict()}
