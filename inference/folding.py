"""Folds batch norm into the convolution before it: the same function with one pass over memory less. Inference only."""

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
from network.precision import cast_weights, fastest_for_inference
from utils import distributed
from utils.preprocess import Preprocess

FOLDABLE = (nn.Conv2d, Conv2dSame)  # they use their weight as it is, while timm's StdConv2d standardises it
RTOL = 1e-4  # Folding may change logits by this share of the largest.


def optimize_for_inference(
    model: BaseModel, preprocess: Preprocess, opt: argparse.Namespace, precision: str, device: torch.device
) -> str:
    """Prepare a network for inference on `device`, in place: fold batch norm, choose a precision, cast the weights.

    With opt.fold batch norm is folded, except for a checkpoint in half precision under --precision auto: rounding would
    show there, and evaluation must give the score that training printed. In half precision the weights are cast once.

    Args:
        precision: fp32, bf16, fp16, auto, or fast, the faster of fp32 and bf16 by timing. Several processes on the CPU
            take fp32 instead of timing.

    Returns:
        The precision, and in words how it was chosen and what was folded.
    """
    note = ""
    if opt.fold and not (opt.precision == "auto" and precision in ("bf16", "fp16")):
        images = torch.rand(2, 3, preprocess.scale, preprocess.scale, generator=torch.Generator().manual_seed(0))
        model.net, folded = fold_batchnorm(model.net.eval(), model.normalise((images * 255).to(torch.uint8)))
        note = f", {folded} batch norms folded" if folded else ""
    model.to_device(device)
    if precision in ("auto", "fast") and model.device.type == "cpu":
        if distributed.world_size() > 1:  # each would choose by its own timing, and the answers would be of both
            precision, why = "fp32", "several processes time nothing"
        else:
            precision, why = fastest_for_inference(model, preprocess.scale, opt.batch_size)
        note = f" ({why}){note}"
    model.set_precision("auto" if precision == "fast" else precision)
    if model.dtype:
        cast_weights(model.net, model.dtype)
    return model.precision + note


class _Tracer(fx.Tracer):
    """Stops at convolutions and norms. timm's norms include an activation, and are one step here."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.Conv2d, _BatchNorm)) or super().is_leaf_module(m, module_qualified_name)


def fold_batchnorm(net: nn.Module, images: Tensor) -> tuple[nn.Module, int]:
    """Copy `net` in eval mode, and fold batch norm where torch.fx shows that a convolution feeds it alone.

    Where torch.fx cannot follow a part because it branches on values, its children are tried instead.

    Args:
        images: normalised floats (B, 3, S, S), on the network's device, to compare the copy with the network.

    Returns:
        The copy, and how many norms were folded. If none could be, or the logits differ beyond RTOL: `net` and 0.
    """
    pairs = _pairs(net)
    if not pairs:
        return net, 0
    copied = copy.deepcopy(net).eval()
    for conv_name, norm_name in pairs:
        _fold_pair(copied, conv_name, norm_name)
    with torch.inference_mode():
        expected, got = net(images).float(), copied(images).float()
    close = bool((got - expected).abs().max() <= RTOL * expected.abs().max())
    return (copied, len(pairs)) if close else (net, 0)


def _pairs(net: nn.Module, prefix: str = "") -> list[tuple[str, str]]:
    """Return the names of each (convolution, norm) to merge: called once, and only the norm reads the convolution."""
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
