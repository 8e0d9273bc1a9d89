"""A list of images as a few flat arrays: 2.5 million lines take a fifth of what Python strings would.

A line is a path, blanks, an integer label; in a list without labels, a path alone. Paths may hold spaces and any
characters but a zero byte; the label is what follows the last blank. UTF-8, with or without a byte-order mark; LF, CRLF,
or CR where there is no LF; blank lines and blanks at a line's end are skipped. A relative path starts at the list's folder.
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

from dataloader import list_advice
from utils import faults
from utils.errors import UserError
from utils.logger import progress

CHUNK = 1 << 24  # bytes parsed at a time: the temporary arrays stay small beside the list itself
SPACE, TAB, LF, CR = 32, 9, 10, 13
ROWS = 1 << 16  # lines whose endings are looked at together
ENDING = 16  # bytes of a path that tell one image from the next


@dataclass(frozen=True)
class FileList:
    """N images. `label` is int32 (N,), -1 in a list without labels; paths are cut from one buffer on demand."""

    source: Path
    text: NDArray[np.uint8]
    start: NDArray[np.int64]
    length: NDArray[np.int32]
    label: NDArray[np.int32]
    line: NDArray[np.int32]
    numbers: NDArray[np.int64] | None = (
        None  # where `label` is not as the file has it: the file's number of each class, or -1
    )

    def __len__(self) -> int:
        return len(self.start)

    def as_written(self, index: int) -> str:
        """The path of image `index` as it is written in the list."""
        start = self.start[index]
        return os.fsdecode(self.text[start : start + self.length[index]].tobytes())

    def path(self, index: int) -> str:
        """The path of image `index`, as the file system takes it."""
        name = self.as_written(index)
        return name if name.startswith("/") else os.path.join(self.source.parent, name)

    def picture(self, index: int, side: int) -> NDArray[Any] | None:
        """Image `index` as uint8 RGB, upright, its longer side at most `side` pixels; None where it cannot be read."""
        from dataloader.decode import thumbnail

        return thumbnail(self.path(index), side)

    def where(self, index: int) -> str:
        """ "datasets/train.txt, line 17": for messages."""
        return f"{self.source}, line {self.line[index]}"

    def why_unreadable(self, indices: NDArray[np.int64]) -> str:
        """Return the likeliest reason why these images cannot be read, with what mends it; empty where none is found."""
        return list_advice.likeliest_reason(self, indices)

    def check_readable(self, index: NDArray[np.int64], readable: NDArray[np.bool_]) -> None:
        """Raise UserError where none of the images `index` (M,) was `readable` (M,); warn where over half were not."""
        list_advice.check_readable(self, index, readable)

    def fingerprint(self) -> str:
        """sha256, as hex, of the labels and the last bytes of each path, in order: of what epochs are made, wherever the images lie."""
        digest = hashlib.sha256(self.label.tobytes())
        for first in range(0, len(self), ROWS):
            start = self.start[first : first + ROWS, None]
            places = start + self.length[first : first + ROWS, None] - np.arange(1, ENDING + 1)
            digest.update(self.text[np.maximum(places, start)].tobytes())
        return digest.hexdigest()

    def content_hash(self) -> str:
        """Return the sha256, as hex, of the paths and labels in order. Results and files of probabilities note it."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(f"{self.path(index)} {self.label[index]}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def renumbered(self, numbers: NDArray[np.int64], count: int) -> "FileList":
        """Return the list with label k as `numbers[k]`, one of `count` classes; `listed` gives the file's own numbers."""
        back = np.full(count, -1, np.int64)
        back[numbers] = np.arange(len(numbers))
        return replace(self, label=numbers[self.label].astype(np.int32), numbers=back)

    def listed(self, label: int) -> int:
        """Return the number that the file itself gives the class `label`; -1: it has none."""
        return label if self.numbers is None else int(self.numbers[label])

    def select(self, keep: NDArray[np.bool_]) -> "FileList":
        """The list of the images that `keep` (bool, (N,)) marks; the text is shared."""
        return replace(
            self, start=self.start[keep], length=self.length[keep], label=self.label[keep], line=self.line[keep]
        )


