"""Batch norm folded into the convolutions before it: the same function with a pass over memory less for each. Inference alone."""

import argparse
import copy
from collections import Counter
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from network.base_model import BaseModel
from network.precision import cast_weights, for_inference
from utils.preprocess import Preprocess

FOLDABLE = (
    nn.Conv2d,
    Conv2dSame,
)  # they use their weight as it is; a standardised one (timm's StdConv2d) cannot be folded
RTOL = 1e-4  # relative to the largest logit: what the folded network's may differ by


def optimize_for_inference(
    model: BaseModel, preprocess: Preprocess, opt: argparse.Namespace, precision: str, device: torch.device
) -> str:
    """Make a network that was loaded for inference as quick as it gets, and place it; returns the precision, with why.

    With opt.fold batch norm is folded, but for a checkpoint in half precision under --precision auto: there rounding
    would show, and evaluation shall give the score that training printed. `precision` is fp32, bf16, fp16, auto or, for
    the quicker by timing, fast; in half precision the weights are cast once, not in each pass.
    """
    note = ""
    if opt.fold and not (opt.precision == "auto" and precision in ("bf16", "fp16")):
        images = torch.rand(2, 3, preprocess.scale, preprocess.scale, generator=torch.Generator().manual_seed(0))
        model.net, folded = fold_batchnorm(model.net.eval(), model.normalise((images * 255).to(torch.uint8)))
        note = f", {folded} batch norms folded" if folded else ""
    model.place(device)
    if precision in ("auto", "fast") and model.device.type == "cpu":
        precision, why = for_inference(model, preprocess.scale, opt.batch_size)
        note = f" ({why}){note}"
    model.set_precision("auto" if precision == "fast" else precision)
    if model.dtype:
        cast_weights(model.net, model.dtype)
    return {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[model.dtype] + note


class _Tracer(fx.Tracer):
    """Stops at convolutions and norms; timm's norms hold an activation too, and are one step here."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.Conv2d, _BatchNorm)) or super().is_leaf_module(m, module_qualified_name)


def fold_batchnorm(net: nn.Module, images: Tensor) -> tuple[nn.Module, int]:
    """A copy of `net` in eval mode with batch norm folded where torch.fx shows that a convolution feeds it alone.

    Args:
        images: normalised floats (B, 3, S, S), on the network's device, to hold the copy against the network.

    Returns:
        The copy and how many norms were folded; `net` itself and 0 where none could be, or the logits were not RTOL.
        A part that torch.fx cannot follow (it branches on values) is left, and its parts are tried.
    """
    pairs = _pairs(net)
    if not pairs:
        return net, 0
    copied = copy.deepcopy(net).eval()
    for conv_name, norm_name in pairs:
        _fold_pair(copied, conv_name, norm_name)
    with torch.inference_mode():
        wanted, got = net(images).float(), copied(images).float()
    close = bool((got - wanted).abs().max() <= RTOL * wanted.abs().max())
    return (copied, len(pairs)) if close else (net, 0)


def _pairs(net: nn.Module, prefix: str = "") -> list[tuple[str, str]]:
    """Names of the (convolution, norm) that can be one: each is called once, and the norm alone reads the convolution."""
    try:
        graph = _Tracer().trace(net)
    except Exception:  # whatever a network does that cannot be traced: its children may be
        return [pair for name, child in net.named_children() for pair in _pairs(child, f"{prefix}{name}.")]
    modules = dict(net.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(id(modules[str(node.target)]) for node in calls)
    found = []
    for node in calls:
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        conv, norm = modules[str(before.target)], modules[str(node.target)]
        fits = type(conv) in FOLDABLE and isinstance(norm, _BatchNorm) and norm.running_var is not None
        if fits and times[id(conv)] == times[id(norm)] == 1:
            found.append((f"{prefix}{before.target}", f"{prefix}{node.target}"))
    return found


def _fold_pair(net: nn.Module, conv_name: str, norm_name: str) -> None:
    conv: Any = net.get_submodule(conv_name)
    norm: Any = net.get_submodule(norm_name)
    with torch.no_grad():
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
    kept = (
        torch.channels_last if conv.weight.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    )
    conv.weight, conv.bias = nn.Parameter(weight.contiguous(memory_format=kept)), nn.Parameter(bias)
    rest = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]  # timm's BatchNormAct2d
    parent, _, name = norm_name.rpartition(".")
    setattr(net.get_submodule(parent), name, nn.Sequential(*rest) if rest else nn.Identity())
