"""The table and the plot of accuracy against time."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evaluation.report import figures, tool_plots
from utils.text import visible

NOT_FINISHED = "not finished"
WIDE = 8
TICKS = [10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200]  # seconds


class Result(NamedTuple):
    """The runs of one trainer within one budget, one value per seed that ended; epochs of 0: not even one epoch fits.

    Attributes:
        stopped: the seeds whose run was ended because it took far more than the budget.
    """

    epochs: int
    seconds: list[float]
    top1: list[float]
    stopped: int = 0

    def accuracy(self) -> tuple[float, float, float]:
        """Return the median, the lowest and the highest top-1, from 0 to 1."""
        return float(np.median(self.top1)), min(self.top1), max(self.top1)

    def time(self) -> float:
        """Return the median of the seconds."""
        return float(np.median(self.seconds))


Results = Mapping[str, Mapping[float, Result]]  # trainer -> budget in seconds -> its runs


def cell(result: Result, budget: float) -> str:
    """Return one cell of the table: median, lowest and highest top-1 in percent; epochs; median seconds.

    A run that ended after the budget is marked: the prediction of its time was too short.
    """
    if not result.top1:
        return NOT_FINISHED
    median, low, high = (100 * value for value in result.accuracy())
    late = sum(seconds > budget for seconds in result.seconds) + result.stopped
    note = f", {late} of {len(result.seconds) + result.stopped} over time" if late else ""
    epochs = f"{result.epochs} epoch{'s' * (result.epochs != 1)}"
    return f"{median:.1f} ({low:.1f}–{high:.1f}); {epochs}, {result.time():.0f} s{note}"


def markdown(
    results: Results, absent: Mapping[str, str], advice: Mapping[str, str], about: Sequence[str], unit: str = "s"
) -> str:
    """Return the table of all trainers and budgets as Markdown, under the lines `about`, with notes below.

    Args:
        absent: why a trainer has no row of numbers, by its name.
        advice: the settings of each trainer, in words.
        unit: of the budgets; of "epochs" no run is over time.
    """
    budgets = sorted({budget for row in results.values() for budget in row})
    lines = [*about, "", "| trainer | " + " | ".join(_heading(budget, unit) for budget in budgets) + " |"]
    lines.append("|---" * (1 + len(budgets)) + "|")
    for name, row in results.items():
        limits = {budget: budget if unit == "s" else math.inf for budget in budgets}
        cells = [cell(row[budget], limits[budget]) if budget in row else "–" for budget in budgets]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Top-1 in percent after the last epoch: median (lowest–highest) of the seeds; epochs; median wall time.",
    ]
    lines += ["", *(f"- {name}: {advice[name]}" for name in results)]
    lines += [f"- {name} was not measured: {visible(reason)}" for name, reason in absent.items()]
    return "\n".join(lines) + "\n"


def _heading(budget: float, unit: str) -> str:
    return "1 epoch" if (budget, unit) == (1, "epochs") else f"{budget:g} {unit}"


def plot(path: Path, results: Results, title: str) -> bool:
    """Draw the top-1 of each trainer over its wall time, with whiskers from the lowest to the highest seed.

    The axis of time is logarithmic where the times differ more than WIDE-fold.

    Returns:
        Whether there was anything to draw.
    """
    figure, (axis,) = figures.new_figure(8, 5.2, 1)
    times: list[float] = []
    for number, (name, row) in enumerate(results.items()):
        points = [row[budget] for budget in sorted(row) if row[budget].top1]
        if not points:
            continue
        times += [point.time() for point in points]
        medians, lows, highs = (np.array(values) for values in zip(*(one.accuracy() for one in points), strict=True))
        marker = tool_plots.MARKERS[number % len(tool_plots.MARKERS)]
        axis.errorbar(
            [point.time() for point in points],
            100 * medians,
            [100 * (medians - lows), 100 * (highs - medians)],
            marker=marker,
            capsize=3,
            linewidth=2.5 if name == "ours" else 1.2,
            color=f"C{number}",
            label=name,
        )
    axis.set(xlabel="wall time of the whole process, seconds", ylabel="top-1 on the validation images, %")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    if times:
        if max(times) > WIDE * min(times):
            axis.set_xscale("log")
            ticks = [tick for tick in TICKS if min(times) / 1.3 <= tick <= 1.3 * max(times)]
            axis.set_xticks(ticks, map(str, ticks))
            axis.minorticks_off()
        figures.legend_below(axis, 4)
        figures.save(figure, path)
    return bool(times)
