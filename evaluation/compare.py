"""Compare predicted classes with another evaluation of the same list, and read the file of `eval.py --compare`."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloader.file_list import FileList
from dataloader.list_checks import units_of
from evaluation.bootstrap import ImageDraws
from evaluation.scored import Scored
from options.wording import count_of
from utils import tables
from utils.classes import Classes, names_agree
from utils.errors import UserError, path_hint
from utils.text import exact

ADVICE = "Give the predictions.csv that eval.py wrote for the same --val_list."


class OtherClasses(NamedTuple):
    """Another evaluation of the first N images of a list: the predicted classes, int64 (N,), -1 if unreadable."""

    path: str
    predicted: NDArray[np.int64]


class McNemar(NamedTuple):
    """McNemar's test (1947; exact: binomial) of two evaluations of the same images.

    Attributes:
        only_this, only_other: images, or groups, that one of them gets right more often.
        p_value: two-sided.
    """

    only_this: int
    only_other: int
    both: int
    neither: int
    p_value: float


class Compared(NamedTuple):
    """These predictions against others of the same list.

    Attributes:
        test: of their hits.
        counted: what the test counts, images or groups of images.
        rows: int64 (M,), those whose prediction changed.
        other: int64 (N,), the classes of the others, -1 if unreadable.
    """

    test: McNemar
    counted: str
    rows: NDArray[np.int64]
    other: NDArray[np.int64]


def mcnemar(these: NDArray[np.bool_], others: NDArray[np.bool_], unit: NDArray[np.integer] | None = None) -> McNemar:
    """Return McNemar's exact test of the hits of two evaluations, bool (N,) each.

    An image on several rows, or a group of images, counts once, for the evaluation that is right on more of its rows:
    they are no independent trials, and would make p too small.

    Args:
        unit: (N,), equal where rows are of one image or group, as `units_of` a list; None: all are different.
    """
    from scipy.stats import binomtest

    place, units = ImageDraws.of(unit, len(these))
    here, there = (np.bincount(place, hits, units).astype(np.int64) for hits in (these, others))
    only_this, only_other = int((here > there).sum()), int((there > here).sum())
    both = int(((here == there) & (here > 0)).sum())
    differing = only_this + only_other
    p_value = float(binomtest(only_this, differing).pvalue) if differing else 1.0
    return McNemar(only_this, only_other, both, units - differing - both, p_value)


def compare(scored: Scored, other: OtherClasses) -> Compared:
    """Compare with another evaluation of the same images, on those that both could read."""
    predictions, files, _ = scored
    scorable = predictions.scorable & (other.predicted >= 0)
    first, label = predictions.top[:, 0], predictions.label
    here, there = (first == label)[scorable], (other.predicted == label)[scorable]
    test = mcnemar(here, there, units_of(files)[predictions.index[scorable]])
    counted = "images" if files.group is None else "groups of images"
    return Compared(test, counted, np.flatnonzero(scorable & (first != other.predicted)), other.predicted)


# ------------------------------------------------------------------------------------------------ the other file


def read_classes(path: str, files: FileList, classes: Classes, images: int) -> OtherClasses:
    """Read the predictions.csv of another evaluation of one class per image.

    Args:
        images: how many images of the list, from the first, are evaluated.

    Raises:
        UserError: there is no such file, it is no predictions.csv, it belongs to another list (the message names the
            first row that differs), or its classes have another order.
    """
    found, named = np.full(images, -1), dict[str, str]()
    rows = rows_of(path, files, images, ("path", "label", "predicted"), ("predicted_name",))
    for row, (label, predicted, name) in enumerate(rows):
        own = str(files.label[row])
        if label != own:
            raise other_target(path, row, "label", label, own)
        if predicted:
            if not is_number(predicted, classes.count):
                raise UserError(
                    f"--compare: row {row + 2} of {path} predicts {predicted!r}; "
                    f"allowed: a class from 0 to {classes.count - 1}. {ADVICE}"
                )
            found[row] = int(predicted)
            named.setdefault(predicted, name)
    for number, name in sorted(named.items()) if classes.names else ():
        here = classes.name(int(number))
        if name and not names_agree([name], [here]):
            raise UserError(
                f"--compare: class {number} is {name!r} in {path}, but {here!r} here. "
                "Give the predictions of a checkpoint with the same class numbers."
            )
    return OtherClasses(path, found)


def rows_of(
    path: str, files: FileList, images: int, needed: Sequence[str], optional: Sequence[str] | None = None
) -> Iterator[list[str]]:
    """Yield the cells after the path of each row of a predictions.csv; the row of image i must name its path.

    Args:
        images: how many rows there must be.
        needed: the columns, the path first.
        optional: more columns, which are empty where the file has none; then any other column is ignored. None: the
            file must have the columns `needed` alone.

    Raises:
        UserError: there is no such file, it is no CSV file, it has other columns, or other images.
    """
    if not Path(path).is_file():
        raise UserError(f"--compare: there is no file {path}.{path_hint(Path(path))} {ADVICE}")
    count = 0
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        reader = tables.Reader(file)
        try:
            header = next(reader, [])
            fits = header == [*needed] if optional is None else set(needed) <= set(header)
            if not fits:
                raise UserError(f"--compare: {path} has the columns {header[:12]}; needed: {[*needed][:12]}. {ADVICE}")
            columns: list[int | None] = [*range(len(header))]
            if optional is not None:
                columns = [header.index(name) if name in header else None for name in (*needed, *optional)]
            for count, cells in enumerate((line for line in reader if line), 1):
                if count > images:
                    continue
                if len(cells) != len(header):
                    raise UserError(
                        f"--compare: row {count + 1} of {path} has {len(cells)} cells, not {len(header)}. {ADVICE}"
                    )
                found = ["" if column is None else cells[column] for column in columns]
                if not files.is_path(count - 1, found[0]):
                    own = exact(files.path(count - 1))
                    raise UserError(f"--compare: row {count + 1} of {path} is {found[0]}, but {own} here. {ADVICE}")
                yield found[1:]
        except csv.Error as error:
            raise UserError(f"--compare: {path} is no CSV file (line {reader.line_num}: {error}). {ADVICE}") from error
    if count != images:
        raise UserError(f"--compare: {path} has {count_of(count, 'image')}, this list {images}. {ADVICE}")


def other_target(path: str, row: int, what: str, got: str, own: str) -> UserError:
    """Return the error for a row whose label or target is another one than that of the list."""
    return UserError(f"--compare: row {row + 2} of {path} has the {what} {got}, but it is {own} here. {ADVICE}")


def is_number(text: str, count: int) -> bool:
    """Return whether a cell holds a number from 0 to count - 1."""
    return text.isascii() and text.isdigit() and int(text) < count
