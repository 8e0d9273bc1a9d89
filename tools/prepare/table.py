"""Images listed in a CSV file: a column with paths, one with labels, perhaps one with the split and one with the group."""

import argparse
import csv
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

from dataloader.list_advice import prepare_command
from tools.prepare.lists import Found, Part, absolute, in_order, number
from tools.prepare.splits import own
from utils.errors import UserError, unknown_name
from utils.logger import log

DELIMITERS = ",;\t|"
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
PATHS = (
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
LABELS = (
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
MOST_CLASSES = 1_000_000  # a label above is no class number but a product's


@dataclass
class Rows:
    """The columns that were asked for, stripped; `lines` are line numbers in the file."""

    file: Path
    lines: list[int]
    paths: list[str]
    labels: list[str]
    splits: list[str]
    groups: list[str]

    def where(self, row: int) -> str:
        """ "photos.csv, line 17"."""
        return f"{self.file}, line {self.lines[row]}"


def read_csv(opt: argparse.Namespace, given: list[str] | None) -> Found:
    """The images of a CSV file; classes are numbered by the training rows, or by `given`."""
    rows = _read_rows(opt)
    parts = _parts(rows, opt)
    for row, path in enumerate(rows.paths):
        if not path:
            raise UserError(
                f"{rows.where(row)} has no path in column {opt.path_column!r}; give one, or delete the line."
            )
        if parts[row] != "test" and not rows.labels[row]:
            raise UserError(
                f"{rows.where(row)} has no label in column {opt.label_column!r}; give one, or delete the line."
            )
    labelled = [row for row, part in enumerate(parts) if part != "test"]
    names, numbers = _number(rows, parts, opt, given)
    number_of = dict(zip(labelled, numbers, strict=True))
    root = str(Path(opt.root if opt.root is not None else rows.file.parent).resolve())
    found = Found(names, {})
    for part in dict.fromkeys(sorted(parts, key=("train", "val", "test").index)):
        members = [row for row, other in enumerate(parts) if other == part]
        paths = [absolute(rows.paths[row], root) for row in members]
        groups = (
            [f"={rows.groups[row]}" if rows.groups[row] else own(rows.paths[row]) for row in members]
            if opt.group_column
            else None
        )
        found.parts[part] = Part(paths, None if part == "test" else [number_of[row] for row in members], groups)
    return found


def _parts(rows: Rows, opt: argparse.Namespace) -> list[str]:
    """The list that each row belongs to."""
    if opt.split_column is None:
        return [opt.part] * len(rows.paths)
    for row, value in enumerate(rows.splits):
        if value.lower() not in SPLITS:
            raise UserError(
                f"{rows.where(row)}: the split is {value!r}; allowed in column {opt.split_column!r}: {', '.join(SPLITS)}."
            )
    return [SPLITS[value.lower()] for value in rows.splits]


def _number(
    rows: Rows, parts: list[str], opt: argparse.Namespace, given: list[str] | None
) -> tuple[list[str], list[int]]:
    """Class names, and the class number of each row that is not of the test list."""
    labelled = [row for row, part in enumerate(parts) if part != "test"]
    labels = [rows.labels[row] for row in labelled]
    if opt.keep_labels:
        return _kept(rows, labelled, labels, given)
    training = [rows.labels[row] for row in labelled if parts[row] == "train"]
    if labelled and not training and given is None:
        raise UserError(
            f"{rows.file} has no training row, so that nothing numbers the classes. Name them with --classes FILE."
        )
    names = given or in_order(training)
    origin = "--classes" if given else "the training rows"
    return names, number(labels, names, lambda k: f"{rows.where(labelled[k])}", origin)


def _kept(rows: Rows, labelled: list[int], labels: list[str], given: list[str] | None) -> tuple[list[str], list[int]]:
    """--keep_labels: labels are class numbers already. Their names are `given`, else the numbers themselves."""
    allowed = len(given) if given else MOST_CLASSES
    for row, label in zip(labelled, labels, strict=True):
        if not re.fullmatch(r"[0-9]{1,9}", label) or int(label) >= allowed:
            raise UserError(
                f"{rows.where(row)}: the label is {label!r}; allowed with --keep_labels: a whole number from 0 to {allowed - 1}. "
                "Without --keep_labels, labels are names and get numbers."
            )
    numbers = [int(label) for label in labels]
    names = given or [str(k) for k in range(max(numbers, default=-1) + 1)]
    missing = sorted(set(range(len(names))) - set(numbers)) if numbers else []
    if missing:
        log.warning(
            f"{len(missing)} of {len(names)} labels have no image (the first: {missing[0]}); --keep_labels leaves the gaps."
        )
    return names, numbers


# ------------------------------------------------------------------------------------------------ reading


def _read_rows(opt: argparse.Namespace) -> Rows:
    """Read the columns that the options name.

    Raises:
        UserError: no such file or column, no rows, a row with more or fewer fields than the header, text that is no UTF-8.
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
    columns = [name for name in wanted.values() if name is not None]
    delimiter = _delimiter(text, columns, opt.delimiter)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    rows = Rows(file, [], [], [], [], [])
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_columns(opt, header)
        at = {name: _column(file, header, name) for name in columns}
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(header):
                raise UserError(
                    f"{file}, line {reader.line_num} has {len(fields)} fields, the header {len(header)} (delimiter {delimiter!r}); "
                    f"a value that holds the delimiter stands in double quotes."
                )
            rows.lines.append(reader.line_num)
            for name, column in wanted.items():
                getattr(rows, name).append(fields[at[column]].strip() if column is not None else "")
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num} is no CSV: {error}.") from error
    if not rows.paths:
        raise UserError(f"{file} has no row below its header; expected an image a row.")
    log.info(f"{os.fspath(file)}: {len(rows.paths):,} rows, delimiter {delimiter!r}, columns {', '.join(header)}")
    return rows


def _check_columns(opt: argparse.Namespace, header: list[str]) -> None:
    """Raise UserError where a flag does not say which column holds the paths, or the labels; name the columns that there are."""
    flags = ["path_column"] + ["label_column"] * (opt.part != "test")
    missing = [f"--{flag}" for flag in flags if getattr(opt, flag) is None]
    if not missing:
        return
    if not any(header):
        raise UserError(f"{opt.file} has no header: the first line must name the columns.")
    rest = [name for name in header if name not in (opt.path_column, opt.label_column)]
    path = opt.path_column or _likely(rest, PATHS) or (rest or header)[0]
    label = opt.label_column or _likely([name for name in rest if name != path], LABELS) or header[-1]
    words = ["csv", opt.file, "--path_column", path]
    words += ["--label_column", label] if opt.part != "test" else ["--part", "test"]
    words += [
        word for name in ("root", "out") if getattr(opt, name) is not None for word in (f"--{name}", getattr(opt, name))
    ]
    raise UserError(
        f"{' and '.join(missing)} missing; {opt.file} has the columns {', '.join(header)}. Without labels, --part test makes test.txt.\n"
        f"Try: {prepare_command(*words)}"
    )


def _likely(header: list[str], usual: tuple[str, ...]) -> str | None:
    """The first of the `usual` names that is in `header`, in its spelling there."""
    spelled = {name.lower().replace(" ", "_"): name for name in reversed(header)}
    return next((spelled[name] for name in usual if name in spelled), None)


def _delimiter(text: str, columns: list[str], given: str | None) -> str:
    """The delimiter that is given, else the one under which the first line holds most of `columns`, then most columns."""
    if given is not None:
        return {"tab": "\t", "\\t": "\t"}.get(given, given)
    first = next((line for line in text.splitlines() if line.strip()), "")

    def score(delimiter: str) -> tuple[int, int]:
        try:
            header = [
                name.strip() for name in next(csv.reader([first], delimiter=delimiter, skipinitialspace=True), [])
            ]
        except csv.Error:
            return 0, 0
        return sum(name in header for name in columns), len(header)

    return max(DELIMITERS, key=score)


def _column(file: Path, header: list[str], name: str) -> int:
    if header.count(name) > 1:
        raise UserError(f"{file}: {header.count(name)} columns are called {name!r}; expected one. Rename the others.")
    if name not in header:
        raise UserError(
            f"{file}: {unknown_name('column', name, header)} The first line must be the header: the columns' names."
        )
    return header.index(name)
