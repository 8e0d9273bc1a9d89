"""Losses: a name, a builder. Each gives a loss a sample (B,) from logits (B, C) and targets, int64 (B,) or probabilities (B, C).

A classifier of 50,030 classes makes logits of 13 MB for 64 images; torch's cross entropy keeps their logarithm and makes
their gradient, so its peak is twice that, and more with soft targets. Here the gradient is computed with the loss, in one
buffer. Soft targets are probabilities: each row sums to 1.
"""

import argparse
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.errors import UserError, unknown_name
from utils.logger import log

Each = Callable[[Tensor, Tensor], Tensor]  # logits, targets -> a loss a sample
Loss = Callable[[Tensor, Tensor], Tensor]  # logits, targets -> the scalar to minimise
SMALL = (
    1 << 19
)  # logits (batch * classes) up to which torch's cross entropy is the quicker on a CPU: measured, see dev/LOG.md
MAX_GPU_BYTES = 1 << 30  # of logits on another device: up to here memory is cheap there, and each kernel costs a launch
PARTS = 20  # where there are temporaries: each is of so small a part of the logits
HALF_LIFT = 1024  # a gradient in fp16 is kept so much larger: probabilities below 6e-8 would be lost


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


def saves_memory(device: str, dtype: torch.dtype, numel: int) -> bool:
    """Return whether a loss of `numel` logits should spend time to save memory: a gradient made by parts, in one buffer.

    Args:
        device: the type of the logits' device, such as "cpu" or "cuda".
    """
    return numel > SMALL if device == "cpu" else numel * dtype.itemsize > MAX_GPU_BYTES


Part = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # logits, targets, where their gradient goes -> a loss a sample, of some rows


class _Eager(torch.autograd.Function):
    """A loss a sample, fp32 (B,), whose gradient is made with it, in one buffer of the logits' size and type.

    Autocast has no say in it. `whole`: all rows go at once, for `part` makes few temporaries, or there is room for them;
    else a PARTS-th of the rows at a time.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, part: Part, whole: bool) -> Tensor:
        losses = torch.empty(len(logits), device=logits.device)
        grad = torch.empty_like(logits)
        same = logits.dtype == torch.float32
        ctx.lift = HALF_LIFT if logits.dtype == torch.float16 else 1
        with torch.autocast(logits.device.type, enabled=False):
            rows = ctx.rows = len(logits) if whole else max(1, len(logits) // PARTS)
            for first in range(0, len(logits), rows):
                some = slice(first, first + rows)
                work = grad[some] if same else torch.empty_like(logits[some], dtype=torch.float32)
                losses[some] = part(logits[some], targets[some], work)
                if not same:
                    grad[some] = work.mul_(ctx.lift) if ctx.lift != 1 else work
        ctx.grad = grad
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, None, None, None]:
        grad, ctx.grad = ctx.grad, None
        if grad is None:
            raise RuntimeError("this loss goes backward once: its gradient was made in place")
        factor = outer[0][:, None] / ctx.lift
        if grad.dtype != torch.float16:
            return grad.mul_(factor.to(grad.dtype)), None, None, None
        for some, by in zip(grad.split(ctx.rows), factor.split(ctx.rows), strict=True):
            some.copy_(some.float().mul_(by))  # a factor below 6e-5 is no good in fp16
        return grad, None, None, None


def _eager(logits: Tensor, targets: Tensor, part: Part, plain: bool) -> Tensor:
    """Apply _Eager. `plain`: `part` makes no temporaries for hard labels of fp32 logits."""
    roomy = logits.device.type != "cpu" and not saves_memory(logits.device.type, logits.dtype, logits.numel())
    whole = roomy or (plain and targets.ndim == 1 and logits.dtype == torch.float32)
    return _Eager.apply(logits, targets, part, whole)


def _softmax_part(shape: Shape, logits: Tensor, targets: Tensor, work: Tensor) -> Tensor:
    """The cross entropy of some rows; its gradient goes to `work`, float32 of the logits' shape."""
    moved, slope = _moved(shape, logits, targets)
    torch.log_softmax(moved, 1, out=work)
    del moved  # before the temporary of soft targets
    losses = -_wanted(work, targets, shape.smooth)
    _less_wanted(work.exp_(), targets, shape.smooth)
    if slope is not None:
        labels = targets[:, None]
        work.scatter_(1, labels, work.gather(1, labels) * slope[:, None])
    if shape.temperature != 1:
        work.div_(shape.temperature)
    return losses


