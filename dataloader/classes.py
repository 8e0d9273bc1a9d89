"""Which classes there are: one answer, from the training list, that travels in the checkpoint."""

import numpy as np

from dataloader.file_list import FileList, read_class_names
from utils.classes import Classes, difference, names_agree, places
from utils.errors import UserError
from utils.logger import log

MOST_CLASSES = 10_000_000  # more than these are taken for a slip: a classifier of 512 features would hold 20 GB


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
        log.warning(
            f"{empty} of {count} classes have no image in {train.source} (the first: {int(np.argmin(images))})."
        )
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


def number_as(files: FileList, classes: Classes, source: str) -> FileList:
    """Return `files` with labels that mean what they mean in `classes`; `source` says whose those are, such as "the checkpoint".

    The classes.txt beside the list says what its labels mean. Where it numbers the classes otherwise, the labels are
    renumbered by name. Without names on either side, the labels are taken as they are.

    Raises:
        UserError: the list names a class that `classes` does not know, or not clearly; or a label is out of range.
    """
    names = read_class_names(files.source.parent)
    if files.label.max(initial=-1) < 0 or names is None or classes.names is None or names_agree(names, classes.names):
        check_labels(files, classes.count, source)
        return files
    beside = files.source.parent / "classes.txt"
    check_labels(files, len(names), str(beside))
    numbers = places(names, classes.names)
    unknown = np.flatnonzero(numbers < 0)
    if len(unknown):
        raise UserError(
            f"{files.source} is numbered by {beside}, whose classes are not those of {source}: {len(unknown)} of its {len(names)} "
            f"names are unknown to {source}, or not unique (the first: {names[unknown[0]]!r}).\n"
            f"Allowed: a list whose classes.txt names classes of {source}, in any order; or one without classes.txt, "
            "whose labels are then taken as they are."
        )
    moved = int((numbers != np.arange(len(numbers))).sum())
    log.info(
        f"{files.source}: {beside} numbers the classes otherwise than {source}; its labels are matched by name "
        f"({len(names)} of {classes.count} classes, {moved} of them under another number)."
    )
    return files.renumbered(numbers, classes.count)


def check_numbering(files: FileList, classes: Classes, pseudo: bool, numbers: bool) -> None:
    """Look whether the classes.txt beside a list to predict numbers the classes as `classes`, the checkpoint's, do.

    Args:
        pseudo: a training list is to be made of the predictions. numbers: they are to be written as numbers.

    Raises:
        UserError: it does not, and `pseudo`: such a list would join others that mean other classes by its numbers.
    """
    names = read_class_names(files.source.parent)
    if names is None or classes.names is None or names_agree(names, classes.names):
        return
    beside = files.source.parent / "classes.txt"
    text = f"The checkpoint numbers the classes otherwise than {beside}: {difference(classes.names, names, 'classes.txt')}."
    if pseudo:
        raise UserError(
            f"{text} A list of --pseudo_label would not fit the lists there.\n"
            "Give a checkpoint that was trained on lists of this numbering, or leave --pseudo_label out."
        )
    if numbers:
        log.warning(f"{text} The submission has the checkpoint's numbers; --labels name writes names instead.")
