"""What a task asks of a network: how many logits it has, and what they mean.

single: one class per image. multilabel: any number of labels per image. regression: numbers. ordinal: one class per
image, and the classes have an order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

SOFTMAX, SIGMOID, CORN, LINEAR, POSITION = "softmax", "sigmoid", "corn", "linear", "position"
MIN_SHARE = 2**-23  # of the way between two cut points; float32 tells 0.5 plus or minus it from 0.5
POSITION_LOSSES = ("huber", "l1", "mse")  # of ordered classes: they are learned as numbers


def activation_of(task: str, loss: str) -> str:
    """Return what turns the logits of a network into predictions: one of the names that `predictions_of` takes."""
    if task == "ordinal":
        return CORN if loss == "corn" else POSITION if loss in POSITION_LOSSES else SOFTMAX
    return {"single": SOFTMAX, "multilabel": SIGMOID, "regression": LINEAR}[task]


def logits_of(activation: str, count: int) -> int:
    """Return the number of logits for `count` classes, labels or targets.

    CORN has one per step between two classes, a position on the line of the classes is one.
    """
    return {CORN: count - 1, POSITION: 1}.get(activation, count)


def predictions_of(activation: str, logits: Tensor) -> Tensor:
    """Return the predictions of logits (B, K), float32.

    Returns:
        softmax: probabilities of the classes, (B, K), rows summing to 1. sigmoid: the probability of each label,
        (B, K). corn: probabilities of the K + 1 classes (Shi et al., 2021, section 3.3). linear and position: the
        standardised targets, (B, K).
    """
    if activation == SOFTMAX:
        return logits.softmax(dim=1)
    if activation == SIGMOID:
        return logits.sigmoid()
    if activation == CORN:
        above = logits.sigmoid().cumprod(dim=1)  # P(class > k), from P(class > k | class > k - 1)
        ends = above.new_ones(len(above), 1), above.new_zeros(len(above), 1)
        return torch.cat([ends[0], above], dim=1) - torch.cat([above, ends[1]], dim=1)
    assert activation in (LINEAR, POSITION), activation
    return logits


def position_units(count: int) -> tuple[float, float]:
    """Return mean and standard deviation of the numbers 0 to count - 1, in which a network learns ordered classes."""
    return (count - 1) / 2, ((count**2 - 1) / 12) ** 0.5


def ordered_probabilities(position: Tensor, count: int, cut_points: Sequence[float] | None = None) -> Tensor:
    """Return probabilities of ordered classes, float32 (B, C), from positions on their line, float32 (B,).

    A position counts as 0 to C - 1 at most. Cut point k, which is k + 0.5 without `cut_points`, divides class k from
    class k + 1: the position is moved, linearly between two cut points, so that cut point k is at k + 0.5. Then the
    two classes beside it share the probability by their nearness. So the likeliest class is the one between whose cut
    points the position is.
    """
    position = position.float().clamp(0, count - 1)
    if cut_points is None:
        lower = position.floor().clamp(max=count - 2)
        chance = position - lower  # of the upper of the two classes
    else:
        cuts = torch.tensor(list(cut_points), device=position.device)
        ends = torch.cat([cuts[:1] - 1, cuts, cuts[-1:] + 1])
        place = (position[:, None] >= cuts).sum(dim=1)  # its class: how many cut points are below it
        share = (position - ends[place]) / (ends[place + 1] - ends[place])
        share = share.clamp(MIN_SHARE, 1 - MIN_SHARE)  # on a cut point, two classes would be equally likely
        share = torch.where(place == 0, share.clamp(min=0.5), share)
        share = torch.where(place == count - 1, share.clamp(max=0.5), share)
        below = (share < 0.5) | (place == count - 1)
        lower = torch.where(below, place - 1, place)
        chance = torch.where(below, share + 0.5, share - 0.5)
    index, chance = lower.long()[:, None], chance[:, None]
    classes = torch.arange(count, device=position.device)
    return (classes == index) * (1 - chance) + (classes == index + 1) * chance  # operations that ONNX has


def has_probabilities(task: str) -> bool:
    """Return whether the predictions of an image are the probabilities of classes, of which one is right."""
    return task in ("single", "ordinal")  # other names, as of a damaged file, have none
