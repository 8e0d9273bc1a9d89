"""Signals that end a run without losing its work."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers | int | None  # as signal.signal returns it

# SIGHUP comes when a terminal is closed. Batch systems send SIGUSR1 before their time limit.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class RunInterrupted(Exception):  # noqa: N818  # nothing went wrong
    """Raised when the signal `number` ends the run. The message says where the run is saved and how to continue."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number

    @property
    def name(self) -> str:
        """Return the signal's name, such as SIGTERM."""
        return signal.Signals(self.number).name


@contextlib.contextmanager
def raising_sigterm(message: str) -> Iterator[None]:
    """Raise RunInterrupted with `message` in the body when SIGTERM arrives, once; after an error, ignore the signal.

    A handler that the body sets replaces it.
    """

    def handle(number: int, _: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise RunInterrupted(number, message)

    previous: Handler = signal.SIG_DFL
    with contextlib.suppress(ValueError):  # outside the main thread Python allows no handlers
        previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    except BaseException:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the error is about to be printed
        raise
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, previous)


class SignalHandler:
    """A context that records the first of STOP_SIGNALS in `received`, for the run to end at its next safe point.

    Inside `immediate()` the signal raises RunInterrupted at once. A second SIGINT raises KeyboardInterrupt. A SIGHUP
    that was ignored when the context began stays ignored: nohup relies on it.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._immediate = False
        self._previous: dict[int, Handler] = {}  # the handlers to restore

    def __enter__(self) -> "SignalHandler":
        with contextlib.suppress(ValueError):  # outside the main thread Python allows no handlers
            for number in STOP_SIGNALS:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def ignore_sigterm_afterwards(self) -> None:
        """Ignore SIGTERM when the context ends: torchrun sends it to a run that has stopped already."""
        self._previous |= {number: signal.SIG_IGN for number in self._previous if number == signal.SIGTERM}

    @contextlib.contextmanager
    def immediate(self) -> Iterator[None]:
        """Raise RunInterrupted in the body as soon as a signal arrives: for work that may stop anywhere."""
        if self.received is not None:
            raise RunInterrupted(self.received)
        self._immediate = True
        try:
            yield
        finally:
            self._immediate = False

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is not None:
            self.__exit__()
            raise KeyboardInterrupt
        if self.received is None:
            self.received = number
            hint = " (press Ctrl-C again to end at once)" if number == signal.SIGINT else ""
            with contextlib.suppress(OSError):  # the terminal was closed
                os.write(2, f"\n{signal.Signals(number).name}: saving the run{hint} ...\n".encode())
        if self._immediate:
            self._immediate = False
            raise RunInterrupted(number)
