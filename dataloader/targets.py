"""The targets of lists that hold more than one class per image: sets of labels, or numbers.

`3,17,42` are three labels, `-` is none. `0.37,12.5` are two numbers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

MAX_LABEL_DIGITS = 9  # a label is an int32
LABELS = re.compile(rb"-|[0-9]{1,%d}(,[0-9]{1,%d})*" % (MAX_LABEL_DIGITS, MAX_LABEL_DIGITS))
NUMBER = rb"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
NUMBERS = re.compile(rb"%b(,%b)*" % (NUMBER, NUMBER))


@dataclass(frozen=True)
class LabelSets:
    """The labels of N images. Those of image i are label[start[i]:start[i + 1]], ascending.

    Attributes:
        start: int64 (N + 1,).
        label: int32 (M,).
        count: how many labels there are, K.
    """

    start: NDArray[np.int64]
    label: NDArray[np.int32]
    count: int

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.start) - 1

    def of(self, index: int) -> NDArray[np.int32]:
        """Return the labels of image `index`, int32."""
        return self.label[self.start[index] : self.start[index + 1]]

    def image(self) -> NDArray[np.int64]:
        """Return the image that each entry of `label` belongs to, int64 (M,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.start))

    def select(self, keep: NDArray[np.bool_]) -> "LabelSets":
        """Return the sets of the images that `keep`, bool (N,), marks."""
        length = np.diff(self.start)
        start = np.concatenate([[0], np.cumsum(length[keep])])
        return replace(self, start=start, label=self.label[np.repeat(keep, length)])

    def take(self, index: NDArray[np.int64]) -> "LabelSets":
        """Return the sets of the images at `index`, int64 (n,), in that order."""
        parts = [self.of(one) for one in index.tolist()]
        start = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        return replace(self, start=start, label=np.concatenate([np.zeros(0, np.int32), *parts]))

    def images_per_label(self) -> NDArray[np.int64]:
        """Return how many images have each label, int64 (K,)."""
        return np.bincount(self.label, minlength=self.count)

    def rows(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return uint8 (n, K): 1 where an image of `index`, (n,), has the label."""
        found = np.zeros((len(index), self.count), np.uint8)
        for row, one in enumerate(index.tolist()):
            found[row, self.of(one)] = 1
        return found

    def renumbered(self, numbers: NDArray[np.int64], count: int) -> "LabelSets":
        """Return the sets with label k replaced by `numbers[k]`, one of `count`."""
        label = numbers[self.label].astype(np.int32)
        order = np.lexsort((label, self.image()))
        return LabelSets(self.start, label[order], count)


Values = NDArray[np.float64]  # (N, T): T numbers per image
Targets = LabelSets | Values


def parse(task: str, token: bytes) -> list[int] | list[float] | None:
    """Return the labels of a "multilabel" line, ascending, or the numbers of a "regression" line; None if it is wrong.

    A label that occurs twice is wrong, as is a number that is not finite.
    """
    if task == "multilabel":
        if not LABELS.fullmatch(token):
            return None
        labels = [] if token == b"-" else sorted(map(int, token.split(b",")))
        return labels if len(set(labels)) == len(labels) else None
    if not NUMBERS.fullmatch(token):
        return None
    numbers = [float(word) for word in token.split(b",")]
    return numbers if np.isfinite(numbers).all() else None


def joined(task: str, rows: Sequence[Sequence[float]]) -> Targets:
    """Return the parsed lines as arrays. Lines of a regression have the same length."""
    if task == "regression":
        return np.array(rows, np.float64).reshape(len(rows), -1)
    start = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    label = np.fromiter((label for row in rows for label in row), np.int32, int(start[-1]))
    return LabelSets(start, label, int(label.max(initial=-1)) + 1)


def select(targets: Targets | None, keep: NDArray[np.bool_]) -> Targets | None:
    """Return the targets of the images that `keep`, bool (N,), marks."""
    return targets.select(keep) if isinstance(targets, LabelSets) else None if targets is None else targets[keep]


def take(targets: Targets, index: NDArray[np.int64]) -> Targets:
    """Return the targets of the images at `index`, int64 (n,), in that order."""
    return targets.take(index) if isinstance(targets, LabelSets) else targets[index]


def as_text(targets: Targets, index: int) -> str:
    """Return the targets of image `index` as a list has them."""
    if isinstance(targets, LabelSets):
        return ",".join(map(str, targets.of(index).tolist())) or "-"
    return ",".join(map(repr, targets[index].tolist()))
