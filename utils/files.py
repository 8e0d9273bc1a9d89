"""Files that are whole or absent."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from utils.errors import UserError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file beside `path` for writing; on leaving, flush, fsync, and put it in `path`'s place.

    A reader sees the old content or the new, never half of one. Where the body or the disk fails, the old file
    stays and nothing is left behind. A new file has the permissions that open() gives, a replaced one keeps its own.
    A link is replaced, not followed. Text is UTF-8; file names of other bytes keep them (surrogateescape).

    Raises:
        UserError: `path` is a folder, a device, or anything else that is no regular file.
        OSError: the disk is full, the folder cannot be written, and so on.
    """
    with atomic_write_all([path], mode) as (file,):
        yield file


@contextlib.contextmanager
def atomic_write_all(paths: Sequence[str | os.PathLike[str]], mode: str = "wb") -> Iterator[list[IO[Any]]]:
    """Open a file beside each of `paths`, as `atomic_write` does; all are complete on the disk before the first is put in its place.

    So files that belong together are all old or all new, but for a kill in the instant between their renames.
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
                _take_permissions(path, file.fileno())
                os.fsync(file.fileno())
        for path in targets:
            check_regular(path)  # again: the body may have taken hours
        for path, beside in zip(targets, besides, strict=True):
            os.replace(beside, path)
    except BaseException as error:
        for beside in besides:
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError):  # the kernel does not say which file a full disk cut short
            meant = {str(beside): str(path) for path, beside in zip(targets, besides, strict=True)} | {
                None: str(targets[0])
            }
            error.filename = meant.get(error.filename, error.filename)
        raise
    for folder in dict.fromkeys(path.parent for path in targets):
        sync_folder(folder)


def check_regular(path: Path) -> None:
    """Raise UserError where `path` exists and is no regular file: a folder, a device, a pipe. Links are followed."""
    try:
        kind = path.stat().st_mode
    except OSError:  # nothing there, a link to nothing, or a folder that the writing will complain of
        return
    if stat.S_ISDIR(kind):
        raise UserError(f"{path} is a folder; expected the name of a file. Try: {path / 'NAME'}")
    if not stat.S_ISREG(kind):
        raise UserError(f"{path} is a device or a pipe, which cannot be replaced; expected the name of a regular file.")


def link_over(source: Path, path: Path) -> None:
    """Give the content of `source` a second name, in place of what `path` held; a copy where links are not to be had."""
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
    """Return a name in the folder of `path` that nobody can foresee, and so prepare a link under: .<name>.<16 hex digits>.<kind>.

    At most 255 bytes: of a longer name the first 200 bytes.
    """
    name = os.fsdecode(os.fsencode(path.name)[:200])
    return path.with_name(f".{name}.{secrets.token_hex(8)}.{kind}")


def _create(path: str, flags: int) -> int:
    """Create a file that does not exist yet, with the permissions that open() gives; an opener."""
    return os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def _take_permissions(path: Path, number: int) -> None:
    """Give the open file `number` the owner and the permissions of the regular file that it is about to replace."""
    try:
        old, new = path.lstat(), os.fstat(number)
    except OSError:  # nothing to replace
        return
    if not stat.S_ISREG(old.st_mode):
        return
    with contextlib.suppress(OSError):  # only root may give a file away
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            os.fchown(number, old.st_uid, old.st_gid)
    with contextlib.suppress(OSError):  # a file system without permissions
        os.fchmod(number, stat.S_IMODE(old.st_mode) & 0o777)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    with atomic_write(path, "w") as file:
        file.write(json_text(content, indent=2) + "\n")


def write_yaml(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as YAML, whole or not at all; what occurs twice is written twice, for our reader refuses aliases."""
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    with atomic_write(path, "w") as file:
        yaml.dump(content, file, Dumper=Plain, sort_keys=False, allow_unicode=True)


def json_text(content: Any, **settings: Any) -> str:
    r"""Return `content` as JSON that is UTF-8 for every reader: a byte of a file name that is none stands as \udcXX, as Python reads it."""
    text = json.dumps(content, ensure_ascii=False, **settings)
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


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


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut; file systems that cannot sync a folder are left alone."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
