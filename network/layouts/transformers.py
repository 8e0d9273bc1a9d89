"""ResNet, ConvNeXt, ViT, DINOv2 and Swin of transformers: the names on the hub, and those since its version 5."""

import re
from collections.abc import Callable

from torch import nn

from network.layouts.layout import Layout, Rules, Target, Weights, renamed, with_joined_qkv

MAX_EPS_DIFFERENCE = 1e-5  # transformers has 1e-12 in layer norm where the authors and timm have 1e-6
LAYER = r"(?:vit\.|dinov2\.)?(?:encoder\.)?layers?\.(\d+)\."
SELF = r"attention\.(?:attention\.|self\.)?"
RESNET: Rules = (
    (r"(?:resnet\.)?embedder\.embedder\.convolution\.(\w+)", r"conv1.\1"),
    (r"(?:resnet\.)?embedder\.embedder\.normalization\.(\w+)", r"bn1.\1"),
    (r"classifier\.1\.(\w+)", r"HEAD.\1"),
)
CONVNEXT: Rules = (
    (r"(?:convnext\.)?embeddings\.patch_embeddings\.(\w+)", r"stem.0.\1"),
    (r"(?:convnext\.)?embeddings\.layernorm\.(\w+)", r"stem.1.\1"),
    (r"(?:convnext\.)?encoder\.stages\.(\d+)\.downsampling_layer\.([01])\.(\w+)", r"stages.\1.downsample.\2.\3"),
    (r"(?:convnext\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.layer_scale_parameter", r"stages.\1.blocks.\2.gamma"),
    (r"(?:convnext\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.dwconv\.(\w+)", r"stages.\1.blocks.\2.conv_dw.\3"),
    (r"(?:convnext\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.layernorm\.(\w+)", r"stages.\1.blocks.\2.norm.\3"),
    (r"(?:convnext\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.pwconv([12])\.(\w+)", r"stages.\1.blocks.\2.mlp.fc\3.\4"),
    (r"(?:convnext\.)?layernorm\.(\w+)", r"head.norm.\1"),
    (r"classifier\.(\w+)", r"HEAD.\1"),
)
TRANSFORMER_ENDS: Rules = (
    (r"(?:vit\.|dinov2\.)?embeddings\.cls_token", r"cls_token"),
    (r"embeddings\.register_tokens", r"reg_token"),
    (r"(?:vit\.|dinov2\.)?embeddings\.position_embeddings", r"pos_embed"),
    (r"(?:vit\.|dinov2\.)?embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r"(?:vit\.|dinov2\.)?layernorm\.(\w+)", r"norm.\1"),
    (r"classifier\.(\w+)", r"HEAD.\1"),
)
VIT: Rules = (
    *TRANSFORMER_ENDS,
    (LAYER + SELF + r"(q|k|v)(?:uery|ey|alue|_proj)\.(\w+)", r"blocks.\1.attn.\2.\3"),
    (LAYER + r"attention\.(?:output\.dense|o_proj)\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (LAYER + r"(?:layernorm_before|norm1)\.(\w+)", r"blocks.\1.norm1.\2"),
    (LAYER + r"(?:layernorm_after|norm2)\.(\w+)", r"blocks.\1.norm2.\2"),
    (LAYER + r"(?:intermediate\.dense|mlp\.fc1|mlp\.weights_in)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (LAYER + r"(?:output\.dense|mlp\.fc2|mlp\.weights_out)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (LAYER + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
)
BLOCK = r"(?:swin\.)?encoder\.layers\.(\d+)\.blocks\.(\d+)\."
SWIN: Rules = (
    (r"(?:swin\.)?embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r"(?:swin\.)?embeddings\.norm\.(\w+)", r"patch_embed.norm.\1"),
    (BLOCK + SELF + r"(q|k|v)(?:uery|ey|alue|_proj)\.(\w+)", r"layers.\1.blocks.\2.attn.\3.\4"),
    (BLOCK + r"attention\.(?:output\.dense|o_proj)\.(\w+)", r"layers.\1.blocks.\2.attn.proj.\3"),
    (
        BLOCK + r"attention\.(?:self|relative_position_bias)\.relative_position_bias_table",
        r"layers.\1.blocks.\2.attn.relative_position_bias_table",
    ),
    (BLOCK + r"layernorm_before\.(\w+)", r"layers.\1.blocks.\2.norm1.\3"),
    (BLOCK + r"layernorm_after\.(\w+)", r"layers.\1.blocks.\2.norm2.\3"),
    (BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\.(\w+)", r"layers.\1.blocks.\2.mlp.fc1.\3"),
    (BLOCK + r"(?:output\.dense|mlp\.fc2)\.(\w+)", r"layers.\1.blocks.\2.mlp.fc2.\3"),
    (r"(?:swin\.)?layernorm\.(\w+)", r"norm.\1"),
    (r"classifier\.(\w+)", r"HEAD.\1"),
)


def _by(rules: Rules) -> Callable[[Weights, Target], Weights]:
    return lambda weights, target: with_joined_qkv(renamed(weights, rules, target.head))


def _resnet(weights: Weights, target: Target) -> Weights:
    found: Weights = {}
    for name, value in renamed(weights, RESNET, target.head).items():
        match = re.fullmatch(
            r"(?:resnet\.)?encoder\.stages\.(\d)\.layers\.(\d+)\.(shortcut|layer\.\d)\.(convolution|normalization)\.(\w+)",
            name,
        )
        if match:
            stage, block, part, kind, tensor = match.groups()
            if part == "shortcut":
                own = "downsample.0" if kind == "convolution" else "downsample.1"
            else:
                own = f"{'conv' if kind == 'convolution' else 'bn'}{int(part[-1]) + 1}"
            name = f"layer{int(stage) + 1}.{block}.{own}.{tensor}"
        found[name] = value
    return found


def _registers(weights: Weights, target: Target) -> Weights:
    """Return the weights of DINOv2 with registers; timm adds the class token's position to the token itself."""
    prefix = r"dinov2_with_registers\."
    found = _by(VIT)({re.sub(f"^{prefix}", "", name): value for name, value in weights.items()}, target)
    token, grid = found.get("cls_token"), found.get("pos_embed")
    if token is not None and grid is not None and token.ndim == grid.ndim == 3:
        found["cls_token"], found["pos_embed"] = token + grid[:, :1], grid[:, 1:]
    return found


def _swin(weights: Weights, target: Target) -> Weights:
    found: Weights = {}
    for name, value in _by(SWIN)(weights, target).items():
        match = re.fullmatch(r"(?:swin\.)?encoder\.layers\.(\d)\.downsample\.(.+)", name)
        found[f"layers.{int(match[1]) + 1}.downsample.{match[2]}" if match else name] = value
    return found


def _check_resnet(weights: Weights, target: Target) -> str:
    config = target.config
    if config.get("downsample_in_bottleneck") or config.get("downsample_in_first_stage"):
        return "its config.json puts a stride into another convolution (downsample_in_bottleneck or …_first_stage)"
    if target.has("BlurPool2d", "AvgPool2d"):
        return "the network pools where the file's strides"
    return _check_act(config.get("hidden_act", "relu"), "relu")


def _check_norm(weights: Weights, target: Target) -> str:
    own, theirs = target.eps(nn.LayerNorm), target.config.get("layer_norm_eps")
    if isinstance(theirs, float) and own is not None and abs(own - theirs) > MAX_EPS_DIFFERENCE:
        return f"its layer norm has an eps of {theirs}, the network's {own}"
    if target.has("QuickGELU", "GELUTanh"):
        return "the network has another GELU"
    return _check_act(target.config.get("hidden_act", "gelu"), "gelu")


def _check_act(theirs: object, own: str) -> str:
    return "" if theirs == own else f"its activation is {theirs}, the network's {own}"


LAYOUTS = (
    Layout("transformers' ResNet", r"(resnet\.)?embedder\.embedder\.convolution\.weight", _resnet, check=_check_resnet),
    Layout(
        "transformers' ConvNeXt",
        r"(convnext\.)?encoder\.stages\.0\.layers\.0\.dwconv\.weight",
        _by(CONVNEXT),
        check=_check_norm,
    ),
    Layout(
        "transformers' ViT",
        r"(vit\.)?(encoder\.)?layers?\.0\.layernorm_before\.weight",
        _by(VIT),
        ignored=r"(vit\.)?(pooler\..*|embeddings\.mask_token)",
        check=_check_norm,
    ),
    Layout(
        "transformers' DINOv2 with registers",
        r"(dinov2_with_registers\.)?embeddings\.register_tokens",
        _registers,
        ignored=r"embeddings\.mask_token",
        check=_check_norm,
    ),
    Layout(
        "transformers' DINOv2",
        r"(dinov2\.)?(encoder\.)?layers?\.0\.layer_scale1\.lambda1",
        _by(VIT),
        ignored=r"(dinov2\.)?embeddings\.mask_token",
        check=_check_norm,
    ),
    Layout(
        "transformers' Swin",
        r"(swin\.)?encoder\.layers\.0\.blocks\.0\.layernorm_before\.weight",
        _swin,
        ignored=r"(swin\.)?(.*\.relative_position_index|pooler\..*|embeddings\.mask_token)",
        check=_check_norm,
    ),
)
