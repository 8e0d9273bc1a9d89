"""A list of images as a few flat arrays: 2.5 million lines take a fifth of the memory of Python strings.

A line is a path, blanks and an integer label, or the targets of another --task (dataloader/targets.py); in a list
without labels, a path alone. Paths may hold spaces and any character except a zero byte; the label is what follows the
last blank. The text is UTF-8, with or without a byte-order mark. Lines end in LF, CRLF, or CR if there is no LF. Blank
lines and blanks at the end of a line are skipped. A relative path starts at the list's folder.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dataloader import list_advice
from dataloader import targets as target_columns
from dataloader.decode import Image, thumbnail
from dataloader.targets import MAX_LABEL_DIGITS, LabelSets, Targets
from utils import faults
from utils.errors import UserError
from utils.logger import progress
from utils.text import exact

PARSE_CHUNK_BYTES = 1 << 24  # parsed together: the temporary arrays stay small beside the list itself
SPACE, TAB, LF, CR = 32, 9, 10, 13
LIST_HASH, ABSOLUTE_HASH = "list_hash", "list_hash_absolute"
HASH_CHUNK_LINES = 1 << 16
HASH_SUFFIX_BYTES = 16  # of a path: they tell one image from the next
EXISTS_CHUNK = 4096  # files that a thread looks for together


@dataclass(frozen=True)
class FileList:
    """A list of N images, whose paths are cut from one buffer on demand.

    Attributes:
        source: the file.
        text: its bytes.
        start, length: int64 (N,) and int32 (N,), the bytes of each path.
        label: int32 (N,); -1 in a list without labels, or with `targets`.
        line: int32 (N,), line numbers from 1.
        file_labels: int64 (classes,), the label that the file itself gives each class, or -1; None: `label` is as in
            the file.
        targets: those of a multi-label task or a regression; None: `label` says it all.
        group: int64 (N,), equal where images belong together, such as photos of one product; None: nothing is known of
            that.
    """

    source: Path
    text: NDArray[np.uint8]
    start: NDArray[np.int64]
    length: NDArray[np.int32]
    label: NDArray[np.int32]
    line: NDArray[np.int32]
    file_labels: NDArray[np.int64] | None = None
    targets: Targets | None = None
    group: NDArray[np.int64] | None = None

    @classmethod
    def of_paths(cls, paths: Sequence[str], source: str) -> Self:
        """Return a list of these paths, without labels; relative ones start at the working folder.

        `source`: where they come from, for messages, such as "--images".
        """
        names = [os.fsencode(path) for path in paths]
        length = np.array([len(name) for name in names], np.int32)
        ends = np.cumsum(length, dtype=np.int64)
        label, line = np.full(len(names), -1, np.int32), np.arange(1, len(names) + 1, dtype=np.int32)
        return cls(Path(source), np.frombuffer(b"".join(names), np.uint8), ends - length, length, label, line)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.start)

    def is_labelled(self) -> bool:
        """Return whether the list has labels or targets."""
        return self.targets is not None or int(self.label.max(initial=-1)) >= 0

    def as_written(self, index: int) -> str:
        """Return the path of image `index` as the list has it."""
        start = self.start[index]
        return os.fsdecode(self.text[start : start + self.length[index]].tobytes())

    def path(self, index: int) -> str:
        """Return the path of image `index` for the file system."""
        name = self.as_written(index)
        return name if name.startswith("/") else os.path.join(self.source.parent, name)

    def thumbnail(self, index: int, side: int) -> Image | None:
        """Return image `index` as uint8 RGB, upright, its longer side at most `side` pixels; None if unreadable."""
        return thumbnail(self.path(index), side)

    def location(self, index: int) -> str:
        """Return file and line of image `index` for messages, such as "datasets/train.txt, line 17"."""
        return f"{self.source}, line {self.line[index]}"

    def batch_targets(self, index: NDArray[np.int64]) -> NDArray[np.generic]:
        """Return what the loss needs of the images at `index`, (B,).

        It is int64 (B,) classes, uint8 (B, K) with 1 for each label that an image has, or float32 (B, T) numbers.
        """
        if self.targets is None:
            return self.label[index].astype(np.int64)
        if isinstance(self.targets, LabelSets):
            return self.targets.rows(index)
        return self.targets[index].astype(np.float32)

    def target_text(self, index: int) -> str:
        """Return label or targets of image `index` as a list has them."""
        return str(self.label[index]) if self.targets is None else target_columns.as_text(self.targets, index)

    def fingerprint(self) -> str:
        """Return the sha256, as hex, of the labels and of the last bytes of each path, in order.

        Lists of the same images with the same labels agree, wherever the images are. So do lists whose paths differ
        before those bytes alone, such as a/images/00001.png and b/images/00001.png; `content_hash` tells them apart.
        """
        digest = hashlib.sha256(self.label.tobytes())
        if self.targets is not None:
            for index in range(len(self)):
                digest.update(f"{self.target_text(index)}\n".encode())
        for first in range(0, len(self), HASH_CHUNK_LINES):
            chunk = slice(first, first + HASH_CHUNK_LINES)
            start = self.start[chunk, None]
            places = start + self.length[chunk, None] - np.arange(1, HASH_SUFFIX_BYTES + 1)
            digest.update(self.text[np.maximum(places, start)].tobytes())
        return digest.hexdigest()

    def content_hash(self) -> str:
        """Return the sha256, as hex, of the paths and labels in order. Results and files of probabilities note it.

        The paths are those of `path`, so the list has another hash by another name: `absolute_hash` has not.
        """
        return self._hash(self.path)

    def absolute_hash(self) -> str:
        """Return what `content_hash` is of the absolute paths: the same from any folder, however the list is named."""
        here = str(Path.cwd())  # os.path.abspath would ask for the folder each time
        return self._hash(lambda index: os.path.normpath(os.path.join(here, self.path(index))))

    def hashes(self) -> dict[str, str]:
        """Return both hashes, under the names that results and files of probabilities give them."""
        return {LIST_HASH: self.content_hash(), ABSOLUTE_HASH: self.absolute_hash()}

    def _hash(self, path: Callable[[int], str]) -> str:
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(f"{path(index)} {self.target_text(index)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def is_path(self, index: int, text: str) -> bool:
        """Return whether `text`, the path of an image in a table of ours, is that of image `index`.

        Another name of the list, such as an absolute one, gives its images other paths in a table.
        """
        own = exact(self.path(index))
        return text == own or os.path.abspath(text) == os.path.abspath(own)

    def renumbered(self, numbers: NDArray[np.int64], count: int) -> "FileList":
        """Return the list with label k replaced by `numbers[k]`, one of `count` classes; `file_label` maps back."""
        file_labels = np.full(count, -1, np.int64)
        file_labels[numbers] = np.arange(len(numbers))
        if isinstance(self.targets, LabelSets):
            return replace(self, targets=self.targets.renumbered(numbers, count), file_labels=file_labels)
        if self.targets is not None:
            return replace(self, targets=self.targets[:, file_labels], file_labels=file_labels)
        return replace(self, label=numbers[self.label].astype(np.int32), file_labels=file_labels)

    def with_count(self, count: int) -> "FileList":
        """Return the list with `count` labels to choose from, where an image has several; else the list itself."""
        if not isinstance(self.targets, LabelSets):
            return self
        return replace(self, targets=replace(self.targets, count=count))

    def file_label(self, label: int) -> int:
        """Return the label that the file itself gives class `label`; -1 if none."""
        return label if self.file_labels is None else int(self.file_labels[label])

    def select(self, keep: NDArray[np.bool_]) -> "FileList":
        """Return the list of the images that `keep`, bool (N,), marks; the text is shared."""
        columns = {name: getattr(self, name)[keep] for name in ("start", "length", "label", "line")}
        group = None if self.group is None else self.group[keep]
        return replace(self, **columns, targets=target_columns.select(self.targets, keep), group=group)

    def sample(self, limit: int, seed: int) -> "FileList":
        """Return a random part of the list, of at most `limit` images, in which each class has about the same share."""
        if len(self) <= limit:
            return self
        rng = np.random.default_rng([seed, 13])
        order = rng.permutation(len(self))
        order = order[np.argsort(self.label[order], kind="stable")]
        keep = np.zeros(len(self), bool)
        keep[order[np.floor((np.arange(limit) + rng.random()) * len(self) / limit).astype(np.int64)]] = True
        return self.select(keep)


def read_list(path: str | os.PathLike[str], labelled: bool = True, task: str = "single") -> FileList:
    """Read a list file, whose lines hold what `task`, one of options.choices.TASKS, asks for.

    Raises:
        UserError: the file does not exist, is not text, or lists no image; or a line has no label, or a label that is
            not a whole number from 0 or what else `task` allows (the message names file and line).
    """
    path = Path(path)
    try:
        text = np.fromfile(path, dtype=np.uint8)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(list_advice.missing_list(path, labelled, task)) from None
    except OSError as error:
        raise UserError(f"The list {path} cannot be read: {error.strerror}.") from error
    list_advice.check_text(path, text)
    begin = 3 if bytes(text[:3]) == b"\xef\xbb\xbf" else 0
    newline = LF if any((part == LF).any() for part in _slices(text)) else CR
    has_targets = labelled and task in list_advice.TARGET_LINES
    parts = [_parse(text, span, newline, labelled, has_targets, path) for span in _chunks(text, begin, newline)]
    if not any(len(part[0]) for part in parts):
        raise UserError(f"The list {path} holds no image; expected {list_advice.expected(labelled, task)}.")
    *columns, tokens = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    files = FileList(path, text, *columns)
    return replace(files, targets=_parse_targets(files, task, tokens)) if has_targets else files


def _parse_targets(files: FileList, task: str, tokens: NDArray[np.int64]) -> Targets:
    """Return the targets of a list, which are text[start:end] of each row (start, end) of `tokens`, int64 (N, 2)."""
    rows: list[list[int] | list[float]] = []
    for row, (start, end) in enumerate(tokens.tolist()):
        token = files.text[start:end]
        found = target_columns.parse(task, token.tobytes())
        if found is None or (task == "regression" and rows and len(found) != len(rows[0])):
            count = len(rows[0]) if rows and found is not None else None
            raise list_advice.bad_targets(files.source, int(files.line[row]), token, task, count)
        rows.append(found)
    return target_columns.joined(task, rows)


def _slices(text: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Yield the text in parts of PARSE_CHUNK_BYTES."""
    for first in range(0, len(text), PARSE_CHUNK_BYTES):
        yield text[first : first + PARSE_CHUNK_BYTES]