def _moved(shape: Shape, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
    """The logits that go into the softmax, float32, and with a margin the slope of the targets' logits (B,)."""
    moved = logits.float()
    if shape.temperature != 1:
        moved = moved / shape.temperature
    if shape.adjust is not None:
        moved = moved + shape.adjust
    if not shape.margin or targets.ndim == 2:
        return moved, None
    labels = targets[:, None]
    target, slope = _with_margin(moved.gather(1, labels)[:, 0], shape)
    return moved.scatter(1, labels, target[:, None]), slope


def _wanted(values: Tensor, targets: Tensor, smooth: float) -> Tensor:
    """What the smoothed targets say of `values` (B, C), summed a sample: (B,)."""
    labels = targets[:, None] if targets.ndim == 1 else None
    wanted = values.gather(1, labels)[:, 0] if labels is not None else (values * targets).sum(dim=1)
    return (1 - smooth) * wanted + smooth * values.mean(dim=1) if smooth else wanted


def _less_wanted(values: Tensor, targets: Tensor, smooth: float) -> None:
    """Subtract the smoothed targets from `values`, in place."""
    if targets.ndim == 1:
        labels = targets[:, None]
        values.scatter_add_(1, labels, torch.full_like(labels, -1, dtype=torch.float32) * (1 - smooth))
    else:
        values.add_(targets, alpha=smooth - 1)
    if smooth:
        values.sub_(smooth / values.shape[1])


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


def _binary_part(smooth: float, logits: Tensor, targets: Tensor, work: Tensor) -> Tensor:
    """The binary cross entropy of every class, summed a sample, of some rows; its gradient goes to `work`."""
    wanted = _wanted(work.copy_(logits), targets, smooth)
    losses = torch.logaddexp(work, work.new_zeros(()), out=work).sum(dim=1) - wanted
    _less_wanted(work.copy_(logits).sigmoid_(), targets, smooth)
    return losses


def softmax_loss(shape: Shape) -> Each:
    """Cross entropy a sample, in fp32; by torch, which is quicker, where memory need not be saved."""

    plain = shape.adjust is None and shape.temperature == 1 and not shape.margin

    def each(logits: Tensor, targets: Tensor) -> Tensor:
        if shape.margin or saves_memory(logits.device.type, logits.dtype, logits.numel()):
            return _eager(logits, targets, functools.partial(_softmax_part, shape), plain)
        moved, wanted = _moved(shape, logits, targets)[0], targets if targets.ndim == 1 else targets.float()
        return F.cross_entropy(moved, wanted, reduction="none", label_smoothing=shape.smooth)

    return each


def focal(each: Each, gamma: float) -> Each:
    """(1 - p)^gamma times the cross entropy, p = exp(-cross entropy) (Lin et al., 2017, eq. 4); with soft targets p is a geometric mean."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        entropy = each(logits, targets)
        return (-torch.expm1(-entropy)).clamp(min=1e-12) ** gamma * entropy

    return loss


def binary(smooth: float) -> Each:
    """A yes or no for every class (Wightman et al., 2021, section 3.2), the mean over the classes."""
    return lambda logits, targets: (
        _eager(logits, targets, functools.partial(_binary_part, smooth), True) / logits.shape[1]
    )


def mean(each: Each, weight: Tensor | None) -> Loss:
    """The mean over the samples; with `weight`, float (C,), by the weight of each sample's class."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        losses = each(logits, targets)
        if weight is None:
            return losses.mean()
        with torch.autocast(targets.device.type, enabled=False):
            share = weight[targets] if targets.ndim == 1 else targets.float() @ weight
        return (share * losses).sum() / share.sum()

    return loss


def hardest(each: Each, ratio: float) -> Loss:
    """Online hard example mining (Shrivastava et al., 2016): the mean over the `ratio` of samples with the largest loss."""
    return lambda logits, targets: (
        (losses := each(logits, targets)).topk(max(1, round(ratio * len(losses)))).values.mean()
    )


losses: dict[str, Callable[[argparse.Namespace], Loss]] = {
    "ce": lambda opt: mean(softmax_loss(shape_of(opt)), weight_of(opt)),
    "ohem": lambda opt: hardest(softmax_loss(shape_of(opt)), opt.ohem_ratio),
    "focal": lambda opt: mean(focal(softmax_loss(shape_of(opt)), opt.focal_gamma), weight_of(opt)),
    "bce": lambda opt: mean(binary(opt.smooth), weight_of(opt)),
}


def get_loss(
    opt: argparse.Namespace, class_images: Sequence[int] | None = None, device: torch.device | None = None
) -> Loss:
    """The loss that --loss names, shaped by --smooth, --logit_adjust, --head_margin and --class_weight.

    Args:
        class_images: training images a class, which --logit_adjust and --class_weight go by.

    Raises:
        UserError: an unknown name, with the list; or no class counts where they are needed.
    """
    if opt.loss not in losses:
        raise unknown_name("loss", opt.loss, losses)
    opt = argparse.Namespace(**vars(opt))
    opt.class_count = (
        None if class_images is None else torch.tensor(class_images, dtype=torch.float64, device=device).clamp(min=1)
    )
    if opt.class_count is None and (opt.logit_adjust or opt.class_weight != "none"):
        raise UserError(
            "--logit_adjust and --class_weight need the number of training images of each class, which is not known here."
        )
    _warn_of_two(opt)
    return losses[opt.loss](opt)


def _warn_of_two(opt: argparse.Namespace) -> None:
    """Warn where more than one flag makes up for rare classes."""
    given = [f"--balance {opt.balance}"] if opt.balance != "none" else []
    given += [f"--class_weight {opt.class_weight}"] if opt.class_weight != "none" else []
    given += [f"--logit_adjust {opt.logit_adjust:g}"] if opt.logit_adjust else []
    if len(given) > 1:
        log.warning(f"{' and '.join(given)} each make up for rare classes: together they correct twice. Leave one out.")


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
