"""The clock that --hours counts by. Tests replace `now`."""

import time


def now() -> float:
    """Return the seconds of a clock that never goes back; its zero means nothing."""
    return time.monotonic()


class Stopwatch:
    """Counts from when it is made."""

    def __init__(self) -> None:
        self._began = now()

    def seconds(self) -> float:
        """Return the seconds since then."""
        return now() - self._began
