"""Losses: a name, a builder; each takes logits (B, C) and targets, int64 (B,) or probabilities float (B, C)."""

import argparse
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from utils.errors import unknown_name

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(smooth: float = 0.0) -> Loss:
    """Mean cross entropy in fp32; `smooth` of each target is spread over all classes (Szegedy et al., 2016, section 7)."""
    return lambda logits, targets: F.cross_entropy(logits.float(), targets, label_smoothing=smooth)


def ohem(ratio: float, smooth: float = 0.0) -> Loss:
    """Online hard example mining (Shrivastava et al., 2016): the mean over the `ratio` of samples with the largest loss."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        each = F.cross_entropy(logits.float(), targets, label_smoothing=smooth, reduction="none")
        return each.topk(max(1, round(ratio * len(each)))).values.mean()

    return loss


def focal(gamma: float, smooth: float = 0.0) -> Loss:
    """Focal loss for softmax (Lin et al., 2017, eq. 4): the mean of -(1 - p)^gamma log p, weighted by the targets."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        log_p = logits.float().log_softmax(dim=1)
        if targets.ndim == 1 and not smooth:
            log_p = log_p.gather(1, targets[:, None])
            return -((1 - log_p.exp()) ** gamma * log_p).mean()
        wanted = targets if targets.ndim == 2 else F.one_hot(targets, logits.shape[1])
        wanted = wanted.float() * (1 - smooth) + smooth / logits.shape[1]
        return -(wanted * (1 - log_p.exp()) ** gamma * log_p).sum(dim=1).mean()

    return loss


losses: dict[str, Callable[[argparse.Namespace], Loss]] = {
    "ce": lambda opt: cross_entropy(opt.smooth),
    "ohem": lambda opt: ohem(opt.ohem_ratio, opt.smooth),
    "focal": lambda opt: focal(opt.focal_gamma, opt.smooth),
}


def get_loss(opt: argparse.Namespace) -> Loss:
    """The loss that --loss names. Raises UserError for an unknown name, with the list."""
    if opt.loss not in losses:
        raise unknown_name("loss", opt.loss, losses)
    return losses[opt.loss](opt)
