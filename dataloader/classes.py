"""Which classes there are: the training list decides once, and the checkpoint records it."""

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataloader.file_list import FileList, read_class_names
from dataloader.targets import LabelSets
from options.wording import count_of
from utils.classes import Classes, counted, describe_difference, match_names, names_agree, noun
from utils.errors import UserError
from utils.logger import log
from utils.text import number_in

MIN_RELATIVE_STD = 1e-4  # of a number to predict; float32 has seven digits
MAX_INFERRED_CLASSES = 10_000_000  # more are a mistake: a classifier of 512 features would take 20 GB
MAX_CLASSES_PER_IMAGE = 10  # and as many as this per image, of which nine in ten would have none
MIN_DOUBTED_CLASSES = 1000  # fewer cost little: a short list of a large set is fine
MIN_ORDERED_CLASSES = 3  # of two, either order gives the same scores
FROM_ONE = " Do the labels start at 1? Number them from 0."


def max_inferred_classes(images: int) -> int:
    """Return how many classes the largest label of a list of `images` may make, where nothing else says how many."""
    return min(MAX_INFERRED_CLASSES, max(MIN_DOUBTED_CLASSES, MAX_CLASSES_PER_IMAGE * images))


def find_classes(train: FileList, num_classes: int | None, task: str = "single") -> Classes:
    """Return the classes of a training list: `num_classes` if given, else those of classes.txt, else largest label + 1.

    Of a multi-label list these are its labels, of a regression its targets, with their mean and standard deviation.
    The order of ordinal classes is logged.

    Raises:
        UserError: a label is out of range, or by far too large where nothing says how many classes there are (the
            message names file and line), there is only one class, or the names do not fit the count; or a target of a
            regression never varies.
    """
    names = read_class_names(train.source.parent)
    if train.targets is not None and not isinstance(train.targets, LabelSets):
        return _find_targets(train, names, num_classes)
    largest = train.label if train.targets is None else train.targets.label
    count = num_classes or (len(names) if names else int(largest.max(initial=-1)) + 1)
    if names and len(names) != count:
        raise UserError(
            f"{train.source.parent / 'classes.txt'} names {counted(len(names), task)}, --num_classes is {count}.\n"
            f"Give one line per {noun(task, 1)}, or leave --num_classes out."
        )
    if not num_classes and not names and count > max_inferred_classes(len(train)):
        raise UserError(
            f"{train.location(_first_of(train, count - 1))}: the label is {count - 1}, which makes "
            f"{counted(count, task)} for {len(train)} image(s). Is it a label?\n"
            f"Number the {noun(task)} from 0 without gaps, or say how many there are: --num_classes N, or a "
            "classes.txt beside the list, one name per line."
        )
    if train.targets is not None:
        return _find_labels(train, count, names, "classes.txt" if names and not num_classes else "--num_classes")
    check_labels(train, count, "classes.txt" if names and not num_classes else "--num_classes")
    images = np.bincount(train.label, minlength=count)
    present = np.flatnonzero(images)
    if count == 1 or (len(present) == 1 and names is None and num_classes is None):
        raise UserError(
            f"All {len(train)} images of {train.source} are of class {present[0]}; "
            "a classifier needs two or more classes.\n"
            "List images of another class, or set --num_classes if they come later."
        )
    empty, details = _find_empty(images, names)
    if empty:
        log.warning(f"{empty} of {count} classes have no image in {train.source} {details}")
    if task == "ordinal" and names:
        report_order(names, str(train.source.parent / "classes.txt"))
    return Classes(count, names, images.tolist(), task)


