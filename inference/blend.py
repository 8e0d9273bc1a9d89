"""Several members' probabilities made one: the ways to blend, and weights that are fitted to a validation list."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.errors import UserError

TINY = float(np.finfo(np.float32).tiny)
ROUNDS = 50  # of greedy selection
FOLDS = 5  # of the cross-fit


# ------------------------------------------------------------------------------------------------ ways to blend


def _mean(each: Tensor, weights: Tensor) -> Tensor:
    return (each * weights).sum(dim=0)


def _geometric(each: Tensor, weights: Tensor) -> Tensor:
    """softmax of the mean log p. A softmax forgets what a row has in common, so it is the softmax of the mean logits too."""
    return (each.clamp_min(TINY).log() * weights).sum(dim=0).softmax(dim=1)


def _rank(each: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of 1 / rank of a class within its row, made to sum to 1: an order, not a probability."""
    rank = each.argsort(dim=2, descending=True).argsort(dim=2) + 1
    score = (weights / rank).sum(dim=0)
    return score / score.sum(dim=1, keepdim=True)


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": _mean,
    "logits": _geometric,
    "geometric": _geometric,
    "rank": _rank,
    "greedy": _mean,
    "optimal": _mean,
}


def combine(each: Tensor, weights: Tensor, way: str) -> Tensor:
    """float32 (M, B, C) probabilities of M members, and weights (M,) that sum to 1 -> (B, C), rows summing to 1."""
    return WAYS[way](each, weights[:, None, None])


# ------------------------------------------------------------------------------------------------ fitted weights


@dataclass(frozen=True)
class Candidates:
    """What a fit needs of N labelled images: the members' likeliest classes, so that 50,030 classes are as cheap as 100.

    probability: float32 (M, N, K), of K candidates a row (all members' five likeliest, and the true class). right:
    bool (N, K), the one place of the true class; a class that two members name stands twice, its second copy at -1.
    """

    probability: NDArray[np.float32]
    right: NDArray[np.bool_]

    def select(self, keep: NDArray[np.bool_]) -> "Candidates":
        """Those of the images that `keep` (bool, (N,)) marks."""
        return Candidates(self.probability[:, keep], self.right[keep])


def top1(data: Candidates, weights: NDArray[np.float64]) -> float:
    """Share of the images whose true class the weighted mean puts first; equal seconds count against it."""
    score = np.tensordot(weights.astype(np.float32), data.probability, 1)
    true = np.where(data.right, score, -np.inf).max(axis=1)
    other = np.where(data.right, -np.inf, score).max(axis=1)
    return float((true > other).mean())


def loss(data: Candidates, weights: NDArray[np.float64]) -> float:
    """Mean -log p of the true class under the weighted mean."""
    return float(-np.log(np.maximum(weights @ _true(data), TINY)).mean())


def _true(data: Candidates) -> NDArray[np.float64]:
    """float64 (M, N): each member's probability of the true class."""
    return data.probability[:, data.right].astype(np.float64)


def greedy(data: Candidates) -> NDArray[np.float64]:
    """Weights (M,) by ensemble selection with replacement (Caruana et al., 2004, section 2).

    Each of ROUNDS adds the member that gives the best top-1 (of equal ones, the lowest log loss); the best round is
    kept, the first of equal ones.
    """
    members = len(data.probability)
    counts = np.zeros(members)
    best: tuple[tuple[float, float], NDArray[np.float64]] | None = None
    for _ in range(ROUNDS):
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
    """Weights (M,) on the simplex with the least log loss of the mean: a convex problem, solved by SciPy's SLSQP."""
    from scipy.optimize import minimize

    true = np.maximum(_true(data), TINY)

    def value(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        mean = np.maximum(weights @ true, TINY)
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
    """Weights (M,) fitted to all of `data`, and scores that say honestly what they gain.

    Returns:
        The weights, and {name: {"top1", "loss"}} for "best single" (chosen with hindsight), "mean" (equal weights),
        "fitted, other images" (each of FOLDS predicted with weights fitted to the others), "fitted, same images".

    Raises:
        UserError: fewer images than FOLDS.
    """
    members, count = data.probability.shape[:2]
    if count < FOLDS:
        raise UserError(
            f"--blend {how} needs {FOLDS} labelled, readable images or more; there are {count}. Use --blend mean."
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


def candidates(each: Tensor, label: Tensor, most: int = 5) -> tuple[Tensor, Tensor]:
    """The columns of `Candidates` for one batch.

    Args:
        each: float32 (M, B, C). label: int64 (B,), none below 0. most: classes that each member names.

    Returns:
        probability float32 (M, B, K) and right bool (B, K), K = M * min(most, C) + 1. A class named twice keeps
        one column; the others are set to -1 (below every probability), so that no class rivals itself.
    """
    members, batch, count = each.shape
    named = each.topk(min(most, count), dim=2).indices.permute(1, 0, 2).reshape(batch, -1)
    place = torch.cat([label[:, None], named], dim=1)
    again = (place[:, :, None] == place[:, None, :]).tril(-1).any(dim=2)
    probability = each.gather(2, place.expand(members, -1, -1)).masked_fill(again, -1.0)
    right = torch.zeros_like(again)
    right[:, 0] = True
    return probability, right
