"""Pictures drawn while training goes on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from utils.logger import log


class Artist:
    """Draws in a thread of its own, one picture after another. A picture that fails is said, and ends nothing."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="artist")
        self._begun: dict[Path, Future[None]] = {}

    def draw(self, path: Path, draw: Callable[[], None]) -> None:
        """Have `draw()` write `path`. Returns at once, unless the last picture of that name is still to be drawn."""
        if path in self._begun:
            self._begun[path].result()
        self._begun[path] = self._thread.submit(_drawn, path, draw)

    def wait(self) -> None:
        """Until all that were asked for are drawn. Any thread may wait."""
        self._thread.submit(lambda: None).result()  # they are drawn in turn


def _drawn(path: Path, draw: Callable[[], None]) -> None:
    try:
        draw()
    except Exception as error:  # a picture is not worth a night's training
        log.warning(f"{path} could not be drawn: {type(error).__name__}: {error}")
