"""PNG pictures, by matplotlib; drawn without a display."""

import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import atomic_write
from utils.report.pictures import SIDE, surest_errors

MATRIX_CLASSES = 40  # more than so many classes: the worst pairs instead of the matrix
WORST_PAIRS = 30


def curves(path: Path, history: list[dict[str, Any]]) -> None:
    """Loss, scores, learning rate, gradient norm, throughput and the wait for data over the epochs."""
    figure, axes = _figure(13, 7, 3, 2)
    panels = (
        ("loss", ("train_loss", "val_loss")),
        ("accuracy", ("train_top1", "val_top1", "val_top5", "val_mean_class_accuracy", "val_raw_top1", "val_ema_top1", "val_swa_top1")),
        ("learning rate", ("lr",)),
        ("gradient norm, before clipping", ("grad_norm",)),
        ("images per second", ("images_per_second",)),
        ("share of the time waiting for data", ("data_wait",)),
    )
    for axis, (title, names) in zip(axes, panels, strict=True):
        for name in names:
            points = [(row["epoch"], row[name]) for row in history if name in row]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
        axis.set_title(title)
        axis.set_xlabel("epoch")
        if axis.lines:
            axis.set_xlim(min(row["epoch"] for row in history) - 0.5, max(row["epoch"] for row in history) + 0.5)
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)  # an epoch has no half
        if len(axis.lines) > 1:
            axis.legend()
    if any(row.get("grad_norm", 0) > 0 for row in history):
        axes[3].set_yscale("log")
    axes[4].set_ylim(bottom=0)
    axes[5].set_ylim(0, 1)
    best = max((row for row in history if "val_top1" in row), key=lambda row: row["val_top1"], default=None)
    if best is not None:
        axes[1].axvline(best["epoch"], color="tab:gray", linestyle=":", linewidth=1)
        axes[1].set_title(f"accuracy; best top-1 {best['val_top1']:.4f}, epoch {best['epoch']}")
    _save(figure, path)


def confusion(path: Path, scored: Any) -> None:
    """The confusion matrix (rows sum to 1), or the most frequent confusions where there are many classes."""
    predictions, _, classes = scored
    seen = predictions.readable & (predictions.label >= 0)
    label, first = predictions.label[seen], predictions.top[seen][:, 0]
    if classes.count <= MATRIX_CLASSES:
        _matrix(path, label, first, classes)
    else:
        _pairs(path, label, first, classes)