def report_order(names: list[str], source: str) -> None:
    """Log the order of ordinal classes, and warn where it seems to be no more than that of the alphabet.

    Nobody has to have chosen that one: lists of class folders and tables sort the names as text.
    """
    log.info(f"The order of the classes, from {source}: {' < '.join(names)}")
    if len(names) >= MIN_ORDERED_CLASSES and names == sorted(names) and not _are_numbered(names):
        log.warning(
            "This is the order of the alphabet, which class folders and tables get by themselves. The loss, qwk, mae "
            "and the best epoch depend on the order. If it is wrong, write the names in their order into a file, one "
            "per line, and make the lists with it.\n"
            "Try: python datasets/prepare.py folder PHOTOS --classes FILE (or csv TABLE --classes FILE)"
        )


def _are_numbered(names: list[str]) -> bool:
    """Return whether all names are numbers, or hold numbers that ascend (grade1, grade2)."""
    if all(number_in(name) is not None for name in names):
        return True
    found = [re.search(r"\d+", name) for name in names]
    numbers = [int(match[0]) for match in found if match]
    return len(numbers) == len(names) and all(one < other for one, other in itertools.pairwise(numbers))


def _find_empty(images: NDArray[np.integer], names: list[str] | None) -> tuple[int, str]:
    """Return how many of the classes have no image, by the number of `images` of each, (C,), and the first in words."""
    empty = int((images == 0).sum())
    hint = FROM_ONE if empty == 1 and not images[0] and names is None else ""
    return empty, f"(the first: {int(np.argmin(images))}).{hint}"


def _first_of(train: FileList, label: int) -> int:
    """Return the first image that has `label`."""
    if isinstance(train.targets, LabelSets):
        return int(train.targets.image()[train.targets.label == label][0])
    return int(np.argmax(train.label == label))


def _find_labels(train: FileList, count: int, names: list[str] | None, source: str) -> Classes:
    """Return the labels of a multi-label list."""
    assert isinstance(train.targets, LabelSets)
    if count < 1:
        raise UserError(f"No image of {train.source} has a label. Give --num_classes, or list images with labels.")
    check_labels(train, count, source)
    images = replace(train.targets, count=count).images_per_label()
    empty, details = _find_empty(images, names)
    if empty:
        log.warning(f"{empty} of {count} labels have no image in {train.source} {details}")
    return Classes(count, names, images.tolist(), "multilabel")


def _find_targets(train: FileList, names: list[str] | None, num_classes: int | None) -> Classes:
    """Return the targets of the list of a regression."""
    values = train.targets
    assert isinstance(values, np.ndarray)
    count = values.shape[1]
    for what, other in (("--num_classes", num_classes), ("classes.txt", len(names) if names else None)):
        if other is not None and other != count:
            raise UserError(
                f"{train.source} has {count} number(s) per image, {what} says {other}. "
                "With --task regression, classes.txt names each number. Correct one of them, or leave it out."
            )
    std, spread = values.std(axis=0), np.ptp(values, axis=0)
    if not (spread > 0).all():
        column = int(np.argmin(spread))
        name = names[column] if names else str(column)
        raise UserError(
            f"Target {name} is {values[0, column]:g} for all {len(train)} images of {train.source}: nothing to learn."
        )
    fine = std >= MIN_RELATIVE_STD * np.abs(values).max(axis=0)
    if not fine.all():
        column = int(np.argmin(fine))
        name = names[column] if names else str(column)
        raise UserError(
            f"Target {name} of {train.source} varies by {std[column]:g} around {values[:, column].mean():.9g}: float32 "
            f"does not hold that. Subtract a constant, so that it varies by {MIN_RELATIVE_STD:g} of its size or more."
        )
    return Classes(count, names, None, "regression", values.mean(axis=0).tolist(), std.tolist())


