"""Blends the probabilities of several members: the functions of --blend, and weights fitted to a validation list."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.metrics import MIN_PROBABILITY
from utils.errors import UserError

GREEDY_ROUNDS = 50
FOLDS = 5  # of the cross-fit


# ------------------------------------------------------------------------------------------------ functions that blend


def _mean(each: Tensor, weights: Tensor) -> Tensor:
    return (each * weights).sum(dim=0)


def _geometric(each: Tensor, weights: Tensor) -> Tensor:
    """Return the softmax of the mean log p, which equals that of the mean logits: a shift of a row changes nothing."""
    return (each.clamp_min(MIN_PROBABILITY).log() * weights).sum(dim=0).softmax(dim=1)


def _rank(each: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of 1 / rank of a class within its row, scaled to sum to 1: an order, no probability."""
    rank = each.argsort(dim=2, descending=True).argsort(dim=2) + 1
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


def combine(each: Tensor, weights: Tensor, blend: str) -> Tensor:
    """Blend float32 (M, B, C) probabilities of M members into (B, C), rows summing to 1. `weights` (M,) sum to 1."""
    return BLENDERS[blend](each, weights[:, None, None])


# ------------------------------------------------------------------------------------------------ fitted weights


@dataclass(frozen=True)
class Candidates:
    """What a fit needs of N labelled images: the most likely classes. So 50,030 classes cost no more than 100.

    probability: float32 (M, N, K), of K candidates per image: all members' five most likely classes, and the true one.
    is_target: bool (N, K), True in the one column of the true class. If two members name a class, its
        second column is -1.
    """

    probability: NDArray[np.float32]
    is_target: NDArray[np.bool_]

    def select(self, keep: NDArray[np.bool_]) -> "Candidates":
        """Return the candidates of the images that `keep`, bool (N,), selects."""
        return Candidates(self.probability[:, keep], self.is_target[keep])


def top1(data: Candidates, weights: NDArray[np.float64]) -> float:
    """Return the share of images whose true class the weighted mean puts first; a tie counts as wrong."""
    score = np.tensordot(weights.astype(np.float32), data.probability, 1)
    true = np.where(data.is_target, score, -np.inf).max(axis=1)
    other = np.where(data.is_target, -np.inf, score).max(axis=1)
    return float((true > other).mean())


def loss(data: Candidates, weights: NDArray[np.float64]) -> float:
    """Return the mean -log p of the true class under the weighted mean."""
    return float(-np.log(np.maximum(weights @ _true(data), MIN_PROBABILITY)).mean())


def _true(data: Candidates) -> NDArray[np.float64]:
    """Return each member's probability of the true class, float64 (M, N)."""
    return data.probability[:, data.is_target].astype(np.float64)


def greedy(data: Candidates) -> NDArray[np.float64]:
    """Fit weights (M,) by ensemble selection with replacement (Caruana et al., 2004, section 2).

    Each of GREEDY_ROUNDS adds the member that gives the best top-1; the log loss breaks ties. Of the rounds with the
    best result, the first is taken.
    """
    members = len(data.probability)
    counts = np.zeros(members)
    best: tuple[tuple[float, float], NDArray[np.float64]] | None = None
    for _ in range(GREEDY_ROUNDS):
        tried = []
        for member in range(members):
            weights = counts.copy()
            weights[member] += 1
            weights /= weights.sum()
            tried.append((top1(data, weights), -loss(data, weights)))
        chosen = max(range(members), key=lambda member: tried[member])
        counts[chosen] += 1
        if best is None or tried[chosen] > best[0]:
            best = (tried[chosen], counts / counts.sum())
    assert best is not None
    return best[1]


def optimal(data: Candidates) -> NDArray[np.float64]:
    """Fit weights (M,) on the simplex that minimise the log loss of the mean, a convex problem, by SciPy's SLSQP."""
    from scipy.optimize import minimize

    true = np.maximum(_true(data), MIN_PROBABILITY)

    def value(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        mean = np.maximum(weights @ true, MIN_PROBABILITY)
        return float(-np.log(mean).mean()), -(true / mean).mean(axis=1)

    members = len(true)
    start = np.full(members, 1 / members)
    whole = {"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": lambda weights: np.ones(members)}
    found = minimize(
        value, start, jac=True, bounds=[(0, 1)] * members, constraints=[whole], method="SLSQP", options={"ftol": 1e-10}
    )
    weights = np.clip(found.x, 0, None)
    weights = np.where(weights < 1e-6, 0, weights)
    weights /= weights.sum()
    return weights if value(weights)[0] <= value(start)[0] else start


FITS: dict[str, Callable[[Candidates], NDArray[np.float64]]] = {"greedy": greedy, "optimal": optimal}


def fit(data: Candidates, how: str, seed: int = 0) -> tuple[list[float], dict[str, Any]]:
    """Fit weights (M,) to all of `data`, and measure by cross-fitting what they gain.

    Args:
        how: "greedy" or "optimal". seed: of the folds.

    Returns:
        The weights, and {name: {"top1", "loss"}} for "best single" (chosen with hindsight), "mean" (equal weights),
        "fitted, other images" (each of FOLDS predicted with weights fitted to the others), "fitted, same images".

    Raises:
        UserError: there are fewer images than FOLDS.
    """
    members, count = data.probability.shape[:2]
    if count < FOLDS:
        raise UserError(
            f"--blend {how} needs at least {FOLDS} labelled, readable images; there are {count}. Try: --blend mean"
        )
    weights = FITS[how](data)
    fold = np.random.default_rng([seed, 6]).permutation(count) % FOLDS
    parts = []
    for k in range(FOLDS):
        held = data.select(fold == k)
        chosen = FITS[how](data.select(fold != k))
        parts.append((top1(held, chosen), loss(held, chosen), int((fold == k).sum())))
    held_out = {
        name: float(np.average([part[k] for part in parts], weights=[part[2] for part in parts]))
        for k, name in enumerate(("top1", "loss"))
    }
    single = [_scores(data, np.eye(members)[member]) for member in range(members)]
    scores = {
        "best single": max(single, key=lambda one: (one["top1"], -one["loss"])),
        "mean": _scores(data, np.full(members, 1 / members)),
        "fitted, other images": held_out,
        "fitted, same images": _scores(data, weights),
    }
    return [float(weight) for weight in weights], scores


def _scores(data: Candidates, weights: NDArray[np.float64]) -> dict[str, float]:
    return {"top1": top1(data, weights), "loss": loss(data, weights)}


def candidates(each: Tensor, label: Tensor, top_k: int = 5) -> tuple[Tensor, Tensor]:
    """Return the columns of `Candidates` for one batch.

    Args:
        each: float32 (M, B, C). label: int64 (B,), none below 0. top_k: classes that each member names.

    Returns:
        probability float32 (M, B, K) and is_target bool (B, K), K = M * min(top_k, C) + 1. A class that is named twice
        keeps one column; the others are set to -1, below every probability, so that no class competes with itself.
    """
    members, batch, count = each.shape
    named = each.topk(min(top_k, count), dim=2).indices.permute(1, 0, 2).reshape(batch, -1)
    place = torch.cat([label[:, None], named], dim=1)
    is_repeated = (place[:, :, None] == place[:, None, :]).tril(-1).any(dim=2)
    probability = each.gather(2, place.expand(members, -1, -1)).masked_fill(is_repeated, -1.0)
    is_target = torch.zeros_like(is_repeated)
    is_target[:, 0] = True
    return probability, is_target
