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
from typing import IO

from utils.errors import UserError

FILE = ".running"  # in logs/<tag>/; it stays there, and says nothing unless it is locked
PATIENCE = 2.0  # seconds: a process that was killed a moment ago may not be quite gone


def hold(folder: Path, tag: str) -> IO[str] | None:
    """Make the records of `folder`, logs/<tag>, this process's own for as long as the returned file is open.

    The lock is a record lock, which belongs to the process alone: one that a killed run's workers had inherited would
    outlive it. None on a file system without locks.

    Raises:
        UserError: another process holds them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / FILE, "a+", encoding="utf-8", errors="surrogateescape")
    if not _locked(file):
        raise in_use(file, tag)
    command = shlex.join(["python", *sys.argv])
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}: {command}\n")
        file.flush()
    return file


def check_free(folder: Path, tag: str) -> None:
    """Raise UserError where a run in another process holds the records of `folder`, logs/<tag>. Nothing is written."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), open(folder / FILE, "r+", encoding="utf-8") as file:
        if not _locked(file):
            raise in_use(file, tag)


def _locked(file: IO[str]) -> bool:
    """Whether the lock is ours now, or there is none to be had here."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return True
        if time.monotonic() > until:
            return False
        time.sleep(0.1)


def in_use(file: IO[str], tag: str) -> UserError:
    """The error for a tag that another process holds: who, and what to do."""
    file.seek(0)
    return UserError(
        f"A run of tag {tag!r} is going on ({file.read().strip() or 'by another process'}).\n"
        "Wait for its end, or end it: Ctrl-C there, or kill -TERM and the number of the process, saves where it is. "
        "To train beside it, give another --tag."
    )
