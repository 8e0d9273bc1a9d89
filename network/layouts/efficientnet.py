"""EfficientNet by the names of EfficientNet-PyTorch (Melas-Kyriazi), and EfficientNet-Lite by those of RangiLyu.

EfficientNet-PyTorch repeats TensorFlow: "same" padding, which is asymmetric under stride 2, and batch norm with an eps
of 1e-3. timm calls these networks tf_efficientnet_*; its efficientnet_* have the same names and shapes, and are
padded otherwise. RangiLyu's EfficientNet-Lite pads symmetrically, and has that eps too.
"""

import re

from torch import nn

from network.layouts.layout import SYMMETRIC, TF_EPS, Layout, Rules, Target, Weights, renamed, with_eps

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
LITE_ENDS: Rules = (
    (r"stem\.0\.(\w+)", r"conv_stem.\1"),
    (r"stem\.1\.(\w+)", r"bn1.\1"),
    (r"head\.0\.(\w+)", r"conv_head.\1"),
    (r"head\.1\.(\w+)", r"bn2.\1"),
    (r"fc\.(\w+)", r"HEAD.\1"),
)
LITE_BLOCK = re.compile(r"(blocks\.\d+\.\d+)\.(_\w+)\.(\w+)")


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


def _from_lite(weights: Weights, target: Target) -> Weights:
    found: Weights = {}
    for name, value in renamed(weights, LITE_ENDS, target.head).items():
        match = LITE_BLOCK.fullmatch(name)
        if match:
            block, part, tensor = match.groups()
            own = EXPANDED if f"{block}._expand_conv.weight" in weights else NOT_EXPANDED
            name = f"{block}.{own.get(part, part)}.{tensor}"
        found[name] = value
    return with_eps(found, target, TF_EPS)


def _check_pytorch(weights: Weights, target: Target) -> str:
    if not target.has("Conv2dSame"):
        return "the file's network pads as TensorFlow does, and this one symmetrically"
    eps = target.eps(nn.BatchNorm2d)
    return "" if eps == TF_EPS else f"its batch norm has an eps of {TF_EPS}, the network's {eps}"


def _check_lite(weights: Weights, target: Target) -> str:
    return SYMMETRIC * target.has("Conv2dSame")


LAYOUTS = (
    Layout("EfficientNet-PyTorch", r"_conv_stem\.weight", _from_pytorch, check=_check_pytorch),
    Layout("EfficientNet-Lite", r"blocks\.0\.0\._depthwise_conv\.weight", _from_lite, check=_check_lite),
)
