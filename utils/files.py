"""Files that are written completely or not at all."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from utils.errors import UserError

T = TypeVar("T")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb", sync: bool = True) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` for writing; at the end of the body, fsync it and rename it to `path`.

    A reader sees the old content or the new one, never a part. If the body or the disk fails, the old file stays and
    the temporary one is deleted. A new file has the permissions of open(), a replaced file keeps its own. A link is
    replaced, not followed. Text is UTF-8; file names of other bytes keep them (surrogateescape).

    Args:
        sync: False: do not wait for the disk, for many files that can be made again.

    Raises:
        UserError: `path` is a folder, a device, or anything else but a regular file.
        OSError: the disk is full, the folder cannot be written, and so on.
    """
    with atomic_write_all([path], mode, sync) as (file,):
        yield file


@contextlib.contextmanager
def atomic_write_all(
    paths: Sequence[str | os.PathLike[str]], mode: str = "wb", sync: bool = True
) -> Iterator[list[IO[Any]]]:
    """Open files as `atomic_write` does, for files that belong together.

    All are complete on the disk before the first is renamed. So all are old or all are new, unless the process is
    killed in the instant between the renames.
    """
    targets = [Path(path) for path in paths]
    besides = [name_beside(path) for path in targets]
    encoding, errors, newline = (None, None, None) if "b" in mode else ("utf-8", "surrogateescape", "")
    try:
        with contextlib.ExitStack() as stack:
            files: list[IO[Any]] = []
            for path, beside in zip(targets, besides, strict=True):
                check_regular(path)
                path.parent.mkdir(parents=True, exist_ok=True)
                opened = open(beside, mode, encoding=encoding, errors=errors, newline=newline, opener=_create)
                files.append(stack.enter_context(opened))
            yield files
            for path, file in zip(targets, files, strict=True):
                file.flush()
                _copy_permissions(path, file.fileno())
                if sync:
                    os.fsync(file.fileno())
        for path in targets:
            check_regular(path)  # again, because the body may take hours
        for path, beside in zip(targets, besides, strict=True):
            os.replace(beside, path)
    except BaseException as error:
        for beside in besides:
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError):  # a full disk is reported without a file name
            meant = {str(beside): str(path) for path, beside in zip(targets, besides, strict=True)} | {
                None: str(targets[0])
            }
            error.filename = meant.get(error.filename, error.filename)
        raise
    for folder in dict.fromkeys(path.parent for path in targets) if sync else ():
        sync_folder(folder)


def write_replaced(path: Path, content: bytes) -> None:
    """Replace a file by `content` as `atomic_write` does, without waiting for the disk.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    try:
        with atomic_write(path, sync=False) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.\nTry: df -h {path.parent}") from error


def check_regular(path: Path) -> None:
    """Raise UserError if `path` is a folder, a device or a pipe; links are followed, and a missing file is fine."""
    try:
        kind = path.stat().st_mode
    except OSError:  # missing, a broken link, or a folder without access, which the writing reports
        return
    if stat.S_ISDIR(kind):
        raise UserError(f"{path} is a folder; expected the name of a file. Try: {path / 'NAME'}")
    if not stat.S_ISREG(kind):
        raise UserError(f"{path} is a device or a pipe, which cannot be replaced; expected the name of a regular file.")


def check_writable(path: Path) -> None:
    """Raise UserError where the folder of `path` can hold no new file.

    Folders that are missing are made later, so the nearest one that exists is asked.
    """
    folder = path.absolute().parent
    check_links(folder)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{path} cannot be written: {folder} is a file, not a folder. Give another name.")
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise UserError(
            f"{path} cannot be written: its permissions, or a file system for reading alone, allow no new file in "
            f"{folder}. Files are replaced whole, so that a crash leaves the old one.\n"
            "Allow writing there (`chmod u+w`), or give a place in another folder."
        )


def check_links(folder: Path) -> None:
    """Raise UserError where `folder`, or one that it is in, is a link to a folder that is not there."""
    for place in (folder, *folder.parents):
        if place.is_symlink() and not place.exists():
            raise UserError(
                f"{folder} cannot be written: {place} is a link to {place.readlink()}, which is not there.\n"
                "Mount its drive, or make that folder; or delete the link."
            )


def link_over(source: Path, path: Path) -> None:
    """Replace `path` by a hard link to `source`, or by a copy on a file system without hard links."""
    beside = name_beside(path)
    try:
        os.link(source, beside)
        os.replace(beside, path)
        sync_folder(path.parent)
    except OSError:  # a file system without hard links
        beside.unlink(missing_ok=True)
        with atomic_write(path) as target, open(source, "rb") as file:
            while block := file.read(1 << 24):
                target.write(block)


def name_beside(path: Path, kind: str = "tmp") -> Path:
    """Return a temporary path in the folder of `path`: .<name>.<16 random hex digits>.<kind>, at most 255 bytes.

    It is random so that nobody can put a link there beforehand. A longer name is cut to 200 bytes.
    """
    name = os.fsdecode(os.fsencode(path.name)[:200])
    return path.with_name(f".{name}.{secrets.token_hex(8)}.{kind}")


def _create(path: str, flags: int) -> int:
    """Create a file that must not exist, with the permissions of open(); an opener."""
    return os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def _copy_permissions(path: Path, fd: int) -> None:
    """Give the open file `fd` the owner and the permissions of the regular file `path` that it will replace."""
    try:
        old, new = path.lstat(), os.fstat(fd)
    except OSError:  # nothing to replace
        return
    if not stat.S_ISREG(old.st_mode):
        return
    with contextlib.suppress(OSError):  # only root may give a file away
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            os.fchown(fd, old.st_uid, old.st_gid)
    with contextlib.suppress(OSError):  # a file system without permissions
        os.fchmod(fd, stat.S_IMODE(old.st_mode) & 0o777)


def write_json(path: str | os.PathLike[str], content: object) -> None:
    """Write `content` as indented JSON, by `atomic_write`."""
    with atomic_write(path, "w") as file:
        file.write(json_text(content, indent=2) + "\n")


def write_yaml(path: str | os.PathLike[str], content: object) -> None:
    """Write `content` as YAML, by `atomic_write`, without aliases, which options.plain_yaml refuses."""
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    with atomic_write(path, "w") as file:
        yaml.dump(content, file, Dumper=Plain, sort_keys=False, allow_unicode=True)


def json_text(
    content: object, indent: int | None = None, separators: tuple[str, str] | None = None, allow_nan: bool = True
) -> str:
    r"""Return `content` as JSON in valid UTF-8: a byte of a file name that is not UTF-8 becomes \udcXX."""
    text = json.dumps(content, ensure_ascii=False, indent=indent, separators=separators, allow_nan=allow_nan)
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def file_hash(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_hashed(path: str | os.PathLike[str], read: Callable[[], T]) -> tuple[T, str]:
    """Return what `read` gives, and the sha256 of the state of the file `path` that it has read.

    A file that a run replaces meanwhile is read once more. The sha256 is "" where there is no file: `read` has the
    message for that, or needs none.
    """
    while True:
        before = _state(path)
        sha256 = file_hash(path) if before else ""
        content = read()
        if _state(path) == before:
            return content, sha256


def _state(path: str | os.PathLike[str]) -> tuple[int, ...] | None:
    """Return what changes with each replacement of a file, and with most other writing; None where there is none."""
    if not os.path.isfile(path):
        return None
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Lock the file `path` against other processes while the body runs."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sync_folder(folder: Path) -> None:
    """Let a rename in `folder` survive a power cut, where the file system can sync a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
