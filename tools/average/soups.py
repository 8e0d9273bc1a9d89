"""What is averaged: everything, or what a greedy choice by the validation score takes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from tools.average.ingredients import Ingredient, mean_weights
from tools.average.scores import Scorer, Scores
from utils.errors import NotFinite
from utils.logger import log

Refresh = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Soup:
    """The result: its weights and scores; of each ingredient, whether it was averaged, and its own scores."""

    weights: dict[str, Tensor]
    scores: Scores
    used: list[bool]
    single: list[Scores]


def cook(how: str, parts: Sequence[Ingredient], scorer: Scorer, refresh: Refresh) -> Soup:
    """Score the ingredients, average them as `how` says, and score the result.

    Args:
        refresh: returns weights with new statistics of batch norm.

    Raises:
        NotFinite: an ingredient, or the average of all, gives NaN or infinite logits.
    """
    single = [scorer(part.weights, part.path, part.thresholds) for part in parts]
    if how == "greedy":
        return _greedy(parts, single, scorer, refresh)
    weights = refresh(mean_weights([part.weights for part in parts]))
    return Soup(weights, scorer(weights, "the average"), [True] * len(parts), single)


def _greedy(parts: Sequence[Ingredient], single: list[Scores], scorer: Scorer, refresh: Refresh) -> Soup:
    """Add one ingredient after another, the best first, as long as the score does not fall (Wortsman et al., recipe 1).

    A soup of one is that checkpoint, to the bit.
    """
    order = sorted(range(len(parts)), key=lambda k: _sortable(scorer.merit(single[k])), reverse=True)
    taken = order[:1]
    weights, scores = parts[order[0]].weights, single[order[0]]
    for k in order[1:]:
        tried = [*taken, k]
        trial = refresh(mean_weights([parts[one].weights for one in tried]))
        try:
            found = scorer(trial, f"{len(taken)} + {parts[k].path}")
        except NotFinite:
            log.info(f"{parts[k].path} is left out: with it, the average gives NaN or infinite logits.")
            continue
        if scorer.merit(found) >= scorer.merit(scores):
            taken, weights, scores = tried, trial, found
    if len(taken) == 1:
        log.info(f"No average is as good as {parts[taken[0]].path} alone: the soup is a copy of its weights.")
    return Soup(weights, scores, [k in taken for k in range(len(parts))], single)


def _sortable(merit: float) -> float:
    return -math.inf if math.isnan(merit) else merit
