"""The classes that a checkpoint knows, and the comparison of class names with those of a list or another checkpoint."""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.text import number_in

NOUNS = {  # of what a network of each task predicts: one, several
    "single": ("class", "classes"),
    "multilabel": ("label", "labels"),
    "regression": ("number", "numbers"),
    "ordinal": ("ordered class", "ordered classes"),
}


def noun(task: str, count: int = 2) -> str:
    """Return what `count` things that a network of `task` predicts are called: "classes", "label", "numbers"."""
    one, several = NOUNS.get(task, NOUNS["single"])  # a damaged file may name another task
    return one if count == 1 else several


def counted(count: int, task: str) -> str:
    """Return how many things a network of `task` predicts, in words: "10 classes", "1 number"."""
    return f"{count} {noun(task, count)}"


@dataclass(frozen=True)
class Classes:
    """The classes of a network; of a multi-label task its labels, of a regression its targets.

    Attributes:
        count: number of classes.
        names: their names, or None for classes without names.
        train_counts: training images per class, or None if unknown.
        task: one of options.choices.TASKS.
        mean, std: of each target of a regression on the training list, which its network learns in units of `std`;
            None for other tasks.
        thresholds: of a multi-label task, the probability of each label from which it counts as predicted, (K,); None:
            0.5. They are no part of `as_dict`: a checkpoint has a key of its own for them.
        cut_points: between ordered classes that are learned as numbers, (C - 1,), ascending; see utils.task. None:
            halfway.
    """

    count: int
    names: list[str] | None = None
    train_counts: list[int] | None = None
    task: str = "single"
    mean: list[float] | None = None
    std: list[float] | None = None
    thresholds: list[float] | None = None
    cut_points: list[float] | None = None

    def name(self, label: int) -> str:
        """Return the name of class `label`, or its number if the classes have no names; "?" for -1."""
        return "?" if label < 0 else self.names[label] if self.names else str(label)

    def named_otherwise(self) -> int | None:
        """Return the first class whose name is not its own number, if all names are numbers (5, 7, 9); else None."""
        names = self.names or []
        if any(number_in(name) is None for name in names):
            return None
        return next((label for label, name in enumerate(names) if name != str(label)), None)

    def present(self) -> int:
        """Return how many classes have training images; 0 if unknown."""
        return sum(count > 0 for count in self.train_counts or ())

    def as_dict(self) -> dict[str, object]:
        """Return plain data for a checkpoint."""
        data: dict[str, object] = {
            "num_classes": self.count,
            "class_names": self.names,
            "class_images": self.train_counts,
        }
        if self.task != "single":
            data["task"] = self.task
        if self.mean is not None:
            data |= {"target_mean": self.mean, "target_std": self.std}
        if self.cut_points is not None:
            data["cut_points"] = self.cut_points
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Classes":
        """Return the classes of `as_dict`'s data."""
        return cls(
            data["num_classes"],
            data["class_names"],
            data["class_images"],
            data.get("task", "single"),
            data.get("target_mean"),
            data.get("target_std"),
            cut_points=data.get("cut_points"),
        )


def names_agree(one: Sequence[str] | None, other: Sequence[str] | None) -> bool:
    """Return whether class k has the same name in both. Without names on one side they agree: the sizes decide."""
    return not one or not other or _keys(one) == _keys(other)


def match_names(names: Sequence[str], known: Sequence[str]) -> NDArray[np.int64]:
    """Return the index in `known` of each name, int64; -1 for a name that is missing, blank or not unique."""
    ours, theirs = _keys(names), _keys(known)
    counts = [Counter(keys) for keys in (ours, theirs)]
    numbers = {key: number for number, key in enumerate(theirs)}
    unique = (key.strip() and all(count[key] == 1 for count in counts) for key in ours)
    return np.array([numbers[key] if one else -1 for key, one in zip(ours, unique, strict=True)], np.int64)


def describe_difference(there: Sequence[str], here: Sequence[str], where: str, task: str = "single") -> str:
    """Return how the names `there` differ from those `here`, which are from `where`, such as "classes.txt".

    `task`: that of the network or list whose classes, labels or numbers they are.
    """
    if len(there) != len(here):
        return f"it names {counted(len(there), task)}, {where} {len(here)}"
    pairs = zip(_keys(there), _keys(here), strict=True)
    place = next(number for number, (one, other) in enumerate(pairs) if one != other)
    return f"{noun(task, 1)} {place} is {there[place]!r} there and {here[place]!r} in {where}"


def _keys(names: Sequence[str]) -> list[str]:
    return list(map(key_of, names))


def key_of(name: str) -> str:
    """Return a name in the form that is compared: an accent may be written as one character or as two."""
    return unicodedata.normalize("NFC", name)