def check_labels(files: FileList, count: int, source: str) -> None:
    """Raise UserError where a label is `count` or more, or an image has another number of targets than `count`.

    `source` says where the count comes from.
    """
    if isinstance(files.targets, np.ndarray):
        if files.targets.shape[1] != count:
            raise UserError(
                f"{files.source} has {files.targets.shape[1]} number(s) per image; allowed: {count}, by {source}."
            )
        return
    label, image = files.label, None
    if files.targets is not None:
        label, image = files.targets.label, files.targets.image()
    wrong = np.flatnonzero(label >= count)
    if len(wrong):
        first = int(wrong[0] if image is None else image[wrong[0]])
        task = "single" if image is None else "multilabel"
        raise UserError(
            f"{files.location(first)}: the label is {int(label[wrong[0]])}; allowed: 0 to {count - 1} "
            f"({counted(count, task)}, by {source}). {len(wrong)} line(s) are out of range."
            + (FROM_ONE if label.min() == 1 and label.max() == count else "")
        )


def align_labels(files: FileList, classes: Classes, source: str) -> FileList:
    """Return `files` with the labels of `classes`; `source` names their origin, such as "the checkpoint".

    The classes.txt beside the list says what its labels mean. Where it numbers the classes differently, the labels are
    renumbered by name. Where either side has no names, the labels stay as they are; if it is `classes`, with a warning.

    Raises:
        UserError: the list names a class that `classes` lacks, or has more than once; or a label is out of range.
    """
    names, several = read_class_names(files.source.parent), noun(classes.task)
    unlabelled = files.targets is None and files.label.max(initial=-1) < 0
    if unlabelled or names is None or classes.names is None or names_agree(names, classes.names):
        check_labels(files, classes.count, source)
        if names is not None and classes.names is None and not unlabelled:
            log.warning(
                f"{files.source.parent / 'classes.txt'} names the {several}, and {source} has no names: the labels "
                "are used as they are, and predictions have no names. The names of a checkpoint are those of the "
                "classes.txt beside its training list."
            )
        return files.with_count(classes.count)
    beside = files.source.parent / "classes.txt"
    check_labels(files, len(names), str(beside))
    numbers = match_names(names, classes.names)
    unknown = np.flatnonzero(numbers < 0)
    if len(unknown):
        raise UserError(
            f"{files.source} is numbered by {beside}, whose {several} are not those of {source}: {len(unknown)} of its "
            f"{len(names)} names are unknown to {source}, or not unique (the first: {names[unknown[0]]!r}).\n"
            f"Allowed: a list whose classes.txt names {several} of {source}, in any order; or a list without "
            "classes.txt, which is used as it is."
        )
    if isinstance(files.targets, np.ndarray) and len(names) != classes.count:
        own = count_of(len(names), "target")
        raise UserError(f"{files.source} has {own}, by {beside}; {source} has {classes.count}.")
    moved = int((numbers != np.arange(len(numbers))).sum())
    log.info(
        f"{files.source}: {beside} has the {several} in another order than {source}; they are matched by name "
        f"({len(names)} of {counted(classes.count, classes.task)}, {moved} of them in another place)."
    )
    return files.renumbered(numbers, classes.count)


def check_numbering(folder: Path, classes: Classes, pseudo: bool, numbers: bool) -> None:
    """Check whether the classes.txt in `folder` numbers the classes like `classes`, the checkpoint's.

    Args:
        folder: that of a list to predict, or of the list that the predictions become.
        pseudo: the predictions become a training list.
        numbers: the predictions are written as numbers; then a difference is a warning.

    Raises:
        UserError: the numbering differs and `pseudo` is set: such a list does not fit the lists beside it.
    """
    names = read_class_names(folder)
    if names is None or classes.names is None or names_agree(names, classes.names):
        return
    beside = folder / "classes.txt"
    details = describe_difference(classes.names, names, "classes.txt", classes.task)
    text = f"The checkpoint numbers the {noun(classes.task)} differently from {beside}: {details}."
    if pseudo:
        raise UserError(
            f"{text} A list made by --pseudo_label would not fit the lists there.\n"
            "Use a checkpoint that was trained on lists with this numbering, write elsewhere with --out, or leave "
            "--pseudo_label out."
        )
    if numbers:
        log.warning(f"{text} The submission uses the checkpoint's numbers; --labels name writes names instead.")
