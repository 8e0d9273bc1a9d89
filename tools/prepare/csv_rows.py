"""Reads the columns of a CSV file that the options name, and refuses a file whose quotation marks swallow rows."""

import argparse
import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path

from dataloader.list_advice import prepare_command
from options.wording import count_of
from utils import tables
from utils.errors import UserError, unknown_name
from utils.logger import log

DELIMITERS = ",;\t|"
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


def read_rows(opt: argparse.Namespace) -> Rows:
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
                    f"{file}, line {reader.line_num} has {count_of(len(fields), 'field')}, the header {len(header)} "
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
    count = count_of(f"{len(rows.paths):,}", "row")
    log.info(f"{os.fspath(file)}: {count}, delimiter {delimiter!r}, columns {', '.join(header)}")
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
