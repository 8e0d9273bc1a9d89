"""Draw the plots of report.html: SVG by matplotlib, without its ids, in the light or dark colours of the page."""

import io
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dataloader.file_list import FileList
from evaluation.metrics import BINS, Predictions, reliability
from evaluation.report import figures, target_plots
from evaluation.step_points import Row, thinned
from utils import faults

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT = "#010203", "#040506"  # placeholders of the page's colours until the plot is drawn
BLUE, ORANGE = "#4a90d9", "#d9822b"
MAX_POINTS = 500  # by step, of a curve
MAX_SIZES_READ = 3000  # images; of a larger list, a sample is read


def reliability_diagram(predictions: Predictions) -> str:
    """Draw accuracy against confidence, and the share of the images in each bin."""
    scorable = predictions.scorable
    bins = reliability(
        predictions.probability[scorable, 0], predictions.top[scorable, 0] == predictions.label[scorable]
    )
    figure, (axis, below) = _figure(4.6, 4.4, rows=2, height_ratios=(4, 1), sharex=True)
    middle, filled = (np.arange(BINS) + 0.5) / BINS, bins["count"] > 0
    axis.plot([0, 1], [0, 1], linestyle="--", color=SOFT, linewidth=1)
    axis.bar(middle[filled], bins["accuracy"][filled], width=0.9 / BINS, color=BLUE)
    axis.plot(bins["confidence"][filled], bins["accuracy"][filled], "o", color=ORANGE, markersize=4, clip_on=False)
    axis.set_ylabel("accuracy")
    axis.set_ylim(0, 1)
    below.bar(middle, bins["count"] / max(bins["count"].sum(), 1), width=0.9 / BINS, color=SOFT)
    below.set_xlabel("confidence")
    below.set_ylabel("share")
    return _svg(figure, "reliability")


def accuracy_bars(groups: list[tuple[str, float, int]], what: str) -> str:
    """Draw a bar for each (name, accuracy, images)."""
    figure, (axis,) = _figure(4.6, 3.2)
    axis.bar(range(len(groups)), [accuracy for _, accuracy, _ in groups], color=BLUE)
    for place, (_, accuracy, count) in enumerate(groups):
        axis.text(place, accuracy, f"{count:,}", ha="center", va="bottom", fontsize=7, color=SOFT)
    axis.set_xticks(
        range(len(groups)), [name for name, _, _ in groups], fontsize=8, rotation=20 if len(groups) > 5 else 0
    )
    axis.set_ylim(0, 1.08)
    axis.set_xlabel(what)
    axis.set_ylabel("accuracy")
    return _svg(figure, what)


def scatter_plot(true: NDArray[np.float64], found: NDArray[np.float64]) -> str:
    """Draw predicted against true numbers, float64 (N,) each, and their difference below."""
    figure, (axis, below) = _figure(4.6, 5.4, rows=2, height_ratios=(3, 2), sharex=True)
    target_plots.draw_scatter(axis, true, found)
    axis.set_xlabel("")
    target_plots.draw_residuals(below, true, found)
    return _svg(figure, "predicted against true")


