"""Which images are held out for validation: a seeded split by class that keeps groups together, or one of K folds.

The images are sorted by path, so that the same seed gives the same split whatever the order of the input.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.listing.lists import ImageList
from dataloader.listing.target_splits import iterative_folds, quantile_bins
from options.wording import count_of
from utils.errors import UserError
from utils.logger import log

DEFAULT_VAL = 0.1  # share of each class
MAX_TABLE_CELLS = 20_000_000  # of StratifiedGroupKFold's table of groups × classes (160 MB)
MAX_GROUP_FOLDS = 300_000  # groups × folds: it tries each group in each fold, 24 µs each


@dataclass(frozen=True)
class SplitPlan:
    """What to hold out: `share` of the images, or fold number `fold` (from 1) of `folds`."""

    share: float
    folds: int | None
    fold: int | None
    seed: int


def split_and_log(train: ImageList, plan: SplitPlan) -> dict[str, ImageList]:
    """Divide `train` as `split` does, and log the sizes of the parts."""
    parts = split(train, plan)
    sizes = ", ".join(f"{count_of(f'{len(part.paths):,}', 'image')} for {name}" for name, part in parts.items())
    log.info(f"Split by seed {plan.seed}: {sizes}")
    return parts


def split(train: ImageList, plan: SplitPlan) -> dict[str, ImageList]:
    """Divide `train` into "train" and "val"; "val" is missing where nothing is held out.

    Raises:
        UserError: there are too few images or groups for the plan.
    """
    if train.sets is not None:
        return _split_sets(train, train.sets, plan)
    labels = quantile_bins(train.values) if train.values is not None else np.asarray(train.labels, np.int64)
    groups = None if train.groups is None else np.unique(train.groups, return_inverse=True)[1]
    if plan.folds is None and plan.share == 0:
        return {"train": train}
    if plan.folds is not None and plan.fold is not None:
        held = draw_folds(labels, groups, plan.folds, plan.seed) == plan.fold - 1
        _warn_untrained(labels, held)
    elif groups is None:
        held = share_of_classes(labels, plan.share, plan.seed)
    else:
        held = _share_of_groups(labels, groups, plan.share, plan.seed)
    if not held.any():
        log.warning(
            f"No image is held out for validation: {len(labels)} images are too few for --val {plan.share} "
            "with at least one training image per class."
        )
        return {"train": train}
    return {"train": train.select(np.flatnonzero(~held).tolist()), "val": train.select(np.flatnonzero(held).tolist())}


def _split_sets(train: ImageList, sets: list[list[int]], plan: SplitPlan) -> dict[str, ImageList]:
    """Divide images of several labels as `split` does, each label evenly."""
    groups = np.unique(train.groups if train.groups is not None else train.paths, return_inverse=True)[1]
    if plan.folds is None and plan.share == 0:
        return {"train": train}
    held = draw_set_folds(sets, groups, plan) == (0 if plan.fold is None else plan.fold - 1)
    if not held.any() or held.all():
        raise UserError(
            f"{len(sets)} images in {int(groups.max()) + 1} groups are too few to hold some out. Try: --val 0"
        )
    return {"train": train.select(np.flatnonzero(~held).tolist()), "val": train.select(np.flatnonzero(held).tolist())}


def draw_set_folds(sets: list[list[int]], groups: NDArray[np.int64], plan: SplitPlan) -> NDArray[np.int64]:
    """Return the fold of each image of several labels, int64 (N,); without folds, 0 is held out.

    Raises:
        UserError: there are fewer groups than folds.
    """
    count = int(groups.max()) + 1
    if plan.folds is not None and count < plan.folds:
        raise _too_many(plan.folds, count, "group or image", "groups or images")
    shares = [plan.share, 1 - plan.share] if plan.folds is None else [1 / plan.folds] * plan.folds
    return iterative_folds(sets, groups, shares, plan.seed)


def group_by(paths: Sequence[str], pattern: str) -> list[str]:
    """Return a group for each path: what the groups of `pattern` capture (without groups, the whole match).

    A path without a match is a group by itself.

    Raises:
        UserError: the pattern matches no path.
    """
    found = [re.search(pattern, path) for path in paths]
    if not any(found):
        raise UserError(
            f"--group_by {pattern!r} is found in no path; the first path is {paths[0]!r} "
            "(paths start below the root folder)."
        )
    alone = found.count(None)
    if alone:
        log.warning(
            f"--group_by {pattern!r} is not found in {alone} of {len(paths)} paths; each of them is its own group."
        )
    caught = [None if hit is None else "\0".join(text or "" for text in hit.groups() or [hit[0]]) for hit in found]
    return [singleton_group(path) if key is None else f"={key}" for path, key in zip(paths, caught, strict=True)]


def singleton_group(path: str) -> str:
    """Return the key of a group of this image alone; no other key begins with a slash."""
    return f"/{path}"


def share_of_classes(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Return a mask, bool (N,), of `share` of each class, drawn by `seed`; each class keeps an unmarked image.

    The rounding remainder is carried from class to class, in random order. Of classes with three images, a share of a
    tenth marks one image in about a third; rounding each class by itself would mark none.
    """
    rng = np.random.default_rng(seed)
    classes = rng.permutation(int(labels.max()) + 1)[labels]
    order = np.lexsort((rng.random(len(labels)), classes))  # class by class, shuffled inside
    counts = np.bincount(classes)
    ends = np.cumsum(counts)
    quota = np.diff(np.floor(ends * share + 0.5 + 1e-9), prepend=0)
    quota = np.minimum(quota, counts - 1)
    rank = np.arange(len(labels)) - (ends - counts)[classes[order]]
    held = np.zeros(len(labels), bool)
    held[order] = rank < quota[classes[order]]
    return held


