"""Draw the PNG pictures of the tools and the benchmarks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataloader.decode import Image
from evaluation.report import figures, fonts
from options import choices
from utils.names import shorten_all
from utils.text import visible

LEGEND_POINTS = 250.0  # of a name in a legend with its numbers
MARKERS = "osD^v"

# A cell of a sheet: the image (uint8 RGB, or None if unreadable), its caption, and its frame: green, red or none.
Cell = tuple[Image | None, str, bool | None]


def bars(path: Path, panels: dict[str, dict[str, list[float]]], title: str) -> None:
    """Draw panels of horizontal bars: the median of each name's values, with whiskers from lowest to highest."""
    rows = max(len(values) for values in panels.values())
    figure, axes = figures.new_figure(10, 0.6 + len(panels) * (0.6 + 0.34 * rows), 1, len(panels))
    for axis, (heading, values) in zip(axes, panels.items(), strict=True):
        names = list(values)[::-1]
        medians = np.array([np.median(values[name]) for name in names])
        spread = np.array([[m - min(values[n]), max(values[n]) - m] for n, m in zip(names, medians, strict=True)]).T
        colours = ["tab:blue" if name.startswith("ours") else "tab:gray" for name in names]
        axis.barh(names, medians, xerr=spread, color=colours, capsize=3)
        for place, (median, beyond) in enumerate(zip(medians, spread[1], strict=True)):
            text = f"{median:,.0f}" if median >= 100 else f"{median:.3g}"
            axis.annotate(text, (median + beyond, place), (6, 0), textcoords="offset points", va="center", fontsize=8)
        axis.margins(x=0.1)
        axis.set_title(heading)
    figure.suptitle(title)
    figures.save(figure, path)


