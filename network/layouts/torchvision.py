"""torchvision's ConvNeXt, vision transformer, Swin, RegNet, VGG and Inception v3, and what timm does not have of it.

Its ResNet, ResNeXt and DenseNet have timm's names.
"""

import re

from network.layouts.layout import Layout, Rules, Target, Weights, other_modules, renamed

CONVNEXT: Rules = (
    (r"features\.0\.([01])\.(\w+)", r"stem.\1.\2"),
    (r"classifier\.0\.(\w+)", r"head.norm.\1"),
    (r"classifier\.2\.(\w+)", r"HEAD.\1"),
)
CONVNEXT_BLOCK = {"0": "conv_dw", "2": "norm", "3": "mlp.fc1", "5": "mlp.fc2"}
VIT: Rules = (
    (r"class_token", r"cls_token"),
    (r"conv_proj\.(\w+)", r"patch_embed.proj.\1"),
    (r"encoder\.pos_embedding", r"pos_embed"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(\w+)", r"blocks.\1.attn.qkv.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.ln\.(\w+)", r"norm.\1"),
    (r"heads\.head\.(\w+)", r"HEAD.\1"),
)
SWIN: Rules = (
    (r"features\.0\.0\.(\w+)", r"patch_embed.proj.\1"),
    (r"features\.0\.2\.(\w+)", r"patch_embed.norm.\1"),
    (r"head\.(\w+)", r"HEAD.\1"),
)
REGNET: Rules = (
    (r"stem\.0\.(\w+)", r"stem.conv.\1"),
    (r"stem\.1\.(\w+)", r"stem.bn.\1"),
    (r"fc\.(\w+)", r"HEAD.\1"),
)
REGNET_BLOCK = re.compile(r"trunk_output\.block(\d)\.block\d-(\d+)\.(?:f\.)?(proj|[abc]|se)\.(\w+)\.(\w+)")
REGNET_PARTS = {"proj": "downsample", "a": "conv1", "b": "conv2", "c": "conv3", "se": "se"}
VGG: Rules = (
    (r"classifier\.0\.(\w+)", r"pre_logits.fc1.\1"),
    (r"classifier\.3\.(\w+)", r"pre_logits.fc2.\1"),
    (r"classifier\.6\.(\w+)", r"HEAD.\1"),
)
VGG_SIDE = 7  # of the features that the first linear layer sees
COORDINATES = "features.1.0.attn.relative_coords_table"
# what timm does not have: the family, a name in its file, the number of tensors (0: any)
ABSENT = (
    ("torchvision's AlexNet", r"features\.10\.weight", 16),
    ("torchvision's SqueezeNet", r"features\.\d+\.squeeze\.weight", 0),
    ("torchvision's GoogLeNet", r"inception3a\.branch1\.conv\.weight", 0),
    ("torchvision's ShuffleNetV2", r"stage2\.0\.branch2\.0\.weight", 0),
    ("torchvision's MaxViT", r"blocks\.0\.layers\.0\.layers\.MBconv\.layers\.pre_norm\.weight", 0),
)


def absent_from_timm(weights: Weights) -> str:
    """Return the family of torchvision that the weights are of, where timm does not have it, or ""."""
    for family, mark, count in ABSENT:
        if count in (0, len(weights)) and any(re.fullmatch(mark, name) for name in weights):
            return family
    return ""


def _convnext(weights: Weights, target: Target) -> Weights:
    found: Weights = {}
    for name, value in renamed(weights, CONVNEXT, target.head).items():
        match = re.fullmatch(r"features\.(\d)\.(\d+)\.(?:block\.(\d)\.)?(\w+)", name)
        if match:
            part, block, layer, tensor = match.groups()
            stage = int(part) // 2
            if int(part) % 2 == 0:
                name = f"stages.{stage}.downsample.{block}.{tensor}"
            elif tensor == "layer_scale":
                name, value = f"stages.{stage}.blocks.{block}.gamma", value.flatten()
            elif layer in CONVNEXT_BLOCK:
                name = f"stages.{stage}.blocks.{block}.{CONVNEXT_BLOCK[layer]}.{tensor}"
        found[name] = value
    return found


def _vit(weights: Weights, target: Target) -> Weights:
    return renamed(weights, VIT, target.head)


def _swin(weights: Weights, target: Target) -> Weights:
    found: Weights = {}
    for name, value in renamed(weights, SWIN, target.head).items():
        block = re.fullmatch(r"features\.([1357])\.(\d+)\.(.+)", name)
        merging = re.fullmatch(r"features\.([246])\.(.+)", name)
        if block:
            rest = re.sub(r"^mlp\.3\.", "mlp.fc2.", re.sub(r"^mlp\.0\.", "mlp.fc1.", block[3]))
            name = f"layers.{int(block[1]) // 2}.blocks.{block[2]}.{rest}"
        elif merging:
            name = f"layers.{int(merging[1]) // 2}.downsample.{merging[2]}"
        found[name] = value
    return found


def _swin_v2(weights: Weights, target: Target) -> Weights:
    found: Weights = {}
    for name, value in _swin(weights, target).items():
        if name.endswith(".attn.qkv.bias") and value.ndim == 1:  # torchvision sets the key's to zero as it runs
            query, _, val = value.tensor_split(3)
            found[name.replace("qkv.bias", "q_bias")], found[name.replace("qkv.bias", "v_bias")] = query, val
        else:
            found[name] = value
    return found


def _check_window(weights: Weights, target: Target) -> str:
    table = weights.get(COORDINATES)
    theirs = (table.shape[1] + 1) // 2 if table is not None and table.ndim == 4 else None
    sides = (getattr(module, "window_size", None) for module in target.net.modules() if hasattr(module, "logit_scale"))
    own = next(sides, None)
    return "" if theirs and own == (theirs, theirs) else f"its windows have a side of {theirs}, the network's are {own}"


def _regnet(weights: Weights, target: Target) -> Weights:
    found: Weights = {}
    for name, value in renamed(weights, REGNET, target.head).items():
        match = REGNET_BLOCK.fullmatch(name)
        if match:
            stage, block, part, layer, tensor = match.groups()
            own = {"0": "conv", "1": "bn"}.get(layer, layer)
            name = f"s{stage}.b{int(block) + 1}.{REGNET_PARTS[part]}.{own}.{tensor}"
        found[name] = value
    return found


def _vgg(weights: Weights, target: Target) -> Weights:
    found = renamed(weights, VGG, target.head)
    for name, side in (("pre_logits.fc1.weight", VGG_SIDE), ("pre_logits.fc2.weight", 1)):
        value = found.get(name)
        if value is not None and value.ndim == 2 and value.shape[1] % side**2 == 0:
            found[name] = value.unflatten(1, (-1, side, side))
    return found


def _same(weights: Weights, target: Target) -> Weights:
    return renamed(weights, ((r"fc\.(\w+)", r"HEAD.\1"),), target.head)


def _check_relu(weights: Weights, target: Target) -> str:
    return other_modules(target, ("ReLU",))


LAYOUTS = (
    Layout("torchvision's ConvNeXt", r"features\.1\.0\.layer_scale", _convnext),
    Layout("torchvision's ViT", r"encoder\.layers\.encoder_layer_0\.ln_1\.weight", _vit),
    Layout(
        "torchvision's Swin",
        r"features\.1\.0\.attn\.relative_position_bias_table",
        _swin,
        ignored=r".*\.relative_position_index",
    ),
    Layout(
        "torchvision's Swin V2",
        r"features\.1\.0\.attn\.cpb_mlp\.0\.weight",
        _swin_v2,
        ignored=r".*\.relative_(position_index|coords_table)",
        check=_check_window,
    ),
    Layout("torchvision's RegNet", r"trunk_output\.block1\.block1-0\.f\.a\.0\.weight", _regnet, check=_check_relu),
    Layout(
        "torchvision's VGG",
        r"classifier\.6\.weight",
        _vgg,
        check=_check_relu,
        note="torchvision's VGG pools its features to 7x7, and timm's does not. The outputs are the same for images of "
        "up to 224 pixels a side, and differ for larger ones.",
    ),
    Layout("torchvision's Inception v3", r"AuxLogits\.fc\.weight", _same, ignored=r"AuxLogits\..*"),
)
