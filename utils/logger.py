"""Logging: the screen, logs/<tag>/log.txt, progress, metrics.csv and TensorBoard."""

import contextlib
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

import tqdm

from utils import distributed, tables
from utils.files import atomic_write
from utils.text import still_there, visible

T = TypeVar("T")

log = logging.getLogger("classifier")
PROGRESS_SECONDS = 30.0  # between two lines of progress without a terminal
FLUSH_MARK = "flush"  # in the queue of tensorboardX's thread, instead of an event
FLUSH_TIMEOUT_SECONDS = 10.0  # on a slow disk the run continues after it


class _Screen(logging.Handler):
    """Print above a progress bar instead of through it; on a terminal, warnings are yellow."""

    def __init__(self, to_stderr: bool) -> None:
        super().__init__()
        self.to_stderr = to_stderr

    def emit(self, record: logging.LogRecord) -> None:
        text, stream = visible(record.getMessage()), sys.stderr if self.to_stderr else sys.stdout
        if record.levelno >= logging.WARNING:
            text = f"\033[1;33m{text}\033[0m" if stream.isatty() else f"warning: {text}"
        with still_there(stream):
            tqdm.tqdm.write(text, file=stream)


class _Line(logging.Formatter):
    """Format a line of log.txt with its time. A name in it cannot control the terminal that shows the file."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, made visible."""
        return visible(super().format(record))


def start_logging(file: Path | None = None, to_stderr: bool = False) -> None:
    """Send `log` to the screen and append it, with times, to `file`. Only the main process logs.

    `to_stderr`: what a program reads goes to stdout, so the log goes to stderr.
    """
    end_logging()
    logging.raiseExceptions = False  # a full disk ends in the checkpoint's error, not in a traceback per line
    log.setLevel(logging.INFO)
    log.propagate = False
    if not distributed.is_main():
        log.addHandler(logging.NullHandler())
        return
    log.addHandler(_Screen(to_stderr))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(file, encoding="utf-8")
        handler.setFormatter(_Line())
        log.addHandler(handler)


def end_logging() -> None:
    """Close what `start_logging` opened, and reset `log`."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        with contextlib.suppress(OSError):  # the disk is full
            handler.close()
    log.propagate = True


def progress(iterable: Iterable[Any] | None, description: str, total: int | None = None, lines: bool = True) -> Any:
    """Return a tqdm bar over `iterable` that disappears at its end; only the main process shows it.

    Without a terminal it logs a line every PROGRESS_SECONDS instead, if `lines`.
    """
    description, silent = visible(description), not distributed.is_main()
    if not silent and lines and not (sys.stderr is not None and sys.stderr.isatty()):
        return _Lines(iterable, description, total)
    return tqdm.tqdm(iterable, desc=description, total=total, leave=False, dynamic_ncols=True, disable=silent or None)


class _Lines(Generic[T]):
    """Log the progress in a pipe or a file: done, total and time left, every PROGRESS_SECONDS."""

    disable = True

    def __init__(self, iterable: Iterable[T] | None, description: str, total: int | None) -> None:
        self.iterable, self.description, self.done = iterable, description, 0
        self.total = len(iterable) if total is None and isinstance(iterable, Sized) else total
        self.began = self.logged_at = time.monotonic()

    def __iter__(self) -> Iterator[T]:
        for item in () if self.iterable is None else self.iterable:
            yield item
            self.update()

    def update(self, count: int = 1) -> None:
        """Count `count` more as done."""
        self.done += count
        now = time.monotonic()
        if now - self.logged_at < PROGRESS_SECONDS or self.done == self.total:
            return
        self.logged_at = now
        left = (now - self.began) / max(1, self.done) * ((self.total or 0) - self.done) / 60
        log.info(f"{self.description}: {self.done}" + (f" of {self.total}, {left:.1f} min left" if self.total else ""))

    def __enter__(self) -> "_Lines[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        pass


def log_to_file(message: str) -> None:
    """Write an error that the screen shows already to the log file alone."""
    record = log.makeRecord(log.name, logging.ERROR, "", 0, message, (), None)
    for handler in log.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


class MetricsWriter:
    """Write TensorBoard scalars and metrics.csv, which is rewritten from the history, so no row is lost or doubled."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Open the files in `folder`. TensorBoard drops points from `first_step` on: a resumed run repeats them."""
        from tensorboardX import SummaryWriter

        self.folder, self.written = folder, threading.Event()
        # tensorboardX names a file by the second: a run resumed within it would overwrite the points of the one before.
        # A count, not a clock's fraction: TensorBoard reads files by name, and drops points that a later file repeats.
        suffix = f".{len(list(folder.glob('events.out.tfevents.*'))):06d}"
        purge = first_step if first_step else None
        self.writer: Any = SummaryWriter(str(folder), purge_step=purge, filename_suffix=suffix)
        events = self.writer.file_writer.event_writer._ev_writer
        for name in ("write_event", "flush", "close"):
            setattr(events, name, _never_failing(getattr(events, name)))
        write = events.write_event

        def write_or_mark(event: object) -> None:
            if event == FLUSH_MARK:
                events.flush()
                self.written.set()
            else:
                write(event)

        events.write_event = write_or_mark

    def scalars(self, prefix: str, values: Mapping[str, float], step: int) -> None:
        """Add a point `<prefix>/<name>` for each of `values` at `step`."""
        legacy = legacy_modules()
        legacy.write_meters_loss(
            self.writer, prefix, legacy.AverageMeters(dict(values), dict.fromkeys(values, 1)), step
        )

    def flush(self) -> None:
        """Write every added point to the disk; tensorboardX's own flush() does not wait for its thread."""
        self.written.clear()
        self.writer.file_writer.event_writer._event_queue.put(FLUSH_MARK)
        self.written.wait(FLUSH_TIMEOUT_SECONDS)

    def table(self, history: Sequence[Mapping[str, object]]) -> None:
        """Write metrics.csv: one row per epoch, one column per name of any epoch."""
        names = list(dict.fromkeys(name for row in history for name in row))
        with atomic_write(self.folder / "metrics.csv", "w") as file:
            writer = tables.dict_writer(file, names)
            writer.writeheader()
            writer.writerows(history)

    def close(self) -> None:
        self.writer.close()


def _never_failing(call: Callable[..., object]) -> Callable[..., None]:
    """Return `call` with a warning instead of OSError.

    A full disk would end tensorboardX's writing thread; its queue of ten would fill, and the run would wait forever.
    """

    def attempt(*arguments: object) -> None:
        try:
            call(*arguments)
        except OSError as error:
            log.warning(f"TensorBoard's file cannot be written: {error}")

    return attempt


def legacy_modules() -> ModuleType:
    """Return the module mscv (meters, TensorBoard helpers), imported without the `stty` message of its misc_utils."""
    with _quiet_stderr():
        import mscv
    return mscv


def format_count(number: int) -> str:
    """Return 12345678 as "12,345,678" (misc_utils)."""
    with _quiet_stderr():
        from misc_utils import format_num
    return format_num(number)


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Silence stderr while misc_utils is imported: it runs `stty size`, which complains without a terminal."""
    if "misc_utils" in sys.modules:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it leaves the process's pipe open
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
