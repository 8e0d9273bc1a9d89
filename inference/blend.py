"""Blends the predictions of several members: the functions of --blend, and weights fitted to a validation list."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.cross_fit import FOLDS, draw_parts
from evaluation.metrics import MIN_PROBABILITY, class_scores
from evaluation.multilabel import MIN_P
from evaluation.ordinal import order_scores
from evaluation.ranking import merit
from options.choices import ORDER_METRICS
from utils.errors import UserError
from utils.logger import log
from utils.task import has_probabilities
from utils.tensors import likeliest

GREEDY_ROUNDS = 50
MIN_WEIGHT = 1e-6  # A smaller weight of "optimal" becomes 0.
MAX_GAP = 0.01  # "optimal" warns if it ends further above the minimum, as a share of the loss.
BlendScores = dict[str, dict[str, float]]  # {a member, or the blend: its scores by name}
BLOCK_VALUES = 1 << 22  # probabilities that are blended together: 16 MB of each member


# ------------------------------------------------------------------------------------------------ functions that blend


def _mean(each: Tensor, weights: Tensor) -> Tensor:
    return (each * weights).sum(dim=0)


def _geometric(each: Tensor, weights: Tensor) -> Tensor:
    """Return the softmax of the mean log p, which equals that of the mean logits: a shift of a row changes nothing."""
    return (each.clamp_min(MIN_PROBABILITY).log() * weights).sum(dim=0).softmax(dim=1)


def _rank(each: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of 1 / rank of a class within its row, scaled to sum to 1: an order, no probability.

    Equal classes share the mean of their ranks, however they are numbered.
    """
    falling, rising = (one.argsort(dim=2, stable=True).argsort(dim=2) for one in (-each, each))
    # both count the equal classes before a class; one adds those above it, the other those below
    rank = (each.shape[2] + 1 + falling - rising) / 2
    score = (weights / rank).sum(dim=0)
    return score / score.sum(dim=1, keepdim=True)


BLENDERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": _mean,
    "logits": _geometric,
    "geometric": _geometric,
    "rank": _rank,
    "greedy": _mean,
    "optimal": _mean,
}


def _geometric_labels(each: Tensor, weights: Tensor) -> Tensor:
    """Return the sigmoid of the mean logit of each label: the geometric mean of p, over its sum with that of 1 - p."""
    return (each.logit(MIN_P) * weights).sum(dim=0).sigmoid()


LABEL_BLENDERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": _mean,
    "logits": _geometric_labels,
    "geometric": _geometric_labels,
    "greedy": _mean,
    "optimal": _mean,
}
# A geometric mean of numbers below 0 means nothing, and an order of classes is no number.
NUMBER_BLENDERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": _mean, "greedy": _mean, "optimal": _mean}
TASK_BLENDERS = {
    "single": BLENDERS,
    "multilabel": LABEL_BLENDERS,
    "regression": NUMBER_BLENDERS,
    "ordinal": BLENDERS,
}


def combine(each: Tensor, weights: Tensor, blend: str, task: str = "single") -> Tensor:
    """Blend float32 (M, B, C) predictions of M members into (B, C); `weights` (M,) sum to 1.

    Rows of probabilities of classes sum to 1.
    """
    return TASK_BLENDERS[task][blend](each, weights[:, None, None])


def with_temperature(predictions: Tensor, temperature: float, task: str) -> Tensor:
    """Return probabilities, float32 (B, C), as their logits divided by `temperature` give them.

    Of classes, one of which is right, that is softmax(log p / T). Of labels it is sigmoid(logit(p) / T).
    """
    if temperature == 1:
        return predictions
    if task == "multilabel":
        present, absent = predictions ** (1 / temperature), (1 - predictions) ** (1 / temperature)
        return present / (present + absent)
    assert has_probabilities(task), f"a temperature is of probabilities, not of --task {task}"
    return (predictions.clamp_min(MIN_PROBABILITY).log() / temperature).softmax(dim=1)


