"""Check the classes of the lists: which are missing, rare or unnamed, and how unbalanced they are."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloader.file_list import FileList, read_lines
from dataloader.targets import LabelSets
from tools.doctor.findings import Findings
from tools.doctor.scan import Scan
from utils.classes import key_of

MAX_CLASSES_PER_IMAGE = 20  # a label such as 900000000 must not fill the memory
Names = list[str] | None
Balance = dict[str, float]  # of `class_balance`


class Labels(NamedTuple):
    """Every label of a list: label int (M,), and the image of the list that has it, int64 (M,).

    An image has one label, or of a multi-label list any number.
    """

    label: NDArray[np.integer]
    image: NDArray[np.int64]

    def first(self, label: int) -> int:
        """Return the first image with a label."""
        return int(self.image[np.argmax(self.label == label)])


def labels_of(files: FileList) -> Labels:
    """Return every label of a list; none of a list without labels."""
    if isinstance(files.targets, LabelSets):
        return Labels(files.targets.label, files.targets.image())
    known = np.flatnonzero(files.label >= 0)
    return Labels(files.label[known], known)


def read_names(lists: list[FileList]) -> tuple[Path, Names]:
    """Return the path of classes.txt beside the first list, and its names, or None if there is none."""
    folder = lists[0].source.parent
    path = folder / "classes.txt"
    return path, read_lines(path) if path.is_file() else None


def check_classes(found: Findings, seen: Scan, names_file: Path, names: Names) -> list[Balance | None]:
    """Add the problems of the classes to `found`; return `class_balance` of each list, None for one without labels."""
    every = [labels_of(files) for files in seen.lists]
    labelled = [list_number for list_number, labels in enumerate(every) if len(labels.label)]
    counts: list[NDArray | None] = [None] * len(seen.lists)
    if not labelled:
        return [None] * len(seen.lists)
    total = 1 + max(int(every[list_number].label.max()) for list_number in labelled)
    total = max(total, len(names) if names else 0)
    if total <= MAX_CLASSES_PER_IMAGE * len(seen.label) + 1000:
        for list_number in labelled:
            counts[list_number] = np.bincount(every[list_number].label, minlength=total)
    else:
        found.add_text(
            "label_gap",
            labelled[0],
            -1,
            f"labels reach {total - 1}, with {len(seen.label)} images: these are no class numbers",
        )
        return [
            class_balance(np.unique(labels.label, return_counts=True)[1]) if list_number in labelled else None
            for list_number, labels in enumerate(every)
        ]
    _check_presence(found, seen, every, counts, names)
    if names is not None:
        _check_names(found, seen, every, names_file, names)
    return [None if held is None else class_balance(held) for held in counts]


def class_balance(counts: NDArray) -> Balance:
    """Return images per class: minimum, median, maximum, max / min, and the Gini coefficient (0: all equal).

    `counts` has the images of each class, integers (C,). Classes without images do not count.
    """
    held = np.sort(counts[counts > 0]).astype(float)
    rank = np.arange(1, len(held) + 1)
    gini = float((2 * rank - len(held) - 1) @ held / (len(held) * held.sum()))
    numbers = {"min": int(held[0]), "median": float(np.median(held)), "max": int(held[-1])}
    return {"classes": len(held), **numbers, "ratio": round(float(held[-1] / held[0]), 3), "gini": round(gini, 4)}


def _check_presence(
    found: Findings, seen: Scan, every: list[Labels], counts: list[NDArray | None], names: Names
) -> None:
    labelled = [list_number for list_number, held in enumerate(counts) if held is not None]
    train = labelled[0]
    held = counts[train]
    assert held is not None
    for label in np.flatnonzero(held == 1).tolist():
        found.add_text(
            "single_image", train, _first(seen, every, train, label), f"class {shown(label, names)} has one image"
        )
    for list_number in labelled[1:]:
        other = counts[list_number]
        assert other is not None
        for label in np.flatnonzero((other > 0) & (held == 0)).tolist():
            text = f"class {shown(label, names)}: {other[label]} image(s) here, none in {seen.lists[train].source.name}"
            found.add_text("class_not_in_train", list_number, _first(seen, every, list_number, label), text)
        for label in np.flatnonzero((other == 0) & (held > 0)).tolist():
            text = f"class {shown(label, names)}: {held[label]} image(s) in {seen.lists[train].source.name}, none here"
            found.add_text("class_not_scored", list_number, -1, text)
    used = np.sum([part for part in counts if part is not None], axis=0)
    for begin, end in _runs(used == 0):
        text = f"class {shown(begin, names)}" if begin == end else f"classes {begin} to {end}"
        found.add_text("label_gap", train, -1, f"no list has an image of {text}")


def _check_names(found: Findings, seen: Scan, every: list[Labels], names_file: Path, names: list[str]) -> None:
    labelled = [list_number for list_number, labels in enumerate(every) if len(labels.label)]
    largest = max(int(every[list_number].label.max()) for list_number in labelled)
    if len(names) != largest + 1:
        much = "few" if len(names) <= largest else "many"
        needed = f"the largest label is {largest}, which needs {largest + 1}"
        text = f"too {much} names: {names_file} has {len(names)}; {needed}"
        found.add_text("class_names", labelled[0], -1, text)
    by_name: dict[str, int] = {}
    for label, name in enumerate(names):
        key = key_of(name)
        if not name.strip():
            found.add_text("class_name_unusable", labelled[0], -1, f"{names_file}, line {label + 1} is blank")
        elif key in by_name:
            text = f"{name!r} names class {by_name[key]} and class {label}"
            found.add_text("class_name_unusable", labelled[0], -1, text)
        by_name.setdefault(key, label)
    for list_number in labelled:
        held = every[list_number].label
        labels, count = np.unique(held[held >= len(names)], return_counts=True)
        for label, lines in zip(labels.tolist(), count.tolist(), strict=True):
            text = f"label {label}; {names_file.name} names 0 to {len(names) - 1}; {lines} line(s)"
            found.add_text("label_out_of_range", list_number, _first(seen, every, list_number, label), text)


def _first(seen: Scan, every: list[Labels], list_number: int, label: int) -> int:
    """Return the first image of a class in a list."""
    return int(seen.first[list_number]) + every[list_number].first(label)


def _runs(marked: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the first and last index of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marked, [False]]).astype(np.int8)))
    return [(int(begin), int(end) - 1) for begin, end in edges.reshape(-1, 2)]


def shown(label: int, names: Names) -> str:
    """Return a class as its number, and its name if it has one."""
    return f"{label} ({names[label]})" if names and label < len(names) else str(label)