def _chunks(text: NDArray[np.uint8], begin: int, newline: int) -> Iterator[tuple[int, int]]:
    """Yield spans of about PARSE_CHUNK_BYTES that end after a line break, or where the text ends."""
    while begin < len(text):
        end = min(begin + PARSE_CHUNK_BYTES, len(text))
        while end < len(text) and text[end - 1] != newline:
            ahead = np.flatnonzero(text[end : end + 4096] == newline)
            end = end + int(ahead[0]) + 1 if len(ahead) else min(end + 4096, len(text))
        yield begin, end
        begin = end


def _parse(
    text: NDArray[np.uint8], span: tuple[int, int], newline: int, labelled: bool, has_targets: bool, path: Path
) -> tuple[NDArray, ...]:
    """Return start (int64), length, label and line (int32), each (M,), of the M images in the span of the text.

    The fifth array says where the targets of each image start and end in the text: int64 (M, 2), else (M, 0).
    """
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
        unlabelled = np.full(len(starts), -1, np.int32)
        return starts + first, (ends - starts).astype(np.int32), unlabelled, lines, np.zeros((len(starts), 0), np.int64)
    gaps = np.flatnonzero((part == SPACE) | (part == TAB))
    gaps = gaps if len(gaps) else np.array([-1])
    last = gaps[np.maximum(np.searchsorted(gaps, ends) - 1, 0)]
    bare = (last <= starts) | (last >= ends)
    path_ends = _without_blanks(part, starts, np.where(bare, starts, last))
    bare |= path_ends <= starts
    if bare.any():
        raise list_advice.no_label(path, int(lines[bare][0]), part[starts[bare][0] : ends[bare][0]])
    tokens = np.stack([last + 1, ends], axis=1) + first if has_targets else np.zeros((len(starts), 0), np.int64)
    label = np.full(len(starts), -1) if has_targets else _integers(part, last + 1, ends)
    if not has_targets and (label < 0).any():
        at = int(np.flatnonzero(label < 0)[0])
        raise list_advice.bad_label(path, int(lines[at]), part[last[at] + 1 : ends[at]])
    return starts + first, (path_ends - starts).astype(np.int32), label.astype(np.int32), lines, tokens


