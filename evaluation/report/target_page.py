"""Write report.html for predicted labels or numbers: scores, tables, plots, and the images that went most wrong."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.multilabel import describe_thresholds, thresholds_of
from evaluation.report import page_plots, target_plots
from evaluation.report.page import Extra, headline_rows, interval_note, provenance, score_text
from evaluation.report.pictures import MAX_ERRORS, Pictures
from evaluation.scored import TargetScored
from evaluation.scoring import SCORES
from evaluation.targets import numbers
from utils.classes import Classes
from utils.page import write_filled
from utils.text import visible

MAX_ROWS = 500  # of the table of labels; the CSV has all of them


class Table(NamedTuple):
    """A table of the page: the titles of its columns, and its rows as text."""

    titles: list[str]
    rows: list[list[str]]


class Details(NamedTuple):
    """What the page shows beside the scores.

    Attributes:
        table: a row per label or number.
        mistakes: the labels that are missed and invented most often, {title: [(label, images)]}.
        worst: the rows of the worst predictions, int64 (M,).
        described: what is true and what is predicted, as text, of each of them.
    """

    table: Table
    mistakes: dict[str, list[tuple[int, int]]]
    worst: NDArray[np.int64]
    described: list[tuple[str, str]]


def write(path: Path, scored: TargetScored, metrics: dict[str, Any], extra: Extra, details: Details) -> None:
    """Write the page; `metrics` is the content of metrics.json."""
    table, mistakes, worst, described = details
    predictions, files, classes = scored
    pictures = Pictures(files)
    cards = [
        {
            "path": files.path(int(predictions.index[row])),
            "picture": pictures.picture(int(predictions.index[row])),
            "true": true,
            "predicted": predicted,
        }
        for row, (true, predicted) in zip(worst[:MAX_ERRORS].tolist(), described, strict=False)
    ]
    folder, headline = Path(__file__).parent, headline_rows(metrics, classes.task, extra.metric)
    named = {
        title: [(visible(classes.name(label)), f"{images:,}") for label, images in rows]
        for title, rows in mistakes.items()
    }
    write_filled(
        path,
        folder / "targets.html.j2",
        title=extra.title,
        about=extra.about,
        what="labels" if classes.task == "multilabel" else "numbers per image",
        numbers=headline,
        interval_note=interval_note(metrics, headline),
        metrics=metrics,
        thresholds=_threshold_note(metrics, classes) if classes.task == "multilabel" else "",
        difference=visible(extra.difference),
        table=table._replace(rows=table.rows[:MAX_ROWS]),
        total=len(table.rows),
        mistakes=named,
        cards=cards,
        plots=_plots(scored) if classes.task == "regression" else [],
        curves=page_plots.training_curves(extra.history, extra.points, extra.metric) if extra.history else "",
        style=(folder / "report.css").read_text(encoding="utf-8"),
        provenance=provenance(),
    )


def _threshold_note(metrics: dict[str, Any], classes: Classes) -> str:
    """Return from which probabilities on labels count as predicted, and whether that flatters the scores."""
    text = f"Labels count as predicted {describe_thresholds(thresholds_of(classes).tolist())}."
    fitted = metrics.get("fitted_thresholds")
    if not fitted:
        return text
    honest = ", ".join(
        f"{SCORES[name].title} {score_text(name, value)}" for name, value in fitted["cross_fitted"].items()
    )
    return f"{text} They are fitted to these images, so the F1 scores are optimistic; cross-fitted: {honest}."


def _plots(scored: TargetScored) -> list[tuple[str, str]]:
    """Return a title and an SVG for each of the first targets."""
    predictions, _, classes = scored
    rows = np.flatnonzero(predictions.scorable)
    true, found = numbers(predictions)[rows], np.asarray(predictions.value[rows], np.float64)
    return [
        (visible(classes.name(k)), page_plots.scatter_plot(true[:, k], found[:, k]))
        for k in range(min(target_plots.MAX_PLOTTED, true.shape[1]))
    ]
