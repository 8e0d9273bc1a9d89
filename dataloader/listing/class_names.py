"""The names of classes in a list's source: in which order, whether they can be written, and the number of each."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from dataloader.file_list import check_class_names, read_lines
from utils.classes import key_of
from utils.errors import UserError, unknown_name
from utils.logger import log
from utils.text import number_in


def natural_sort(labels: Iterable[str]) -> list[str]:
    """Return the distinct labels, sorted by value if all are numbers (-1, 2, 2.5, 10), else as text.

    Labels that are one number in two spellings, such as 1 and 1.0, stay two classes, with a warning. So do those that
    differ in case.
    """
    labels = set(labels)
    warn_of_case(labels, "label(s)", "classes")
    numbers = {label: number_in(label) for label in labels}
    found = [(number, label) for label, number in numbers.items() if number is not None]
    if len(found) < len(numbers):
        return sorted(numbers)
    found.sort()
    for (number, label), (following, other) in itertools.pairwise(found):
        if number == following:
            log.warning(f"The labels {label!r} and {other!r} are one number and two classes.")
            break
    return [label for _, label in found]


def warn_of_case(names: Iterable[str], noun: str, effect: str) -> None:
    """Warn where names are equal but for case, such as Cat and cat; `effect`: what each of them remains."""
    forms: dict[str, set[str]] = {}
    for name in names:
        forms.setdefault(key_of(name).casefold(), set()).add(name)
    several = sorted(sorted(found) for found in forms.values() if len(found) > 1)
    if several:
        shown = " and ".join(map(repr, several[0]))
        log.warning(
            f"{len(several)} {noun} are written with upper and lower case, the first: {shown}. They stay different "
            f"{effect}."
        )


def one_form(labels: Iterable[str]) -> set[str]:
    """Return the distinct labels; in NFC and with a warning where one is written in several Unicode forms."""
    forms: dict[str, set[str]] = {}
    for label in labels:
        forms.setdefault(key_of(label), set()).add(label)
    several = sorted(key for key, found in forms.items() if len(found) > 1)
    if several:
        log.warning(
            f"{len(several)} label(s) are written in several Unicode forms (NFC, NFD), the first: {several[0]!r}. "
            "They look alike, and each counts as one."
        )
    return {key if len(found) > 1 else found.pop() for key, found in forms.items()}


def read_classes(path: Path) -> list[str]:
    """Return the names of a classes.txt: line k, from 0, is class k.

    Raises:
        UserError: the file cannot be read, is not UTF-8, or has no name, a blank one, or one twice.
    """
    names = read_lines(path)
    check_class_names(path, names)
    if not names:
        raise UserError(f"{path} holds no name; expected one name per line.")
    return names


def check_names(names: Sequence[str]) -> None:
    """Raise UserError for a class name that cannot be a line of classes.txt, or that two classes share."""
    counts = Counter(map(key_of, names))
    for name in names:
        count = counts[key_of(name)]
        if count > 1:
            raise UserError(
                f"The name {name!r} is there {count} times; classes.txt has each name once. Rename all but one."
            )
        if name.splitlines() != [name] or not name.strip():
            raise UserError(
                f"The name {name!r} is blank or holds a line break; classes.txt has one name per line. Rename it."
            )
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"The name {name!r} is not UTF-8; classes.txt is. Rename it.") from None


def to_class_ids(labels: Sequence[str], names: Sequence[str], where: Callable[[int], str], origin: str) -> list[int]:
    """Return the index in `names` of each label, whatever the Unicode form of either.

    Args:
        where: returns the place of label k, for messages.
        origin: where the names come from, for messages.

    Raises:
        UserError: a label is not a class; the message gives its place and the nearest names.
    """
    numbers = {key_of(name): k for k, name in enumerate(names)}
    keys = list(map(key_of, labels))
    try:
        return [numbers[key] for key in keys]
    except KeyError:
        unknown = [k for k, key in enumerate(keys) if key not in numbers]
    message = unknown_name("class", labels[unknown[0]], names)
    raise UserError(
        f"{where(unknown[0])}: {message}\n"
        f"The classes are those of {origin}; {len(unknown)} label(s) are none of them. "
        "Correct the labels, leave these images out, or give other classes with --classes FILE."
    )
