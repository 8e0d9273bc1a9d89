"""torchvision's ConvNeXt, vision transformer and Swin. Its ResNet, ResNeXt and DenseNet have timm's names."""

import re

from network.layouts.layout import Layout, Rules, Target, Weights, renamed

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
            rest = block[3].replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
            name = f"layers.{int(block[1]) // 2}.blocks.{block[2]}.{rest}"
        elif merging:
            name = f"layers.{int(merging[1]) // 2}.downsample.{merging[2]}"
        found[name] = value
    return found


LAYOUTS = (
    Layout("torchvision's ConvNeXt", r"features\.1\.0\.layer_scale", _convnext),
    Layout("torchvision's ViT", r"encoder\.layers\.encoder_layer_0\.ln_1\.weight", _vit),
    Layout(
        "torchvision's Swin",
        r"features\.1\.0\.attn\.relative_position_bias_table",
        _swin,
        ignored=r".*\.relative_position_index",
    ),
)