def _without_blanks(part: NDArray[np.uint8], starts: NDArray, ends: NDArray) -> NDArray[np.int64]:
    """Return `ends` moved back over the blanks before them, at most to `starts`."""
    ends = ends - _follow_blank(part, starts, ends)  # the CR of CRLF; most files have no other blank
    more = _follow_blank(part, starts, ends)
    if more.any():
        blank = (part == SPACE) | (part == TAB) | (part == CR) | (part == LF)
        words = np.flatnonzero(~blank & np.append(blank[1:], True)) + 1  # where runs of other bytes end
        words = np.concatenate([[0], words])
        ends[more] = np.maximum(words[np.searchsorted(words, ends[more], "right") - 1], starts[more])
    return ends


def _follow_blank(part: NDArray[np.uint8], starts: NDArray, ends: NDArray) -> NDArray[np.bool_]:
    """Return which of `ends` follow a blank of their own line."""
    byte = part[np.maximum(ends - 1, 0)]
    return (ends > starts) & ((byte == CR) | (byte == SPACE) | (byte == TAB))


def _integers(part: NDArray[np.uint8], starts: NDArray, ends: NDArray) -> NDArray[np.int64]:
    """Return the whole numbers from 0 written in part[start:end]; -1 where it is not one, or has too many digits."""
    width = ends - starts
    value = np.zeros(len(starts), np.int64)
    good = (width > 0) & (width <= MAX_LABEL_DIGITS)
    for k in range(min(int(width.max(initial=0)), MAX_LABEL_DIGITS)):
        inside = width > k
        digit = part[np.where(inside, starts + k, 0)].astype(np.int64) - ord("0")
        good &= ~inside | ((digit >= 0) & (digit <= 9))
        value = np.where(inside, value * 10 + digit, value)
    return np.where(good, value, -1)


