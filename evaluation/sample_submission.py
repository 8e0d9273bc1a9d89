"""Read what a submission must look like from a competition's sample: header, order, ids, and the form of a prediction.

A sample may have millions of rows, so that it is read row by row.
"""

import argparse
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dataloader import check_numbering
from dataloader.file_list import FileList
from evaluation.sample_ids import MAX_NAMED, match, named
from evaluation.sample_table import SampleTable, open_table
from utils.classes import Classes
from utils.errors import UserError
from utils.logger import log

MAX_PROBABILITIES = 1 << 28  # in memory: 1 GB as float32, and as much again while the batches are joined

Kind = Literal["number", "name", "probability"]


@dataclass(frozen=True)
class Sample:
    """A sample submission whose N rows are the N images of a test list.

    Attributes:
        table: the file.
        id_column: the index of the column of ids.
        order: int64 (N,), the image of each row, as an index of the list.
        kind: the number or the name of a class in one column, or a probability per column.
        column_classes: for probabilities, the class of each of `value_columns`.
    """

    table: SampleTable
    id_column: int
    order: NDArray[np.int64] = field(repr=False)
    kind: Kind
    column_classes: tuple[int, ...] = ()

    @property
    def value_columns(self) -> list[int]:
        """Return the indices of the columns to predict."""
        return _others(self.table, self.id_column)

    def rows_to_keep(self) -> NDArray[np.int64] | None:
        """Return the images whose every probability is needed: all, int64 (N,), or None where there is no need."""
        return np.arange(len(self.order)) if self.kind == "probability" else None

    def filled(self, row: list[str], cells: list[str]) -> list[str]:
        """Return a row of the sample with `cells` in the columns to predict."""
        filled = list(row)
        for column, cell in zip(self.value_columns, cells, strict=True):
            filled[column] = cell
        return filled

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the image and the cells of each row."""
        return zip(self.order.tolist(), self.table.rows(), strict=True)


def open_sample(opt: argparse.Namespace, files: FileList, classes: Classes) -> Sample:
    """Return the sample of --like, whose ids are the images of `files`.

    Several columns beside the ids, or one that is named after a class, are probabilities. Else the values of the one
    column decide between names and numbers, unless --labels does.

    Raises:
        UserError: the file cannot be read; ids and images are not one to one; a column or a value names no class, or a
            class has no column; the values do not tell; or there are too many probabilities.
    """
    table = open_table(Path(opt.like))
    if len(table.header) < 2:
        raise UserError(f"--like {table.path} has one column, {table.header[0]!r}; expected ids and predictions.")
    id_column, order = match(table, files)
    columns = _others(table, id_column)
    labels = opt.labels if "labels" in opt.given else None
    joiner = opt.joiner if opt.top_k > 1 else None
    found = _classes_of_columns(table, columns, classes)
    if labels is not None and len(columns) > 1:
        raise UserError(
            f"--labels {labels} and --like {table.path} contradict: the sample has {len(columns)} columns to predict. "
            "Leave --labels out for a probability per class."
        )
    if labels is None and (len(columns) > 1 or (found[0] >= 0 and not _holds_names(table, columns[0], classes))):
        sample = Sample(table, id_column, order, "probability", _all_classes(table, columns, classes, found))
        _check_probabilities(opt, sample, classes)
    else:
        kind = labels or _names_or_numbers(table, columns[0], classes, joiner)
        sample = Sample(table, id_column, order, kind)
    if sample.kind == "number":
        check_numbering(files, classes, pseudo=False, numbers=True)
    what = {"number": "class numbers", "name": "class names", "probability": "probabilities"}[sample.kind]
    log.info(
        f"{table.path}: {len(order):,} rows, ids in column {table.header[id_column]!r}, "
        f"{what} in {named((repr(table.header[k]) for k in columns), len(columns))}."
    )
    return sample


def _others(table: SampleTable, id_column: int) -> list[int]:
    """Return the indices of the columns beside the ids."""
    return [column for column in range(len(table.header)) if column != id_column]


def _check_probabilities(opt: argparse.Namespace, sample: Sample, classes: Classes) -> None:
    """Raise UserError where a probability per class cannot be written as the flags say."""
    size = len(sample.order) * classes.count
    if opt.top_k > 1:
        raise UserError(
            f"--top_k and --like {sample.table.path} contradict: its columns hold probabilities; leave one out."
        )
    if size > MAX_PROBABILITIES:
        raise UserError(
            f"--like {sample.table.path}: {len(sample.order):,} images of {classes.count:,} classes are {size:,} "
            f"probabilities; allowed: {MAX_PROBABILITIES:,}."
        )
    if opt.blend == "rank":
        log.warning(f"{sample.table.path} asks for probabilities; --blend rank gives means of 1/rank instead.")


def _classes_of_columns(table: SampleTable, columns: list[int], classes: Classes) -> NDArray[np.int64]:
    """Return the class that each column to predict is named after, int64; -1 for none."""
    header = [table.header[column] for column in columns]
    numbers = {_comparable(name): label for label, name in enumerate(classes.names or ())}
    if any(_comparable(name) in numbers for name in header):
        return np.array([numbers.get(_comparable(name), -1) for name in header], np.int64)
    return np.array([_number(name.strip(), classes.count) for name in header], np.int64)


def _comparable(name: str) -> str:
    """Return a name in the form that is compared: an accent may be written as one character or as two."""
    return unicodedata.normalize("NFC", name.strip())


def _number(text: str, count: int) -> int:
    """Return the class number that `text` is, below `count`; -1 if it is none."""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) and int(text) < count else -1


def _all_classes(table: SampleTable, columns: list[int], classes: Classes, found: NDArray[np.int64]) -> tuple[int, ...]:
    """Return the classes of the columns. Raises UserError unless each class has one; one of two classes is enough."""
    header = [table.header[column] for column in columns]
    unknown = [name for name, label in zip(header, found.tolist(), strict=True) if label < 0]
    counts = Counter(found[found >= 0].tolist())
    twice = [classes.name(label) for label, count in counts.items() if count > 1]
    absent = [classes.name(label) for label in range(classes.count) if label not in counts]
    problems = []
    if unknown:
        problems.append(f"{len(unknown)} of its columns are named after no class: {named(unknown)}.")
    if twice:
        problems.append(f"{len(twice)} classes have several columns: {named(twice)}.")
    if absent and not (classes.count == 2 and len(header) == 1):
        problems.append(f"{len(absent)} of {classes.count} classes have no column: {named(absent)}.")
    if problems:
        raise UserError(
            f"--like {table.path} does not fit the classes of the checkpoint. "
            + "\n".join(problems)
            + "\nAllowed: ids and one column for the class, or ids and one column per class, named after it."
        )
    return tuple(found.tolist())


def _holds_names(table: SampleTable, column: int, classes: Classes) -> bool:
    """Return whether the first values of a column, as far as there are any, are names of classes."""
    names = {_comparable(name) for name in classes.names or ()}
    values = [_comparable(cells[column]) for cells in table.first_rows()]
    return any(values) and all(value in names for value in values if value)


def _names_or_numbers(table: SampleTable, column: int, classes: Classes, joiner: str | None) -> Kind:
    """Return whether all values of a column are names or numbers of classes. Raises UserError if they do not tell."""
    values = _distinct(table, column, joiner, MAX_NAMED + 2 * classes.count)
    names = {_comparable(name) for name in classes.names or ()}
    strange = [value for value in values if value not in names and _number(value, classes.count) < 0]
    as_names = bool(values) and all(value in names for value in values)
    as_numbers = bool(values) and all(_number(value, classes.count) >= 0 for value in values)
    if as_names and as_numbers and any(_comparable(classes.name(int(value))) != value for value in values):
        reason = f"its values are names of classes as well as numbers ({named(values)})"
    elif as_names or as_numbers:
        return "number" if as_numbers else "name"
    elif not values:
        reason = "it is empty"
    elif strange:
        reason = f"these values are neither names nor numbers of the {classes.count} classes: {named(strange)}"
    else:
        reason = f"some of its values are names, others numbers of classes: {named(values)}"
    raise UserError(
        f"--like {table.path} does not tell what column {table.header[column]!r} holds: {reason}.\n"
        "Try: --labels name, or --labels number; and --top_k K with --joiner for several classes per row"
    )


def _distinct(table: SampleTable, column: int, joiner: str | None, most: int) -> list[str]:
    """Return the different values of a column, without blanks, in order; at most about `most` of them."""
    found: dict[str, None] = {}
    for cells in table.rows():
        for value in [cells[column]] if joiner is None else cells[column].split(joiner):
            if value.strip():
                found[_comparable(value)] = None
        if len(found) > most:
            break
    return list(found)
