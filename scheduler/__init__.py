"""Learning-rate schedules: pure functions of the step, so they can be plotted, tested, and resumed anywhere.

    factor = get_schedule("2x", Span(total=2400, per_epoch=100))
    factor(step)          # the factor of --lr at that optimizer step, counted from 0

To add a schedule, write a table: a name, its number of epochs, and the epochs after which the learning rate drops to a
tenth. A table sets the number of epochs of the run; a run of --hours stretches it over its time.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from options.wording import count_of
from utils.errors import UserError, unknown_name
from utils.logger import log

Schedule = Callable[[int], float]
UNLIMITED_EPOCHS = 1_000_000_000


@dataclass(frozen=True)
class Table:
    """A schedule of `epochs`; after each epoch in `drops`, the learning rate falls to a tenth."""

    epochs: int
    drops: tuple[int, ...]


tables = {
    "1x": Table(12, (7, 10)),
    "2x": Table(24, (14, 20)),
    "20e": Table(20, (16, 19)),
    "100e": Table(100, (60, 90)),
}


@dataclass(frozen=True)
class Span:
    """The length of a schedule, in optimizer steps; `step_size` is in epochs; `floor` is min_lr / lr.

    `total` may be a fraction, or infinite: --hours estimates it.
    """

    total: float
    per_epoch: int
    warmup: int = 0
    step_size: int = 10
    floor: float = 0.0


def _cos(span: Span) -> Schedule:
    """Return half a cosine from 1 to the floor (Loshchilov & Hutter, 2017, without restarts)."""
    return lambda step: span.floor + (1 - span.floor) * 0.5 * (1 + math.cos(math.pi * _done(span, step)))


def _none(span: Span) -> Schedule:
    """Return a constant 1."""
    return lambda step: 1.0


def _step(span: Span) -> Schedule:
    """Return a drop to a tenth after every `step_size` epochs."""
    return lambda step: 0.1 ** (step // (span.per_epoch * span.step_size))


def _poly(span: Span) -> Schedule:
    """Return (1 - t)^0.9, as in DeepLab (Chen et al., 2017)."""
    return lambda step: span.floor + (1 - span.floor) * (1 - _done(span, step)) ** 0.9


def _onecycle(span: Span) -> Schedule:
    """Return a rise from 1/25 over the first 30 %, then a fall to the floor (Smith & Topin, 2018).

    Both are cosines, as in torch's OneCycleLR.
    """
    peak = max(0.3 * span.total - 1, 1e-9)
    last = max(span.total - 1, peak + 1e-9)

    def factor(step: int) -> float:
        if step <= peak:
            return _between(1 / 25, 1.0, step / peak)
        return _between(1.0, max(span.floor, 1 / 25e4), (min(step, last) - peak) / (last - peak))

    return factor


schedulers: dict[str, Callable[[Span], Schedule]] = {
    "cos": _cos,
    "none": _none,
    "step": _step,
    "poly": _poly,
    "onecycle": _onecycle,
}


def find_table(name: str) -> Table | None:
    """Return the table called `name`; "3x", "6x" … are "1x" stretched; None if it is the name of a curve.

    Raises:
        UserError: the name is neither of a table nor of a curve; the message lists the names.
    """
    if name in tables:
        return tables[name]
    if match := re.fullmatch(r"([1-9]\d{0,3})x", name):
        times = int(match[1])
        return Table(tables["1x"].epochs * times, tuple(drop * times for drop in tables["1x"].drops))
    if name not in schedulers:
        raise unknown_name("scheduler", name, [*schedulers, *tables, "Nx (any N)"], "--scheduler ")
    return None


def run_length(name: str, epochs: int, given: bool, timed: bool = False) -> int:
    """Return the number of epochs of a run: the table's, or else `epochs`.

    It is UNLIMITED_EPOCHS if the run is `timed` (--hours). A warning is logged if the user gave a number (`given`) and
    the table has another.
    """
    table = find_table(name)
    if timed:
        return UNLIMITED_EPOCHS
    if table is None:
        return epochs
    if given and table.epochs != epochs:
        log.warning(f"--scheduler {name} sets {table.epochs} epochs; --epochs {epochs} is not used.")
    return table.epochs


def get_schedule(name: str, span: Span) -> Schedule:
    """Return the factor of the learning rate as a function of the optimizer step; warm-up multiplies it.

    Raises:
        UserError: the name is unknown, or the warm-up is longer than the run.
    """
    if span.warmup >= span.total > 0 and span.warmup:
        steps = count_of(span.warmup, "step")
        raise UserError(f"--warmup takes {steps} of a run of {span.total}; allowed: less than the run.")
    table = find_table(name)
    if table is None:
        factor = schedulers[name](span)
    else:
        drops = [drop * span.total / table.epochs for drop in table.drops]

        def factor(step: int) -> float:
            return 0.1 ** sum(step >= drop for drop in drops)

    return lambda step: factor(step) * min(1.0, (step + 1) / span.warmup) if span.warmup else factor(step)


def _done(span: Span, step: int) -> float:
    """Return the share of the run that is done, without the warm-up; 1 at the end and beyond."""
    return min(1.0, max(0.0, (step - span.warmup) / max(1, span.total - span.warmup)))


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
