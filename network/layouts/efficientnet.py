"""EfficientNet and its Lite by the names of EfficientNet-PyTorch (Melas-Kyriazi), and torchvision's EfficientNet.

EfficientNet-PyTorch repeats TensorFlow: "same" padding, which is asymmetric under stride 2, and batch norm with an eps
of 1e-3. timm calls these networks tf_efficientnet_*; its efficientnet_* have the same names and shapes, and are
padded otherwise. torchvision pads symmetrically, and its B5 to B7 have that eps too.
"""

import re

from torch import nn

from network.layouts.layout import Layout, Rules, Target, Weights, renamed

TF_EPS, PLAIN_EPS = 1e-3, 1e-5
MIN_CHANNELS_OF_B5 = 2048  # before the classifier; torchvision's B0 to B4 have fewer, and PLAIN_EPS
EXPANDED = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
EXPANDED |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
NOT_EXPANDED = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
EXCITATION = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
ENDS: Rules = (
    (r"_conv_stem\.(\w+)", r"conv_stem.\1"),
    (r"_bn0\.(\w+)", r"bn1.\1"),
    (r"_conv_head\.(\w+)", r"conv_head.\1"),
    (r"_bn1\.(\w+)", r"bn2.\1"),
    (r"_fc\.(\w+)", r"HEAD.\1"),
)
BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)\.(\w+)")


def _blocks(target: Target) -> list[str]:
    """Return the names of the network's blocks in order, "blocks.<stage>.<block>"."""
    found = (re.match(r"blocks\.(\d+)\.(\d+)\.", name) for name in target.wanted)
    places = sorted({(int(match[1]), int(match[2])) for match in found if match})
    return [f"blocks.{stage}.{block}" for stage, block in places]


def _from_pytorch(weights: Weights, target: Target) -> Weights:
    blocks, found = _blocks(target), {}
    for name, value in renamed(weights, ENDS, target.head).items():
        match = BLOCK.fullmatch(name)
        if match and int(match[1]) < len(blocks):
            expanded = f"_blocks.{match[1]}._expand_conv.weight" in weights
            part = {**(EXPANDED if expanded else NOT_EXPANDED), **EXCITATION}.get(match[2], match[2])
            name = f"{blocks[int(match[1])]}.{part}.{match[3]}"
        found[name] = value
    return found


def _check_pytorch(weights: Weights, target: Target) -> str:
    if not target.has("Conv2dSame"):
        return "the file's network pads as TensorFlow does, and this one symmetrically"
    eps = target.eps(nn.BatchNorm2d)
    return "" if eps == TF_EPS else f"its batch norm has an eps of {TF_EPS}, the network's {eps}"


def _from_torchvision(weights: Weights, target: Target) -> Weights:
    found: Weights = {}
    ends: Rules = (
        (r"features\.0\.0\.(\w+)", r"conv_stem.\1"),
        (r"features\.0\.1\.(\w+)", r"bn1.\1"),
        (r"features\.8\.0\.(\w+)", r"conv_head.\1"),
        (r"features\.8\.1\.(\w+)", r"bn2.\1"),
        (r"classifier\.1\.(\w+)", r"HEAD.\1"),
    )
    for name, value in renamed(weights, ends, target.head).items():
        match = re.fullmatch(r"features\.(\d)\.(\d+)\.block\.(\d)\.(\w+)\.(\w+)", name)
        if match:
            stage, block, part, leaf, tensor = match.groups()
            expanded = f"features.{stage}.{block}.block.3.0.weight" in weights
            kind = int(part) + (not expanded)  # 0: expand, 1: depthwise, 2: excite, 3: project
            convolution = ("conv_pw", "conv_dw", "", "conv_pwl" if expanded else "conv_pw")[kind]
            norm = f"bn{(1, 2, 0, 3)[kind] - (not expanded)}"
            own = {"0": convolution, "1": norm, "fc1": "se.conv_reduce", "fc2": "se.conv_expand"}[leaf]
            name = f"blocks.{int(stage) - 1}.{block}.{own}.{tensor}"
        found[name] = value
    return _with_eps_of(found, target)


def _with_eps_of(weights: Weights, target: Target) -> Weights:
    """Return weights for the network's eps: the variance takes the difference, so that their sum stays the same."""
    head = weights.get("conv_head.weight")
    of_file = TF_EPS if head is not None and head.shape[0] >= MIN_CHANNELS_OF_B5 else PLAIN_EPS
    own = target.eps(nn.BatchNorm2d)
    if own is None or own >= of_file:
        return weights
    return {
        name: value + (of_file - own) if name.endswith(".running_var") else value for name, value in weights.items()
    }


def _check_torchvision(weights: Weights, target: Target) -> str:
    if target.has("Conv2dSame"):
        return "the file's network pads symmetrically, and this one as TensorFlow does"
    eps = target.eps(nn.BatchNorm2d)
    return "" if eps == PLAIN_EPS else f"its batch norm has an eps of {PLAIN_EPS}, the network's {eps}"


LAYOUTS = (
    Layout("EfficientNet-PyTorch", r"_conv_stem\.weight", _from_pytorch, check=_check_pytorch),
    Layout(
        "torchvision's EfficientNet",
        r"features\.\d\.0\.block\.0\.0\.weight",
        _from_torchvision,
        check=_check_torchvision,
    ),
)
