"""Linear classifiers and nearest neighbours on frozen features, scored by cross-validation.

Logistic regression is scikit-learn's (L-BFGS). Its time grows with images x features x classes; beyond MAX_LOGISTIC of
them a linear discriminant with a shrunk covariance takes its place, which has a closed form.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.metrics import Predictions
from utils.logger import progress

DECAYS = (1.0, 0.1, 0.01, 0.001)  # of the mean loss, times half the squared weights of standardised features
SHRINKAGES = (0.5, 0.1, 0.01)  # of the covariance towards a multiple of the identity
MAX_LOGISTIC = 10_000_000_000  # images x features x classes: a pass over them takes about half a second on two cores
MAX_ITERATIONS = 200  # of L-BFGS per strength; the stronger ones come first and start the next
MIN_THREADED = (
    200_000_000  # images x features x classes: below, threads of BLAS wait for each other longer than they work
)
BLOCK_VALUES = 1 << 24  # logits or similarities held at a time: 64 MB
KNN_TEMPERATURE = 0.07  # votes weigh exp(cosine / KNN_TEMPERATURE), as in tools.embed
TOP = 5

Rows = NDArray[np.float32]


class Head(NamedTuple):
    """A linear layer for raw features: `weight` float32 (K, D) and `bias` float32 (K,) of the K classes `present`."""

    weight: Tensor
    bias: Tensor
    present: NDArray[np.int64]


class Probe(NamedTuple):
    """What cross-validation found.

    predictions: of each image by a head that has not seen it, with the strength that is best for the other folds.
    strengths: what was tried; top1: float (S,), of each. best: the index of the best of them on all images.
    """

    predictions: Predictions
    strengths: tuple[float, ...]
    top1: NDArray[np.float64]
    best: int


def method(images: int, dim: int, classes: int) -> str:
    """Return "logistic", or "discriminant" where logistic regression would take hours."""
    return "logistic" if images * dim * classes <= MAX_LOGISTIC else "discriminant"


# ------------------------------------------------------------------------------------------------ cross-validation


def fold_numbers(label: NDArray[np.int32], folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each image, int64 (N,), stratified by class; a class of fewer images is in fewer folds."""
    from sklearn.model_selection import StratifiedKFold

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
    width = min(TOP, len(np.unique(label)))
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


# ------------------------------------------------------------------------------------------------ fitting


def fit(
    views: Sequence[Rows], label: NDArray[np.int32], rows: NDArray[np.int64], strengths: Sequence[float], kind: str
) -> Iterator[Head]:
    """Yield a head for each strength, fitted to the images `rows` in all views, with the classes that occur in them."""
    present, target = np.unique(label[rows], return_inverse=True)
    if len(present) == 1:
        yield from [Head(torch.zeros(1, views[0].shape[1]), torch.zeros(1), present.astype(np.int64))] * len(strengths)
        return
    layers = _logistic if kind == "logistic" else _discriminant
    for weight, bias in layers(views, target, rows, strengths, len(present)):
        yield Head(weight, bias, present.astype(np.int64))


def fit_best(views: Sequence[Rows], label: NDArray[np.int32], probe: Probe, kind: str) -> Head:
    """Return the head of the best strength of `probe`, fitted to all images."""
    path = probe.strengths[: probe.best + 1] if kind == "logistic" else probe.strengths[probe.best : probe.best + 1]
    *_, head = fit(views, label, np.arange(len(label)), path, kind)
    return head


