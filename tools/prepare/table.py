"""Images listed in a CSV file, with columns for paths and labels, and optionally for the split and for groups."""

import argparse
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from dataloader.classes import max_inferred_classes
from dataloader.listing.class_names import natural_sort, one_form, to_class_ids, warn_of_case
from dataloader.listing.lists import ImageList, Listing, absolute
from dataloader.listing.splits import singleton_group
from tools.prepare.csv_rows import Rows, read_rows
from tools.prepare.label_sets import find_label_sets
from utils.classes import key_of
from utils.errors import UserError
from utils.logger import log
from utils.text import number_in

SPLIT_OF_VALUE = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
MISSING = {"nan", "na", "n/a", "#n/a", "<na>", "null", "none"}  # what programs write for an empty cell, in any case
MAX_CLASSES = 1_000_000  # a larger label is the number of a product, not of a class


def read_csv(opt: argparse.Namespace, given: list[str] | None) -> Listing:
    """Return the images of a CSV file; classes are numbered by the training rows, or by `given`.

    Raises:
        UserError: the file is malformed, or a row lacks a path or a label.
    """
    rows = read_rows(opt)
    parts = _parts(rows, opt)
    for row, path in enumerate(rows.paths):
        if not path:
            raise UserError(
                f"{rows.location(row)} has no path in column {opt.path_column!r}; give one, or delete the line."
            )
        has_label = rows.labels[row] or opt.label_separator is not None or opt.target_columns is not None
        if parts[row] != "test" and not has_label:
            raise _no_label(rows, row, opt)
    if opt.group_column:
        _check_groups(rows, opt.group_column)
    columns: dict[str, Sequence[object]]
    if opt.target_columns is not None:
        names, columns = list(opt.target_columns), {"values": _values(rows, parts)}
    elif opt.label_separator is not None:
        names, sets = _sets(rows, parts, opt, given)
        columns = {"sets": sets}
    else:
        names, numbers = _number(rows, parts, opt, given)
        columns = {"labels": numbers}
    labelled = [row for row, part in enumerate(parts) if part != "test"]
    place = {row: k for k, row in enumerate(labelled)}
    root = str(Path(opt.root if opt.root is not None else rows.file.parent).resolve())
    listing = Listing(names, {})
    for part in dict.fromkeys(sorted(parts, key=("train", "val", "test").index)):
        members = [row for row, other in enumerate(parts) if other == part]
        paths = [absolute(rows.paths[row], root) for row in members]
        groups = [_group(rows, row) for row in members] if opt.group_column else None
        listing.lists[part] = ImageList(paths, None, groups)
        for name, column in columns.items() if part != "test" else ():
            setattr(listing.lists[part], name, [column[place[row]] for row in members])
    return listing


def _no_label(rows: Rows, row: int, opt: argparse.Namespace) -> UserError:
    """Return the error for a row without a label, which may be one of several labels per image, or of none."""
    sets = find_label_sets(filter(None, rows.labels))
    if sets is None:
        advice = "If an image may have several labels, or none, try: --label_separator SIGN, for --task multilabel"
    else:
        advice = f"Cells such as {sets.example!r} seem to hold several labels; then a cell may be empty.\n{sets.advice}"
    return UserError(
        f"{rows.location(row)} has no label in column {opt.label_column!r}; give one, or delete the line.\n{advice}"
    )


def _check_groups(rows: Rows, column: str) -> None:
    """Warn of groups whose names may mean that there is none, or that are equal but for case."""
    effect = "the images of one such name are one group. Where the group is unknown, leave the cell empty"
    _warn_of_missing(rows, column, enumerate(rows.groups), f"{effect}: that image is then a group of its own")
    warn_of_case({key_of(group) for group in rows.groups}, f"group(s) of column {column!r}", "groups")


def _warn_of_missing(rows: Rows, column: str, cells: Iterable[tuple[int, str]], effect: str) -> None:
    """Warn of values that often stand for a missing one.

    Args:
        cells: the row of each value, and the value.
        effect: what becomes of them, and what to do.
    """
    found = [(row, text) for row, text in cells if text.casefold() in MISSING]
    if found:
        shown = ", ".join(repr(text) for text in sorted({text for _, text in found}))
        log.warning(
            f"{len(found)} value(s) of column {column!r} are {shown}, which often means that there is none (the first: "
            f"{rows.location(found[0][0])}); {effect}."
        )


def _group(rows: Rows, row: int) -> str:
    """Return the key of the group of a row."""
    return f"={key_of(rows.groups[row])}" if rows.groups[row] else singleton_group(rows.paths[row])


def _parts(rows: Rows, opt: argparse.Namespace) -> list[str]:
    """Return the list that each row belongs to: "train", "val" or "test"."""
    if opt.split_column is None:
        return [opt.part] * len(rows.paths)
    for row, value in enumerate(rows.splits):
        if value.lower() not in SPLIT_OF_VALUE:
            allowed = ", ".join(SPLIT_OF_VALUE)
            raise UserError(
                f"{rows.location(row)}: the split is {value!r}; allowed in column {opt.split_column!r}: {allowed}."
            )
    return [SPLIT_OF_VALUE[value.lower()] for value in rows.splits]


