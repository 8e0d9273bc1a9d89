"""Draw PNG pictures with matplotlib, without a display."""

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dataloader.decode import Image
from evaluation.metrics import Predictions
from evaluation.report import fonts, page_plots
from evaluation.report.pictures import SIDE, most_confident_errors
from evaluation.scored import Scored
from utils.classes import Classes
from utils.files import atomic_write
from utils.names import shorten_all
from utils.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.figure import Figure

MAX_MATRIX_CLASSES = 40  # with more, the most frequent confusions are drawn instead
MAX_PAIRS = 30
MAX_LABEL_POINTS = 190.0  # of a class name beside a matrix or a bar
LABEL_SIZE, CAPTION_SIZE = 9.0, 8.0  # points
CELL, WIDE_CELL = 1.7, 2.3  # inches; of an image in a sheet, and of one with a long caption
GAP = 8.0  # points, between captions side by side
DPI = 110
MIN_WIDTH = 5.0  # inches, of a sheet with a title
RIGHT, WRONG = (31, 95, 168), (179, 38, 30)  # RGB; as in report.css
LEGEND_POINTS = 250.0  # of a name in a legend with its numbers
MARKERS = "osD^v"
MIN_LOG_RATIO = 20.0  # of the largest to the smallest value, for a logarithmic axis

# A cell of a sheet: the image (uint8 RGB, or None if unreadable), its caption, and its frame: green, red or none.
Cell = tuple[Image | None, str, bool | None]


