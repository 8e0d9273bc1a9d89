"""torchvision's EfficientNet, EfficientNetV2, MobileNetV2, MobileNetV3 and MNASNet.

Their layers, sorted by the numbers in their names, are those of timm in order. The names differ by family and block.
"""

from collections.abc import Callable

from torch import nn

from network.layouts.layout import PLAIN_EPS, SYMMETRIC, TF_EPS, Layout, Target, Weights, other_modules, with_eps

MIN_CHANNELS_OF_B5 = 2048  # before the classifier; torchvision's B0 to B4 have fewer, and PLAIN_EPS
FIRST_CONVOLUTION = "features.1.0.block.0.0.weight"  # of EfficientNet: depthwise in V1, dense in V2
Convert = Callable[[Weights, Target], Weights]


def _order(module: str) -> list[tuple[bool, int, str]]:
    """Return the sort key of a layer's name: numbers as numbers, and the classifier last."""
    parts = module.split(".")
    return [(parts[0] == "classifier", 0, "")] + [(not p.isdigit(), int(p) if p.isdigit() else 0, p) for p in parts]


def _in_order(weights: Weights, target: Target) -> Weights:
    theirs = sorted({name.rpartition(".")[0] for name in weights}, key=_order)
    beside = (f"{target.head}.", "global_pool.")
    own = dict.fromkeys(name.rpartition(".")[0] for name in target.wanted if not name.startswith(beside))
    names = dict(zip(theirs, [*own, target.head], strict=False))
    if len(theirs) != len(own) + 1:
        return weights
    found: Weights = {}
    for name, value in weights.items():
        module, _, tensor = name.rpartition(".")
        new = f"{names[module]}.{tensor}"
        wanted = target.wanted.get(new)
        if value.ndim == 2 and wanted is not None and wanted.ndim == 4:  # MobileNetV3's first linear layer
            value = value[:, :, None, None]
        found[new] = value
    return found


def _with_eps(eps: float) -> Convert:
    return lambda weights, target: with_eps(_in_order(weights, target), target, eps)


def _efficientnet(weights: Weights, target: Target) -> Weights:
    found = _in_order(weights, target)
    head, first = found.get("conv_head.weight"), weights[FIRST_CONVOLUTION]
    is_v2 = first.ndim == 4 and first.shape[1] > 1
    is_large = head is not None and head.shape[0] >= MIN_CHANNELS_OF_B5
    return with_eps(found, target, TF_EPS if is_v2 or is_large else PLAIN_EPS)


def _check(*activations: str) -> Callable[[Weights, Target], str]:
    def check(weights: Weights, target: Target) -> str:
        if target.has("Conv2dSame"):
            return SYMMETRIC
        eps = target.eps(nn.BatchNorm2d)
        if eps != PLAIN_EPS:
            return f"the network's batch norm has an eps of {eps}"
        return other_modules(target, activations)

    return check


LAYOUTS = (
    Layout(
        "torchvision's EfficientNet",
        FIRST_CONVOLUTION.replace(".", r"\."),
        _efficientnet,
        check=_check("SiLU"),
    ),
    Layout("torchvision's MobileNetV2", r"features\.1\.conv\.0\.0\.weight", _in_order, check=_check("ReLU6")),
    Layout(
        "torchvision's MobileNetV3",
        r"features\.1\.block\.0\.0\.weight",
        _with_eps(TF_EPS),
        check=_check("ReLU", "Hardswish"),
    ),
    Layout("torchvision's MNASNet", r"layers\.8\.0\.layers\.0\.weight", _in_order, check=_check("ReLU")),
)
