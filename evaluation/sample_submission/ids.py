"""Match the ids of a sample submission to the images of a list, in bounded memory.

Of the list, one 64-bit hash per image is kept. Each hit is compared with the image's path, so that images of equal
hashes are told apart.
"""

import os
import shlex
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from dataloader.file_list import FileList
from dataloader.list_advice import prepare_command
from evaluation.sample_submission.table import SampleTable
from options.wording import count_of
from utils.errors import UserError
from utils.text import exact

CHUNK_ROWS = 20_000
MAX_LOOKED_AT = 1000  # rows, for an advice
MAX_NAMED = 3  # examples in a message
NONE, SEVERAL = -1, -2  # instead of an image's index


def match(table: SampleTable, files: FileList) -> tuple[int, NDArray[np.int64]]:
    """Return the column of ids, and the image of each of the N rows, int64 (N,).

    An id may be a file name, or a path from any folder on, with the file's ending or without.

    Raises:
        UserError: an id has no image or several, an image has no row, or two.
    """
    images = _Images(files)
    column, ending = _guess(table, images)
    order = _images_of_rows(table, column, images, ending)
    if (order < 0).any():  # perhaps only the first ids looked like that
        other = _images_of_rows(table, column, images, not ending)
        order = other if (other >= 0).sum() > (order >= 0).sum() else order
    _check(table, column, order, files)
    return column, order


def named(names: Iterable[str], count: int | None = None) -> str:
    """Return the first names for a message, with dots where there are more; `count` says how many there are."""
    listed = list(names)
    more = (len(listed) if count is None else count) > MAX_NAMED
    return ", ".join(listed[:MAX_NAMED]) + (", …" if more else "")


