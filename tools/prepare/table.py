"""Images listed in a CSV file, with columns for paths and labels, and optionally for the split and for groups."""

import argparse
import csv
import io
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dataloader.classes import max_inferred_classes
from dataloader.list_advice import prepare_command
from dataloader.listing.lists import ImageList, Listing, absolute, natural_sort, one_form, to_class_ids
from dataloader.listing.splits import singleton_group
from tools.prepare.label_sets import find_label_sets
from utils import tables
from utils.classes import key_of
from utils.errors import UserError, unknown_name
from utils.logger import log
from utils.text import number_in

DELIMITERS = ",;\t|"
SPLIT_OF_VALUE = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
PATH_COLUMNS = (
    "path",
    "image_path",
    "image_file",
    "filepath",
    "file_path",
    "image",
    "img",
    "file",
    "filename",
    "file_name",
    "image_name",
    "image_id",
    "id",
)
LABEL_COLUMNS = (
    "label",
    "class",
    "category",
    "target",
    "class_name",
    "category_name",
    "label_name",
    "class_id",
    "category_id",
    "y",
)
MAX_SHOWN = 80  # characters of a line in a message
MAX_CLASSES = 1_000_000  # a larger label is the number of a product, not of a class


@dataclass
class Rows:
    """The requested columns, stripped; `lines` are line numbers in the file."""

    file: Path
    lines: list[int]
    paths: list[str]
    labels: list[str]
    targets: list[list[str]]
    splits: list[str]
    groups: list[str]

    def location(self, row: int) -> str:
        """Return file and line of a row for messages, such as "photos.csv, line 17"."""
        return f"{self.file}, line {self.lines[row]}"


def read_csv(opt: argparse.Namespace, given: list[str] | None) -> Listing:
    """Return the images of a CSV file; classes are numbered by the training rows, or by `given`.

    Raises:
        UserError: the file is malformed, or a row lacks a path or a label.
    """
    rows = _read_rows(opt)
    parts = _parts(rows, opt)
    for row, path in enumerate(rows.paths):
        if not path:
            raise UserError(
                f"{rows.location(row)} has no path in column {opt.path_column!r}; give one, or delete the line."
            )
        has_label = rows.labels[row] or opt.label_separator is not None or opt.target_columns is not None
        if parts[row] != "test" and not has_label:
            raise _no_label(rows, row, opt)
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


# ------------------------------------------------------------------------------------------------ reading


def _read_rows(opt: argparse.Namespace) -> Rows:
    """Read the columns that the options name.

    Raises:
        UserError: the file cannot be read or is not UTF-8, a column is missing, there are no rows, or a row does not
            have as many fields as the header.
    """
    file = Path(opt.file)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: {error}. Save it as UTF-8 (spreadsheets: `CSV UTF-8`).") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; expected a CSV file with a header.") from error
    wanted = {
        "paths": opt.path_column,
        "labels": opt.label_column,
        "splits": opt.split_column,
        "groups": opt.group_column,
    }
    columns = [*(name for name in wanted.values() if name is not None), *(opt.target_columns or ())]
    delimiter = _delimiter(text, columns, opt.delimiter)
    lines = io.StringIO(text, newline="").readlines()
    reader = tables.Reader(lines, delimiter, skip_spaces=True)
    rows = Rows(file, [], [], [], [], [], [])
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_columns(opt, header)
        at = {name: _column(file, header, name) for name in columns}
        swallowed = Swallowed(file, lines, delimiter, header, at[opt.path_column])
        swallowed.check_header(reader.end)
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(header):
                raise UserError(
                    f"{file}, line {reader.line_num} has {len(fields)} fields, the header {len(header)} "
                    f"(delimiter {delimiter!r}); a value that holds the delimiter needs double quotes."
                )
            swallowed.check(reader.line_num, reader.end, fields)
            rows.lines.append(reader.line_num)
            for name, column in wanted.items():
                getattr(rows, name).append(fields[at[column]].strip() if column is not None else "")
            rows.targets.append([fields[at[column]].strip() for column in opt.target_columns or ()])
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num} is not CSV: {error}.") from error
    if not rows.paths:
        raise UserError(f"{file} has no row below its header; expected one image per row.")
    swallowed.report()
    log.info(f"{os.fspath(file)}: {len(rows.paths):,} rows, delimiter {delimiter!r}, columns {', '.join(header)}")
    return rows