def warn_of_ranks(blend: str) -> None:
    """Warn where a blend by rank is about to be shown as the probabilities of images."""
    if blend == "rank":
        log.warning("--blend rank gives means of 1/rank, which order the classes of an image and are no probabilities.")


# ------------------------------------------------------------------------------------------------ fitted weights


class Fittable(Protocol):
    """What a fit needs of the predictions that M members make for N labelled images."""

    shown: ClassVar[tuple[str, ...]]  # metrics that are measured beside the one to improve

    @property
    def members(self) -> int:
        """Return M."""

    def select(self, keep: NDArray[np.bool_]) -> Self:
        """Return the part of the images that `keep`, bool (N,), marks."""

    def blended(self, weights: NDArray[np.float64]) -> Self:
        """Return the same images with one member: the mean of all by `weights`, (M, N), those of each image."""

    def value(self, weights: NDArray[np.float64], metric: str) -> float:
        """Return `metric` of the mean by `weights`, float64 (M,)."""

    def loss(self, weights: NDArray[np.float64]) -> float:
        """Return the loss of the mean by `weights`, float64 (M,), as `convex_loss` computes it."""

    def convex_loss(self) -> Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]]:
        """Return a function of the weights that gives the loss of the mean, convex in them, and its slope, (M,)."""


@dataclass(frozen=True)
class Candidates:
    """What a fit needs of N labelled images: the most likely classes. So 50,030 classes cost no more than 100.

    A class that is in no member's five may be the likeliest of the mean. The search for weights overlooks it; what
    `blended` returns does not, if `whole` is there.

    Attributes:
        probability: float32 (M, N, K), of K candidates per image: all members' five most likely classes, and the true
            one.
        is_target: bool (N, K), True in the one column of the true class. If two members name a class, its second column
            is -1.
        class_of: int64 (N, K), the class of each column.
        whole: float32 (M, images, C), every probability; None: they are not kept.
        row: int64 (N,), the images' places in them.
    """

    probability: NDArray[np.float32]
    is_target: NDArray[np.bool_]
    class_of: NDArray[np.int64]
    whole: NDArray[np.float32] | None = None
    row: NDArray[np.int64] | None = None
    shown: ClassVar[tuple[str, ...]] = ("top1",)

    @property
    def members(self) -> int:
        """Return M."""
        return len(self.probability)

    def select(self, keep: NDArray[np.bool_]) -> "Candidates":
        """Return the candidates of the images that `keep`, bool (N,), selects."""
        row = None if self.row is None else self.row[keep]
        return Candidates(self.probability[:, keep], self.is_target[keep], self.class_of[keep], self.whole, row)

    def blended(self, weights: NDArray[np.float64]) -> "Candidates":
        """Return the candidates of one member: the mean of all by `weights`, (M, N), those of each image.

        With `whole` they are the five likeliest classes of that mean, so that every score of it is exact.
        """
        if self.whole is None or self.row is None:
            return replace(self, probability=mean_by_image(self.probability, weights))
        parts, label = [], torch.from_numpy(self.class_of[self.is_target])
        step = max(1, BLOCK_VALUES // self.whole.shape[2])
        for first in range(0, len(label), step):
            some = slice(first, first + step)
            mean = mean_by_image(self.whole[:, self.row[some]], weights[:, some])
            parts.append(candidates(torch.from_numpy(mean), label[some]))
        probability, is_target, class_of = (list(column) for column in zip(*parts, strict=True))
        return Candidates(
            torch.cat(probability, dim=1).numpy(), torch.cat(is_target).numpy(), torch.cat(class_of).numpy()
        )

    def value(self, weights: NDArray[np.float64], metric: str) -> float:
        """Return `metric`, a metric of ordered classes in options.choices, of the mean by `weights`, float64 (M,).

        Of equal classes that with the lower number is the likelier, as everywhere.
        """
        if metric == "log_loss":
            return self.loss(weights)
        score = np.tensordot(weights.astype(np.float32), self.probability, 1)
        label, classes = self.class_of[self.is_target], int(self.class_of.max()) + 1
        if metric == "top5":
            true = score[self.is_target][:, None]
            above = (score > true) | ((score == true) & (self.class_of < label[:, None]))
            return float((above.sum(axis=1) < 5).mean())
        is_first = score == score.max(axis=1, keepdims=True)
        first = np.where(is_first, self.class_of, classes).min(axis=1)
        if metric == "top1":
            return float((first == label).mean())
        if metric in ORDER_METRICS:
            return order_scores(label, first, np.ones(len(label)), classes)[metric]
        total, right = np.bincount(label, minlength=classes), np.bincount(label[first == label], minlength=classes)
        return class_scores(total, np.bincount(first, minlength=classes), right)[metric]

    def loss(self, weights: NDArray[np.float64]) -> float:
        """Return the mean -log p of the true class under the mean by `weights`, float64 (M,)."""
        return float(-np.log(np.maximum(weights @ self._true(), MIN_PROBABILITY)).mean())

    def convex_loss(self) -> Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]]:
        """Return a function of the weights that gives `loss` and its slope, float64 (M,)."""
        true = np.maximum(self._true(), MIN_PROBABILITY)

        def value(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            mean = np.maximum(weights @ true, MIN_PROBABILITY)
            return float(-np.log(mean).mean()), -(true / mean).mean(axis=1)

        return value

    def _true(self) -> NDArray[np.float64]:
        """Return each member's probability of the true class, float64 (M, N)."""
        return self.probability[:, self.is_target].astype(np.float64)


def mean_by_image(each: NDArray[np.float32], weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the mean of M members' predictions, (M, N, K), by weights (M, N): float32 (1, N, K)."""
    return np.einsum("mn,mnk->nk", weights.astype(np.float32), each)[None]


def greedy(data: Fittable, metric: str = "top1") -> NDArray[np.float64]:
    """Fit weights (M,) by ensemble selection with replacement (Caruana et al., 2004, section 2).

    Each of GREEDY_ROUNDS adds the member that gives the best `metric`; the loss breaks ties. Of the rounds with the
    best result, the first is taken.
    """
    members = data.members
    counts = np.zeros(members)
    best: tuple[tuple[float, float], NDArray[np.float64]] | None = None
    for _ in range(GREEDY_ROUNDS):
        tried = []
        for member in range(members):
            weights = counts.copy()
            weights[member] += 1
            weights /= weights.sum()
            tried.append((merit({metric: data.value(weights, metric)}, metric), -data.loss(weights)))
        chosen = max(range(members), key=lambda member: tried[member])
        counts[chosen] += 1
        if best is None or tried[chosen] > best[0]:
            best = (tried[chosen], counts / counts.sum())
    assert best is not None
    return best[1]


def optimal(data: Fittable, metric: str = "log_loss") -> NDArray[np.float64]:
    """Fit weights (M,) on the simplex that minimise the loss of the mean, a convex problem, by SciPy's SLSQP.

    Whatever `metric` is: no other is convex.
    """
    from scipy.optimize import minimize

    value, members = data.convex_loss(), data.members
    tried = [(value(weights)[0], weights) for weights in (np.full(members, 1 / members), *np.eye(members))]
    tried.sort(key=lambda pair: pair[0])
    scale = max(tried[0][0], MIN_PROBABILITY)  # SLSQP takes its first steps for a slope of about 1

    def scaled(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        loss, slope = value(weights)
        return loss / scale, slope / scale

    whole = {"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": lambda weights: np.ones(members)}
    for _, start in tried[:2]:
        found = minimize(
            scaled,
            start,
            jac=True,
            bounds=[(0, 1)] * members,
            constraints=[whole],
            method="SLSQP",
            options={"ftol": 1e-10},
        )
        weights = np.clip(found.x, 0, None)
        weights = np.where(weights < MIN_WEIGHT, 0, weights)
        weights /= weights.sum()
        tried.append((value(weights)[0], weights))
    return min(tried, key=lambda pair: pair[0])[1]


def _warn_of_gap(data: Fittable, weights: NDArray[np.float64]) -> None:
    """Warn where `optimal` may have missed the smallest loss: of a convex loss, the slope bounds the distance."""
    loss, slope = data.convex_loss()(weights)
    gap = float(slope @ weights - slope.min())
    if gap > MAX_GAP * abs(loss):
        log.warning(f"--blend optimal: the loss of its weights, {loss:.6g}, may be {gap:.2g} above the smallest.")


FITTERS: dict[str, Callable[[Fittable, str], NDArray[np.float64]]] = {"greedy": greedy, "optimal": optimal}


def fit(
    data: Fittable, image: NDArray[np.integer], how: str, seed: int = 0, metric: str = "top1"
) -> tuple[list[float], BlendScores]:
    """Fit weights (M,) to all of `data`, and measure by cross-fitting what they gain.

    Args:
        image: (N,), what evaluation.cross_fit.draw_parts needs of the images.
        how: "greedy" or "optimal". seed: of the folds. metric: what "greedy" maximises.

    Returns:
        The weights, and {name: {"loss", `metric` and data.shown}} for "best single" (chosen with hindsight), "mean"
        (equal weights), "fitted, other images" (each of FOLDS parts is predicted with weights fitted to the others, and
        all parts are scored together, as the others are), "fitted, same images".

    Raises:
        UserError: there are fewer images than FOLDS.
    """
    members, count = data.members, len(np.unique(image))
    if count < FOLDS:
        raise UserError(
            f"--blend {how} needs at least {FOLDS} labelled, readable images; there are {count}. Try: --blend mean"
        )
    weights = FITTERS[how](data, metric)
    if how == "optimal":
        _warn_of_gap(data, weights)
    part = draw_parts(image, seed, 6)
    others = np.stack([FITTERS[how](data.select(part != k), metric) for k in range(FOLDS)], axis=1)  # (M, FOLDS)
    single = [_scores(data, np.eye(members)[member], metric) for member in range(members)]
    blends = {
        "mean": np.full((members, len(image)), 1 / members),
        "fitted, other images": others[:, part],
        "fitted, same images": np.repeat(weights[:, None], len(image), axis=1),
    }
    scores = {"best single": max(single, key=lambda one: (merit(one, metric), -one["loss"]))}
    scores |= {name: _scores(data.blended(by_image), np.ones(1), metric) for name, by_image in blends.items()}
    return [float(weight) for weight in weights], scores


def _scores(data: Fittable, weights: NDArray[np.float64], metric: str) -> dict[str, float]:
    scores = {name: data.value(weights, name) for name in dict.fromkeys((metric, *data.shown))}
    return scores | {"loss": scores[metric] if metric == "log_loss" else data.loss(weights)}


def candidates(each: Tensor, label: Tensor, top_k: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Return the columns of `Candidates` for one batch.

    Args:
        each: float32 (M, B, C). label: int64 (B,), none below 0. top_k: classes that each member names.

    Returns:
        probability float32 (M, B, K), is_target bool (B, K), and class_of int64 (B, K); K = M * min(top_k, C)
        + 1. A class that is named twice keeps one column; the others are set to -1, below every probability, so that no
        class competes with itself.
    """
    members, batch, count = each.shape
    named = likeliest(each, min(top_k, count))[1].permute(1, 0, 2).reshape(batch, -1)
    class_of = torch.cat([label[:, None], named], dim=1)
    is_repeated = (class_of[:, :, None] == class_of[:, None, :]).tril(-1).any(dim=2)
    probability = each.gather(2, class_of.expand(members, -1, -1)).masked_fill(is_repeated, -1.0)
    is_target = torch.zeros_like(is_repeated)
    is_target[:, 0] = True
    return probability, is_target, class_of