def _number(
    rows: Rows, parts: list[str], opt: argparse.Namespace, given: list[str] | None
) -> tuple[list[str], list[int]]:
    """Return the class names, and the class number of each row that is not in the test list."""
    labelled = [row for row, part in enumerate(parts) if part != "test"]
    labels = [rows.labels[row] for row in labelled]
    if opt.keep_labels:
        return _kept(rows, labelled, labels, given)
    training = [rows.labels[row] for row in labelled if parts[row] == "train"]
    if labelled and not training and given is None:
        raise UserError(f"{rows.file} has no training row to number the classes by. Name them with --classes FILE.")
    names = given or natural_sort(one_form(training))
    origin = "--classes" if given else "the training rows"
    if not given:
        effect = "each such name becomes a class. If the label is missing, delete the line"
        _warn_of_missing(rows, opt.label_column, zip(labelled, labels, strict=True), effect)
    sets = None if given else find_label_sets(training)
    if sets is not None:
        log.warning(
            f"{rows.file}: cells of column {opt.label_column!r} such as {sets.example!r} seem to hold several labels, "
            f"and each combination becomes a class of its own, {len(names)} in all. {sets.advice}"
        )
    numbers = [number for name in names if (number := number_in(name)) is not None]
    numeric = len(numbers) == len(names) and not all(map(str.isdecimal, names))
    fractions = any(number != number.to_integral_value() for number in numbers)  # 3.5 counts or measures something
    if numeric and (2 * len(names) > len(training) > 1 or fractions):
        log.warning(
            f"{rows.file}: column {opt.label_column!r} has {len(names)} different numbers in {len(training)} rows, and "
            f"each becomes a class. Try: --target_columns {opt.label_column}, to predict the number"
        )
    return names, to_class_ids(labels, names, lambda k: rows.location(labelled[k]), origin)


def _sets(
    rows: Rows, parts: list[str], opt: argparse.Namespace, given: list[str] | None
) -> tuple[list[str], list[list[int]]]:
    """Return the names of the labels, and the labels of each row that is not in the test list, ascending."""
    labelled = [row for row, part in enumerate(parts) if part != "test"]
    split = {row: [text.strip() for text in rows.labels[row].split(opt.label_separator)] for row in labelled}
    split = {row: [text for text in texts if text] for row, texts in split.items()}
    names = given or natural_sort(one_form(text for row in labelled if parts[row] == "train" for text in split[row]))
    if not names:
        raise UserError(f"{rows.file} has no training row with a label in column {opt.label_column!r}.")
    origin = "--classes" if given else "the training rows"
    if not given:
        effect = "each such name becomes a label. If an image has no label, leave the cell empty"
        cells = ((row, text) for row in labelled for text in split[row])
        _warn_of_missing(rows, opt.label_column, cells, effect)
    if all(len(texts) <= 1 for texts in split.values()):
        log.warning(
            f"{rows.file}: no row has two labels with --label_separator {opt.label_separator!r} between them; one cell "
            f"of column {opt.label_column!r} is {next(filter(None, (rows.labels[row] for row in labelled)), '')!r}."
        )
    sets = []
    for row in labelled:
        numbers = to_class_ids(split[row], names, lambda _, row=row: rows.location(row), origin)  # type: ignore[misc]
        if len(set(numbers)) < len(numbers):
            raise UserError(f"{rows.location(row)} has a label twice: {rows.labels[row]!r}. Give each label once.")
        sets.append(sorted(numbers))
    return names, sets


def _values(rows: Rows, parts: list[str]) -> list[list[float]]:
    """Return the numbers of each row that is not in the test list."""
    found = []
    for row, part in enumerate(parts):
        if part == "test":
            continue
        values = []
        for text in rows.targets[row]:
            try:
                values.append(float(text))
            except ValueError:
                values.append(math.nan)
            if not math.isfinite(values[-1]):
                raise UserError(f"{rows.location(row)}: {text!r} is no finite number, which --target_columns asks for.")
        found.append(values)
    return found


def _kept(rows: Rows, labelled: list[int], labels: list[str], given: list[str] | None) -> tuple[list[str], list[int]]:
    """Return class names and numbers under --keep_labels: labels are numbers; names are `given`, else the numbers."""
    allowed = len(given) if given else min(MAX_CLASSES, max_inferred_classes(len(labels)))
    for row, label in zip(labelled, labels, strict=True):
        if not re.fullmatch(r"[0-9]{1,9}", label) or int(label) >= allowed:
            sets = find_label_sets(labels)
            raise UserError(
                f"{rows.location(row)}: the label is {label!r}; "
                f"allowed with --keep_labels: a whole number from 0 to {allowed - 1}. "
                "Without --keep_labels, labels are names and get numbers."
                + ("" if given else " To allow larger ones, name the classes: --classes FILE.")
                + (f"\nCells such as {sets.example!r} seem to hold several labels. {sets.advice}" if sets else "")
            )
    numbers = [int(label) for label in labels]
    names = given or [str(k) for k in range(max(numbers, default=-1) + 1)]
    missing = sorted(set(range(len(names))) - set(numbers)) if numbers else []
    if missing:
        log.warning(
            f"{len(missing)} of {len(names)} labels have no image (the first: {missing[0]}); "
            "--keep_labels keeps the gaps."
        )
    return names, numbers
