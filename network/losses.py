"""Losses: a name, a builder. Each gives a loss a sample (B,) from logits (B, C) and targets, int64 (B,) or probabilities (B, C).

A classifier of 50,030 classes makes logits of 13 MB for 64 images; torch's cross entropy keeps their logarithm and makes
their gradient, so its peak is twice that. Here the gradient is computed with the loss, in one buffer.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.errors import UserError, unknown_name

Each = Callable[[Tensor, Tensor], Tensor]  # logits, targets -> a loss a sample
Loss = Callable[[Tensor, Tensor], Tensor]  # logits, targets -> the scalar to minimise


class Shape(NamedTuple):
    """What is done to logits before the softmax.

    smooth: this share of each target is spread over all classes (Szegedy et al., 2016, section 7). adjust: float (C,)
    added to the logits, tau * log prior (Menon et al., 2021, eq. 10). margin: added to the angle of the target, in
    radians, for logits that are scale * cosine (Deng et al., 2019, eq. 3). temperature: divides the logits.
    """

    smooth: float = 0.0
    adjust: Tensor | None = None
    margin: float = 0.0
    scale: float = 1.0
    temperature: float = 1.0


class _Softmax(torch.autograd.Function):
    """Cross entropy a sample: softmax, then the gradient, in one buffer of the logits' size."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, shape: Shape) -> Tensor:
        losses = torch.empty(len(logits), device=logits.device)
        grad = torch.empty_like(logits)
        rows = len(logits) if logits.dtype == torch.float32 else max(1, len(logits) // 16)  # else a part in fp32 at a time
        for first in range(0, len(logits), rows):
            part = slice(first, first + rows)
            work = grad[part] if logits.dtype == torch.float32 else torch.empty_like(logits[part], dtype=torch.float32)
            losses[part] = _softmax_part(logits[part], targets[part], shape, work)
            if work.dtype != grad.dtype:
                grad[part] = work
        ctx.grad = grad
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, None, None]:
        return _scaled(ctx, outer[0]), None, None


def _scaled(ctx: Any, outer: Tensor) -> Tensor:
    """The gradient made in forward, times that of what came after, (B,); in place, so once."""
    grad, ctx.grad = ctx.grad, None
    if grad is None:
        raise RuntimeError("this loss goes backward once: its gradient was made in place")
    return grad.mul_(outer[:, None].to(grad.dtype))


def _softmax_part(logits: Tensor, targets: Tensor, shape: Shape, work: Tensor) -> Tensor:
    """The losses of some rows; their gradient goes to `work`, float32 of the logits' shape."""
    torch.mul(logits, 1 / shape.temperature, out=work)
    if shape.adjust is not None:
        work += shape.adjust
    slope = torch.ones(len(work), device=work.device)
    labels = targets[:, None] if targets.ndim == 1 else None
    if shape.margin and labels is not None:
        moved, slope = _with_margin(work.gather(1, labels)[:, 0], shape)
        work.scatter_(1, labels, moved[:, None])
    keep = 1 - shape.smooth
    wanted = keep * (work.gather(1, labels)[:, 0] if labels is not None else torch.linalg.vecdot(work, targets.float()))
    if shape.smooth:
        wanted = wanted + shape.smooth * work.mean(dim=1)
    highest = work.amax(dim=1, keepdim=True)
    total = work.sub_(highest).exp_().sum(dim=1, keepdim=True)
    work.div_(total)
    if labels is not None:
        work.scatter_add_(1, labels, torch.full_like(labels, -1, dtype=torch.float32) * keep)
    else:
        work.add_(targets, alpha=-keep)
    if shape.smooth:
        work.sub_(shape.smooth / work.shape[1])
    if shape.margin and labels is not None:
        work.scatter_(1, labels, work.gather(1, labels) * slope[:, None])
    if shape.temperature != 1:
        work.div_(shape.temperature)
    return (total.log() + highest)[:, 0] - wanted


