"""Cut points: from which predicted number on an image is of the next of the ordered classes.

A network that learns ordered classes as numbers predicts a position on their line, from 0 to C - 1. Its cut points are
fitted to the quadratic weighted kappa of a list.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.metrics import Predictions
from utils.task import ordered_probabilities
from utils.tensors import likeliest

MAX_TERMS = 20_000_000  # cut points times the places that they are tried at
MAX_ROUNDS = 50  # a handful is enough


def positions(predictions: Predictions) -> NDArray[np.float32]:
    """Return the position that each image was predicted at without cut points, float32 (N,), from its probabilities.

    Of one view at most two classes have any: the neighbours of the position. So it is exact. Of the mean of several
    views it is the mean of their positions.
    """
    top, probability = predictions.top, predictions.probability
    first, second = top[:, 0], top[:, 1]
    upper = np.where(probability[:, 1] > 0, np.maximum(first, second), first)
    chance = np.where(first == upper, probability[:, 0], probability[:, 1])
    whole = probability[:, 1] == 0
    found = np.where(whole, first, (upper - 1) + chance)
    apart = (probability[:, 2:] > 0).any(axis=1) | (~whole & (abs(first - second) > 1))
    found[apart] = (top * probability)[apart].sum(axis=1) / probability[apart].sum(axis=1)
    return found.astype(np.float32)


def cut(predictions: Predictions, cut_points: list[float], count: int) -> Predictions:
    """Return predictions that were made without cut points as a network with `cut_points` gives them."""
    probability = ordered_probabilities(torch.from_numpy(positions(predictions)), count, cut_points)
    values, top = likeliest(probability, predictions.top.shape[1])
    true = probability.gather(1, torch.from_numpy(predictions.label).clamp_min(0)[:, None])[:, 0]
    return replace(predictions, top=top.numpy(), probability=values.numpy(), true_probability=true.numpy(), rows=None)


def fit(predictions: Predictions, count: int) -> list[float]:
    """Return the cut points of predictions that were made without any: `fit_positions` of the scorable images."""
    scorable = predictions.scorable
    return fit_positions(positions(predictions)[scorable], predictions.label[scorable], count)


def fit_positions(position: NDArray[np.float32], label: NDArray[np.int64], count: int) -> list[float]:
    """Return the cut points, C - 1 in order, with the highest quadratic weighted kappa of positions, (N,), and labels.

    The optimum is exact, over all places between two predictions (of a huge list, a sample by MAX_TERMS). Where no cut
    points give a kappa above 0, they are halfway between the classes. Places between equal predictions do not exist, so
    some classes may never be predicted: then cut points are equal.
    """
    halfway = [k + 0.5 for k in range(count - 1)]
    if not len(label):
        return halfway
    order = np.argsort(position, kind="stable")
    position, label = position[order], label[order]
    places = np.concatenate([[0], np.flatnonzero(np.diff(position) > 0) + 1, [len(position)]])
    limit = max(2, MAX_TERMS // (count - 1))
    if len(places) > limit:
        places = places[np.linspace(0, len(places) - 1, limit).astype(np.int64)]
    above = len(label) - places  # images from a place on, and the sum of their labels
    labels_above = np.concatenate([label[::-1].cumsum()[::-1], [0]])[places]
    best = _best_places(above, labels_above, label, count)
    if best is None:
        return halfway
    values = np.concatenate([position[:1] - 1, position, position[-1:] + 1])
    low, high = values[places[best]], values[places[best] + 1]
    middle = low + (high - low) / 2
    found: list[float] = np.where(middle > low, middle, high).tolist()  # float32: above `low`, at most `high`
    return found


def _best_places(
    above: NDArray[np.int64], labels_above: NDArray[np.int64], label: NDArray[np.int64], count: int
) -> NDArray[np.int64] | None:
    """Return which place each cut point is at, int64 (C - 1,), ascending; None if kappa is never above 0.

    Kappa is 1 - observed / expected. With class = number of cut points below an image, both are sums over the cut
    points of a term of each alone. So for a given ratio, the places that minimise observed - ratio * expected are found
    for each cut point alone, and they ascend. The ratio of these places is the next one (Dinkelbach, 1967).
    """
    squares, mean = float((label.astype(np.float64) ** 2).sum()), float(label.mean())
    step = 2 * np.arange(count - 1)[:, None] + 1.0  # the square of class k + 1 minus that of class k
    ratio, found = 1.0, None  # 1: as of chance
    for _ in range(MAX_ROUNDS):
        terms = (1 - ratio) * step * above - 2 * labels_above + 2 * ratio * mean * above
        chosen = np.maximum.accumulate(terms.argmin(axis=1))  # they ascend but for rounding
        predicted = float((step[:, 0] * above[chosen]).sum())  # the sum of the squares of the predicted classes
        observed = squares + predicted - 2 * float(labels_above[chosen].sum())
        expected = squares + predicted - 2 * mean * float(above[chosen].sum())
        if expected <= 0 or observed / expected >= ratio - 1e-12:
            break
        ratio, found = observed / expected, chosen
    return found
