"""What a task asks of a network: how many logits it has, and what they mean.

single: one class per image. multilabel: any number of labels per image. regression: numbers. ordinal: one class per
image, and the classes have an order.
"""

import torch
from torch import Tensor

SOFTMAX, SIGMOID, CORN, LINEAR = "softmax", "sigmoid", "corn", "linear"


def activation_of(task: str, loss: str) -> str:
    """Return what turns the logits of a network into predictions: one of the names that `predictions_of` takes."""
    if task == "ordinal":
        return CORN if loss == "corn" else SOFTMAX
    return {"single": SOFTMAX, "multilabel": SIGMOID, "regression": LINEAR}[task]


def logits_of(activation: str, count: int) -> int:
    """Return the number of logits for `count` classes, labels or targets; CORN has one per step between two classes."""
    return count - 1 if activation == CORN else count


def predictions_of(activation: str, logits: Tensor) -> Tensor:
    """Return the predictions of logits (B, K), float32.

    Returns:
        softmax: probabilities of the classes, (B, K), rows summing to 1. sigmoid: the probability of each label,
        (B, K). corn: probabilities of the K + 1 classes (Shi et al., 2021, section 3.3). linear: the standardised
        targets, (B, K).
    """
    if activation == SOFTMAX:
        return logits.softmax(dim=1)
    if activation == SIGMOID:
        return logits.sigmoid()
    if activation == CORN:
        above = logits.sigmoid().cumprod(dim=1)  # P(class > k), from P(class > k | class > k - 1)
        ends = above.new_ones(len(above), 1), above.new_zeros(len(above), 1)
        return torch.cat([ends[0], above], dim=1) - torch.cat([above, ends[1]], dim=1)
    assert activation == LINEAR, activation
    return logits


def has_probabilities(task: str) -> bool:
    """Return whether the predictions of an image are the probabilities of classes, of which one is right."""
    return task in ("single", "ordinal")  # other names, as of a damaged file, have none
