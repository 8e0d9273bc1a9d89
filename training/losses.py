"""Losses by name. A PerSampleLoss returns one value per sample (B,).

It takes logits (B, C) and targets: int64 (B,), or probabilities (B, C), whose rows sum to 1.

A classifier of 50,030 classes makes logits of 13 MB for 64 images. torch's cross entropy keeps their logarithm and
makes their gradient, so its peak is twice that, and more with soft targets. Here the gradient is computed with the
loss, in one buffer.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.errors import UserError, look_up

PerSampleLoss = Callable[[Tensor, Tensor], Tensor]  # logits, targets -> a loss per sample
Loss = Callable[[Tensor, Tensor], Tensor]  # logits, targets -> the scalar to minimise
MAX_TORCH_LOGITS = 1 << 19  # batch * classes; up to here torch's cross entropy is faster on a CPU: see dev/LOG.md
MAX_GPU_BYTES = 1 << 30  # The same on a GPU, in bytes of logits: memory is cheap there, and each kernel costs a launch.
NUM_CHUNKS = 20  # each temporary is of one chunk of the logits
FP16_GRAD_SCALE = 1024  # a gradient in fp16 is kept larger by this: probabilities below 6e-8 would be lost


class SoftmaxConfig(NamedTuple):
    """What is done to logits before the softmax.

    Attributes:
        smooth: this share of each target is spread over all classes (Szegedy et al., 2016, section 7).
        adjust: float (C,) added to the logits, tau * log prior (Menon et al., 2021, eq. 10).
        margin: added to the angle of the target, in radians, for logits that are scale * cosine (Deng et al., 2019, eq.
            3).
        temperature: divides the logits.
    """

    smooth: float = 0.0
    adjust: Tensor | None = None
    margin: float = 0.0
    scale: float = 1.0
    temperature: float = 1.0


def saves_memory(device: str, dtype: torch.dtype, numel: int) -> bool:
    """Return whether a loss of `numel` logits should spend time to save memory: a gradient by parts, in one buffer.

    Args:
        device: the type of the logits' device, such as "cpu" or "cuda".
    """
    return numel > MAX_TORCH_LOGITS if device == "cpu" else numel * dtype.itemsize > MAX_GPU_BYTES


# logits and targets of some rows, and where their gradient goes -> a loss per sample
ChunkLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


class _FusedGradientLoss(torch.autograd.Function):
    """A loss per sample, fp32 (B,), whose gradient is made with it, in one buffer of the logits' size and type.

    Autocast does not apply. With `whole`, all rows are computed at once, since `part` makes few temporaries or there is
    room for them; else one of NUM_CHUNKS chunks of rows at a time.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, part: ChunkLoss, whole: bool) -> Tensor:
        losses = torch.empty(len(logits), device=logits.device)
        grad = torch.empty_like(logits)
        same = logits.dtype == torch.float32
        ctx.grad_scale = FP16_GRAD_SCALE if logits.dtype == torch.float16 else 1
        with torch.autocast(logits.device.type, enabled=False):
            rows = ctx.rows = len(logits) if whole else max(1, len(logits) // NUM_CHUNKS)
            for first in range(0, len(logits), rows):
                some = slice(first, first + rows)
                work = grad[some] if same else torch.empty_like(logits[some], dtype=torch.float32)
                losses[some] = part(logits[some], targets[some], work)
                if not same:
                    grad[some] = work.mul_(ctx.grad_scale) if ctx.grad_scale != 1 else work
        ctx.grad = grad
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, None, None, None]:
        grad, ctx.grad = ctx.grad, None
        if grad is None:
            raise RuntimeError("this loss goes backward once: its gradient was made in place")
        factor = outer[0][:, None] / ctx.grad_scale
        if grad.dtype != torch.float16:
            return grad.mul_(factor.to(grad.dtype)), None, None, None
        for some, by in zip(grad.split(ctx.rows), factor.split(ctx.rows), strict=True):
            some.copy_(some.float().mul_(by))  # a factor below 6e-5 would lose bits in fp16
        return grad, None, None, None


def _fused_gradient_loss(logits: Tensor, targets: Tensor, part: ChunkLoss, plain: bool) -> Tensor:
    """Apply _FusedGradientLoss. `plain`: `part` makes no temporaries for hard labels of fp32 logits."""
    roomy = logits.device.type != "cpu" and not saves_memory(logits.device.type, logits.dtype, logits.numel())
    whole = roomy or (plain and targets.ndim == 1 and logits.dtype == torch.float32)
    return _FusedGradientLoss.apply(logits, targets, part, whole)


