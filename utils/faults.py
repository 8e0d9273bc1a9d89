"""Faults of the machine while a file is read, such as a network drive that fails. They say nothing about the file.

The read is repeated for a while; a fault that lasts ends the command.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from utils.errors import MachineFault

T = TypeVar("T")
WAIT_SECONDS = (0.1, 0.5, 2.0, 5.0)  # before the second try, the third, and so on
FILES = "Raise the limit (`ulimit -n 65536`), or read with fewer --workers."
MEMORY = "Use fewer --workers, a smaller -b or no --cache ram, or a lower --max_pixels."
DRIVE = "Check the drive: `dmesg`, `mount`, `df`."
# Errors of the kernel, a disk or a network drive. EACCES, ENOENT, EISDIR and the like are about the path.
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
# How the libraries of CUDA say that the GPU is full, for which torch has no class of its own.
GPU_FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
OPENCV_NO_MEMORY = -4  # cv2.Error.StsNoMem; OpenCV need not be imported here


def pause(seconds: float) -> None:
    """Wait before the next try; tests replace it."""
    time.sleep(seconds)


def is_machine_fault(error: BaseException) -> bool:
    """Return whether `error` is a fault of the machine and not a property of the file."""
    if isinstance(error, OSError):
        return error.errno in HINTS
    of_opencv = type(error).__name__ == "error" and getattr(error, "code", 0) == OPENCV_NO_MEMORY
    return isinstance(error, MemoryError) or of_opencv


def is_gpu_full(error: BaseException) -> bool:
    """Return whether `error` says that the GPU has no memory left: torch.OutOfMemoryError, or what a library raises."""
    if type(error).__name__ == "OutOfMemoryError":  # by its name, for torch need not be imported here
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in GPU_FULL)


@contextlib.contextmanager
def suppress_gpu_full() -> Iterator[None]:
    """Leave the body without an error where it finds the GPU full."""
    try:
        yield
    except RuntimeError as error:
        if not is_gpu_full(error):
            raise


def with_retries(act: Callable[[], T], path: str | os.PathLike[str]) -> T:
    """Return `act()`, which reads `path`; after a fault of the machine, try again after each of WAIT_SECONDS.

    Raises:
        MachineFault: the machine failed each time.
        Exception: any other error of `act`.
    """
    for wait in (*WAIT_SECONDS, None):
        try:
            return act()
        except Exception as error:
            if not is_machine_fault(error):
                raise
            if wait is None:
                raise _machine_fault(error, path) from error
        pause(wait)  # outside the handler, which would keep the memory of the failed try
    raise AssertionError("the last try returns or raises")


def stat(path: str) -> os.stat_result:
    """Return `os.stat(path)`, with retries. Raises the same errors, or MachineFault if the machine keeps failing."""
    return with_retries(lambda: os.stat(path), path)


def exists(path: str) -> bool:
    """Return whether `path` exists. os.path.exists would report a file on a failing drive as missing.

    Raises:
        MachineFault: the machine keeps failing.
    """
    try:
        stat(path)
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return False
    return True


def _machine_fault(error: Exception, path: str | os.PathLike[str]) -> MachineFault:
    number = getattr(error, "errno", None) or errno.ENOMEM
    reason = os.strerror(number) if isinstance(error, OSError) else "no memory left"
    tries = len(WAIT_SECONDS) + 1
    return MachineFault(
        f"{os.fspath(path)}: {reason}, {tries} times in a row. The machine is at fault, not the file.\n{HINTS[number]}"
    )