def _share_of_groups(
    labels: NDArray[np.int64], groups: NDArray[np.int64], share: float, seed: int
) -> NDArray[np.bool_]:
    """Return a mask, bool (N,), of whole groups with about `share` of the images: some of K folds.

    A class without any training image gets one group back.
    """
    count = int(groups.max()) + 1
    if count < 2:
        raise UserError("All images are of one group, which cannot be split. Use finer groups, or --val 0.")
    ratio = Fraction(share).limit_denominator(20)
    folds = ratio.denominator if 0 < ratio < 1 else round(1 / min(share, 1 - share))
    folds = max(2, min(folds, count))
    held = draw_folds(labels, groups, folds, seed) < min(max(1, round(share * folds)), folds - 1)
    untrained = ~np.isin(labels, labels[~held])
    if untrained.any():
        rows = np.flatnonzero(untrained)
        _, first = np.unique(labels[rows], return_index=True)
        held &= ~np.isin(groups, groups[rows[first]])
        log.info(f"{len(first)} class(es) had all their groups in validation; one group of each went back to training.")
    shares = f"{held.mean():.1%}, requested: {share:.1%}"
    log.info(f"{count:,} groups; {int(held.sum()):,} of {len(held):,} images are held out ({shares}).")
    return held


def draw_folds(labels: NDArray[np.int64], groups: NDArray[np.int64] | None, folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold (0 to folds - 1) of each image, int64 (N,): classes spread evenly, groups kept whole.

    Raises:
        UserError: there are fewer groups than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if groups is None:
        return _assign(StratifiedKFold(folds, shuffle=True, random_state=seed), labels, None, folds)
    count = int(groups.max()) + 1
    if count < folds:
        raise _too_many(folds, count, "group", "groups, none of which is split")
    if count * len(np.unique(labels)) <= MAX_TABLE_CELLS and count * folds <= MAX_GROUP_FOLDS:
        return _assign(StratifiedGroupKFold(folds, shuffle=True, random_state=seed), labels, groups, folds)
    log.info(f"{count:,} groups are spread by the class of their first image, without regard to their sizes.")
    _, first = np.unique(groups, return_index=True)
    return _assign(StratifiedKFold(folds, shuffle=True, random_state=seed), labels[first], None, folds)[groups]


def _too_many(folds: int, count: int, one: str, several: str) -> UserError:
    """Return the error for more folds than there are `several` to divide."""
    allowed = f"allowed: 2 to {count}" if count > 1 else "that cannot be divided"
    return UserError(f"--folds is {folds}, for {count_of(count, one, several)}; {allowed}.")


def _assign(
    splitter: Any, labels: NDArray[np.int64], groups: NDArray[np.int64] | None, folds: int
) -> NDArray[np.int64]:
    """Return the fold of each row, int64 (N,), by a splitter of scikit-learn."""
    if len(labels) < folds:
        raise _too_many(folds, len(labels), "image", "images")
    if np.bincount(labels).max() < folds:  # scikit-learn refuses it; any spread is right for such small classes
        labels = np.zeros_like(labels)
    fold_of = np.full(len(labels), -1, np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about small classes: _warn_untrained reports them if it matters
        for fold, (_, rows) in enumerate(splitter.split(labels, labels, groups)):
            fold_of[rows] = fold
    return fold_of


def _warn_untrained(labels: NDArray[np.int64], held: NDArray[np.bool_]) -> None:
    """Warn of classes without a training image."""
    untrained = np.setdiff1d(labels[held], labels[~held])
    if len(untrained):
        log.warning(
            f"{len(untrained)} class(es) have all their images in this fold, and none in training "
            f"(the first: {untrained[0]})."
        )