def missing_files(files: FileList, threads: int = 16) -> NDArray[np.bool_]:
    """Return which of the listed files do not exist, bool (N,); uses `threads`, and shows a progress bar."""
    starts = range(0, len(files), EXISTS_CHUNK)

    def look(first: int) -> list[bool]:
        last = min(first + EXISTS_CHUNK, len(files))
        return [not faults.exists(files.path(index)) for index in range(first, last)]

    with ThreadPoolExecutor(threads) as pool:
        chunks = list(progress(pool.map(look, starts), f"looking for the files of {files.source.name}", len(starts)))
    return np.array([missing for chunk in chunks for missing in chunk], dtype=bool)


def read_class_names(folder: Path) -> list[str] | None:
    """Return the names in `classes.txt` of `folder` (line k, from 0, names class k); None without that file or a name.

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
    """Return the lines of a file of names, without blank ones at its end.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() splits at ten more characters
    except UnicodeDecodeError as error:
        advice = list_advice.utf_8_advice(path, error.object[:2])
        raise UserError(f"{path} is not UTF-8 text: {error}. Save it as UTF-8, one name per line.{advice}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Expected: one name per line.") from error
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def check_class_names(path: Path, names: list[str]) -> None:
    """Raise UserError, naming the line, where one of `names`, the lines of `path`, is blank or occurs twice."""
    lines: dict[str, int] = {}
    for line, name in enumerate(names, 1):
        if not name.strip():
            raise UserError(f"{path}, line {line} is blank; expected one name per line, each once.")
        if name in lines:
            again = f"{path}, line {line} names {name!r} again, after line {lines[name]}"
            raise UserError(f"{again}; expected one name per line, each once.")
        lines[name] = line
