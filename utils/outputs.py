"""Check outputs before the work: never an input, a folder or a device, nor a place that cannot be written.

A file of another kind is replaced only with --force.
"""

import argparse
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from utils.errors import UserError
from utils.files import check_regular, check_writable
from utils.logger import log

INPUT_FLAGS = (
    "load",
    "probe_init",
    "ensemble",
    "config",
    "compare",
    "like",
    "teacher",
    "list",
    "among",
    "decisions",
    "space",
    "file",
    "classes",
)
HEAD_BYTES = 4096  # enough to recognise the kind of a file


class ImageList(Protocol):
    """What is needed of a dataloader.FileList: its file, its length and the path of each image."""

    @property
    def source(self) -> Path:
        """Return the list file."""

    def __len__(self) -> int: ...

    def path(self, index: int) -> str:
        """Return the path of image `index`."""


class Output(NamedTuple):
    """A file that will be written.

    Attributes:
        path: where.
        what: what it is, for messages.
        ours: returns whether an existing file is of the same kind; None if any regular file may be replaced.
    """

    path: Path
    what: str
    ours: Callable[[Path], bool] | None = None


def inputs(opt: argparse.Namespace, *lists: ImageList) -> dict[str, str]:
    """Return what a command reads, {path: what it is}: the files of INPUT_FLAGS in `opt`, and the FileLists `lists`."""
    found: dict[str, str] = {}
    for name in INPUT_FLAGS:
        value = vars(opt).get(name)
        found |= {str(path): f"--{name}" for path in (value if isinstance(value, list) else [value]) if path}
    for files in lists:
        found |= {str(files.source): "a list", str(files.source.parent / "classes.txt"): "the names of a list"}
    return found


def check(
    outputs: Iterable[Output], read: Mapping[str, str], lists: Iterable[ImageList] = (), force: bool = False
) -> None:
    """Raise UserError if a file of `outputs` must not be written. Call it before the work, which may take hours.

    Args:
        outputs: the files that will be written.
        read: what the command reads, from `inputs`. Files are compared by device and inode, so links do not matter.
        lists: FileLists, whose images must not be replaced either.
        force: allow the replacement of files of another kind.
    """
    outputs, present = list(outputs), list[Output]()
    for place, out in enumerate(outputs):
        twice = next(
            (other for other in outputs[:place] if os.path.abspath(other.path) == os.path.abspath(out.path)), None
        )
        if twice is not None:
            raise UserError(f"{out.path} would be {twice.what} and {out.what} at once. Give another name.")
        check_regular(out.path)
        check_writable(out.path)
        present += [out] if out.path.exists() else []
    there = {_identity(out.path): out for out in present}
    for path, what in itertools.chain(read.items(), _images(lists)) if there else ():
        same = there.get(_identity(path))
        if same is not None:
            raise UserError(
                f"{same.path} ({same.what}) is the same file as {path} ({what}), which is read. Give it another name."
            )
    for out in present:
        if out.ours is not None and not force and out.path.stat().st_size and not out.ours(out.path):
            raise UserError(
                f"{out.path} exists already and does not look like {out.what}. "
                "Give another name, or --force to replace it."
            )


def check_folder(folder: Path, names: Iterable[str], opt: argparse.Namespace, *lists: ImageList) -> None:
    """Call `check` for files of these names in an output folder, where the same tool wrote earlier ones."""
    check([Output(folder / name, name) for name in names], inputs(opt, *lists), lists)


def remove_stale(paths: Iterable[Path]) -> None:
    """Delete files of an earlier run that would pass as belonging to the new ones, and log their names."""
    stale = [path for path in paths if path.is_file()]
    for path in stale:
        path.unlink()
    if stale:
        log.info(f"Removed, of an earlier run: {', '.join(map(str, stale))}")


def _images(lists: Iterable[ImageList]) -> Iterable[tuple[str, str]]:
    for files in lists:
        for index in range(len(files)):
            yield files.path(index), "an image of the list"


def _identity(path: str | Path) -> tuple[int, int] | None:
    """Return device and inode of the file; None if it does not exist or cannot have this name."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return None
    return state.st_dev, state.st_ino


# ------------------------------------------------------------------------------------------------ kinds of files


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(HEAD_BYTES)


def is_plot(path: Path) -> bool:
    """Return whether the file is a PNG of matplotlib, which writes its name into it."""
    head = _head(path)
    return head.startswith(b"\x89PNG\r\n\x1a\n") and b"Matplotlib" in head


def is_probabilities(path: Path) -> bool:
    """Return whether the file begins as inference.saved_probs writes it."""
    head = _head(path)
    return head.startswith(b"PK") and (b"log_probabilities.npy" in head[:100] or b"predictions.npy" in head[:100])


def is_list(path: Path) -> bool:
    """Return whether the file is text whose first line ends in a space and a whole number."""
    first = _head(path).split(b"\n")[0].rstrip(b"\r")
    return b"\0" not in first and first.rpartition(b" ")[2].isdigit() and b" " in first


def is_label_list(path: Path) -> bool:
    """Return whether the file is text whose first line ends in a space and labels: `3`, `3,17`, or `-` for none."""
    first = _head(path).split(b"\n")[0].rstrip(b"\r")
    return b"\0" not in first and re.search(rb" (-|[0-9]+(,[0-9]+)*)$", first) is not None


def begins_with(*words: str, separator: str = ",") -> Callable[[Path], bool]:
    """Return a test whether the first line of a CSV holds the columns `words`."""
    line = separator.join(words).encode()
    return lambda path: _head(path).split(b"\n")[0].rstrip(b"\r") == line


def contains(mark: bytes) -> Callable[[Path], bool]:
    """Return a test whether the first HEAD_BYTES of a file hold `mark`."""
    return lambda path: mark in _head(path)


def has_key(key: str) -> Callable[[Path], bool]:
    """Return a test whether the file is a JSON object with `key`."""

    def test(path: Path) -> bool:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(content, dict) and key in content

    return test
