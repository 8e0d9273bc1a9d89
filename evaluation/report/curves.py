"""Draw curves.png: how a run went, by step and by epoch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evaluation.ranking import best_row
from evaluation.report import figures
from evaluation.step_points import Row, steps_per_epoch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_MARKERS = 30  # points of a curve that are marked
SMOOTH_SHARE = 25  # a running mean spans 1 / 25 of a curve
PANELS = {  # title: columns of metrics.csv
    "loss": ("train_loss", "val_loss"),
    "accuracy": ("train_top1", "val_top1", "val_top5", "val_mean_class_accuracy"),
    "learning rate": ("lr",),
    "gradient norm, before clipping": ("grad_norm",),
    "images per second": ("images_per_second",),
    "share of the time waiting for data": ("data_wait",),
}
Points = list[tuple[float, float]]


def draw_curves(
    path: Path, history: Sequence[Mapping[str, Any]], points: Sequence[Row] = (), metric: str = "top1"
) -> None:
    """Draw loss, scores, learning rate, gradient norm, throughput and the wait for data over epochs and steps.

    Args:
        path: the PNG.
        history: a row of scores per epoch.
        points: the rows of steps.csv. What they have is drawn by step; epochs before the first of them by epoch.
        metric: by which an epoch is the best; also drawn of the averages.
    """
    figure, axes = figures.new_figure(13, 7.4 if points else 7, 3, 2)
    trained = [row for row in points if "lr" in row]
    own = [f"val_{name}_{metric}" for name in ("raw", "ema", "swa")] + [f"val_{metric}"]
    panel = "loss" if metric == "log_loss" else "accuracy"
    panels = {title: [*names, *own] if title == panel else names for title, names in PANELS.items()}
    known = {name for row in (*history, *trained) for name in row}
    if "val_top1" not in known and (f"val_{metric}" in known or "train_top1" not in known):
        panels["accuracy"] = own  # no accuracy is known: the panel shows what the task has instead
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for name in dict.fromkeys(names):
            _draw_curve(axis, name, history, trained)
        axis.set_title(metric if title == "accuracy" and panels[title] is own else title)
        if axis.lines:
            _set_epochs(axis, history, trained)
        if len(axis.get_legend_handles_labels()[1]) > 1:
            figures.legend_below(axis, 2, gap=0.27 if trained else 0.16)
    norms = [row["grad_norm"] for row in (trained or history) if row.get("grad_norm", 0) > 0]
    if norms and max(norms) > figures.MIN_LOG_RATIO * min(norms):
        axes[3].set_yscale("log")
    axes[4].set_ylim(0, 1.1 * max((row.get("images_per_second", 0) for row in history), default=0) or 1)
    axes[5].set_ylim(0, 1)
    best = best_row(history, metric)
    if best is not None:
        axis = axes[list(PANELS).index(panel)]
        axis.axvline(best["epoch"], color="tab:gray", linestyle=":", linewidth=1)
        axis.set_title(f"{axis.get_title()}; best {metric} {best[f'val_{metric}']:.4f}, epoch {best['epoch']}")
    figures.save(figure, path)


def _draw_curve(axis: "Axes", name: str, history: Sequence[Mapping[str, Any]], trained: Sequence[Row]) -> None:
    """Draw one curve: with marks by epoch, and by step as it is, in the background of a running mean."""
    training, color = not name.startswith("val_"), None
    by_step: Points = [(row["epoch"], row[name]) for row in trained if name in row and training]
    first = by_step[0][0] if by_step else math.inf
    # Beside points by step, the mean over an epoch is drawn in its middle.
    back = 0.5 if trained and training else 0.0
    by_epoch: Points = [(row["epoch"] - back, row[name]) for row in history if name in row and row["epoch"] < first]
    if by_epoch:
        marker, size = "o" if len(by_epoch) <= MAX_MARKERS else "", 5 if len(by_epoch) == 1 else 3
        (line,) = axis.plot(*zip(*by_epoch, strict=True), marker=marker, markersize=size, label=name)
        color = line.get_color()
        if len(by_epoch) == 1 and back:  # a line as long as the epoch
            ((middle, value),) = by_epoch
            axis.hlines(value, middle - back, middle + back, color=color)
    if by_step:
        x, y = np.array(by_step).T
        width = 1 if name == "lr" else len(y) // SMOOTH_SHARE | 1  # odd, so that a mean is in the middle of its values
        (bold,) = axis.plot(x, running_mean(y, width), color=color, label=None if by_epoch else name)
        if width > 1:
            axis.plot(x, y, color=bold.get_color(), alpha=0.3, linewidth=0.8, zorder=1)


def running_mean(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Return the mean of the `width` values around each one, of fewer at the ends, float64 (N,) as `values`.

    What is not finite is left out; a mean of nothing is NaN.
    """
    kernel, fine = np.ones(width), np.isfinite(values)
    start = width // 2
    total = np.convolve(np.where(fine, values, 0), kernel)[start : start + len(values)]
    count = np.convolve(fine, kernel)[start : start + len(values)]
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _set_epochs(axis: "Axes", history: Sequence[Mapping[str, Any]], trained: Sequence[Row]) -> None:
    """Set the x axis: epochs, and below them steps, if there are points by step."""
    epochs = [row["epoch"] for row in history]
    if not trained:
        axis.set_xlabel("epoch")
        axis.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        figures.whole_numbers(axis, min_n_ticks=1)
        return
    last, per_epoch = max([*epochs, trained[-1]["epoch"]]), steps_per_epoch(trained)
    axis.set_xlabel("epoch, and step")
    axis.set_xlim(-0.02 * last, 1.02 * last)
    if last > 2:
        figures.whole_numbers(axis, min_n_ticks=1)
    axis.xaxis.set_major_formatter(lambda epoch, _: f"{epoch:g}\n{_short(round(epoch * per_epoch))}")


def _short(count: int) -> str:
    """Return a count with at most five letters: "9,999", "17.5k", "1.25M"."""
    if count < 10_000:
        return f"{count:,}"
    return f"{count / 1000:.4g}k" if count < 1_000_000 else f"{count / 1_000_000:.3g}M"