def _softmax_part(shape: SoftmaxConfig, logits: Tensor, targets: Tensor, work: Tensor) -> Tensor:
    """Return the cross entropy of some rows; write its gradient to `work`, float32 of the logits' shape."""
    moved, slope = _transform_logits(shape, logits, targets)
    torch.log_softmax(moved, 1, out=work)
    del moved  # before the temporary of soft targets
    losses = -_target_mean(work, targets, shape.smooth)
    _subtract_targets_(work.exp_(), targets, shape.smooth)
    if slope is not None:
        labels = targets[:, None]
        work.scatter_(1, labels, work.gather(1, labels) * slope[:, None])
    if shape.temperature != 1:
        work.div_(shape.temperature)
    return losses


def _transform_logits(shape: SoftmaxConfig, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the logits that go into the softmax, float32, and with a margin the slope of the targets' logits (B,)."""
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


def _target_mean(values: Tensor, targets: Tensor, smooth: float) -> Tensor:
    """Return the sum of `values` (B, C) over the classes, weighted by the smoothed targets: (B,)."""
    labels = targets[:, None] if targets.ndim == 1 else None
    of_target = values.gather(1, labels)[:, 0] if labels is not None else (values * targets).sum(dim=1)
    return (1 - smooth) * of_target + smooth * values.mean(dim=1) if smooth else of_target


def _subtract_targets_(values: Tensor, targets: Tensor, smooth: float) -> None:
    """Subtract the smoothed targets from `values`, in place."""
    if targets.ndim == 1:
        labels = targets[:, None]
        values.scatter_add_(1, labels, torch.full_like(labels, -1, dtype=torch.float32) * (1 - smooth))
    else:
        values.add_(targets, alpha=smooth - 1)
    if smooth:
        values.sub_(smooth / values.shape[1])


def _with_margin(target: Tensor, shape: SoftmaxConfig) -> tuple[Tensor, Tensor]:
    """Return scale * cos(angle + margin) of the targets' logits (B,), and its slope.

    Beyond pi - margin, where cos would rise again, the logit falls by margin * sin(margin), as the authors' code does.
    """
    cosine = (target / shape.scale).clamp(-1 + 1e-6, 1 - 1e-6)
    sine = (1 - cosine * cosine).sqrt()
    cos, sin = math.cos(shape.margin), math.sin(shape.margin)
    near = cosine > -cos
    moved = torch.where(near, cosine * cos - sine * sin, cosine - shape.margin * sin)
    return shape.scale * moved, torch.where(near, cos + sin * cosine / sine, 1.0)


def _binary_part(smooth: float, logits: Tensor, targets: Tensor, work: Tensor) -> Tensor:
    """Return the binary cross entropy of some rows, summed over the classes; write its gradient to `work`."""
    of_target = _target_mean(work.copy_(logits), targets, smooth)
    losses = torch.logaddexp(work, work.new_zeros(()), out=work).sum(dim=1) - of_target
    _subtract_targets_(work.copy_(logits).sigmoid_(), targets, smooth)
    return losses


def softmax_loss(shape: SoftmaxConfig) -> PerSampleLoss:
    """Return the cross entropy per sample, in fp32; it is torch's, which is faster, unless memory must be saved."""
    plain = shape.adjust is None and shape.temperature == 1 and not shape.margin

    def each(logits: Tensor, targets: Tensor) -> Tensor:
        if shape.margin or saves_memory(logits.device.type, logits.dtype, logits.numel()):
            return _fused_gradient_loss(logits, targets, functools.partial(_softmax_part, shape), plain)
        moved = _transform_logits(shape, logits, targets)[0]
        targets = targets if targets.ndim == 1 else targets.float()
        return F.cross_entropy(moved, targets, reduction="none", label_smoothing=shape.smooth)

    return each


def focal(each: PerSampleLoss, gamma: float) -> PerSampleLoss:
    """Return the focal loss (Lin et al., 2017, eq. 4): (1 - p)^gamma times the cross entropy, p = exp(-cross entropy).

    With soft targets, p is a geometric mean.
    """

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        entropy = each(logits, targets)
        return (-torch.expm1(-entropy)).clamp(min=1e-12) ** gamma * entropy

    return loss


def bce(smooth: float) -> PerSampleLoss:
    """Return the binary cross entropy, a mean over the classes (Wightman et al., 2021, section 3.2)."""
    return lambda logits, targets: (
        _fused_gradient_loss(logits, targets, functools.partial(_binary_part, smooth), True) / logits.shape[1]
    )


def reduce_mean(each: PerSampleLoss, weight: Tensor | None) -> Loss:
    """Return the mean over the samples; with `weight`, float (C,), each sample has the weight of its class."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        losses = each(logits, targets)
        if weight is None:
            return losses.mean()
        with torch.autocast(targets.device.type, enabled=False):
            share = weight[targets] if targets.ndim == 1 else targets.float() @ weight
        return (share * losses).sum() / share.sum()

    return loss


def ohem(each: PerSampleLoss, ratio: float) -> Loss:
    """Return online hard example mining (Shrivastava et al., 2016).

    It is the mean over the samples with the largest loss, `ratio` of the batch.
    """
    return lambda logits, targets: (
        (losses := each(logits, targets)).topk(max(1, round(ratio * len(losses)))).values.mean()
    )


@dataclass(frozen=True)
class LossSettings:
    """What a loss is built from: the flags of those names.

    Attributes:
        class_counts: training images per class, float64 (C,), or None.
    """

    loss: str = "ce"
    smooth: float = 0.0
    ohem_ratio: float = 0.7
    focal_gamma: float = 2.0
    logit_adjust: float = 0.0
    class_weight: str = "none"
    cb_beta: float = 0.999
    head: str = "linear"
    head_scale: float = 30.0
    head_margin: float = 0.0
    class_counts: Tensor | None = None


losses: dict[str, Callable[[LossSettings], Loss]] = {
    "ce": lambda settings: reduce_mean(softmax_loss(softmax_config(settings)), class_weights(settings)),
    "ohem": lambda settings: ohem(softmax_loss(softmax_config(settings)), settings.ohem_ratio),
    "focal": lambda settings: reduce_mean(
        focal(softmax_loss(softmax_config(settings)), settings.focal_gamma), class_weights(settings)
    ),
    "bce": lambda settings: reduce_mean(bce(settings.smooth), class_weights(settings)),
}


def get_loss(settings: LossSettings) -> Loss:
    """Return the loss that --loss names, shaped by --smooth, --logit_adjust, --head_margin and --class_weight.

    Raises:
        UserError: the name is unknown; the message lists the known ones. Or class counts are needed and missing.
    """
    build = look_up("loss", settings.loss, losses, "--loss ")
    if settings.class_counts is None and (settings.logit_adjust or settings.class_weight != "none"):
        raise UserError(
            "--logit_adjust and --class_weight need the number of training images of each class, "
            "which is not known here."
        )
    return build(settings)


def softmax_config(settings: LossSettings) -> SoftmaxConfig:
    """Return what --smooth, --logit_adjust and the margin of --head do to the softmax."""
    adjust = None
    if settings.logit_adjust:
        assert settings.class_counts is not None
        counts = settings.class_counts.clamp(min=1)  # a class without images has a logarithm, too
        adjust = (settings.logit_adjust * (counts / counts.sum()).log()).float()
    margin = settings.head_margin if settings.head in ("arcface", "subcenter") else 0.0
    return SoftmaxConfig(settings.smooth, adjust, margin, settings.head_scale)


def class_weights(settings: LossSettings) -> Tensor | None:
    """Return the weights of --class_weight, float32 (C,), or None."""
    if settings.class_weight != "effective":
        return None
    assert settings.class_counts is not None
    return effective_weight(settings.class_counts, settings.cb_beta).float()


def effective_weight(count: Tensor, beta: float) -> Tensor:
    """Return weights (C,) of classes with `count` images, (C,), by the effective number of samples.

    They are (1 - beta) / (1 - beta^n) (Cui et al., 2019, eq. 3), scaled: their mean over the classes with images is 1.
    A class without images has the weight 1: the formula has none for it.
    """
    present = count > 0
    weight = torch.where(present, (1 - beta) / (1 - beta ** count.clamp(min=1)), 0)
    return torch.where(present, F.normalize(weight, p=1, dim=0) * present.sum(), 1)