def training_curves(history: Sequence[Mapping[str, Any]], points: Sequence[Row] = (), metric: str = "top1") -> str:
    """Draw losses and scores over the epochs; return "" if there are none.

    Args:
        history: a row of scores per epoch.
        points: the rows of steps.csv: of training, they take the place of the epochs'.
        metric: what is drawn where there is no top-1.
    """
    figure, axes = _figure(9, 2.9, columns=2)
    drawn = False
    trained = thinned([row for row in points if "lr" in row], MAX_POINTS)
    panels: tuple[tuple[str, ...], ...] = (
        ("train_loss", "val_loss"),
        ("train_top1", "val_top1", "val_mean_class_accuracy"),
    )
    if not any("val_top1" in row for row in history):
        panels = panels[0], (f"val_{metric}",)
    for axis, names in zip(axes, panels, strict=True):
        for name, colour in zip(names, (SOFT, ORANGE, BLUE), strict=False):
            by_step = trained if name.startswith("train_") else []
            rows = by_step if any(name in row for row in by_step) else history
            found = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
            if found:
                style = {"linewidth": 0.8} if rows is by_step else {"marker": "o", "markersize": 3, "zorder": 3}
                axis.plot(*zip(*found, strict=True), color=colour, label=name, **style)
                drawn = True
        axis.set_xlabel("epoch")
        last = history[-1]["epoch"]
        if not trained or last > 2:
            figures.whole_numbers(axis)
        if trained:
            axis.set_xlim(-0.02 * last, 1.02 * last)
        elif len(history) == 1:
            axis.set_xlim(last - 1, last + 1)
        if axis.lines:
            axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, labelcolor=INK, fontsize=8)
    return _svg(figure, "curves") if drawn else ""


def by_train_count(predictions: Predictions, images: list[int] | None) -> list[tuple[str, float, int]]:
    """Return (range, accuracy, images) of groups of images, by the number of training images of their class."""
    if not images:
        return []
    scorable = predictions.scorable
    label = predictions.label[scorable]
    return _grouped(np.asarray(images)[label], predictions.top[scorable, 0] == label)


def by_size(predictions: Predictions, files: FileList, seed: int) -> tuple[list[tuple[str, float, int]], int]:
    """Return (range, accuracy, images) of groups by image size, and how many sizes were read.

    The size is the geometric mean of the sides, in pixels.
    """
    import PIL.Image

    rows = np.flatnonzero(predictions.scorable)
    if len(rows) > MAX_SIZES_READ:
        rows = np.sort(np.random.default_rng([seed, 7]).choice(rows, MAX_SIZES_READ, replace=False))
    sides = np.full(len(rows), np.nan)
    for place, row in enumerate(rows.tolist()):
        path = files.path(int(predictions.index[row]))
        try:
            sides[place] = faults.with_retries(partial(_side, path), path)
        except (OSError, ValueError, PIL.Image.DecompressionBombError):
            continue  # the evaluation has already named the unreadable images
    known = np.isfinite(sides)
    hit = predictions.top[rows, 0] == predictions.label[rows]
    return _grouped(np.round(sides[known]), hit[known]), int(known.sum())


def _side(path: str) -> float:
    """Return the geometric mean of an image's sides, in pixels."""
    import PIL.Image

    with PIL.Image.open(path) as image:
        return (image.width * image.height) ** 0.5


def _grouped(values: np.ndarray, hit: np.ndarray) -> list[tuple[str, float, int]]:
    """Return up to six groups of about equal size."""
    if not len(values):
        return []
    edges = np.unique(np.quantile(values, np.linspace(0, 1, 7)[1:], method="inverted_cdf"))
    place = np.searchsorted(edges, values)
    groups = []
    for k in range(len(edges)):
        inside = place == k
        low, high = values[inside].min(), values[inside].max()
        name = f"{low:g}" if low == high else f"{low:g}–{high:g}"
        groups.append((name, float(hit[inside].mean()), int(inside.sum())))
    return groups


def _figure(
    width: float, height: float, rows: int = 1, columns: int = 1, sharex: bool = False, **grid: Any
) -> tuple["Figure", list["Axes"]]:
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(rows, columns, sharex=sharex, gridspec_kw=grid or None)).flat)
    figure.patch.set_alpha(0)
    for axis in axes:
        axis.patch.set_alpha(0)
        axis.tick_params(colors=INK, labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(SOFT)
        axis.xaxis.label.set_color(INK)
        axis.yaxis.label.set_color(INK)
    return figure, axes


def _svg(figure: "Figure", name: str) -> str:
    """Return the figure as an <svg> element; its text stays text, in the font of the page."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', rf'\1 role="img" aria-label="{name}"', svg, count=1)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    return svg.replace(INK, "var(--ink)").replace(SOFT, "var(--soft)")
