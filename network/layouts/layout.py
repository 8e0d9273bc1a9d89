"""What a layout is: how another program names the tensors of a network that timm has too."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

Weights = dict[str, Tensor]
Rules = tuple[tuple[str, str], ...]  # (regular expression of a whole name, replacement)
TF_EPS, PLAIN_EPS = 1e-3, 1e-5  # of batch norm, in TensorFlow and in PyTorch
SYMMETRIC = "the file's network pads symmetrically, and this one as TensorFlow does"
ACTIVATIONS = {"ReLU", "ReLU6", "SiLU", "Swish", "Hardswish", "HardSwish", "GELU", "GELUTanh", "Mish", "LeakyReLU"}
QKV = re.compile(r"(.+\.attn)\.([qkv])\.(weight|bias)")


@dataclass(frozen=True)
class Target:
    """The network that the weights are for.

    Attributes:
        wanted: its state dict.
        head: its classifier's name, such as "fc".
        config: what the file's folder says of its network, as the program wrote it (config.json), {} without one.
    """

    net: nn.Module
    wanted: Weights
    head: str
    config: Mapping[str, Any] = field(default_factory=dict)

    def has(self, *kinds: str) -> bool:
        """Return whether a module of the network has one of these class names."""
        return any(type(module).__name__ in kinds for module in self.net.modules())

    def eps(self, kind: type[nn.Module]) -> float | None:
        """Return the eps of the first module of `kind`, None without one."""
        return next((float(module.eps) for module in self.net.modules() if isinstance(module, kind)), None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Layout:
    """The names of one program for one family.

    Attributes:
        name: for people.
        mark: a regular expression; a file of the layout has a name that it matches whole.
        convert: gives the tensors under timm's names; a name that it does not know stays as it is.
        ignored: a regular expression of the names that the network does not need, such as indices.
        check: says why the same shapes would mean something else in this network, "" if they do not.
        note: what the user must know of the outputs, "" if they agree for all images.
    """

    name: str
    mark: str
    convert: Callable[[Weights, Target], Weights]
    ignored: str = r"(?!)"
    check: Callable[[Weights, Target], str] = lambda weights, target: ""
    note: str = ""

    def is_of(self, weights: Weights) -> bool:
        """Return whether the names look like this layout's."""
        return any(re.fullmatch(self.mark, name) for name in weights)


def renamed(weights: Weights, rules: Rules, head: str) -> Weights:
    """Return the tensors under other names: the first rule that matches a whole name decides; `HEAD` is the classifier.

    Args:
        rules: patterns and replacements, as of re.sub.
        head: what stands for HEAD in a replacement.
    """
    compiled = [(re.compile(pattern), to.replace("HEAD", head)) for pattern, to in rules]
    found: Weights = {}
    for name, value in weights.items():
        hit = next(((pattern, to) for pattern, to in compiled if pattern.fullmatch(name)), None)
        found[hit[0].sub(hit[1], name) if hit else name] = value
    return found


def with_joined_qkv(weights: Weights) -> Weights:
    """Return the tensors with query, key and value (`….attn.q.weight`) as timm's one matrix `….attn.qkv.weight`."""
    import torch

    found = {name: value for name, value in weights.items() if not QKV.fullmatch(name)}
    for name in weights:
        match = QKV.fullmatch(name)
        if match and match[2] == "q":
            parts = [weights.get(f"{match[1]}.{part}.{match[3]}") for part in "qkv"]
            if all(part is not None and part.shape[1:] == weights[name].shape[1:] for part in parts):
                found[f"{match[1]}.qkv.{match[3]}"] = torch.cat([part for part in parts if part is not None])
    return found


def with_eps(weights: Weights, target: Target, of_file: float) -> Weights:
    """Return weights for the network's eps in batch norm: the variance takes the difference, so their sum stays.

    Args:
        of_file: the eps of the file's network. Where the network's is larger, the weights are returned as they are.
    """
    own = target.eps(nn.BatchNorm2d)
    if own is None or own >= of_file:
        return weights
    return {
        name: value + (of_file - own) if name.endswith(".running_var") else value for name, value in weights.items()
    }


def other_modules(target: Target, activations: tuple[str, ...]) -> str:
    """Return why the network computes something else: another activation, or a pooling in a block; "" if neither.

    Such modules hold no tensor, so that names and shapes cannot tell.

    Args:
        activations: class names of the file's activations.
    """
    kinds = {type(module).__name__ for name, module in target.net.named_modules() if not name.startswith(target.head)}
    if others := sorted(kinds & ACTIVATIONS - set(activations)):
        return f"its activation is {' and '.join(activations)}, the network's {' and '.join(others)}"
    return "the network pools where the file's strides" if kinds & {"BlurPool2d", "AvgPool2d"} else ""