def _moments(views: Sequence[Rows], rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of each feature, float64 (D,); a constant feature has a deviation of 1."""
    dim = views[0].shape[1]
    total, square, shift = np.zeros(dim), np.zeros(dim), views[0][rows[0]].astype(np.float64)
    for view in views:
        for part in _blocks(rows, dim):
            block = view[part].astype(np.float64) - shift
            total += block.sum(axis=0)
            square += np.einsum("nd,nd->d", block, block)
    mean = total / (len(rows) * len(views))
    deviation = np.sqrt(np.maximum(square / (len(rows) * len(views)) - mean**2, 0))
    return mean + shift, np.where(deviation > 1e-6 * np.maximum(1, np.abs(mean + shift)), deviation, 1.0)


def _blocks(rows: NDArray[np.int64], width: int) -> list[NDArray[np.int64]]:
    """Return `rows` in parts of at most BLOCK_VALUES / width."""
    size = max(1, BLOCK_VALUES // max(1, width))
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def _logistic(
    views: Sequence[Rows], target: NDArray[np.int64], rows: NDArray[np.int64], strengths: Sequence[float], classes: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Fit logistic regressions to standardised features, each from the one before.

    Yields:
        Weights and biases for the raw features.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    mean, deviation = _moments(views, rows)
    count, dim = len(rows) * len(views), views[0].shape[1]
    standard = np.empty((count, dim), np.float32)
    for k, view in enumerate(views):
        for part in _blocks(np.arange(len(rows)), dim):
            standard[k * len(rows) + part] = (view[rows[part]] - mean) / deviation
    labels = np.tile(target, len(views))
    threads = 1 if count * dim * classes < MIN_THREADED else None
    model = LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)
    for decay in strengths:
        with warnings.catch_warnings(), threadpool_limits(threads, "blas"):
            warnings.simplefilter("ignore", ConvergenceWarning)  # stopping early is one more form of regularisation
            model.set_params(C=1 / (decay * count)).fit(standard, labels)
        weight, bias = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
        if classes == 2:  # one row: the logit of the second class over the first
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        weight = weight / deviation
        yield _tensor(weight), _tensor(bias - weight @ mean)


def _discriminant(
    views: Sequence[Rows], target: NDArray[np.int64], rows: NDArray[np.int64], strengths: Sequence[float], classes: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Fit linear discriminants: class means, and one covariance within the classes, shrunk by each strength.

    Memory: classes x features of the means and of one head, and features squared.
    """
    dim = views[0].shape[1]
    counts = torch.from_numpy(np.bincount(target, minlength=classes)).float() * len(views)
    means = torch.zeros(classes, dim)
    for view in views:
        for part in _blocks(np.arange(len(rows)), dim):
            means.index_add_(0, torch.from_numpy(target[part]), torch.from_numpy(view[rows[part]]))
    means /= counts[:, None]
    scatter = torch.zeros(dim, dim, dtype=torch.float64)
    for view in views:
        for part in _blocks(np.arange(len(rows)), dim):
            inner = torch.from_numpy(view[rows[part]]) - means[torch.from_numpy(target[part])]
            scatter += (inner.T @ inner).double()
    scatter /= float(counts.sum())
    prior = (counts / counts.sum()).log()
    size = max(float(scatter.diagonal().mean()), 1e-12)
    for strength in strengths:
        shrunk = (1 - strength) * scatter + strength * size * torch.eye(dim, dtype=torch.float64)
        factor = torch.linalg.cholesky(shrunk + 1e-9 * size * torch.eye(dim, dtype=torch.float64))
        weight = torch.empty_like(means)
        for first in range(0, classes, 1024):
            block = slice(first, first + 1024)
            weight[block] = torch.cholesky_solve(means[block].T.double(), factor).T.float()
        yield weight, prior - 0.5 * (weight * means).sum(dim=1)


def _tensor(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def whole_layer(head: Head, classes: int) -> tuple[Tensor, Tensor]:
    """Return weight (C, D) and bias (C,) for all classes: one without images has weights of 0 and the lowest bias."""
    weight, bias = torch.zeros(classes, head.weight.shape[1]), torch.full((classes,), float(head.bias.min()))
    present = torch.from_numpy(head.present)
    weight[present], bias[present] = head.weight, head.bias
    return weight, bias


# ------------------------------------------------------------------------------------------------ predicting


def predict(
    head: Head, features: Rows, rows: NDArray[np.int64], label: NDArray[np.int32], width: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Return for the images `rows` the likeliest classes (M, width), their probabilities, and the label's (M,)."""
    tops, probabilities, trues = [], [], []
    column = np.full(int(max(label.max(), head.present.max())) + 1, -1)
    column[head.present] = np.arange(len(head.present))
    for part in _blocks(rows, max(len(head.present), features.shape[1])):
        found = torch.nn.functional.linear(torch.from_numpy(features[part]), head.weight, head.bias).softmax(dim=1)
        likeliest = found.topk(min(width, len(head.present)))
        own = torch.from_numpy(column[label[part]])
        trues.append(torch.where(own >= 0, found.gather(1, own.clamp_min(0)[:, None])[:, 0], 0.0).numpy())
        missing = width - likeliest.indices.shape[1]
        tops.append(np.pad(head.present[likeliest.indices.numpy()], ((0, 0), (0, missing)), constant_values=-1))
        probabilities.append(np.pad(likeliest.values.numpy(), ((0, 0), (0, missing))))
    return np.concatenate(tops), np.concatenate(probabilities), np.concatenate(trues)


def nearest_vote(
    views: Sequence[Rows], label: NDArray[np.int32], fold: NDArray[np.int64], neighbours: int
) -> Predictions:
    """Predict each image by the votes of its nearest images in other folds, by cosine; in whichever of their views."""
    count = len(label)
    pool = torch.empty(count * len(views), views[0].shape[1])
    for k, view in enumerate(views):
        for rows in _blocks(np.arange(count), view.shape[1]):
            pool[torch.from_numpy(k * count + rows)] = torch.nn.functional.normalize(torch.from_numpy(view[rows]))
    pool_label, pool_fold = np.tile(label, len(views)), torch.from_numpy(np.tile(fold, len(views)))
    smallest = len(pool) - int(np.bincount(fold).max()) * len(views)
    k = min(neighbours, smallest)
    winner, share, true = np.empty(count, np.int64), np.empty(count, np.float32), np.empty(count, np.float32)
    for rows in progress(_blocks(np.arange(count), len(pool)), "nearest neighbours"):
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
