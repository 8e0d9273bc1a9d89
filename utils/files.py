"""Files that are whole or absent."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file beside `path` for writing; on leaving, flush, fsync, and put it in `path`'s place.

    A reader sees the old content or the new, never half of one. Where the body or the disk fails, the old file
    stays and nothing is left behind. Text is UTF-8; file names of other bytes keep them (surrogateescape).

    Raises:
        OSError: the disk is full, the folder cannot be written, and so on.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    encoding, errors, newline = (None, None, None) if "b" in mode else ("utf-8", "surrogateescape", "")
    try:
        with open(beside, mode, encoding=encoding, errors=errors, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(beside)):
            error.filename = str(path)  # the kernel does not say which file a full disk cut short
        raise
    _sync_folder(path.parent)


def link_over(source: Path, path: Path) -> None:
    """Give the content of `source` a second name, in place of what `path` held; a copy where links are not to be had."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.unlink(missing_ok=True)
        os.link(source, beside)
        os.replace(beside, path)
        _sync_folder(path.parent)
    except OSError:  # a file system without hard links
        with atomic_write(path) as target, open(source, "rb") as file:
            while block := file.read(1 << 24):
                target.write(block)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    with atomic_write(path, "w") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


def file_hash(path: str | os.PathLike[str]) -> str:
    """sha256 of a file, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock file `path` against other processes while the body runs."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut; file systems that cannot sync a folder are left alone."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
