"""How many epochs of a trainer fit into a budget of seconds, from the runs that were timed so far."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

MIN_USE = 0.9  # of the budget: a run that uses less is tried with more epochs, where more are predicted to fit


class Timing(NamedTuple):
    """A run of `epochs` epochs took `seconds` of wall time, from the start of its process to its end."""

    epochs: int
    seconds: float


def estimate(timings: Sequence[Timing]) -> tuple[float, float]:
    """Return the seconds of the start (and the end) of a run, and those of an epoch, by least squares.

    With runs of one length alone, or where the line makes no sense, nothing is known of the start: all time counts
    for the epochs, so that longer runs are predicted too long and never too short.
    """
    epochs = np.array([timing.epochs for timing in timings], float)
    seconds = np.array([timing.seconds for timing in timings], float)
    if len({timing.epochs for timing in timings}) > 1:
        slope, start = np.polyfit(epochs, seconds, 1)
        if slope > 0 and start > 0:
            return float(start), float(slope)
    return 0.0, float(np.mean(seconds / epochs))


def epochs_within(budget: float, timings: Sequence[Timing]) -> int:
    """Return the largest number of epochs that is predicted to end within `budget` seconds; 0: not even one."""
    start, epoch = estimate(timings)
    return max(0, int((budget - start) / epoch))


def settle(budget: float, history: Callable[[], Sequence[Timing]], timed: Callable[[int], float]) -> int:
    """Return the largest number of epochs that ends within `budget` seconds, as far as runs tell; 0: not even one.

    Args:
        history: returns the runs that were timed so far, at least one.
        timed: runs that number of epochs and returns its seconds; it adds the run to `history`.
    """
    epochs, most = epochs_within(budget, history()), None
    if epochs == 0 and not any(timing.epochs == 1 and timing.seconds > budget for timing in history()):
        epochs = 1  # a prediction is no proof
    while epochs > 0:
        seconds = timed(epochs)
        if seconds > budget:
            most = epochs - 1
            epochs = min(most, max(1, epochs_within(budget, history())))
            continue
        more = epochs_within(budget, history())
        if most is not None or more <= epochs or seconds >= MIN_USE * budget:
            break
        epochs = more
    return epochs
