"""train.py as a process of its own, which ends with the tool that started it."""

import contextlib
import ctypes
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

END_SECONDS = 30  # a run that is told to end saves its state first


@contextlib.contextmanager
def train_process(
    command: Sequence[str],
    output: IO[str] | None = None,
    end_seconds: float | None = END_SECONDS,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `command` as a process that ends with the body.

    Args:
        command: the program and its words.
        output: the file for what it prints; None: where this process prints.
        end_seconds: how long a process that is told to end may take until it is killed; None: as long as it needs.
        folder, environment: those of the process; None: those of this one.
    """
    stderr = None if output is None else subprocess.STDOUT
    process = subprocess.Popen(
        command, stdout=output, stderr=stderr, cwd=folder, env=environment, preexec_fn=end_with_parent
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(end_seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def end_with_parent() -> None:
    """End this process when its parent is killed; on Linux alone (prctl 1 is PR_SET_PDEATHSIG)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
