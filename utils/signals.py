"""Signals that end a run without losing its work."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from options import command
from utils import distributed

if TYPE_CHECKING:
    from argparse import Namespace
    from pathlib import Path

# SIGHUP comes when a terminal is closed; SIGUSR1 is what batch systems send before their time is up.
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Stop(Exception):  # noqa: N818  # nothing went wrong
    """The run was asked to end by the signal `number`, and has saved where it is; the message says how to go on."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number

    @property
    def name(self) -> str:
        """The signal's name, such as SIGTERM."""
        return signal.Signals(self.number).name


class Signals:
    """While entered, a signal of STOPPING is noted in `caught`, or raises Stop where `at_once()`; a second SIGINT interrupts.

    A SIGHUP that was ignored from the start, as nohup has it, stays ignored.
    """

    def __init__(self) -> None:
        self.caught: int | None = None
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        with contextlib.suppress(ValueError):  # not in the main thread: nothing to do
            wanted = [
                number for number in STOPPING if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
            ]
            self._before = {number: signal.signal(number, self._handle) for number in wanted}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Where nothing is half done: a signal ends the body."""
        if self.caught is not None:
            raise Stop(self.caught)
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _handle(self, number: int, _: Any) -> None:
        if number == signal.SIGINT and self.caught is not None:
            self.__exit__()
            raise KeyboardInterrupt
        if self.caught is None:
            self.caught = number
            text = f"\n{signal.Signals(number).name}: saving where we are" + (
                " (once more to end at once)" if number == signal.SIGINT else ""
            )
            with contextlib.suppress(OSError):  # the terminal was closed
                os.write(2, f"{text} ...\n".encode())
        if self._at_once:
            self._at_once = False
            raise Stop(number)


def how_to_go_on(stop: Stop, opt: "Namespace", checkpoints: "Path") -> str:
    """What a run that was stopped says last: where it is saved, and the command that goes on."""
    return (
        f"{stop.name}: the run ends here, and is saved in {checkpoints}/last.pt. To go on:\n    {resume_command(opt)}"
    )


def resume_command(opt: "Namespace") -> str:
    """Return the command that continues the run of `opt` from its last.pt."""
    own = {name: getattr(opt, name) for name in ("tag", "debug", "checkpoint_dir", "log_dir", "gpu", "workers")}
    text = command("train", own | {"resume": True})
    return (
        f"torchrun --nproc_per_node={distributed.world_size()} {text.removeprefix('python ')}"
        if distributed.world_size() > 1
        else text
    )