def read_list(path: str | os.PathLike[str], labelled: bool = True) -> FileList:
    """Read a list file.

    Raises:
        UserError: no such file, no text in it, no images, a line without a label, or with one that is no whole number from 0;
            the message names file and line.
    """
    path = Path(path)
    try:
        text = np.fromfile(path, dtype=np.uint8)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(list_advice.missing_list(path, labelled)) from None
    except OSError as error:
        raise UserError(f"The list {path} cannot be read: {error.strerror}.") from error
    list_advice.check_text(path, text)
    begin = 3 if bytes(text[:3]) == b"\xef\xbb\xbf" else 0
    newline = LF if any((text[first : first + CHUNK] == LF).any() for first in range(0, len(text), CHUNK)) else CR
    parts = [_parse(text, span, newline, labelled, path) for span in _chunks(text, begin, newline)]
    if not any(len(part[0]) for part in parts):
        raise UserError(f"The list {path} holds no image; expected {list_advice.expected(labelled)}.")
    return FileList(path, text, *(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _chunks(text: NDArray[np.uint8], begin: int, newline: int) -> Iterator[tuple[int, int]]:
    """Spans of about CHUNK bytes that end after a line break, or where the text does."""
    while begin < len(text):
        end = min(begin + CHUNK, len(text))
        while end < len(text) and text[end - 1] != newline:
            ahead = np.flatnonzero(text[end : end + 4096] == newline)
            end = end + int(ahead[0]) + 1 if len(ahead) else min(end + 4096, len(text))
        yield begin, end
        begin = end


def _parse(
    text: NDArray[np.uint8], span: tuple[int, int], newline: int, labelled: bool, path: Path
) -> tuple[NDArray, ...]:
    """start (int64), length, label and line number (int32) of the samples in text[first:end]."""
    first, end = span
    part = text[first:end]
    breaks = np.flatnonzero(part == newline)
    starts = np.concatenate([[0], breaks + 1])
    ends = _without_blanks(part, starts, np.concatenate([breaks, [len(part)]]))
    before = int(np.count_nonzero(text[:first] == newline)) if first else 0
    full = ends > starts
    starts, ends, lines = starts[full], ends[full], np.flatnonzero(full) + before + 1
    lines = lines.astype(np.int32)
    if not labelled:
        return starts + first, (ends - starts).astype(np.int32), np.full(len(starts), -1, np.int32), lines
    gaps = np.flatnonzero((part == SPACE) | (part == TAB))
    gaps = gaps if len(gaps) else np.array([-1])
    last = gaps[np.maximum(np.searchsorted(gaps, ends) - 1, 0)]
    bare = (last <= starts) | (last >= ends)
    path_ends = _without_blanks(part, starts, np.where(bare, starts, last))
    bare |= path_ends <= starts
    if bare.any():
        raise list_advice.no_label(path, int(lines[bare][0]), part[starts[bare][0] : ends[bare][0]])
    label = _integers(part, last + 1, ends)
    if (label < 0).any():
        at = int(np.flatnonzero(label < 0)[0])
        raise list_advice.bad_label(path, int(lines[at]), part[last[at] + 1 : ends[at]])
    return starts + first, (path_ends - starts).astype(np.int32), label.astype(np.int32), lines


def _without_blanks(part: NDArray[np.uint8], starts: NDArray, ends: NDArray) -> NDArray[np.int64]:
    """`ends` moved back over the blanks before them, to `starts` where there is nothing else."""
    ends = ends - _after_blank(part, starts, ends)  # the CR of CRLF; most files have no more
    more = _after_blank(part, starts, ends)
    if more.any():
        blank = (part == SPACE) | (part == TAB) | (part == CR) | (part == LF)
        words = np.flatnonzero(~blank & np.append(blank[1:], True)) + 1  # where runs of other bytes end
        words = np.concatenate([[0], words])
        ends[more] = np.maximum(words[np.searchsorted(words, ends[more], "right") - 1], starts[more])
    return ends


def _after_blank(part: NDArray[np.uint8], starts: NDArray, ends: NDArray) -> NDArray[np.bool_]:
    """Which of `ends` follow a blank of their line."""
    byte = part[np.maximum(ends - 1, 0)]
    return (ends > starts) & ((byte == CR) | (byte == SPACE) | (byte == TAB))


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
        return [not faults.exists(files.path(index)) for index in range(first, min(first + size, len(files)))]

    with ThreadPoolExecutor(threads) as pool:
        found = list(progress(pool.map(look, spans), f"looking for the files of {files.source.name}", len(spans)))
    return np.array([gone for part in found for gone in part], dtype=bool)


def read_class_names(folder: Path) -> list[str] | None:
    """Return the names of `classes.txt` in `folder` (line k, from 0, names class k); None where there is no such file, or no name.

    Raises:
        UserError: see `check_class_names` and `read_lines`.
    """
    path = folder / "classes.txt"
    if not path.is_file():
        return None
    names = read_lines(path)
    check_class_names(path, names)
    return names or None


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file of names, without the blank ones at its end. Raises UserError where it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() knows ten more line ends
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}. Save it as UTF-8, one class name per line.") from error
    except OSError as error:
        raise UserError(
            f"The class list {path} cannot be read: {error.strerror}. Expected: one class name per line."
        ) from error
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def check_class_names(path: Path, names: list[str]) -> None:
    """Raise UserError, naming the line, where one of `names`, the lines of `path`, is blank or occurs twice."""
    lines: dict[str, int] = {}
    for line, name in enumerate(names, 1):
        if not name.strip():
            raise UserError(f"{path}, line {line} is blank; expected one class name per line, each once.")
        if name in lines:
            raise UserError(
                f"{path}, line {line} names {name!r} again, after line {lines[name]}; expected one class name per line, each once."
            )
        lines[name] = line
