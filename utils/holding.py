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


class Held:
    """The open lock file, as the system's number; it is closed, and with it the lock let go, when nobody has this any more."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.number)


def hold(folder: Path, tag: str) -> Held:
    """Make the records of `folder`, logs/<tag>, this process's own for as long as the returned object lives.

    The lock is a record lock, which belongs to the process alone: one that a killed run's workers had inherited would
    outlive it. On a file system without locks there is none.

    Raises:
        UserError: another process holds them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = Held(os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
    if not _locked(held):
        raise in_use(held, tag)
    who = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(held.number, 0)
        os.write(held.number, f"{who}: {shlex.join(['python', *sys.argv])}\n".encode(errors="surrogateescape"))
    return held


def check_free(folder: Path, tag: str) -> None:
    """Raise UserError where a run in another process holds the records of `folder`, logs/<tag>. Nothing is written."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        held = Held(os.open(folder / FILE, os.O_RDWR | os.O_CLOEXEC))
        if not _locked(held):
            raise in_use(held, tag)


def _locked(held: Held) -> bool:
    """Whether the lock is ours now, or there is none to be had here."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.lockf(held.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return True
        if time.monotonic() > until:
            return False
        time.sleep(0.1)


def in_use(held: Held, tag: str) -> UserError:
    """The error for a tag that another process holds: who, and what to do."""
    who = os.pread(held.number, 4096, 0).decode(errors="replace").strip()
    return UserError(
        f"A run of tag {tag!r} is going on ({who or 'by another process'}).\n"
        "Wait for its end, or end it: Ctrl-C there, or kill -TERM and the number of the process, saves where it is. "
        "To train beside it, give another --tag."
    )
