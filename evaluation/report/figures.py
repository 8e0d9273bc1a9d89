"""What all PNG pictures share: figures without a display, fonts, names that fit, and writing."""

import os
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dataloader.decode import Image
from evaluation.report import fonts
from utils.classes import Classes
from utils.files import atomic_write
from utils.names import shorten_all
from utils.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.figure import Figure

LABEL_SIZE, CAPTION_SIZE = 9.0, 8.0  # points
CELL = 1.7  # inches; of an image in a sheet
GAP = 8.0  # points, between captions side by side
DPI = 110
MIN_WIDTH = 5.0  # inches, of a sheet with a title
MAX_CAPTION_LINES = 4  # of labels
MIN_LOG_RATIO = 20.0  # of the largest to the smallest value, for a logarithmic axis


def new_figure(width: float, height: float, columns: int, rows: int = 1) -> tuple["Figure", list["Axes"]]:
    """Return a figure of `width` by `height` inches, and its axes, row by row."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(rows, columns)).flat)


def save(figure: "Figure", path: Path) -> None:
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


def show_image(axis: "Axes", image: Image | None, caption: str) -> None:
    """Draw `image`, uint8 RGB, under its caption; mark None as unreadable."""
    if image is not None:
        axis.imshow(image)
    else:
        axis.text(0.5, 0.5, "unreadable", ha="center", va="center", transform=axis.transAxes, fontsize=CAPTION_SIZE)
    axis.set_title(caption, fontsize=CAPTION_SIZE)


def legend_below(axis: "Axes", columns: int, gap: float = 0.16) -> None:
    """Put the legend below the axis, where it covers no line, `gap` of the axis's height away from it."""
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -gap), ncols=columns, frameon=False, fontsize=8)


def whole_numbers(axis: "Axes", **settings: int) -> None:
    """Put the ticks of the x axis, a linear one, at whole numbers; `settings` are those of its MaxNLocator."""
    from matplotlib.ticker import MaxNLocator

    locator = axis.xaxis.get_major_locator()
    assert isinstance(locator, MaxNLocator)
    locator.set_params(integer=True, **settings)


def class_names(
    classes: Classes,
    labels: Sequence[int] | NDArray[np.int64],
    points: float = 72 * CELL - GAP,
    size: float = CAPTION_SIZE,
) -> dict[int, str]:
    """Return unique names of the classes `labels`, (M,), none wider than `points` in a font of `size` points."""
    names = {label: visible(classes.name(label)) for label in np.asarray(labels).tolist()}
    family = fonts.families("".join(names.values()))
    return shorten_all(names, points, lambda text: text_width(text, size, family))


def captions_of(classes: Classes, targets: NDArray[np.generic]) -> list[str]:
    """Return the targets of some images in words that fit under them.

    Args:
        targets: int64 (B,) classes, uint8 (B, K) labels, or float32 (B, T) numbers, as utils.batch.Batch has them.
    """
    if targets.ndim == 1:
        names = class_names(classes, targets.astype(np.int64))
        return [names[label] for label in targets.tolist()]
    if targets.dtype == np.uint8:
        return label_captions(classes, [[("", label, "") for label in np.flatnonzero(one).tolist()] for one in targets])
    return [number_line("", one) for one in targets.tolist()]


def label_captions(classes: Classes, images: Sequence[Sequence[tuple[str, int, str]]], cell: float = CELL) -> list[str]:
    """Return a caption for each image, with a line per label, none wider than a cell of `cell` inches.

    Different labels have different names in all captions, also where the names are cut.

    Args:
        images: for each image, (text before the name, label, text after it). Of more than MAX_CAPTION_LINES labels, the
            first are shown, and the others counted.
    """
    shown = [lines if len(lines) <= MAX_CAPTION_LINES else lines[: MAX_CAPTION_LINES - 1] for lines in images]
    every = [line for lines in shown for line in lines]
    beside = max((text_width(before + after, CAPTION_SIZE) for before, _, after in every), default=0.0)
    names = class_names(classes, sorted({label for _, label, _ in every}), 72 * cell - GAP - beside)
    captions = []
    for lines, some in zip(images, shown, strict=True):
        texts = [f"{before}{names[label]}{after}" for before, label, after in some]
        texts += [f"and {len(lines) - len(some)} more"] if len(some) < len(lines) else []
        captions.append("\n".join(texts) or "–")
    return captions


def number_line(before: str, values: Sequence[float], cell: float = CELL) -> str:
    """Return a line of the numbers of an image after the text `before`, none of them cut; those beyond `cell` inches
    are counted.
    """
    texts = [f"{value:.4g}" for value in values]
    line = before + ", ".join(texts)
    kept = len(texts)
    while kept > 1 and text_width(line, CAPTION_SIZE) > 72 * cell - GAP:
        kept -= 1
        line = f"{before}{', '.join(texts[:kept])} and {len(texts) - kept} more"
    return line


def text_width(text: str, size: float, family: Sequence[str] = (fonts.DEFAULT,)) -> float:
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
