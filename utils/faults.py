"""Faults of the machine while a file is read. They say nothing about the file: tried again for a while, they end the command."""

import errno
import os
import time
from collections.abc import Callable
from typing import TypeVar

from utils.errors import MachineFault

T = TypeVar("T")
WAIT_SECONDS = (0.1, 0.5, 2.0, 5.0)  # before the second try, the third, and so on
FILES = "Raise the limit (`ulimit -n 65536`), or read with fewer --workers."
MEMORY = "Use fewer --workers, a smaller -b or no --cache ram, or a lower --max_pixels."
DRIVE = "Look at the drive: `dmesg`, `mount`, `df`."
# What the kernel says of itself, of a disk and of a network drive; EACCES, ENOENT, EISDIR and the like are about the path.
HINTS = dict.fromkeys((errno.EMFILE, errno.ENFILE), FILES) | dict.fromkeys((errno.ENOMEM, errno.ENOBUFS), MEMORY)
HINTS |= dict.fromkeys(
    (
        errno.EIO,
        errno.EINTR,
        errno.EAGAIN,
        errno.EBUSY,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.EREMOTEIO,
        errno.ENOTCONN,  # a FUSE drive whose process has died
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENOLINK,
        errno.ESHUTDOWN,
    ),
    DRIVE,
)


def pause(seconds: float) -> None:
    """Wait before the next try; tests put another in its place."""
    time.sleep(seconds)


def is_fault(error: BaseException) -> bool:
    """Whether `error` is the machine's fault, and no property of the file that was read."""
    if isinstance(error, OSError):
        return error.errno in HINTS
    return isinstance(error, MemoryError) or (
        type(error).__name__ == "error" and getattr(error, "code", 0) == -4
    )  # cv2's StsNoMem


def patiently(act: Callable[[], T], path: str | os.PathLike[str]) -> T:
    """Return `act()`, which reads `path`; where the machine fails, try it again after each of WAIT_SECONDS.

    Raises:
        MachineFault: the machine failed each time. Whatever else `act` raises.
    """
    for wait in (*WAIT_SECONDS, None):
        try:
            return act()
        except Exception as error:
            if not is_fault(error):
                raise
            if wait is None:
                raise _named(error, path) from error
        pause(wait)  # out of the handler, which would hold the failed try's memory
    raise AssertionError("the last try returns or raises")


def status(path: str) -> os.stat_result:
    """Return `os.stat(path)`. Raises as it does, but for MachineFault where the machine fails again and again."""
    return patiently(lambda: os.stat(path), path)


def exists(path: str) -> bool:
    """Return whether `path` is there, as os.path.exists does, which takes a drive that fails for a missing file.

    Raises:
        MachineFault: the machine fails again and again.
    """
    try:
        status(path)
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return False
    return True


def _named(error: Exception, path: str | os.PathLike[str]) -> MachineFault:
    number = getattr(error, "errno", None) or errno.ENOMEM
    reason = os.strerror(number) if isinstance(error, OSError) else "no memory left"
    tries = len(WAIT_SECONDS) + 1
    return MachineFault(
        f"{os.fspath(path)}: {reason}, {tries} times in a row. The machine is at fault, not the file.\n{HINTS[number]}"
    )