class Swallowed:
    """Find lines that a quoted field holds although they look like rows: quotation marks that are lost or too many.

    A description of several lines is fine. A line that has as many fields as the header, and a path with the ending of
    the row's own, is no description: the file is refused. Paths without ending prove less, so they cause a warning.
    """

    def __init__(self, file: Path, lines: list[str], delimiter: str, header: list[str], path_column: int) -> None:
        self.file, self.lines, self.delimiter = file, lines, delimiter
        self.count, self.path_column = len(header), path_column
        self.suspect: list[int] = []

    def check_header(self, end: int) -> None:
        """Raise UserError where the header, which ends in line `end`, holds lines that look like rows."""
        whole = [line for line in range(1, end + 1) if len(self._fields(line)) == self.count]
        if end > 1 and len(whole) == end:
            raise self._error(1, end, 2)

    def check(self, begin: int, end: int, fields: list[str]) -> None:
        """Raise UserError where the row of lines `begin` to `end` holds another one, or note that it might."""
        if begin == end:
            return
        whole = [line for line in range(begin + 1, end + 1) if len(self._fields(line)) == self.count]
        own = _ending(fields[self.path_column])
        for line in whole:
            if own and _ending(self._fields(line)[self.path_column]) == own:
                raise self._error(begin, end, line)
        if not own and len(whole) == end - begin:
            self.suspect.append(begin)

    def report(self) -> None:
        """Warn of the rows that may hold others."""
        if self.suspect:
            log.warning(
                f"{self.file}: {len(self.suspect)} row(s) have a quoted field of several lines, each of which could be "
                f"a row; the first is in line {self.suspect[0]}. "
                "They count as one row each. If that is wrong, a quotation mark is missing, or one is too many."
            )

    def _fields(self, line: int) -> list[str]:
        """Return the fields of a line that is read as if quotation marks were text."""
        text = self.lines[line - 1].rstrip("\r\n")
        return text.split(self.delimiter)

    def _error(self, begin: int, end: int, line: int) -> UserError:
        return UserError(
            f"{self.file}, line {begin}: a quoted field goes on to line {end}, and line {line} looks like a row: "
            f"{self.lines[line - 1].strip()[:MAX_SHOWN]!r}.\nA quotation mark is missing or too many. "
            'Close the field in its line; within a quoted field, a mark is written twice ("").'
        )


def _ending(path: str) -> str:
    return Path(path.strip()).suffix.lower()


def _check_columns(opt: argparse.Namespace, header: list[str]) -> None:
    """Raise UserError where the flag for the path or the label column is missing; list the columns that exist."""
    flags = ["path_column"] + ["label_column"] * (opt.part != "test" and opt.target_columns is None)
    missing = [f"--{flag}" for flag in flags if getattr(opt, flag) is None]
    if not missing:
        return
    if not any(header):
        raise UserError(f"{opt.file} has no header: the first line must name the columns.")
    rest = [name for name in header if name not in (opt.path_column, opt.label_column)]
    path = opt.path_column or _likely(rest, PATH_COLUMNS) or (rest or header)[0]
    label = opt.label_column or _likely([name for name in rest if name != path], LABEL_COLUMNS) or header[-1]
    words = ["csv", opt.file, "--path_column", path]
    words += ["--label_column", label] if opt.part != "test" else ["--part", "test"]
    for name in ("root", "out"):
        if getattr(opt, name) is not None:
            words += [f"--{name}", getattr(opt, name)]
    raise UserError(
        f"{' and '.join(missing)} missing; {opt.file} has the columns {', '.join(header)}. "
        "Without labels, --part test makes test.txt.\n"
        f"Try: {prepare_command(*words)}"
    )


def _likely(header: list[str], usual: tuple[str, ...]) -> str | None:
    """Return the first of the `usual` names that is in `header`, in the spelling of the header."""
    spelled = {name.lower().replace(" ", "_"): name for name in reversed(header)}
    return next((spelled[name] for name in usual if name in spelled), None)


def _delimiter(text: str, columns: list[str], given: str | None) -> str:
    """Return the given delimiter, else the one that finds most of `columns`, then most columns, in the first line."""
    if given is not None:
        return {"tab": "\t", "\\t": "\t"}.get(given, given)
    first = next((line for line in text.splitlines() if line.strip()), "")

    def score(delimiter: str) -> tuple[int, int]:
        try:
            fields = next(csv.reader([first], delimiter=delimiter, skipinitialspace=True), [])
        except csv.Error:
            return 0, 0
        header = [field.strip() for field in fields]
        return sum(name in header for name in columns), len(header)

    return max(DELIMITERS, key=score)


def _column(file: Path, header: list[str], name: str) -> int:
    """Return the index of a column. Raises UserError where it is missing, or occurs twice."""
    if header.count(name) > 1:
        raise UserError(f"{file}: {header.count(name)} columns are called {name!r}; expected one. Rename the others.")
    if name not in header:
        raise UserError(
            f"{file}: {unknown_name('column', name, header)} The first line must be the header: the columns' names."
        )
    return header.index(name)
