"""Linear classifiers and nearest neighbours on frozen features, scored by cross-validation."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.metrics import MAX_TOP, Predictions
from tools.embed import KNN_TEMPERATURE
from training.linear_head import Head, Rows, blocks, fit
from utils.logger import progress
from utils.tensors import likeliest


class Probe(NamedTuple):
    """What cross-validation found.

    Attributes:
        predictions: of each image by a head that has not seen it, with the strength that is best for the other folds.
        strengths: the S that were tried.
        top1: float (S,), of each of them.
        best: the index of the best of them on all images.
    """

    predictions: Predictions
    strengths: tuple[float, ...]
    top1: NDArray[np.float64]
    best: int


# ------------------------------------------------------------------------------------------------ cross-validation


def fold_numbers(
    label: NDArray[np.int32], folds: int, seed: int, image: NDArray[np.integer] | None = None
) -> NDArray[np.int64]:
    """Return the fold of each row, int64 (N,), stratified by class; a class of fewer images is in fewer folds.

    Args:
        image: a number of the image of each row, (N,): rows of an image that is listed again share its fold.
    """
    from sklearn.model_selection import StratifiedKFold

    if image is not None:
        _, first, place = np.unique(image, return_index=True, return_inverse=True)
        if len(first) < len(label):
            return fold_numbers(label[first], folds, seed)[place]
    number = np.empty(len(label), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of rare classes, which the tool counts itself
        parts = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32).split(label, label)
        for fold, (_, held_out) in enumerate(parts):
            number[held_out] = fold
    return number


def cross_validate(
    views: Sequence[Rows], label: NDArray[np.int32], fold: NDArray[np.int64], strengths: Sequence[float], kind: str
) -> Probe:
    """Fit a head to the other folds' images for each strength, and predict each image of a fold in its plain view.

    Args:
        views: features float32 (N, D) of each view, the plain one first; heads are fitted to all of them.
        label: int32 (N,). fold: int64 (N,). strengths: descending. kind: "logistic" or "discriminant".
    """
    count, strengths = len(label), tuple(strengths)
    width = min(MAX_TOP, len(np.unique(label)))
    top = np.zeros((len(strengths), count, width), np.int64)
    probability = np.zeros((len(strengths), count, width), np.float32)
    true = np.zeros((len(strengths), count), np.float32)
    for number in progress(np.unique(fold), f"{kind} probe"):
        held_out = np.flatnonzero(fold == number)
        heads = fit(views, label, np.flatnonzero(fold != number), strengths, kind)
        for k, head in enumerate(heads):
            found = predict(head, views[0], held_out, label, width)
            top[k, held_out], probability[k, held_out], true[k, held_out] = found
    hit = top[:, :, 0] == label
    loss = -np.log(np.maximum(true.astype(np.float64), np.finfo(np.float32).tiny))
    chosen = np.zeros(count, np.int64)
    for number in np.unique(fold):
        chosen[fold == number] = _best(hit[:, fold != number], loss[:, fold != number])
    rows = np.arange(count)
    predictions = Predictions(
        rows,
        label.astype(np.int64),
        top[chosen, rows],
        probability[chosen, rows],
        true[chosen, rows],
        np.ones(count, bool),
    )
    return Probe(predictions, strengths, hit.mean(axis=1), _best(hit, loss))


def _best(hit: NDArray[np.bool_], loss: NDArray[np.float64]) -> int:
    """Return the strength, of (S, N) each, with the most hits; of equal ones that with the lowest loss."""
    return int(np.lexsort((loss.mean(axis=1), -hit.mean(axis=1)))[0])


# ------------------------------------------------------------------------------------------------ predicting


def predict(
    head: Head, features: Rows, rows: NDArray[np.int64], label: NDArray[np.int32], width: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Return for the images `rows`, int64 (M,), the likeliest classes, their probabilities, and the label's.

    Args:
        features: float32 (N, D). label: int32 (N,).

    Returns:
        int64 (M, width), float32 (M, width), float32 (M,). Where the head has fewer classes than `width`, the class is
        -1, of probability 0; a label that the head does not have has the probability 0.
    """
    tops, probabilities, trues = [], [], []
    column = np.full(int(max(label.max(), head.present.max())) + 1, -1)
    column[head.present] = np.arange(len(head.present))
    for part in blocks(rows, max(len(head.present), features.shape[1])):
        found = torch.nn.functional.linear(torch.from_numpy(features[part]), head.weight, head.bias).softmax(dim=1)
        values, places = likeliest(found, min(width, len(head.present)))
        own = torch.from_numpy(column[label[part]])
        trues.append(torch.where(own >= 0, found.gather(1, own.clamp_min(0)[:, None])[:, 0], 0.0).numpy())
        missing = width - places.shape[1]
        tops.append(np.pad(head.present[places.numpy()], ((0, 0), (0, missing)), constant_values=-1))
        probabilities.append(np.pad(values.numpy(), ((0, 0), (0, missing))))
    return np.concatenate(tops), np.concatenate(probabilities), np.concatenate(trues)


def nearest_vote(
    views: Sequence[Rows], label: NDArray[np.int32], fold: NDArray[np.int64], neighbours: int
) -> Predictions:
    """Predict each image by the votes of its nearest images in other folds, by cosine; in whichever of their views.

    Args:
        views: features float32 (N, D) of each view, the plain one first. label: int32 (N,). fold: int64 (N,).
    """
    count = len(label)
    pool = torch.empty(count * len(views), views[0].shape[1])
    for k, view in enumerate(views):
        for rows in blocks(np.arange(count), view.shape[1]):
            pool[torch.from_numpy(k * count + rows)] = torch.nn.functional.normalize(torch.from_numpy(view[rows]))
    pool_label, pool_fold = np.tile(label, len(views)), torch.from_numpy(np.tile(fold, len(views)))
    smallest = len(pool) - int(np.bincount(fold).max()) * len(views)
    k = min(neighbours, smallest)
    winner, share, true = np.empty(count, np.int64), np.empty(count, np.float32), np.empty(count, np.float32)
    for rows in progress(blocks(np.arange(count), len(pool)), "nearest neighbours"):
        cosine = pool[torch.from_numpy(rows)] @ pool.T
        cosine[pool_fold[None, :] == torch.from_numpy(fold[rows])[:, None]] = -torch.inf
        values, places = cosine.topk(k)
        weight = ((values - values[:, :1]) / KNN_TEMPERATURE).exp().numpy()
        weight /= weight.sum(axis=1, keepdims=True)
        voted = pool_label[places.numpy()]
        votes = ((voted[:, :, None] == voted[:, None, :]) * weight[:, None, :]).sum(
            axis=2
        )  # (M, k), of each one's class
        first = votes.argmax(axis=1)
        winner[rows] = np.take_along_axis(voted, first[:, None], 1)[:, 0]
        share[rows] = np.take_along_axis(votes, first[:, None], 1)[:, 0]
        true[rows] = ((voted == label[rows][:, None]) * weight).sum(axis=1)
    return Predictions(
        np.arange(count), label.astype(np.int64), winner[:, None], share[:, None], true, np.ones(count, bool)
    )