def _matrix(path: Path, label: np.ndarray, first: np.ndarray, classes: Any) -> None:
    count = classes.count
    matrix = np.bincount(label * count + first, minlength=count * count).reshape(count, count).astype(float)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 3 + 0.42 * count
    figure, (axis,) = _figure(side + 1, side, 1)
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    names = [_short(classes.name(k)) for k in range(count)]
    axis.set_xticks(range(count), names, rotation=60, ha="right")
    axis.set_yticks(range(count), names)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    for row, column in zip(*np.nonzero(share > 0.005), strict=True):
        dark = share[row, column] > 0.5
        axis.text(column, row, f"{100 * share[row, column]:.0f}", ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axis.set_title("Of the images of a row's class, so many per cent were called …")
    figure.colorbar(image, fraction=0.046)
    _save(figure, path)


def _pairs(path: Path, label: np.ndarray, first: np.ndarray, classes: Any) -> None:
    wrong = label != first
    pairs, counts = np.unique(np.stack([label[wrong], first[wrong]]), axis=1, return_counts=True)
    worst = np.argsort(-counts, kind="stable")[:WORST_PAIRS][::-1]
    figure, (axis,) = _figure(9, 1.5 + 0.28 * max(1, len(worst)), 1)
    texts = [f"{_short(classes.name(int(pairs[0, k])))} → {_short(classes.name(int(pairs[1, k])))}" for k in worst]
    axis.barh(texts, counts[worst])
    axis.set_title("Most frequent confusions: true → predicted")
    axis.set_xlabel("images")
    _save(figure, path)


def errors(path: Path, scored: Any, count: int = 24) -> None:
    """The wrong predictions that the network was surest of: often wrong labels."""
    predictions, files, classes = scored
    chosen = surest_errors(predictions, count).tolist()
    captions = [
        f"{_short(classes.name(int(predictions.label[k])))}\ncalled {_short(classes.name(int(predictions.top[k, 0])))} "
        f"{100 * predictions.probability[k, 0]:.0f} %"
        for k in chosen
    ]
    gallery(path, [files.picture(int(predictions.index[k]), SIDE) for k in chosen], captions, "The surest errors: true class, called …")


def gallery(path: Path, images: list[Any], captions: list[str], title: str, columns: int = 8) -> None:
    """A sheet of uint8 RGB images with captions, as PNG; None is an image that cannot be read."""
    columns = max(1, min(columns, len(images)))
    rows = max(1, math.ceil(len(images) / columns))
    figure, axes = _figure(1.7 * columns, 2.1 * rows + 0.5, columns, rows)
    for axis in axes:
        axis.set_axis_off()
    for axis, image, caption in zip(axes, images, captions, strict=False):
        _show(axis, image, caption)
    figure.suptitle(title if images else f"{title}: none")
    _save(figure, path)


def bars(path: Path, panels: dict[str, dict[str, list[float]]], title: str) -> None:
    """A panel each, with its own scale: a horizontal bar for each name, the median, with whiskers from the lowest value to the highest."""
    rows = max(len(values) for values in panels.values())
    figure, axes = _figure(10, 0.6 + len(panels) * (0.6 + 0.34 * rows), 1, len(panels))
    for axis, (heading, values) in zip(axes, panels.items(), strict=True):
        names = list(values)[::-1]
        medians = np.array([np.median(values[name]) for name in names])
        spread = np.array([[m - min(values[n]), max(values[n]) - m] for n, m in zip(names, medians, strict=True)]).T
        colours = ["tab:blue" if name.startswith("ours") else "tab:gray" for name in names]
        axis.barh(names, medians, xerr=spread, color=colours, capsize=3)
        for place, median in enumerate(medians):
            axis.text(median, place, f" {median:.0f}", va="bottom", fontsize=8)
        axis.margins(x=0.08)
        axis.set_title(heading)
    figure.suptitle(title)
    _save(figure, path)


def range_test(path: Path, columns: dict[str, np.ndarray], best: float | None, title: str) -> None:
    """The loss over the learning rate of tools.lr_find.

    Args:
        columns: rate, loss and smoothed, each (N,).
        best: the rate to mark, if any.
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
    axis.legend(loc="upper left")
    _save(figure, path)


def trials(path: Path, done: list[tuple[int, float, dict[str, Any]]], space: dict[str, dict[str, Any]]) -> None:
    """The top-1 of a sweep's trials: in their order with the best so far, and against each setting.

    Args:
        done: (number, top1, settings) of the complete trials. space: of tools.sweep_space.
    """
    figure, axes = _figure(4 * (1 + len(space)), 3.8, 1 + len(space))
    done = sorted(done, key=lambda trial: trial[0])
    numbers, scores = [trial[0] for trial in done], [trial[1] for trial in done]
    best = int(np.argmax(scores))
    axes[0].plot(numbers, scores, "o", color="tab:blue", label="trial")
    axes[0].step(numbers, np.maximum.accumulate(scores), where="post", color="tab:red", label="best so far")
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_xlabel("trial")
    axes[0].set_ylabel("best validation top-1")
    axes[0].legend()
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
    """`y` over `x` as a line with points; names of the axes; an upright line at `mark`."""
    figure, (axis,) = _figure(7, 4, 1)
    axis.axvline(mark, color="tab:gray", linestyle="--", linewidth=1)
    axis.plot(x, y, marker="o")
    axis.set(xlabel=names[0], ylabel=names[1], xticks=x)
    axis.grid(alpha=0.3)
    _save(figure, path)


def neighbour_grid(path: Path, rows: list[list[tuple[Any, str, bool | None]]]) -> None:
    """A sheet with a line of images for each of `rows`: (uint8 RGB or None, caption, framed green, red, or not)."""
    columns = max(len(row) for row in rows)
    figure, axes = _figure(1.5 * columns, 1.75 * len(rows), columns, len(rows))
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    for line, row in enumerate(rows):
        for axis, (image, caption, agrees) in zip(axes[line * columns :], row, strict=False):
            _show(axis, image, caption)
            if agrees is not None:
                axis.spines[:].set(visible=True, color="tab:green" if agrees else "tab:red", linewidth=3)
    _save(figure, path)


def _show(axis: Any, image: Any, caption: str) -> None:
    """`image`, uint8 RGB, under its caption; None is said to be unreadable."""
    if image is not None:
        axis.imshow(image)
    axis.set_title(caption if image is not None else f"{caption}\nunreadable", fontsize=8)


def _short(name: str, length: int = 24) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _figure(width: float, height: float, columns: int, rows: int = 1) -> tuple[Any, list[Any]]:
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["font.sans-serif"] = ["DejaVu Sans", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "SimHei"]
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(rows, columns)).flat)


def _save(figure: Any, path: Path) -> None:
    with atomic_write(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a box in the picture is enough where no font has Chinese
        figure.savefig(file, dpi=110, format="png")