class _Images:
    """The images of a list, found by the end of their path."""

    def __init__(self, files: FileList) -> None:
        self.files = files
        self.tables: dict[tuple[int, bool], tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def find(self, ids: Sequence[str], ending: bool) -> NDArray[np.int64]:
        """Return the image of each id, int64 (N,), or NONE, or SEVERAL.

        A backslash that is in no name of an image is the slash of a table that was written under Windows.

        Args:
            ending: whether the ids have the ending of the file name.
        """
        found = self._find(ids, ending)
        rows = [row for row in np.flatnonzero(found == NONE).tolist() if "\\" in ids[row]]
        found[rows] = self._find([ids[row].replace("\\", "/") for row in rows], ending)
        return found

    def _find(self, ids: Sequence[str], ending: bool) -> NDArray[np.int64]:
        """Return the image of each id as it stands, as `find` does."""
        found = np.full(len(ids), NONE, np.int64)
        keys = [_key(text) for text in ids]
        folders = np.array([key.count("/") for key in keys], np.int64)
        for depth in np.unique(folders).tolist():
            rows = np.flatnonzero(folders == depth).tolist()
            hashes, order = self._table(depth, ending)
            wanted = np.array([hash(keys[row]) for row in rows], np.int64)
            first, last = (np.searchsorted(hashes, wanted, side).tolist() for side in ("left", "right"))
            for row, begin, end in zip(rows, first, last, strict=True):
                alike = [k for k in order[begin:end].tolist() if self._end(k, depth, ending) == keys[row]]
                found[row] = self._shallowest(alike)
        return found

    def _table(self, depth: int, ending: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the sorted hashes of the ends of all paths, int64 (N,), and their images, int64 (N,)."""
        if (depth, ending) not in self.tables:
            count = len(self.files)
            hashes = np.fromiter((hash(self._end(k, depth, ending)) for k in range(count)), np.int64, count)
            order = np.argsort(hashes, kind="stable")
            self.tables[depth, ending] = hashes[order], order
        return self.tables[depth, ending]

    def _end(self, image: int, depth: int, ending: bool) -> str:
        """Return the file name of an image with the `depth` folders above it."""
        path = exact(self.files.path(image) if depth else self.files.as_written(image))
        end = "/".join(path.rsplit("/", depth + 1)[-depth - 1 :])
        return _key(end if ending else _without_ending(end))

    def _shallowest(self, images: list[int]) -> int:
        """Return the image that an id means if all of `images` fit it: that in the fewest folders, or SEVERAL."""
        if len(images) > 1:
            depths = [self.files.path(image).count("/") for image in images]
            images = [image for image, depth in zip(images, depths, strict=True) if depth == min(depths)]
        return images[0] if len(images) == 1 else SEVERAL if images else NONE


def _without_ending(path: str) -> str:
    """Return a path without the file's ending; a dot that begins a name begins no ending."""
    head, _, ending = path.rpartition(".")
    return path if not head or head.endswith("/") or "/" in ending else head


def _key(text: str) -> str:
    """Return a name in the form that is compared: an accent may be written as one character or as two."""
    text = text.removeprefix("./")
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _guess(table: SampleTable, images: _Images) -> tuple[int, bool]:
    """Return the column whose first values find most images, and whether they have the files' endings."""
    rows = table.first_rows()
    best, most = (0, True), 0
    for column in range(len(table.header)):
        for ending in (True, False):
            hits = int((images.find([cells[column] for cells in rows], ending) >= 0).sum())
            if hits > most:
                best, most = (column, ending), hits
        if most == len(rows):
            break
    return best


def _images_of_rows(table: SampleTable, column: int, images: _Images, ending: bool) -> NDArray[np.int64]:
    """Return the image of each row, as `_Images.find` does."""
    ids, parts = _ids(table, column), [np.zeros(0, np.int64)]
    while chunk := list(islice(ids, CHUNK_ROWS)):
        parts.append(images.find(chunk, ending))
    return np.concatenate(parts)


def _ids(table: SampleTable, column: int) -> Iterator[str]:
    return (cells[column] for cells in table.rows())


def _check(table: SampleTable, column: int, order: NDArray[np.int64], files: FileList) -> None:
    """Raise UserError where rows and images are not one to one."""
    times = np.bincount(order[order >= 0], minlength=len(files))
    unknown, unclear, left = np.flatnonzero(order == NONE), np.flatnonzero(order == SEVERAL), np.flatnonzero(times == 0)
    again = np.flatnonzero((order >= 0) & (times[np.maximum(order, 0)] > 1))
    problems = []
    for rows, text in (
        (unknown, f"{len(unknown):,} of {len(order):,} ids have no image in the list"),
        (unclear, f"{count_of(f'{len(unclear):,}', 'id')} with several images that fit"),
        (again, f"{len(again):,} rows are of {count_of(f'{(times > 1).sum():,}', 'image')} with another row"),
    ):
        if len(rows):
            wanted = set(rows[:MAX_NAMED].tolist())
            ids = islice((one for row, one in enumerate(_ids(table, column)) if row in wanted), len(wanted))
            problems.append(f"{text}: {named(ids, len(rows))}.")
    if len(left) and not len(unclear):
        paths = (exact(files.as_written(image)) for image in left[:MAX_NAMED].tolist())
        problems.append(f"{len(left):,} of {len(files):,} images of the list have no row: {named(paths, len(left))}.")
    if problems:
        raise UserError(
            f"--like {table.path} (ids in column {table.header[column]!r}) does not fit {files.source}. "
            + "\n".join(problems)
            + "\nAllowed: one row per image, whose id is the end of its path, with or without the file's ending.\n"
            f"Try: {_advice(table, column, order, files)}"
        )


def _advice(table: SampleTable, column: int, order: NDArray[np.int64], files: FileList) -> str:
    """Return the flag that takes the images of the sample, with the command that lists them where that is known.

    It is known where the images of the first rows, as far as they have one, are below one folder, and no list would be
    refused: no id fits several images, and none has an image that another has.
    """
    known = order[order >= 0]
    clear = len(np.unique(known)) == len(known) and not (order == SEVERAL).any()
    rows = np.flatnonzero(order >= 0)[: MAX_LOOKED_AT if clear else 0].tolist()
    wanted, folders = set(rows), set()
    for row, text in zip(range(rows[-1] + 1 if rows else 0), _ids(table, column), strict=False):
        if row in wanted:
            path = os.path.abspath(files.path(int(order[row])))
            folders.add(path.rsplit("/", _key(text.replace("\\", "/")).count("/") + 1)[0] or "/")
    if len(folders) != 1:
        return "--test_list FILE with the images of the sample"
    out = files.source.parent / "sample"
    command = prepare_command(
        "csv",
        table.path,
        "--path_column",
        table.header[column],
        "--part",
        "test",
        "--root",
        folders.pop(),
        "--out",
        out,
    )
    return f"--test_list {shlex.quote(str(out / 'test.txt'))}, after: {command}"
