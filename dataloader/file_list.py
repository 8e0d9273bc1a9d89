"""A list of images as a few flat arrays: 2.5 million lines take a fifth of what Python strings would.

A line is a path, a space, an integer label; in a list without labels, a path alone. Paths may hold spaces and any
characters; the label is what follows the last space. UTF-8, with or without a byte-order mark; LF or CRLF; blank
lines are passed over. A relative path starts at the list's folder.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError
from utils.logger import progress

CHUNK = 1 << 24  # bytes parsed at a time: the temporary arrays stay small beside the list itself
SPACE, TAB, LF, CR = 32, 9, 10, 13
ROWS = 1 << 16  # lines whose endings are looked at together
ENDING = 16  # bytes of a path that tell one image from the next
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # its byte-order marks; without one, half of its bytes are zero


@dataclass(frozen=True)
class FileList:
    """N images. `label` is int32 (N,), -1 in a list without labels; paths are cut from one buffer on demand."""

    source: Path
    text: NDArray[np.uint8]
    start: NDArray[np.int64]
    length: NDArray[np.int32]
    label: NDArray[np.int32]
    line: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.start)

    def path(self, index: int) -> str:
        """The path of image `index`, as the file system takes it."""
        start = self.start[index]
        name = os.fsdecode(self.text[start : start + self.length[index]].tobytes())
        return name if name.startswith("/") else os.path.join(self.source.parent, name)

    def picture(self, index: int, side: int) -> NDArray[Any] | None:
        """Image `index` as uint8 RGB, upright, its longer side at most `side` pixels; None where it cannot be read."""
        from dataloader.decode import thumbnail

        return thumbnail(self.path(index), side)

    def where(self, index: int) -> str:
        """ "datasets/train.txt, line 17": for messages."""
        return f"{self.source}, line {self.line[index]}"

    def fingerprint(self) -> str:
        """sha256, as hex, of the labels and the last bytes of each path, in order: of what epochs are made, wherever the images lie."""
        digest = hashlib.sha256(self.label.tobytes())
        for first in range(0, len(self), ROWS):
            start = self.start[first : first + ROWS, None]
            places = start + self.length[first : first + ROWS, None] - np.arange(1, ENDING + 1)
            digest.update(self.text[np.maximum(places, start)].tobytes())
        return digest.hexdigest()

    def select(self, keep: NDArray[np.bool_]) -> "FileList":
        """The list of the images that `keep` (bool, (N,)) marks; the text is shared."""
        return replace(self, start=self.start[keep], length=self.length[keep], label=self.label[keep], line=self.line[keep])


def read_list(path: str | os.PathLike[str], labelled: bool = True) -> FileList:
    """Read a list file.

    Raises:
        UserError: no such file, no images in it, a line without a label, or with one that is no whole number from 0;
            the message names file and line.
    """
    path = Path(path)
    try:
        text = np.fromfile(path, dtype=np.uint8)
    except FileNotFoundError:
        raise UserError(_missing(path, labelled)) from None
    except OSError as error:
        raise UserError(f"The list {path} cannot be read: {error.strerror}.") from error
    if bytes(text[:2]) in UTF_16 or np.count_nonzero(text) < 0.75 * len(text):
        raise UserError(f"The list {path} is not UTF-8 text (UTF-16, as Windows often writes it?). Save it as UTF-8.")
    begin = 3 if bytes(text[:3]) == b"\xef\xbb\xbf" else 0
    parts = [_parse(text, first, end, labelled, path) for first, end in _chunks(text, begin)]
    if not any(len(part[0]) for part in parts):
        raise UserError(f"The list {path} holds no image; expected {_expected(labelled)}.")
    return FileList(path, text, *(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _chunks(text: NDArray[np.uint8], begin: int) -> Iterator[tuple[int, int]]:
    """Spans of about CHUNK bytes that end after a line feed, or where the text does."""
    while begin < len(text):
        end = min(begin + CHUNK, len(text))
        while end < len(text) and text[end - 1] != LF:
            ahead = np.flatnonzero(text[end : end + 4096] == LF)
            end = end + int(ahead[0]) + 1 if len(ahead) else min(end + 4096, len(text))
        yield begin, end
        begin = end


def _parse(text: NDArray[np.uint8], first: int, end: int, labelled: bool, path: Path) -> tuple[NDArray, ...]:
    """start (int64), length, label and line number (int32) of the samples in text[first:end]."""
    part = text[first:end]
    breaks = np.flatnonzero(part == LF)
    starts = np.concatenate([[0], breaks + 1])
    ends = np.concatenate([breaks, [len(part)]])
    before = int(np.count_nonzero(text[:first] == LF)) if first else 0
    for _ in range(len(part)):  # trailing carriage returns and blanks, one a round; two rounds do for most files
        blank = (ends > starts) & np.isin(part[np.maximum(ends - 1, 0)], (CR, SPACE, TAB))
        if not blank.any():
            break
        ends = ends - blank
    full = ends > starts
    starts, ends, lines = starts[full], ends[full], np.flatnonzero(full) + before + 1
    lines = lines.astype(np.int32)
    if not labelled:
        return starts + first, (ends - starts).astype(np.int32), np.full(len(starts), -1, np.int32), lines
    gaps = np.flatnonzero((part == SPACE) | (part == TAB))
    gaps = gaps if len(gaps) else np.array([-1])
    last = gaps[np.maximum(np.searchsorted(gaps, ends) - 1, 0)]
    bare = (last <= starts) | (last >= ends)
    if bare.any():
        raise _no_label(path, int(lines[bare][0]), part[starts[bare][0] : ends[bare][0]])
    label = _integers(part, last + 1, ends)
    if (label < 0).any():
        at = int(np.flatnonzero(label < 0)[0])
        raise _bad_label(path, int(lines[at]), part[last[at] + 1 : ends[at]])
    return starts + first, (last - starts).astype(np.int32), label.astype(np.int32), lines


def _integers(part: NDArray[np.uint8], starts: NDArray, ends: NDArray) -> NDArray[np.int64]:
    """The non-negative whole numbers written in part[start:end], -1 where it is none (or has over nine digits)."""
    width = ends - starts
    value = np.zeros(len(starts), np.int64)
    good = (width > 0) & (width <= 9)
    for k in range(min(int(width.max(initial=0)), 9)):
        inside = width > k
        digit = part[np.where(inside, starts + k, 0)].astype(np.int64) - ord("0")
        good &= ~inside | ((digit >= 0) & (digit <= 9))
        value = np.where(inside, value * 10 + digit, value)
    return np.where(good, value, -1)


def missing_files(files: FileList, threads: int = 16) -> NDArray[np.bool_]:
    """Which of the listed files are not there (bool, (N,)); asks the file system in parallel, with a progress bar."""
    size = 4096
    spans = range(0, len(files), size)

    def look(first: int) -> list[bool]:
        return [not os.path.exists(files.path(index)) for index in range(first, min(first + size, len(files)))]

    with ThreadPoolExecutor(threads) as pool:
        found = list(progress(pool.map(look, spans), f"looking for the files of {files.source.name}", len(spans)))
    return np.array([gone for part in found for gone in part], dtype=bool)


def read_class_names(folder: Path) -> list[str] | None:
    """The lines of `classes.txt` in `folder` (line k, from 0, names class k); None where there is no such file."""
    path = folder / "classes.txt"
    if not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")  # splitlines() knows ten more line ends
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}. Save it as UTF-8, one class name a line.") from error


def _expected(labelled: bool) -> str:
    return "`/path/to/image.jpg 3` a line (path, space, label)" if labelled else "an image's path a line"


def _missing(path: Path, labelled: bool) -> str:
    present = ", ".join(sorted(str(p) for p in path.parent.glob("*.txt"))[:8]) or "no .txt file"
    without = " To train without validation: --val_freq 0." if path.stem == "val" else ""
    return (
        f"There is no list {path}; expected {_expected(labelled)}. In {path.parent}/ there is: {present}.\n"
        f"Make lists with `python datasets/prepare.py --help`, or say where they are: --data_root DIR, --{path.stem}_list FILE.{without}"
    )


def _no_label(path: Path, line: int, text: NDArray[np.uint8]) -> UserError:
    shown = bytes(text[:200]).decode(errors="replace")
    return UserError(f"{path}, line {line} has no label: {shown!r}; expected {_expected(True)}.")


def _bad_label(path: Path, line: int, text: NDArray[np.uint8]) -> UserError:
    shown = bytes(text[:60]).decode(errors="replace")
    return UserError(f"{path}, line {line}: the label is {shown!r}; allowed: a whole number from 0.")
