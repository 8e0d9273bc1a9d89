"""What tools.doctor found about the images of one list: which of its copies and leaks to drop, and which to look at."""

import csv
import os
from pathlib import Path
from typing import NamedTuple

from dataloader.file_list import FileList
from utils import tables
from utils.errors import UserError
from utils.logger import log

COLUMNS = ("list", "line", "path", "problem", "detail", "partner_list", "partner_line", "partner_path")
COPIES = ("duplicate", "near_duplicate")  # the later image is dropped
LEAKS = ("leak", "near_leak")  # the image of the list that is cleaned is dropped
CONFLICTS = ("conflicting_labels", "near_conflict")  # nothing tells which label is right


class Copies(NamedTuple):
    """Images by their index in the list: those to drop and those to look at, with the finding about each."""

    drop: dict[int, str]
    look: dict[int, str]


def read_copies(path: Path, files: FileList) -> Copies:
    """Return what a doctor.csv says about copies and leaks of `files`.

    Raises:
        UserError: the file cannot be read, or is of an earlier version; or the list has changed since.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            reader = tables.dict_reader(file)
            if not set(COLUMNS) <= set(reader.fieldnames or []):
                raise UserError(
                    f"{path} has the columns {reader.fieldnames}; needed: {', '.join(COLUMNS)}.\n"
                    f"Write it again: python -m tools.doctor {files.source}"
                )
            rows = list(reader)
    except csv.Error as error:
        raise UserError(f"--doctor {path}, line {reader.reader.line_num} is not CSV: {error}.") from error
    except OSError as error:
        raise UserError(f"--doctor {path} cannot be read: {error.strerror}.") from error
    place_of = {int(line): index for index, line in enumerate(files.line.tolist())}
    here = os.path.realpath(files.source)
    lists = {name: os.path.realpath(name) for row in rows for name in (row["list"], row["partner_list"]) if name}
    if rows and here not in lists.values():
        log.warning(f"{path} has no finding about {files.source}, only about {', '.join(sorted(lists))}.")
    found = Copies({}, {})
    for row in rows:
        problem, ends = row["problem"], [("", "")]
        if problem in COPIES:
            ends = [(row["list"], "")]
        elif problem in LEAKS + CONFLICTS:
            ends = [(row["list"], ""), (row["partner_list"], "partner_")]
        for name, end in ends:
            if name and lists[name] == here:
                index = _index(path, row, end, files, place_of)
                (found.look if problem in CONFLICTS else found.drop).setdefault(index, _reason(row, end))
    return found


def _index(path: Path, row: dict[str, str], end: str, files: FileList, place_of: dict[int, int]) -> int:
    """Return the index of the image that a row, or its partner, is about. Raises UserError if it is not there now."""
    line, name = row[f"{end}line"], row[f"{end}path"]
    index = place_of.get(int(line) if line.isdecimal() else -1)
    if index is None or not files.is_path(index, name):
        raise UserError(
            f"{path}: line {line} of {files.source} is no longer {name}. The list has changed since.\n"
            f"Check it again: python -m tools.doctor {files.source}"
        )
    return index


def _reason(row: dict[str, str], end: str) -> str:
    """Return the finding in words, seen from the row's image, or from its partner."""
    other = (row["list"], row["line"], row["path"]) if end else tuple(row[f"partner_{key}"] for key in COLUMNS[:3])
    return f"{row['problem']}: {Path(other[0]).name}, line {other[1]}: {other[2]}"
