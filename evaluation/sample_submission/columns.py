"""Find what each column of a sample submission is named after, and which values it holds."""

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from evaluation.sample_submission.ids import MAX_NAMED, named
from evaluation.sample_submission.table import SampleTable
from options.wording import count_of
from utils.classes import Classes, key_of
from utils.errors import UserError
from utils.logger import log


def columns_beside(table: SampleTable, id_column: int) -> list[int]:
    """Return the indices of the columns beside the ids."""
    return [column for column in range(len(table.header)) if column != id_column]


def classes_of_columns(table: SampleTable, columns: list[int], classes: Classes) -> NDArray[np.int64]:
    """Return the class that each column to predict is named after, int64; -1 for none."""
    header = [table.header[column] for column in columns]
    numbers = {comparable(name): label for label, name in enumerate(classes.names or ())}
    if any(comparable(name) in numbers for name in header):
        return np.array([numbers.get(comparable(name), -1) for name in header], np.int64)
    return np.array([class_number(name.strip(), classes.count) for name in header], np.int64)


def all_classes(
    table: SampleTable, columns: list[int], classes: Classes, found: NDArray[np.int64], nouns: tuple[str, str]
) -> tuple[int, ...]:
    """Return the classes of the columns.

    Args:
        found: int64, the class of each of `columns`, from `classes_of_columns`.
        nouns: what a class is called, one and several of them.

    Raises:
        UserError: a class has no column, or several, or a column is named after none; one of two classes is enough.
    """
    one, several = nouns
    header = [table.header[column] for column in columns]
    unknown = [name for name, label in zip(header, found.tolist(), strict=True) if label < 0]
    counts = Counter(found[found >= 0].tolist())
    twice = [classes.name(label) for label, count in counts.items() if count > 1]
    absent = [classes.name(label) for label in range(classes.count) if label not in counts]
    problems = []
    if unknown:
        nameless = f"{len(unknown)} of its columns are named after no {one}: {named(unknown)}."
        problems.append(nameless + encoding_advice(unknown))
    if twice:
        problems.append(f"{count_of(len(twice), one, several)} with several columns: {named(twice)}.")
    if absent and not (has_complement(classes) and len(header) == 1):
        problems.append(f"{len(absent)} of {classes.count} {several} have no column: {named(absent)}.")
    if problems:
        alone = "" if classes.task == "regression" else f"ids and one column for the {one}, or "
        raise UserError(
            f"--like {table.path} does not fit the {several} of the checkpoint. "
            + "\n".join(problems)
            + f"\nAllowed: {alone}ids and one column per {one}, named after it."
        )
    return tuple(found.tolist())


def has_complement(classes: Classes) -> bool:
    """Return whether the probability of one class tells that of the other."""
    return classes.count == 2 and classes.task in ("single", "ordinal")


def comparable(name: str) -> str:
    """Return the name in a cell in the form that is compared, without the blanks around it."""
    return key_of(name.strip())


def encoding_advice(texts: Iterable[str]) -> str:
    """Return what to do where some of the texts of a sample are not UTF-8, and so are no names; else ""."""
    if not any("\udc80" <= letter <= "\udcff" for text in texts for letter in text):  # surrogateescape: a byte
        return ""
    return " These are not UTF-8 text. Save a copy of the sample as UTF-8 (spreadsheets: `CSV UTF-8`)."


def class_number(text: str, count: int) -> int:
    """Return the class number that `text` is, below `count`; -1 if it is none."""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) and int(text) < count else -1


def distinct_values(table: SampleTable, columns: list[int], joiner: str | None, most: int) -> list[str]:
    """Return the different values of some columns, without blanks, in order; at most about `most` of them.

    Args:
        joiner: what stands between several values of a cell; None: a cell is one value.
    """
    found: dict[str, None] = {}
    for cells in table.rows():
        for column in columns:
            for value in [cells[column]] if joiner is None else cells[column].split(joiner):
                if value.strip():
                    found[comparable(value)] = None
        if len(found) > most:
            break
    return list(found)


def warn_of_placeholders(table: SampleTable, column: int, classes: Classes, kind: str, joiner: str | None) -> None:
    """Warn where a column of labels of a `kind` that a flag says, "name" or "number", holds values that are none.

    They may be placeholders, or show that the checkpoint is of other data. `joiner`: from `distinct_values`.
    """
    names = {comparable(name) for name in classes.names or ()}
    values = distinct_values(table, [column], joiner, MAX_NAMED + 2 * classes.count)
    fitting = names if kind == "name" else {value for value in values if class_number(value, classes.count) >= 0}
    strange = [value for value in values if value not in fitting | {"-"}]  # a dash is no label
    if strange:
        log.warning(
            f"--like {table.path}: {len(strange)} value(s) of column {table.header[column]!r} are the {kind} of no "
            f"class of the checkpoint, and are taken for placeholders, as --labels {kind} is given: {named(strange)}. "
            f"Is the checkpoint of this competition's classes?{encoding_advice(strange)}"
        )
