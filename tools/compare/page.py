"""Write compare.html: a table to sort and filter, and the curves of all runs, in one file that loads nothing else."""

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.report import page as report
from evaluation.step_points import Row, steps_per_epoch, thinned
from options import choices
from tools.compare.runs import Run, differing_options, option_text, validation_warning
from utils.names import columns, shorten
from utils.page import write_filled
from utils.text import visible

MAX_POINTS = 500  # per run and curve on the page; more are averaged in pairs
MAX_VALUE_CHARACTERS = 200  # of an option
MAX_TAG_REM = 24.0  # width of the column of tags
DIGITS = 6  # of a number in the page
PANELS = {  # column of metrics.csv and steps.csv: title
    "train_loss": "training loss",
    "val_loss": "validation loss",
    "train_top1": "training top-1",
    "val_top1": "validation top-1",
    "lr": "learning rate",
    "grad_norm": "gradient norm, before clipping",
}
TRAINING = tuple(name for name in PANELS if not name.startswith("val_"))


def write_page(path: Path, runs: Sequence[Run], metric: str = "top1") -> None:
    """Write the page of `runs`, in their order; `metric` is the score that it puts first."""
    names = differing_options(runs)
    folder, style = Path(__file__).parent, Path(report.__file__).parent / "report.css"
    rows = [_row(run, names, metric) for run in runs]
    write_filled(
        path,
        folder / "compare.html.j2",
        runs=rows,
        options=names,
        tag_width=min(MAX_TAG_REM, 5 + 0.55 * max(columns(visible(run.tag)) for run in runs)),
        warning=validation_warning(runs),
        metric=metric,
        lower=choices.METRICS[metric].lower_is_better,
        panels=_with_points(panels(metric), runs),
        of_classes=any(row["top1"] is not None for row in rows),
        by_epoch=[visible(run.tag) for run in runs if run.history and not run.steps],
        command=shlex.join(["python", "-m", "tools.compare", *sys.argv[1:]]),
        data=report.embed([curves(run, metric) for run in runs]),
        style=style.read_text(encoding="utf-8"),
        code=(folder / "compare.js").read_text(encoding="utf-8"),
    )


def panels(metric: str) -> dict[str, str]:
    """Return the curves to draw, {column: title}: PANELS, and the metric if it is not among them."""
    own = {} if metric in ("top1", "log_loss") else {f"val_{metric}": f"validation {metric}"}
    return PANELS | own


def _with_points(shown: dict[str, str], runs: Sequence[Run]) -> dict[str, str]:
    """Return the panels without those of top-1, where no run has it: networks of labels or numbers have none."""
    known = {name for run in runs for row in (*run.history, *run.steps) for name in row}
    return {name: title for name, title in shown.items() if not name.endswith("_top1") or name in known}


def _row(run: Run, names: Sequence[str], metric: str) -> dict[str, Any]:
    """Return what the table shows of a run: numbers to sort by, or None, and texts."""
    best, last = run.best(metric), run.last(f"val_{metric}")
    top1, mean_class = run.last("val_top1"), run.last("val_mean_class_accuracy")
    return {
        "tag": run.tag,
        "model": run.model,
        "epochs": run.epochs,
        "epochs_text": run.epochs_text,
        "best": None if best is None else best[0],
        "best_text": _score(best and best[0], metric),
        "best_epoch": None if best is None else best[1],
        "last": last,
        "last_text": _score(last, metric),
        "top1": top1,
        "top1_text": _score(top1, "top1"),
        "mean_class": mean_class,
        "mean_class_text": _score(mean_class, "mean_class_accuracy"),
        "loss": run.last("val_loss"),
        "seconds": run.seconds,
        "time": run.time_text,
        "speed": run.images_per_second,
        "options": [shorten(option_text(run.compared, name), MAX_VALUE_CHARACTERS) for name in names],
        "where": run.where(metric),
        "notes": run.notes,
    }


def _score(value: float | None, metric: str) -> str:
    return "–" if value is None else report.score_text(metric, value)


def curves(run: Run, metric: str = "top1") -> dict[str, Any]:
    """Return the curves of a run for the page's script.

    Returns:
        tag; train and val, each with the columns step, epoch and the names of its scores. A step is None for a run
        without steps.csv, a score where the run has none.
    """
    per_epoch = steps_per_epoch(run.steps)
    at_epochs = [{**row, "step": row["epoch"] * per_epoch} if per_epoch else row for row in run.history]
    training = [row for row in run.steps if any(name in row for name in TRAINING)]
    first = training[0]["epoch"] if training else float("inf")
    earlier = [row for row in at_epochs if row["epoch"] < first]  # trained by a version without steps.csv
    return {
        "tag": visible(run.tag),
        "train": _columns([*earlier, *training], TRAINING),
        "val": _columns(at_epochs, [name for name in panels(metric) if name.startswith("val_")]),
    }


def _columns(rows: list[Row], names: Sequence[str]) -> dict[str, list[float | None]]:
    """Return rows as columns of numbers that JSON has, at most MAX_POINTS long."""
    rows = thinned([row for row in rows if any(name in row for name in names)], MAX_POINTS)
    return {name: [_number(row.get(name)) for row in rows] for name in ("step", "epoch", *names)}


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")
