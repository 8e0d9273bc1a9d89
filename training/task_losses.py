"""Losses of the tasks with other targets than one class per image: several labels, numbers, ordered classes."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses import Loss, LossSettings, class_weights, get_loss, losses
from utils.errors import unknown_name

ASL_POSITIVE, ASL_NEGATIVE, ASL_MARGIN = 0.0, 4.0, 0.05  # Ridnik et al., 2021, section 4: gamma+, gamma-, m
MIN_MISSING = 1e-12  # the power of focal has no slope at 0
Units = tuple[
    Tensor, Tensor
]  # of the targets of a regression: mean and standard deviation, float32 (T,) each, where the logits are
LabelLoss = Callable[[Tensor, Tensor], Tensor]  # logits, targets -> a loss per label; float32 (B, K) each


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross entropy of each label, float32 (B, K), of logits and targets in [0, 1]."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def binary_focal(gamma: float, logits: Tensor, targets: Tensor) -> Tensor:
    """Return the focal loss of each label, float32 (B, K) (Lin et al., 2017, eq. 4), without its alpha."""
    p = logits.sigmoid()
    missing = targets * (1 - p) + (1 - targets) * p  # 1 - p of what is true
    return missing.clamp(min=MIN_MISSING) ** gamma * binary_cross_entropy(logits, targets)


def asymmetric(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the asymmetric loss of each label, float32 (B, K) (Ridnik et al., 2021, eq. 7).

    Absent labels whose probability is below ASL_MARGIN count nothing.
    """
    p = logits.sigmoid()
    shifted = (p - ASL_MARGIN).clamp(min=0)
    present = targets * F.logsigmoid(logits)
    if ASL_POSITIVE:
        present = present * (1 - p) ** ASL_POSITIVE
    absent = (1 - targets) * shifted**ASL_NEGATIVE * torch.log1p(-shifted)
    return -(present + absent)


def mean_over_labels(each: LabelLoss, weight: Tensor | None) -> Loss:
    """Return the mean over images and labels, in fp32; `weight`, float32 (K,) of mean 1, weights the labels."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            values = each(logits.float(), targets.float())
            return values.mean() if weight is None else (values * weight).mean()

    return loss


def standardised(each: LabelLoss, units: Units | None) -> Loss:
    """Return the mean of `each` over images and targets, in fp32, with the targets in units of their deviation."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            wanted = targets.float()
            if units is not None:
                mean, std = units
                wanted = (wanted - mean) / std
            return each(logits.float(), wanted).mean()

    return loss


def of_positions(each: LabelLoss, units: Units | None) -> Loss:
    """Return the mean of `each` over images, in fp32, of logits (B, 1) and the numbers of classes, int64 (B,)."""
    standard = standardised(each, units)
    return lambda logits, targets: standard(logits, targets[:, None])


def corn(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of CORN, fp32 (Shi et al., 2021, eq. 6), of logits (B, C - 1) and classes int64 (B,).

    Task k asks whether an image of class k or more is above k. Each image counts once per task that it takes part in.
    """
    with torch.autocast(logits.device.type, enabled=False):
        step = torch.arange(logits.shape[1], device=logits.device)
        takes_part = targets[:, None] >= step
        above = (targets[:, None] > step).float()
        values = binary_cross_entropy(logits.float(), above)
        return (values * takes_part).sum() / takes_part.sum()


LABEL_LOSSES: dict[str, Callable[[LossSettings], LabelLoss]] = {
    "bce": lambda settings: binary_cross_entropy,
    "asl": lambda settings: asymmetric,
    "focal": lambda settings: functools.partial(binary_focal, settings.focal_gamma),
}
VALUE_LOSSES: dict[str, LabelLoss] = {
    "huber": functools.partial(F.huber_loss, reduction="none"),
    "l1": functools.partial(F.l1_loss, reduction="none"),
    "mse": functools.partial(F.mse_loss, reduction="none"),
}


def check_loss(task: str, name: str) -> None:
    """Raise UserError if `task`, one of options.choices.TASKS, has no loss called `name`; the message lists them."""
    known = {
        "multilabel": [*LABEL_LOSSES],
        "regression": [*VALUE_LOSSES],
        "ordinal": [*losses, "corn", *VALUE_LOSSES],
    }.get(task, [*losses])
    if name not in known:
        raise unknown_name("loss", name, known, "--loss ")


def get_task_loss(task: str, settings: LossSettings, units: Units | None = None) -> Loss:
    """Return the loss that --loss names for `task`, one of options.choices.TASKS.

    It takes logits, and targets as the batches of the task have them (utils.batch.Batch), or mixed ones.

    Args:
        units: of the targets of a regression, or of the numbers of ordered classes; None takes them as they are.

    Raises:
        UserError: the task has no such loss; see also training.losses.get_loss.
    """
    check_loss(task, settings.loss)
    if task == "multilabel":
        return mean_over_labels(LABEL_LOSSES[settings.loss](settings), class_weights(settings))
    if task == "regression":
        return standardised(VALUE_LOSSES[settings.loss], units)
    if task == "ordinal" and settings.loss == "corn":
        return corn
    if task == "ordinal" and settings.loss in VALUE_LOSSES:
        return of_positions(VALUE_LOSSES[settings.loss], units)
    return get_loss(settings)