def range_test(path: Path, columns: dict[str, np.ndarray], best: float | None, title: str) -> None:
    """Draw the loss over the learning rate for tools.lr_find.

    Args:
        columns: rate, loss and smoothed, (N,) each.
        best: the learning rate to mark, if any.
    """
    figure, (axis,) = figures.new_figure(8, 4.5, 1)
    rate, mean = columns["rate"], columns["smoothed"]
    axis.plot(rate, columns["loss"], color="tab:gray", alpha=0.4, linewidth=1, label="loss of a step")
    axis.plot(rate, mean, color="tab:blue", linewidth=2, label="smoothed")
    if best is not None:
        height = float(mean[np.argmin(np.abs(np.log(rate / best)))])
        axis.axvline(best, color="tab:red", linestyle="--", linewidth=1)
        axis.plot([best], [height], "o", color="tab:red", label=f"falls fastest: {best:.2g}")
    if len(mean):
        low, high = float(mean.min()), float(np.median(mean[: max(1, len(mean) // 4)]))
        axis.set_ylim(low - 0.3 * (high - low + 0.1), high + 0.8 * (high - low + 0.1))
    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.set_ylabel("training loss")
    axis.set_title(title)
    figures.legend_below(axis, 3)
    figures.save(figure, path)


def trials(
    path: Path,
    done: list[tuple[int, float, dict[str, Any]]],
    space: Mapping[str, Mapping[str, Any]],
    metric: str = "top1",
) -> None:
    """Draw the `metric` of a sweep's trials: in order with the best so far, and against each setting.

    Args:
        done: (number, score, settings) of the complete trials. space: of tools.sweep_space.
    """
    figure, axes = figures.new_figure(4 * (1 + len(space)), 3.8, 1 + len(space))
    done = sorted(done, key=lambda trial: trial[0])
    numbers, scores = [trial[0] for trial in done], [trial[1] for trial in done]
    lower = choices.METRICS[metric].lower_is_better
    best = int(np.argmin(scores) if lower else np.argmax(scores))
    axes[0].plot(numbers, scores, "o", color="tab:blue", label="trial")
    axes[0].step(
        numbers,
        (np.minimum if lower else np.maximum).accumulate(scores),
        where="post",
        color="tab:red",
        label="best so far",
    )
    figures.whole_numbers(axes[0])
    axes[0].set_xlabel("trial")
    axes[0].set_ylabel(f"best validation {metric}")
    figures.legend_below(axes[0], 2)
    for axis, (name, rule) in zip(axes[1:], space.items(), strict=True):
        values = [str(trial[2][name]) if "choices" in rule else trial[2][name] for trial in done]
        axis.plot(values, scores, "o", color="tab:blue")
        axis.plot(values[best : best + 1], scores[best : best + 1], "o", color="tab:red")
        if rule.get("log"):
            axis.set_xscale("log")
        axis.set_xlabel(name)
        axis.margins(x=0.15)
    figures.save(figure, path)


def line(path: Path, x: list[int], y: list[float], names: tuple[str, str], mark: int) -> None:
    """Draw `y` over `x` as a line with points, the `names` of the axes, and a vertical line at `mark`, as trained."""
    figure, (axis,) = figures.new_figure(7, 4.3, 1)
    axis.axvline(mark, color="tab:gray", linestyle="--", linewidth=1, label=f"as trained: {mark}")
    axis.plot(x, y, marker="o")
    figures.legend_below(axis, 1)
    axis.set(xlabel=names[0], ylabel=names[1], xticks=x)
    axis.grid(alpha=0.3)
    figures.save(figure, path)


def scatter(path: Path, points: list[tuple[str, float, float, list[float] | None, float]], title: str) -> None:
    """Draw scores over speed, one colour per name, with a legend of the names below.

    Args:
        points: (name, images per second, top-1, its interval or None, top-1 of nearest neighbours).
    """
    names = dict(enumerate(visible(name) for name, *_ in points))
    family = fonts.families("".join(names.values()))
    shown = shorten_all(names, LEGEND_POINTS, lambda text: figures.text_width(text, figures.CAPTION_SIZE, family))
    figure, (axis,) = figures.new_figure(8, 4.6 + 0.19 * len(points), 1)
    for number, (_, speed, top1, interval, knn) in enumerate(points):
        colour = f"C{number % 10}"
        below, above = (0, 0) if interval is None else (max(0, top1 - interval[0]), max(0, interval[1] - top1))
        marker = MARKERS[number // 10 % len(MARKERS)]
        label = f"{shown[number]}: {top1:.4f}, nearest neighbours {knn:.4f}, {speed:,.1f} images/s"
        axis.errorbar(
            [speed], [top1], [[below], [above]], fmt=marker, color=colour, capsize=4, markersize=7, label=label
        )
        axis.plot([speed], [knn], marker, color=colour, markerfacecolor="white", markersize=6)
    speeds = [speed for _, speed, *_ in points]
    if max(speeds) > figures.MIN_LOG_RATIO * min(speeds):
        axis.set_xscale("log")
    axis.margins(x=0.12, y=0.12)
    axis.set(xlabel="images per second, features", ylabel="cross-validated top-1")
    axis.set_title(f"{title}\nfilled: linear probe with its 95 % interval; open: nearest neighbours", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=1, frameon=False, fontsize=figures.CAPTION_SIZE)
    figures.save(figure, path)


def neighbour_grid(path: Path, rows: Sequence[Sequence[Cell]]) -> None:
    """Draw a sheet with a line of images for each of `rows`."""
    columns = max(len(row) for row in rows)
    figure, axes = figures.new_figure(
        max(figures.MIN_WIDTH, figures.CELL * columns), (figures.CELL + 0.4) * len(rows) + 0.5, columns, len(rows)
    )
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
        axis.set_anchor("N")
    framed = any(agrees is not None for row in rows for _, _, agrees in row)
    figure.suptitle("Each query and its nearest images, by cosine" + "; green: the same class, red: another" * framed)
    for line, row in enumerate(rows):
        for axis, (image, caption, agrees) in zip(axes[line * columns :], row, strict=False):
            figures.show_image(axis, image, caption)
            if agrees is not None:
                axis.spines[:].set(visible=True, color="tab:green" if agrees else "tab:red", linewidth=3)
    figures.save(figure, path)
