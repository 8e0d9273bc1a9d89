"""Which classes there are: one answer, from the training list, that travels in the checkpoint."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dataloader.file_list import FileList, read_class_names
from utils.errors import UserError
from utils.logger import log

MOST_CLASSES = 10_000_000  # more than these are taken for a slip: a classifier of 512 features would hold 20 GB


@dataclass(frozen=True)
class Classes:
    """`count` classes; `names` of them (None: they are numbers); `images`: training images of each (None: unknown)."""

    count: int
    names: list[str] | None = None
    images: list[int] | None = None

    def name(self, label: int) -> str:
        """The name of class `label`, its number where there are no names; "?" for -1."""
        return "?" if label < 0 else self.names[label] if self.names else str(label)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {"num_classes": self.count, "class_names": self.names, "class_images": self.images}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Classes":
        """The opposite of `as_dict`."""
        return cls(data["num_classes"], data["class_names"], data["class_images"])


def find_classes(train: FileList, num_classes: int | None) -> Classes:
    """The classes of a training list: `num_classes` if given, else the lines of classes.txt, else the largest label + 1.

    Raises:
        UserError: a label out of range (file and line are named), a single class, or names that do not fit the count.
    """
    names = read_class_names(train.source.parent)
    count = num_classes or (len(names) if names else int(train.label.max()) + 1)
    if names and len(names) != count:
        raise UserError(
            f"{train.source.parent / 'classes.txt'} names {len(names)} classes, --num_classes is {count}.\n"
            "Give one line a class, or leave --num_classes out."
        )
    if count > MOST_CLASSES and not num_classes:
        raise UserError(
            f"{train.where(int(train.label.argmax()))}: the label is {count - 1}, which makes {count} classes. Is it one?\n"
            "Number the classes from 0 without gaps, or say how many there are: --num_classes N."
        )
    check_labels(train, count, "classes.txt" if names and not num_classes else "--num_classes")
    images = np.bincount(train.label, minlength=count)
    present = np.flatnonzero(images)
    if count == 1 or (len(present) == 1 and names is None and num_classes is None):
        raise UserError(
            f"All {len(train)} images of {train.source} are of class {present[0]}; a classifier needs two classes or more.\n"
            "List images of another class, or set --num_classes if they come later."
        )
    empty = int((images == 0).sum())
    if empty:
        log.warning(f"{empty} of {count} classes have no image in {train.source} (the first: {int(np.argmin(images))}).")
    return Classes(count, names, images.tolist())


def check_labels(files: FileList, count: int, source: str) -> None:
    """Raise UserError, naming file and line, where a label is `count` or more; `source` says where the count is from."""
    wrong = np.flatnonzero(files.label >= count)
    if len(wrong):
        first = int(wrong[0])
        raise UserError(
            f"{files.where(first)}: the label is {int(files.label[first])}; allowed: 0 to {count - 1} "
            f"({count} classes, by {source}). {len(wrong)} line(s) are out of range."
        )
