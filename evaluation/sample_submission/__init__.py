"""Read what a submission must look like from a competition's sample: header, order, ids, and the form of a prediction.

A sample may have millions of rows, so it is read row by row.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dataloader import check_numbering
from dataloader.file_list import FileList
from evaluation.sample_submission.columns import (
    all_classes,
    class_number,
    classes_of_columns,
    columns_beside,
    comparable,
    distinct_values,
    encoding_advice,
    has_complement,
    warn_of_placeholders,
)
from evaluation.sample_submission.ids import MAX_NAMED, match, named
from evaluation.sample_submission.table import SampleTable, open_table
from evaluation.sample_submission.targets import TargetForm, find_form
from utils.classes import Classes
from utils.errors import UserError
from utils.logger import log
from utils.task import has_probabilities
from utils.text import number_in

MAX_PROBABILITIES = 1 << 28  # 1 GB as float32, and as much again while the batches are joined.

NOUNS = ("class", "classes")

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
        targets: how it has several labels per image, or numbers; None: one class per image, which the attributes above
            describe.
    """

    table: SampleTable
    id_column: int
    order: NDArray[np.int64] = field(repr=False)
    kind: Kind
    column_classes: tuple[int, ...] = ()
    targets: TargetForm | None = None

    @property
    def value_columns(self) -> list[int]:
        """Return the indices of the columns to predict."""
        return columns_beside(self.table, self.id_column)

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
    column decide between names and numbers, unless --labels does. See targets.py for labels and numbers.

    Raises:
        UserError: the file cannot be read; ids and images are not one to one; a column or a value names no class, or a
            class has no column; the values are ambiguous; or there are too many probabilities.
    """
    table = open_table(Path(opt.like))
    if len(table.header) < 2:
        raise UserError(f"--like {table.path} has one column, {table.header[0]!r}; expected ids and predictions.")
    id_column, order = match(table, files)
    columns = columns_beside(table, id_column)
    if has_probabilities(classes.task):
        sample = _class_sample(opt, table, id_column, order, classes)
        what = {"number": "class numbers", "name": "class names", "probability": "probabilities"}[sample.kind]
    else:
        form = find_form(opt, table, columns, classes)
        kind: Kind = "number" if form.kind == "number" else "name"
        sample, what = Sample(table, id_column, order, kind, targets=form), form.describe()
    if sample.kind == "number":
        check_numbering(files.source.parent, classes, pseudo=False, numbers=True)
    log.info(
        f"{table.path}: {len(order):,} rows, ids in column {table.header[id_column]!r}, "
        f"{what} in {named((repr(table.header[k]) for k in columns), len(columns))}."
    )
    return sample


def _class_sample(
    opt: argparse.Namespace, table: SampleTable, id_column: int, order: NDArray[np.int64], classes: Classes
) -> Sample:
    """Return the sample of a submission with one class per image."""
    columns = columns_beside(table, id_column)
    labels = opt.labels if "labels" in opt.given else None
    joiner = opt.joiner if opt.top_k > 1 else None
    found = classes_of_columns(table, columns, classes)
    if labels is not None and len(columns) > 1:
        raise UserError(
            f"--labels {labels} and --like {table.path} contradict: the sample has {len(columns)} columns to predict. "
            "Leave --labels out for a probability per class."
        )
    if labels is None and (len(columns) > 1 or (found[0] >= 0 and not _holds_names(table, columns[0], classes))):
        sample = Sample(table, id_column, order, "probability", all_classes(table, columns, classes, found, NOUNS))
        _check_probabilities(opt, sample, classes)
    else:
        kind = labels or _names_or_numbers(table, columns[0], classes, joiner)
        if labels is not None:
            warn_of_placeholders(table, columns[0], classes, labels, joiner)
        sample = Sample(table, id_column, order, kind)
    return sample


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


def _holds_names(table: SampleTable, column: int, classes: Classes) -> bool:
    """Return whether the first values of a column, as far as there are any, are names of classes."""
    names = {comparable(name) for name in classes.names or ()}
    values = [comparable(cells[column]) for cells in table.first_rows()]
    return any(values) and all(value in names for value in values if value)


def _is_share(text: str) -> bool:
    """Return whether `text` is a number from 0 to 1."""
    number = number_in(text)
    return number is not None and 0 <= number <= 1


def _names_or_numbers(table: SampleTable, column: int, classes: Classes, joiner: str | None) -> Kind:
    """Return whether all values of a column are names or numbers of classes. Raises UserError if that is unclear."""
    values = distinct_values(table, [column], joiner, MAX_NAMED + 2 * classes.count)
    names = {comparable(name) for name in classes.names or ()}
    strange = [value for value in values if value not in names and class_number(value, classes.count) < 0]
    as_names = bool(values) and all(value in names for value in values)
    as_numbers = bool(values) and all(class_number(value, classes.count) >= 0 for value in values)
    other, encoding = classes.named_otherwise(), ""
    if as_names and as_numbers and any(comparable(classes.name(int(value))) != value for value in values):
        reason = f"its values are names of classes as well as numbers ({named(values)})"
    elif as_numbers and not as_names and other is not None:
        reason = (
            f"its values ({named(values)}) are names of no class, and the classes are named by other numbers than "
            f"their own (class {other} is {classes.name(other)})"
        )
    elif as_names or as_numbers:
        return "name" if as_names and (other is not None or not as_numbers) else "number"
    elif not values:
        reason = "it is empty"
    elif strange:
        reason = f"these values are neither names nor numbers of the {classes.count} classes: {named(strange)}"
        encoding = encoding_advice(strange)
    else:
        reason = f"some of its values are names, others numbers of classes: {named(values)}"
    advice = ""
    if has_complement(classes) and values and all(_is_share(value) for value in values):
        pair = " or ".join(classes.name(label) for label in range(2))
        advice = (
            "If it holds the probability of a class, name the column after that class in a copy of the sample "
            f"({pair}), and change the header of the submission back. If it holds classes:\n"
        )
    raise UserError(
        f"--like {table.path} does not show what column {table.header[column]!r} holds: {reason}.{encoding}\n{advice}"
        "Try: --labels name, or --labels number; and --top_k K with --joiner for several classes per row"
    )
