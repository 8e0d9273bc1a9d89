"""Draw the pictures of predicted labels and numbers: PNGs, and the same as SVG for report.html."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evaluation.report import figures
from evaluation.report.plots import MAX_LABEL_POINTS, MAX_PAIRS
from options.wording import count_of
from utils.classes import Classes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_DRAWN = 3000  # points of a scatter plot
MAX_PLOTTED = 6  # targets


def average_precision(path: Path, found: NDArray[np.float64], positive: NDArray[np.int64], classes: Classes) -> None:
    """Draw the average precision, float64 (K,), of the labels with the lowest, beside their number of images."""
    order = np.flatnonzero(~np.isnan(found))
    worst = order[np.argsort(found[order], kind="stable")][:MAX_PAIRS][::-1]
    figure, (axis,) = figures.new_figure(9, 1.5 + 0.28 * max(1, len(worst)), 1)
    names = figures.class_names(classes, worst, MAX_LABEL_POINTS, figures.LABEL_SIZE)
    bars = axis.barh(range(len(worst)), found[worst], color="#4a90d9")
    axis.bar_label(bars, [count_of(f"{positive[k]:,}", "image") for k in worst.tolist()], padding=3, fontsize=8)
    axis.set_yticks(range(len(worst)), [names[k] for k in worst.tolist()], fontsize=figures.LABEL_SIZE)
    axis.set_xlim(0, 1.12)
    axis.margins(y=0.01)
    axis.set_xlabel("average precision")
    lowest = f"The {len(worst)} labels with the lowest average precision, of {len(order)}"
    axis.set_title(lowest if len(worst) < len(order) else "Average precision of each label")
    figures.save(figure, path)


def scatter(path: Path, true: NDArray[np.float64], found: NDArray[np.float64], names: Sequence[str]) -> None:
    """Draw predicted against true numbers, float64 (N, T) each, and their difference below, target by target."""
    count = min(MAX_PLOTTED, true.shape[1])
    figure, axes = figures.new_figure(4.2 * count + 0.8, 6.6, count, 2)
    for k in range(count):
        draw_scatter(axes[k], true[:, k], found[:, k])
        draw_residuals(axes[count + k], true[:, k], found[:, k])
        axes[k].set_title(names[k])
    figures.save(figure, path)


def draw_scatter(axis: "Axes", true: NDArray[np.float64], found: NDArray[np.float64]) -> None:
    """Draw predicted against true numbers, (N,) each, with the line on which they are equal."""
    some = drawn_rows(len(true))
    ends = min(true.min(), found.min()), max(true.max(), found.max())
    axis.plot(ends, ends, linestyle="--", color="tab:gray", linewidth=1)
    axis.plot(true[some], found[some], ".", markersize=4, alpha=0.5, color="#4a90d9")
    axis.set_xlabel("true")
    axis.set_ylabel("predicted")


def draw_residuals(axis: "Axes", true: NDArray[np.float64], found: NDArray[np.float64]) -> None:
    """Draw predicted minus true numbers against the true ones, (N,) each."""
    some = drawn_rows(len(true))
    axis.axhline(0, linestyle="--", color="tab:gray", linewidth=1)
    axis.plot(true[some], (found - true)[some], ".", markersize=4, alpha=0.5, color="#d9822b")
    axis.set_xlabel("true")
    axis.set_ylabel("predicted − true")


def drawn_rows(count: int) -> NDArray[np.int64]:
    """Return which of `count` points are drawn, int64, ascending: all, or MAX_DRAWN of them, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_DRAWN)).astype(np.int64))
