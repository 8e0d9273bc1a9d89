"""Locks on the folders of a tag, which the kernel releases however the holding process ends.

The lock of checkpoints/run is the file checkpoints/.run.lock beside it, so a folder that is moved does not take its
lock along. The file names its holder. The last holder deletes it; a file of a killed process locks nothing.
"""

import contextlib
import errno
import fcntl
import os
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import NamedTuple

from utils import distributed
from utils.errors import UserError
from utils.files import check_links

TIMEOUT_SECONDS = 2.0  # a process that was killed a moment ago may not have ended yet
POLL_SECONDS = 0.05
MAX_NAME_BYTES = 200  # of a folder's name in the name of its lock; file systems take 255


class _Lock(NamedTuple):
    """An open lock file: its descriptor, (device, inode) and path, and the folders that were made to hold it."""

    fd: int
    inode: tuple[int, int]
    path: Path
    made: list[Path]


_held: list[_Lock] = []


def acquire(folder: Path, shared: bool = False) -> None:
    """Lock `folder`, which need not exist yet, against other processes until `release_all` or the end of this process.

    If the folder is a link, its target is locked as well. The locks are record locks, which belong to this process
    alone: a lock that the workers of a killed run had inherited would outlive the run. A file system without locks
    locks nothing. Of several processes under torchrun, only the first one locks.

    Args:
        folder: the folder to lock.
        shared: allow other shared holders. A command that replaces or moves the whole folder needs an exclusive lock.

    Raises:
        UserError: another process holds the lock.
    """
    if not distributed.is_main():
        return
    _acquire(lock_path(folder), folder, shared)
    if folder.is_symlink():
        with contextlib.suppress(OSError):  # the folder of the target may be read-only
            _acquire(lock_path(folder.resolve()), folder, shared)


def wait_until_free(folder: Path, seconds: float) -> bool:
    """Wait until no other process holds the lock of `folder`; return False if one still does after `seconds`."""
    deadline = time.monotonic() + seconds
    while _is_locked(lock_path(folder)):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _is_locked(path: Path) -> bool:
    """Return whether another process holds the lock file. This process must not hold it: closing it would end that."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not _try_lock(fd, shared=False)
    finally:
        os.close(fd)


def release_all() -> None:
    """Release every lock of this process."""
    while _held:
        lock = _held.pop()
        if _try_lock(lock.fd, shared=False) and _inode(lock.path) == lock.inode:  # no other process shares it
            with contextlib.suppress(OSError):
                lock.path.unlink()
        os.close(lock.fd)
        with contextlib.suppress(OSError):  # a folder that is no longer empty stays
            for folder in lock.made:
                folder.rmdir()


def lock_path(folder: Path) -> Path:
    """Return the path of the lock file of `folder`. It begins with a dot, as no tag does."""
    return folder.parent / f".{os.fsdecode(os.fsencode(folder.name)[:MAX_NAME_BYTES])}.lock"


def locked_error(folder: Path, holder: str) -> UserError:
    """Return the error for a folder that another process has locked; `holder` is the text of the lock file."""
    return UserError(
        f"{folder} is in use by another command ({holder or 'which has not written its name'}).\n"
        "Wait for it to end, or stop it with Ctrl-C or `kill -TERM PROCESS`; a training run saves its state first. "
        "To work at the same time, give another --tag."
    )


def _acquire(path: Path, folder: Path, shared: bool) -> None:
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        check_links(folder)
        raise type(error)(error.errno, f"{error.strerror}, for {folder}", error.filename) from error
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        if _inode(path) in [lock.inode for lock in _held]:  # opening and closing it again would end the lock
            return
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        opened = os.fstat(fd)
        if not _try_lock(fd, shared):
            if time.monotonic() > deadline:
                holder = os.pread(fd, 4096, 0).decode(errors="replace").strip()
                os.close(fd)
                raise locked_error(folder, holder)
            os.close(fd)
            time.sleep(POLL_SECONDS)
        elif _inode(path) != (opened.st_dev, opened.st_ino):  # its holder has just deleted it
            os.close(fd)
        else:
            break
    _held.append(_Lock(fd, (opened.st_dev, opened.st_ino), path, made))
    since = f"since {time.strftime('%Y-%m-%d %H:%M:%S')}: {shlex.join(['python', *sys.argv])}"
    with contextlib.suppress(OSError):  # a full disk: the lock holds without its text
        os.ftruncate(fd, 0)
        os.write(fd, f"process {os.getpid()} on {socket.gethostname()}, {since}\n".encode(errors="surrogateescape"))


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _try_lock(fd: int, shared: bool) -> bool:
    """Return whether this process has the lock now, or the file system has no locks."""
    try:
        fcntl.lockf(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True