def _with_margin(target: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """scale * cos(angle + margin) of the targets' logits (B,), and its slope.

    Beyond pi - margin, where cos would rise again, the logit falls by margin * sin(margin), as the authors' code does.
    """
    cosine = (target / shape.scale).clamp(-1 + 1e-6, 1 - 1e-6)
    sine = (1 - cosine * cosine).sqrt()
    cos, sin = math.cos(shape.margin), math.sin(shape.margin)
    near = cosine > -cos
    moved = torch.where(near, cosine * cos - sine * sin, cosine - shape.margin * sin)
    return shape.scale * moved, torch.where(near, cos + sin * cosine / sine, 1.0)


class _Binary(torch.autograd.Function):
    """Binary cross entropy of every class, summed a sample; one buffer of the logits' size."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, smooth: float) -> Tensor:
        losses = torch.empty(len(logits), device=logits.device)
        grad = torch.empty_like(logits)
        rows = len(logits) if logits.dtype == torch.float32 else max(1, len(logits) // 16)
        for first in range(0, len(logits), rows):
            part = slice(first, first + rows)
            one = grad[part] if logits.dtype == torch.float32 else torch.empty_like(logits[part], dtype=torch.float32)
            some, spread = targets[part], smooth / logits.shape[1]
            one.copy_(logits[part])
            if some.ndim == 1:
                wanted = (1 - smooth) * one.gather(1, some[:, None])[:, 0] + spread * one.sum(dim=1)
            else:
                wanted = (1 - smooth) * torch.linalg.vecdot(one, some.float()) + spread * one.sum(dim=1)
            torch.logaddexp(one, one.new_zeros(()), out=one)
            losses[part] = one.sum(dim=1) - wanted
            one.copy_(logits[part]).sigmoid_()
            if some.ndim == 1:
                one.scatter_add_(1, some[:, None], torch.full_like(some[:, None], -1, dtype=torch.float32) * (1 - smooth))
            else:
                one.add_(some, alpha=-(1 - smooth))
            one.sub_(spread)
            if one.dtype != grad.dtype:
                grad[part] = one
        ctx.grad = grad
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, None, None]:
        return _scaled(ctx, outer[0]), None, None


def softmax_loss(shape: Shape) -> Each:
    """Cross entropy a sample, in fp32."""
    return lambda logits, targets: _Softmax.apply(logits, targets, shape)


def focal(each: Each, gamma: float) -> Each:
    """(1 - p)^gamma times the cross entropy, p = exp(-cross entropy) (Lin et al., 2017, eq. 4); with soft targets p is a geometric mean."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        entropy = each(logits, targets)
        return (-torch.expm1(-entropy)).clamp(min=1e-12) ** gamma * entropy

    return loss


def binary(smooth: float) -> Each:
    """A yes or no for every class (Wightman et al., 2021, section 3.2), the mean over the classes."""
    return lambda logits, targets: _Binary.apply(logits, targets, smooth) / logits.shape[1]


def mean(each: Each, weight: Tensor | None) -> Loss:
    """The mean over the samples; with `weight`, float (C,), by the weight of each sample's class."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        losses = each(logits, targets)
        if weight is None:
            return losses.mean()
        share = weight[targets] if targets.ndim == 1 else targets.float() @ weight
        return (share * losses).sum() / share.sum()

    return loss


def hardest(each: Each, ratio: float) -> Loss:
    """Online hard example mining (Shrivastava et al., 2016): the mean over the `ratio` of samples with the largest loss."""
    return lambda logits, targets: (losses := each(logits, targets)).topk(max(1, round(ratio * len(losses)))).values.mean()


losses: dict[str, Callable[[argparse.Namespace], Loss]] = {
    "ce": lambda opt: mean(softmax_loss(shape_of(opt)), weight_of(opt)),
    "ohem": lambda opt: hardest(softmax_loss(shape_of(opt)), opt.ohem_ratio),
    "focal": lambda opt: mean(focal(softmax_loss(shape_of(opt)), opt.focal_gamma), weight_of(opt)),
    "bce": lambda opt: mean(binary(opt.smooth), weight_of(opt)),
}


def get_loss(opt: argparse.Namespace, class_images: Sequence[int] | None = None, device: torch.device | None = None) -> Loss:
    """The loss that --loss names, shaped by --smooth, --logit_adjust, --head_margin and --class_weight.

    Args:
        class_images: training images a class, which --logit_adjust and --class_weight go by.

    Raises:
        UserError: an unknown name, with the list; or no class counts where they are needed.
    """
    if opt.loss not in losses:
        raise unknown_name("loss", opt.loss, losses)
    opt = argparse.Namespace(**vars(opt))
    opt.class_count = None if class_images is None else torch.tensor(class_images, dtype=torch.float64, device=device).clamp(min=1)
    if opt.class_count is None and (opt.logit_adjust or opt.class_weight != "none"):
        raise UserError("--logit_adjust and --class_weight need the number of training images of each class, which is not known here.")
    return losses[opt.loss](opt)


def shape_of(opt: argparse.Namespace) -> Shape:
    """What --smooth, --logit_adjust and the margin of --head do to the softmax; `opt.class_count`: images a class, float64 (C,)."""
    adjust = (opt.logit_adjust * (opt.class_count / opt.class_count.sum()).log()).float() if opt.logit_adjust else None
    margin = opt.head_margin if opt.head in ("arcface", "subcenter") else 0.0
    return Shape(opt.smooth, adjust, margin, opt.head_scale)


def weight_of(opt: argparse.Namespace) -> Tensor | None:
    """The weights of --class_weight, float32 (C,), or None."""
    return effective_weight(opt.class_count, opt.cb_beta).float() if opt.class_weight == "effective" else None


def effective_weight(count: Tensor, beta: float) -> Tensor:
    """Weights (C,) by the effective number of samples, (1 - beta) / (1 - beta^n), with mean 1 (Cui et al., 2019, eq. 3)."""
    return F.normalize((1 - beta) / (1 - beta**count), p=1, dim=0) * len(count)
