"""Linear classifiers on features of a frozen network: logistic regression, or a discriminant where that takes hours.

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

# L2 strengths: each, times half the squared weights of standardised features, is added to the mean loss.
DECAYS = (1.0, 0.1, 0.01, 0.001)
SHRINKAGES = (0.5, 0.1, 0.01)  # The covariance shrinks this far towards a multiple of the identity.
MAX_LOGISTIC = 10_000_000_000  # images x features x classes: a pass over them takes about half a second on two cores
MAX_ITERATIONS = 200  # L-BFGS stops after these. Stronger decays come first, and each starts the next.
MIN_THREADED = (
    200_000_000  # images x features x classes: below, threads of BLAS wait for each other longer than they work
)
BLOCK_VALUES = 1 << 24  # logits or similarities held at a time: 64 MB

Rows = NDArray[np.float32]


class Head(NamedTuple):
    """A linear layer for raw features: `weight` float32 (K, D) and `bias` float32 (K,) of the K classes `present`."""

    weight: Tensor
    bias: Tensor
    present: NDArray[np.int64]


def method(images: int, dim: int, classes: int, limit: int = MAX_LOGISTIC) -> str:
    """Return "logistic", or "discriminant" where logistic regression would take too long: beyond `limit`."""
    return "logistic" if images * dim * classes <= limit else "discriminant"


def strengths_of(kind: str) -> tuple[float, ...]:
    """Return the strengths of regularisation to choose from, the strongest first."""
    return DECAYS if kind == "logistic" else SHRINKAGES


def fit(
    views: Sequence[Rows], label: NDArray[np.int32], rows: NDArray[np.int64], strengths: Sequence[float], kind: str
) -> Iterator[Head]:
    """Yield a head for each strength, fitted to the images `rows` in all views, with the classes that occur in them.

    Args:
        views: features float32 (N, D) of each view. label: int32 (N,). rows: int64 (M,).
    """
    present, target = np.unique(label[rows], return_inverse=True)
    if len(present) == 1:
        yield from [Head(torch.zeros(1, views[0].shape[1]), torch.zeros(1), present.astype(np.int64))] * len(strengths)
        return
    layers = _logistic if kind == "logistic" else _discriminant
    for weight, bias in layers(views, target, rows, strengths, len(present)):
        yield Head(weight, bias, present.astype(np.int64))


def fit_best(views: Sequence[Rows], label: NDArray[np.int32], strengths: Sequence[float], best: int, kind: str) -> Head:
    """Return the head of `strengths[best]`, fitted to all images; a logistic one by way of the stronger ones."""
    path = strengths[: best + 1] if kind == "logistic" else strengths[best : best + 1]
    *_, head = fit(views, label, np.arange(len(label)), path, kind)
    return head


def _moments(views: Sequence[Rows], rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of each feature, float64 (D,); a constant feature has a deviation of 1."""
    dim = views[0].shape[1]
    total, square, shift = np.zeros(dim), np.zeros(dim), views[0][rows[0]].astype(np.float64)
    for view in views:
        for part in blocks(rows, dim):
            block = view[part].astype(np.float64) - shift
            total += block.sum(axis=0)
            square += np.einsum("nd,nd->d", block, block)
    mean = total / (len(rows) * len(views))
    deviation = np.sqrt(np.maximum(square / (len(rows) * len(views)) - mean**2, 0))
    return mean + shift, np.where(deviation > 1e-6 * np.maximum(1, np.abs(mean + shift)), deviation, 1.0)


def blocks(rows: NDArray[np.int64], width: int) -> list[NDArray[np.int64]]:
    """Return `rows`, int64 (M,), in parts of at most BLOCK_VALUES / width, of one at least."""
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
        for part in blocks(np.arange(len(rows)), dim):
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

    Where no class has two different images, nothing varies within the classes, and the covariance of all images takes
    the place of that within them.

    Memory: classes x features of the means and of one head, and features squared.
    """
    dim = views[0].shape[1]
    counts = torch.from_numpy(np.bincount(target, minlength=classes)).float() * len(views)
    means = torch.zeros(classes, dim)
    for view in views:
        for part in blocks(np.arange(len(rows)), dim):
            means.index_add_(0, torch.from_numpy(target[part]), torch.from_numpy(view[rows[part]]))
    means /= counts[:, None]
    scatter = torch.zeros(dim, dim, dtype=torch.float64)
    for view in views:
        for part in blocks(np.arange(len(rows)), dim):
            inner = torch.from_numpy(view[rows[part]]) - means[torch.from_numpy(target[part])]
            scatter += (inner.T @ inner).double()
    scatter /= float(counts.sum())
    if float(scatter.diagonal().mean()) < 1e-9 * float(means.square().mean()):
        centred = means - means.mean(dim=0)
        scatter = (centred.T @ centred).double() / max(1, classes - 1)
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
    """Return weight, float32 (C, D), and bias, float32 (C,), for all classes.

    A class without images has weights of 0 and the lowest bias.
    """
    weight, bias = torch.zeros(classes, head.weight.shape[1]), torch.full((classes,), float(head.bias.min()))
    present = torch.from_numpy(head.present)
    weight[present], bias[present] = head.weight, head.bias
    return weight, bias
