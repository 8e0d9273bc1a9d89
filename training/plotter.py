"""Pictures are drawn while training continues."""

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from utils.logger import log

SECONDS = 30.0  # the longest wait for a picture: checkpoints must be written even if a disk or a font hangs


class BackgroundPlotter:
    """Draws in a thread, one picture after another. A failure is logged, and ends nothing."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="artist")
        self._begun: dict[Path, Future[None]] = {}

    def draw(self, path: Path, draw: Callable[[], None]) -> None:
        """Let the thread call `draw()`, which writes `path`. Wait only for an earlier picture of the same name."""
        if path in self._begun and not _ends(self._begun[path]):
            log.warning(f"{path} is still being drawn after {SECONDS:g} s; a newer one is left out.")
            return
        self._begun[path] = self._thread.submit(_drawn, path, draw)

    def wait(self) -> None:
        """Wait until all pictures are drawn, at most for SECONDS. Any thread may wait."""
        _ends(self._thread.submit(lambda: None))  # pictures are drawn in turn


def _ends(begun: "Future[None]") -> bool:
    """Return whether it is done within SECONDS."""
    with contextlib.suppress(TimeoutError):
        begun.result(SECONDS)
    return begun.done()


def _drawn(path: Path, draw: Callable[[], None]) -> None:
    try:
        draw()
    except Exception as error:  # a picture is not worth a night's training
        done = "drawn" if path.suffix == ".png" else "written"
        log.warning(f"{path} could not be {done}: {type(error).__name__}: {error}")
