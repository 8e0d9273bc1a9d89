"""Draw the PNG pictures of an evaluation."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataloader.decode import Image
from evaluation.metrics import Predictions
from evaluation.report import figures
from evaluation.report.pictures import SIDE, most_confident_errors
from evaluation.scored import Scored
from utils.classes import Classes

MAX_MATRIX_CLASSES = 40  # with more, the most frequent confusions are drawn instead
MAX_PAIRS = 30
MAX_LABEL_POINTS = 190.0  # of a class name beside a matrix or a bar
WIDE_CELL = 2.3  # inches; of an image in a sheet with a long caption
RIGHT, WRONG = (31, 95, 168), (179, 38, 30)  # RGB; as in report.css


def confusion(path: Path, predictions: Predictions, classes: Classes) -> None:
    """Draw the confusion matrix in per cent of each true class, or, with many classes, the most frequent confusions."""
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
    figure, (axis,) = figures.new_figure(max(6.5, 5 + 0.42 * len(columns)), 3.5 + 0.42 * len(rows), 1)
    axis.imshow((255 + (ink - 255) * strength).astype(np.uint8))
    names = figures.class_names(classes, columns, MAX_LABEL_POINTS, figures.LABEL_SIZE)
    axis.set_xticks(
        range(len(columns)),
        [names[k] for k in columns.tolist()],
        fontsize=figures.LABEL_SIZE,
        rotation=60,
        ha="right",
        rotation_mode="anchor",
    )
    axis.set_yticks(
        range(len(rows)),
        [f"{names[k]} ({n})" for k, n in zip(rows.tolist(), count.sum(axis=1).tolist(), strict=True)],
        fontsize=figures.LABEL_SIZE,
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
    figures.save(figure, path)


def _pairs(path: Path, label: np.ndarray, first: np.ndarray, classes: Classes) -> None:
    wrong = label != first
    pairs, counts = np.unique(np.stack([label[wrong], first[wrong]]), axis=1, return_counts=True)
    worst = np.argsort(-counts, kind="stable")[:MAX_PAIRS][::-1]
    images = np.bincount(label, minlength=classes.count)
    figure, (axis,) = figures.new_figure(9, 1.5 + 0.28 * max(1, len(worst)), 1)
    names = figures.class_names(classes, np.unique(pairs[:, worst]), MAX_LABEL_POINTS, figures.LABEL_SIZE)
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
    axis.set_yticks(range(len(worst)), texts, fontsize=figures.LABEL_SIZE)
    axis.margins(x=0.12, y=0.01)
    figures.whole_numbers(axis, min_n_ticks=1)
    nothing = "none, all are correct" if len(label) else "none, no image could be scored"
    axis.set_title("Most frequent confusions: true → predicted" if len(worst) else f"Confusions: {nothing}")
    axis.set_xlabel("images of the true class")
    figures.save(figure, path)


def errors(path: Path, scored: Scored, count: int = 24) -> None:
    """Draw the most confident errors of the network; often these are wrong labels."""
    predictions, files, classes = scored
    chosen = most_confident_errors(predictions, count)
    label, first = predictions.label[chosen].tolist(), predictions.top[chosen, 0].tolist()
    room = 72 * WIDE_CELL - figures.GAP - figures.text_width("predicted ", figures.CAPTION_SIZE)
    names = figures.class_names(classes, np.unique(label + first), room, figures.CAPTION_SIZE)
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
    cell: float = figures.CELL,
) -> None:
    """Draw a sheet of images (uint8 RGB, or None if unreadable), each under its caption in a cell of `cell` inches."""
    columns = max(1, min(columns, len(images)))
    rows = max(1, math.ceil(len(images) / columns))
    lines = max((caption.count("\n") for caption in captions), default=0)
    figure, axes = figures.new_figure(
        max(figures.MIN_WIDTH, cell * columns), (cell + 0.25 + 0.14 * lines) * rows + 0.5, columns, rows
    )
    for axis in axes:
        axis.set_axis_off()
        axis.set_anchor("N")  # the captions of a row are at the same height
    for axis, image, caption in zip(axes, images, captions, strict=False):
        figures.show_image(axis, image, caption)
    figure.suptitle(title if images else f"{title}: none")
    figures.save(figure, path)
