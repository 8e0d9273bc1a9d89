"""Folders that are replaced as a whole: filled beside their place and moved there by one rename."""

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
    """Yield a new, empty folder beside `path`; at the end of the body, one rename puts it in the place of `path`.

    A reader sees the old folder or the new one, never files of both. If the body fails or the process is killed, the
    old folder stays. Leftovers of killed processes beside `path` are removed first.

    Args:
        path: the folder; where it is a link, the link stays and its target is replaced.
        keep: called with each name in the old folder that the body did not write. It returns the name in the new
            folder, or None to drop it. Kept files are linked, or copied on a file system without hard links.

    Raises:
        OSError: `path` is a file, the disk is full, and so on.
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    remove_leftovers(path.parent)
    staging, lock = _begin(path)
    try:
        yield staging
        if path.is_dir():
            _carry_over(path, staging, keep)
        _sync(staging)
        with held(path.parent):
            old = _replace(path, staging)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove leftovers of killed `whole_folder`s in `folder`, and restore an old folder that one had moved away.

    A folder that a process still fills is locked, and stays. On a file system without locks every folder stays.
    """
    with held(folder) as locked:
        for left in sorted(folder.iterdir()) if locked else ():
            match = LEFT.fullmatch(left.name)
            if match is None or left.is_symlink() or not left.is_dir():
                continue
            place = folder / match["name"]
            if match["kind"] == "old" and not os.path.lexists(place):
                left.rename(place)
            elif _free(left):
                shutil.rmtree(left, ignore_errors=True)


def _begin(path: Path) -> tuple[Path, int | None]:
    """Return a new folder beside `path`, and the lock that marks it as in use (None on a file system without locks)."""
    with held(path.parent):
        staging = name_beside(path, "partial")
        staging.mkdir()
        if path.is_dir():
            staging.chmod(path.stat().st_mode & 0o7777)
        return staging, _lock(staging, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock(folder: Path, kind: int) -> int | None:
    """Return the open, locked `folder`; None without locks. Raises BlockingIOError if another process holds it."""
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
def held(folder: Path) -> Iterator[bool]:
    """Lock `folder` against other users of this lock, for a moment; yield False on a file system without locks."""
    handle = _lock(folder, fcntl.LOCK_EX)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


def _free(left: Path) -> bool:
    """Return whether the process that filled `left` has ended."""
    try:
        handle = _lock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    if handle is not None:
        os.close(handle)
    return handle is not None


def _carry_over(old: Path, staging: Path, keep: Keep) -> None:
    for entry in sorted(old.iterdir()):
        if (staging / entry.name).exists():
            continue
        name = keep(entry.name)
        if name is None:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, staging / name, symlinks=True, copy_function=_link)
        else:
            _link(entry, staging / name)


def _sync(staging: Path) -> None:
    """Write all of `staging` to the disk: a rename must not survive a power cut that its files do not."""
    for folder, _, names in os.walk(staging):
        for name in names:
            with contextlib.suppress(OSError), open(os.path.join(folder, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(folder))


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _replace(path: Path, staging: Path) -> Path | None:
    """Put `staging` in the place of `path`; return the old folder under its present name, or None."""
    if not path.exists():
        staging.rename(path)
        return None
    if _exchange(staging, path):
        return staging
    old = staging.with_suffix(".old")
    path.rename(old)
    staging.rename(path)  # if it is killed before this, `remove_leftovers` restores the old folder
    return old


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders by one system call; return False if the system has none."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))
