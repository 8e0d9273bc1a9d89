"""The clock that --hours counts by. Tests replace `now`."""

import os
import time


def now() -> float:
    """Return the seconds of a clock that never goes back; its zero means nothing."""
    return time.monotonic()


def process_seconds() -> float:
    """Return how many seconds ago this process started, from /proc; 0 where it cannot be told."""
    try:
        with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()  # the name before it may hold spaces
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


class Stopwatch:
    """Counts from when it is made."""

    def __init__(self, already: float = 0.0) -> None:
        """`already`: seconds that have passed before."""
        self._began = now() - already

    def seconds(self) -> float:
        """Return the seconds since then, and those before."""
        return now() - self._began
