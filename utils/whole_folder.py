"""Folders that are whole or absent: filled beside their place, and moved there by one rename."""

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from utils.files import name_beside, sync_folder

LEFT = re.compile(
    r"\.(?P<name>.+)\.[0-9a-f]{16}\.(?P<kind>partial|old)", re.DOTALL
)  # as `_begin` and `_replace` name folders
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)

Keep = Callable[[str], str | None]


@contextlib.contextmanager
def whole_folder(path: Path, keep: Keep = lambda name: None) -> Iterator[Path]:
    """Give a new, empty folder beside `path` to fill; on leaving, it takes the place of `path` by one rename.

    A reader sees the old folder or the new one, never files of both. Where the body fails or the process is killed, the old
    folder stays as it was. What killed processes left beside `path` is removed first.

    Args:
        keep: asked for each name in the old folder that the body did not write: the name it has in the new one, or None,
            where it is dropped. Kept files are linked, or copied where links are not to be had.

    Raises:
        OSError: `path` is a file, the disk is full, and so on.
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    remove_leftovers(path.parent)
    new, lock = _begin(path)
    try:
        yield new
        if path.is_dir():
            _carry_over(path, new, keep)
        _sync(new)
        with _held(path.parent):
            old = _replace(path, new)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed `whole_folder`s left in `folder`, and put back an old folder that one of them had moved away.

    A folder that is still being filled is locked by its process, and stays; so does one on a file system without locks,
    where nobody can tell.
    """
    with _held(folder) as held:
        for left in sorted(folder.iterdir()) if held else ():
            match = LEFT.fullmatch(left.name)
            if match is None or left.is_symlink() or not left.is_dir():
                continue
            place = folder / match["name"]
            if match["kind"] == "old" and not os.path.lexists(place):
                left.rename(place)
            elif _free(left):
                shutil.rmtree(left, ignore_errors=True)


def _begin(path: Path) -> tuple[Path, int | None]:
    """A new folder beside `path`, and the lock that tells others that somebody fills it (None: no locks here)."""
    with _held(path.parent):
        new = name_beside(path, "partial")
        new.mkdir()
        if path.is_dir():
            new.chmod(path.stat().st_mode & 0o7777)
        return new, _lock(new, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock(folder: Path, kind: int) -> int | None:
    """The open, locked `folder`; None where the file system has no locks. Raises BlockingIOError where another holds it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, kind)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return handle


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold `folder` against other whole_folders, for the few system calls of the body; False where there are no locks."""
    handle = _lock(folder, fcntl.LOCK_EX)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


def _free(left: Path) -> bool:
    """Whether the process that filled `left` is gone."""
    try:
        handle = _lock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    if handle is not None:
        os.close(handle)
    return handle is not None


def _carry_over(old: Path, new: Path, keep: Keep) -> None:
    for entry in sorted(old.iterdir()):
        if (new / entry.name).exists():
            continue
        name = keep(entry.name)
        if name is None:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / name, symlinks=True, copy_function=_link)
        else:
            _link(entry, new / name)


def _sync(new: Path) -> None:
    """Have all of `new` on the disk: a rename must not outlive what it names."""
    for folder, _, names in os.walk(new):
        for name in names:
            with contextlib.suppress(OSError), open(os.path.join(folder, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(folder))


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _replace(path: Path, new: Path) -> Path | None:
    """Put `new` in the place of `path`; returns what was there, under its present name."""
    if not path.exists():
        new.rename(path)
        return None
    if _exchange(new, path):
        return new
    old = new.with_suffix(".old")
    path.rename(old)
    new.rename(path)  # killed before this, `remove_leftovers` puts the old one back
    return old


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders by one system call; False where the system has none."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))
