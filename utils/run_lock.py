"""Who is at work on a folder of a tag: locks that the kernel lets go of, however their process ends.

The lock of checkpoints/run is the file checkpoints/.run.lock beside it: a folder that is moved takes no lock along. The file
says who holds it, and is deleted when the last holder lets go; one that a killed process left behind locks nothing.
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

from utils.errors import UserError

PATIENCE = 2.0  # seconds: a process that was killed a moment ago may not be quite gone


class _Lock(NamedTuple):
    """An open lock file: the system's number of it, its device and inode, its path, and the folders that were made for it."""

    number: int
    inode: tuple[int, int]
    path: Path
    made: list[Path]


_held: list[_Lock] = []


def hold(folder: Path, shared: bool = False) -> None:
    """Keep other processes off `folder`, which need not exist yet, until `let_go` or the end of this process.

    `shared`: beside others that share it too. Who replaces or moves the folder as a whole does not share it. Where the folder
    is a link, its target is held as well. The locks are record locks, which belong to the process alone: one that a killed
    run's workers had inherited would outlive it. On a file system without locks there is none.

    Raises:
        UserError: another process holds it.
    """
    _hold(lock_file(folder), folder, shared)
    if folder.is_symlink():
        with contextlib.suppress(OSError):  # beside the target nothing may be written
            _hold(lock_file(folder.resolve()), folder, shared)


def let_go() -> None:
    """Let go of all that this process holds."""
    while _held:
        lock = _held.pop()
        if _locked(lock.number, shared=False) and _inode(lock.path) == lock.inode:  # nobody shares it
            with contextlib.suppress(OSError):
                lock.path.unlink()
        os.close(lock.number)
        with contextlib.suppress(OSError):  # something is in them by now
            for folder in lock.made:
                folder.rmdir()


def lock_file(folder: Path) -> Path:
    """Where the lock of `folder` is. No tag begins with a dot, so it is in no tag's way."""
    return folder.parent / f".{os.fsdecode(os.fsencode(folder.name)[:200])}.lock"


def _hold(path: Path, folder: Path, shared: bool) -> None:
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(error.errno, f"{error.strerror}, for {folder}", error.filename) from error
    until = time.monotonic() + PATIENCE
    while True:
        if _inode(path) in [lock.inode for lock in _held]:  # to open and close it once more would end the lock
            return
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        state = os.fstat(number)
        if not _locked(number, shared):
            if time.monotonic() > until:
                who = os.pread(number, 4096, 0).decode(errors="replace").strip()
                os.close(number)
                raise in_use(folder, who)
            os.close(number)
            time.sleep(0.05)
        elif _inode(path) != (state.st_dev, state.st_ino):  # its holder has just deleted it
            os.close(number)
        else:
            break
    _held.append(_Lock(number, (state.st_dev, state.st_ino), path, made))
    since = f"since {time.strftime('%Y-%m-%d %H:%M:%S')}: {shlex.join(['python', *sys.argv])}"
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(number, 0)
        os.write(number, f"process {os.getpid()} on {socket.gethostname()}, {since}\n".encode(errors="surrogateescape"))


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _locked(number: int, shared: bool) -> bool:
    """Whether the lock is ours now, or there is none to be had here."""
    try:
        fcntl.lockf(number, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def in_use(folder: Path, who: str) -> UserError:
    """The error for a folder that another process holds: who, and what to do."""
    return UserError(
        f"{folder} is in use by another command ({who or 'it has not said which'}).\n"
        "Wait for its end, or end it: Ctrl-C there, or kill -TERM and the number of the process; a training run saves where it is. "
        "To work beside it, give another --tag."
    )