def curves(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Draw loss, scores, learning rate, gradient norm, throughput and the wait for data over the epochs."""
    figure, axes = _figure(13, 7, 3, 2)
    panels = (
        ("loss", ("train_loss", "val_loss")),
        (
            "accuracy",
            (
                "train_top1",
                "val_top1",
                "val_top5",
                "val_mean_class_accuracy",
                "val_raw_top1",
                "val_ema_top1",
                "val_swa_top1",
            ),
        ),
        ("learning rate", ("lr",)),
        ("gradient norm, before clipping", ("grad_norm",)),
        ("images per second", ("images_per_second",)),
        ("share of the time waiting for data", ("data_wait",)),
    )
    for axis, (title, names) in zip(axes, panels, strict=True):
        for name in names:
            points = [(row["epoch"], row[name]) for row in history if name in row]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o" if len(points) <= 30 else "", markersize=3, label=name)
        axis.set_title(title)
        axis.set_xlabel("epoch")
        if axis.lines:
            axis.set_xlim(min(row["epoch"] for row in history) - 0.5, max(row["epoch"] for row in history) + 0.5)
        page_plots.whole_numbers(axis, min_n_ticks=1)  # epochs are whole numbers
        if len(axis.lines) > 1:
            _legend_below(axis, 2)
    norms = [row["grad_norm"] for row in history if row.get("grad_norm", 0) > 0]
    if norms and max(norms) > MIN_LOG_RATIO * min(norms):
        axes[3].set_yscale("log")
    axes[4].set_ylim(0, 1.1 * max((row.get("images_per_second", 0) for row in history), default=0) or 1)
    axes[5].set_ylim(0, 1)
    best = max((row for row in history if "val_top1" in row), key=lambda row: row["val_top1"], default=None)
    if best is not None:
        axes[1].axvline(best["epoch"], color="tab:gray", linestyle=":", linewidth=1)
        axes[1].set_title(f"accuracy; best top-1 {best['val_top1']:.4f}, epoch {best['epoch']}")
    _save(figure, path)


def confusion(path: Path, scored: tuple[Predictions, object, Classes]) -> None:
    """Draw the confusion matrix in per cent of each true class, or, with many classes, the most frequent confusions."""
    predictions, _, classes = scored
    scorable = predictions.readable & (predictions.label >= 0)
    label, first = predictions.label[scorable], predictions.top[scorable][:, 0]
    if classes.count <= MAX_MATRIX_CLASSES and len(label):
        _matrix(path, label, first, classes)
    else:
        _pairs(path, label, first, classes)


def _matrix(path: Path, label: np.ndarray, first: np.ndarray, classes: Classes) -> None:
    """Draw rows for the classes that have images, and columns for those and the other predicted classes."""
    rows, row = np.unique(label, return_inverse=True)
    columns = np.union1d(rows, first)
    column = np.searchsorted(columns, first)
    count = np.bincount(row * len(columns) + column, minlength=len(rows) * len(columns)).reshape(
        len(rows), len(columns)
    )
    share = count / count.sum(axis=1, keepdims=True)
    right = rows[:, None] == columns
    ink = np.where(right[..., None], RIGHT, WRONG)
    strength = np.where(share > 0, 0.12 + 0.88 * share, 0)[..., None]
    figure, (axis,) = _figure(max(6.5, 5 + 0.42 * len(columns)), 3.5 + 0.42 * len(rows), 1)
    axis.imshow((255 + (ink - 255) * strength).astype(np.uint8))
    names = class_names(classes, columns, MAX_LABEL_POINTS, LABEL_SIZE)
    axis.set_xticks(
        range(len(columns)),
        [names[k] for k in columns.tolist()],
        fontsize=LABEL_SIZE,
        rotation=60,
        ha="right",
        rotation_mode="anchor",
    )
    axis.set_yticks(
        range(len(rows)),
        [f"{names[k]} ({n})" for k, n in zip(rows.tolist(), count.sum(axis=1).tolist(), strict=True)],
        fontsize=LABEL_SIZE,
    )
    axis.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="0.9", linewidth=0.5)
    axis.tick_params(which="minor", length=0)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true (images)")
    for y, x in zip(*np.nonzero(share > 0.005), strict=True):
        axis.text(
            x,
            y,
            f"{100 * share[y, x]:.0f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if share[y, x] > 0.5 else "black",
        )
    without = classes.count - len(rows)
    left_out = f"\n{without} of {classes.count} classes have no image and no row" if without else ""
    figure.suptitle(f"Per cent of the images of each true class; blue: correct, red: wrong{left_out}", fontsize=11)
    _save(figure, path)


def _pairs(path: Path, label: np.ndarray, first: np.ndarray, classes: Classes) -> None:
    wrong = label != first
    pairs, counts = np.unique(np.stack([label[wrong], first[wrong]]), axis=1, return_counts=True)
    worst = np.argsort(-counts, kind="stable")[:MAX_PAIRS][::-1]
    images = np.bincount(label, minlength=classes.count)
    figure, (axis,) = _figure(9, 1.5 + 0.28 * max(1, len(worst)), 1)
    names = class_names(classes, np.unique(pairs[:, worst]), MAX_LABEL_POINTS, LABEL_SIZE)
    texts = [f"{names[true]} → {names[called]}" for true, called in pairs[:, worst].T.tolist()]
    drawn = axis.barh(
        range(len(worst)), counts[worst], color=np.array(WRONG) / 255
    )  # by place: two equal texts would share a bar
    axis.bar_label(
        drawn,
        [f"{n} of {images[k]}" for n, k in zip(counts[worst], pairs[0, worst], strict=True)],
        padding=3,
        fontsize=8,
    )
    axis.set_yticks(range(len(worst)), texts, fontsize=LABEL_SIZE)
    axis.margins(x=0.12, y=0.01)
    page_plots.whole_numbers(axis, min_n_ticks=1)
    nothing = "none, all are correct" if len(label) else "none, no image could be scored"
    axis.set_title("Most frequent confusions: true → predicted" if len(worst) else f"Confusions: {nothing}")
    axis.set_xlabel("images of the true class")
    _save(figure, path)


def errors(path: Path, scored: Scored, count: int = 24) -> None:
    """Draw the most confident errors of the network; often these are wrong labels."""
    predictions, files, classes = scored
    chosen = most_confident_errors(predictions, count)
    label, first = predictions.label[chosen].tolist(), predictions.top[chosen, 0].tolist()
    room = 72 * WIDE_CELL - GAP - _width("predicted ", CAPTION_SIZE)
    names = class_names(classes, np.unique(label + first), room, CAPTION_SIZE)
    percent = (100 * predictions.probability[chosen, 0]).tolist()
    rows = zip(label, first, percent, strict=True)
    captions = [f"true {names[a]}\npredicted {names[b]}\n{p:.0f} % confident" for a, b, p in rows]
    images = [files.thumbnail(int(index), SIDE) for index in predictions.index[chosen]]
    gallery(path, images, captions, "The most confident errors", columns=6, cell=WIDE_CELL)


def gallery(
    path: Path,
    images: Sequence[Image | None],
    captions: list[str],
    title: str,
    columns: int = 8,
    cell: float = CELL,
) -> None:
    """Draw a sheet of images (uint8 RGB, or None if unreadable), each under its caption in a cell of `cell` inches."""
    columns = max(1, min(columns, len(images)))
    rows = max(1, math.ceil(len(images) / columns))
    lines = max((caption.count("\n") for caption in captions), default=0)
    figure, axes = _figure(max(MIN_WIDTH, cell * columns), (cell + 0.25 + 0.14 * lines) * rows + 0.5, columns, rows)
    for axis in axes:
        axis.set_axis_off()
        axis.set_anchor("N")  # the captions of a row are at the same height
    for axis, image, caption in zip(axes, images, captions, strict=False):
        _show(axis, image, caption)
    figure.suptitle(title if images else f"{title}: none")
    _save(figure, path)


def bars(path: Path, panels: dict[str, dict[str, list[float]]], title: str) -> None:
    """Draw panels of horizontal bars: the median of each name's values, with whiskers from lowest to highest."""
    rows = max(len(values) for values in panels.values())
    figure, axes = _figure(10, 0.6 + len(panels) * (0.6 + 0.34 * rows), 1, len(panels))
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
    _save(figure, path)


def range_test(path: Path, columns: dict[str, np.ndarray], best: float | None, title: str) -> None:
    """Draw the loss over the learning rate for tools.lr_find.

    Args:
        columns: rate, loss and smoothed, (N,) each.
        best: the learning rate to mark, if any.
    """
    figure, (axis,) = _figure(8, 4.5, 1)
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
    _legend_below(axis, 3)
    _save(figure, path)


def trials(path: Path, done: list[tuple[int, float, dict[str, Any]]], space: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the top-1 of a sweep's trials: in order with the best so far, and against each setting.

    Args:
        done: (number, top1, settings) of the complete trials. space: of tools.sweep_space.
    """
    figure, axes = _figure(4 * (1 + len(space)), 3.8, 1 + len(space))
    done = sorted(done, key=lambda trial: trial[0])
    numbers, scores = [trial[0] for trial in done], [trial[1] for trial in done]
    best = int(np.argmax(scores))
    axes[0].plot(numbers, scores, "o", color="tab:blue", label="trial")
    axes[0].step(numbers, np.maximum.accumulate(scores), where="post", color="tab:red", label="best so far")
    page_plots.whole_numbers(axes[0])
    axes[0].set_xlabel("trial")
    axes[0].set_ylabel("best validation top-1")
    _legend_below(axes[0], 2)
    for axis, (name, rule) in zip(axes[1:], space.items(), strict=True):
        values = [str(trial[2][name]) if "choices" in rule else trial[2][name] for trial in done]
        axis.plot(values, scores, "o", color="tab:blue")
        axis.plot(values[best : best + 1], scores[best : best + 1], "o", color="tab:red")
        if rule.get("log"):
            axis.set_xscale("log")
        axis.set_xlabel(name)
        axis.margins(x=0.15)
    _save(figure, path)


def line(path: Path, x: list[int], y: list[float], names: tuple[str, str], mark: int) -> None:
    """Draw `y` over `x` as a line with points, the `names` of the axes, and a vertical line at `mark`, as trained."""
    figure, (axis,) = _figure(7, 4.3, 1)
    axis.axvline(mark, color="tab:gray", linestyle="--", linewidth=1, label=f"as trained: {mark}")
    axis.plot(x, y, marker="o")
    _legend_below(axis, 1)
    axis.set(xlabel=names[0], ylabel=names[1], xticks=x)
    axis.grid(alpha=0.3)
    _save(figure, path)


def scatter(path: Path, points: list[tuple[str, float, float, list[float] | None, float]], title: str) -> None:
    """Draw scores over speed, one colour per name, with a legend of the names below.

    Args:
        points: (name, images per second, top-1, its interval or None, top-1 of nearest neighbours).
    """
    names = dict(enumerate(visible(name) for name, *_ in points))
    family = fonts.families("".join(names.values()))
    shown = shorten_all(names, LEGEND_POINTS, lambda text: _width(text, CAPTION_SIZE, family))
    figure, (axis,) = _figure(8, 4.6 + 0.19 * len(points), 1)
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
    if max(speeds) > MIN_LOG_RATIO * min(speeds):
        axis.set_xscale("log")
    axis.margins(x=0.12, y=0.12)
    axis.set(xlabel="images per second, features", ylabel="cross-validated top-1")
    axis.set_title(f"{title}\nfilled: linear probe with its 95 % interval; open: nearest neighbours", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=1, frameon=False, fontsize=CAPTION_SIZE)
    _save(figure, path)


def neighbour_grid(path: Path, rows: Sequence[Sequence[Cell]]) -> None:
    """Draw a sheet with a line of images for each of `rows`."""
    columns = max(len(row) for row in rows)
    figure, axes = _figure(max(MIN_WIDTH, CELL * columns), (CELL + 0.4) * len(rows) + 0.5, columns, len(rows))
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
        axis.set_anchor("N")
    framed = any(agrees is not None for row in rows for _, _, agrees in row)
    figure.suptitle("Each query and its nearest images, by cosine" + "; green: the same class, red: another" * framed)
    for line, row in enumerate(rows):
        for axis, (image, caption, agrees) in zip(axes[line * columns :], row, strict=False):
            _show(axis, image, caption)
            if agrees is not None:
                axis.spines[:].set(visible=True, color="tab:green" if agrees else "tab:red", linewidth=3)
    _save(figure, path)


def class_names(
    classes: Classes,
    labels: Sequence[int] | NDArray[np.int64],
    points: float = 72 * CELL - GAP,
    size: float = CAPTION_SIZE,
) -> dict[int, str]:
    """Return unique names of the classes `labels` (a sequence), none wider than `points` in a font of `size` points."""
    names = {label: visible(classes.name(label)) for label in np.asarray(labels).tolist()}
    family = fonts.families("".join(names.values()))
    return shorten_all(names, points, lambda text: _width(text, size, family))


def _legend_below(axis: "Axes", columns: int) -> None:
    """Put the legend below the axis, where it covers no line."""
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns, frameon=False, fontsize=8)


def _width(text: str, size: float, family: Sequence[str] = (fonts.DEFAULT,)) -> float:
    """Return the width of `text` in points, as drawn."""
    from matplotlib.font_manager import FontProperties

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        pixels = _renderer().get_text_width_height_descent(
            text, FontProperties(family=list(family), size=size), ismath=False
        )[0]
    return float(72 / DPI * pixels)


@cache
def _renderer() -> "RendererAgg":
    from matplotlib.backends.backend_agg import RendererAgg

    return RendererAgg(1, 1, DPI)


def _show(axis: "Axes", image: Image | None, caption: str) -> None:
    """Draw `image`, uint8 RGB, under its caption; mark None as unreadable."""
    if image is not None:
        axis.imshow(image)
    else:
        axis.text(0.5, 0.5, "unreadable", ha="center", va="center", transform=axis.transAxes, fontsize=CAPTION_SIZE)
    axis.set_title(caption, fontsize=CAPTION_SIZE)


def _figure(width: float, height: float, columns: int, rows: int = 1) -> tuple["Figure", list["Axes"]]:
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(rows, columns)).flat)


def _save(figure: "Figure", path: Path) -> None:
    """Write the PNG with fonts that have the characters of each text.

    Only the ticks of a logarithmic axis are formulas: "$5 to $9" is none.
    """
    from matplotlib.text import Text

    axes = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) if axis.get_scale() == "log"]
    formulas = {id(text) for axis in axes for text in axis.get_ticklabels(which="both")}
    for text in figure.findobj(Text):
        if id(text) not in formulas:
            text.set_parse_math(False)
            text.set_fontfamily(fonts.families(text.get_text()))
    with atomic_write(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # `fonts` has warned already
        figure.savefig(file, format="png")
