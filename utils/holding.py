"""Who is at work on a tag: a lock that the kernel lets go of, however its process ends."""

import contextlib
import errno
import fcntl
import os
import shlex
import socket
import sys
import time
from pathlib import Path

from utils.errors import UserError

FILE = ".running"  # in logs/<tag>/; it stays there, and says nothing unless it is locked
PATIENCE = 2.0  # seconds: a process that was killed a moment ago may not be quite gone

_held: list[int] = []  # the system's numbers of the open lock files


def hold(folder: Path, tag: str) -> None:
    """Make the records of `folder`, logs/<tag>, this process's own until `let_go`, or its end.

    The lock is a record lock, which belongs to the process alone: one that a killed run's workers had inherited would
    outlive it. On a file system without locks there is none.

    Raises:
        UserError: another process holds them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    _held.append(number)
    if not _locked(number):
        raise in_use(number, tag)
    who = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(number, 0)
        os.write(number, f"{who}: {shlex.join(['python', *sys.argv])}\n".encode(errors="surrogateescape"))


def let_go() -> None:
    """Let go of all that this process holds."""
    while _held:
        os.close(_held.pop())


def check_free(folder: Path, tag: str) -> None:
    """Raise UserError where a run in another process holds the records of `folder`, logs/<tag>. Nothing is written."""
    try:
        number = os.open(folder / FILE, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if not _locked(number):
            raise in_use(number, tag)
    finally:
        os.close(number)


def _locked(number: int) -> bool:
    """Whether the lock is ours now, or there is none to be had here."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return True
        if time.monotonic() > until:
            return False
        time.sleep(0.1)


def in_use(number: int, tag: str) -> UserError:
    """The error for a tag that another process holds: who, and what to do."""
    who = os.pread(number, 4096, 0).decode(errors="replace").strip()
    return UserError(
        f"A run of tag {tag!r} is going on ({who or 'by another process'}).\n"
        "Wait for its end, or end it: Ctrl-C there, or kill -TERM and the number of the process, saves where it is. "
        "To train beside it, give another --tag."
    )
