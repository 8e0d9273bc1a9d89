"""Write report.html of an evaluation: one file that loads nothing else, for desktop and phone, light and dark."""

import platform
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.bootstrap import MAX_AUC_VALUES
from evaluation.compare import Compared
from evaluation.label_issues import Issues
from evaluation.metrics import confused_pairs, per_class, shot_groups
from evaluation.report import page_plots
from evaluation.report.pictures import Maps, Neighbours, Pictures, error_cards, issue_cards
from evaluation.scored import Scored
from evaluation.scoring import EXTENDED, SCORES
from evaluation.step_points import Row
from options.choices import TASK_METRICS
from options.wording import count_of
from utils.classes import Classes
from utils.files import json_text
from utils.page import write_filled
from utils.text import visible

MAX_PAIRS = 100_000  # of classes that were confused, in the page and in confused.csv
MAX_CHANGED = 200  # rows of the comparison


@dataclass
class Extra:
    """What the page shows beyond the scores; what is empty is left out, or reported as missing.

    Attributes:
        maps: the result of inference.gradcam_maps, by image.
        note: why there is none.
        near: the nearest images of each error and of each likely label error, with their cosines, by image.
        history: scores of training per epoch.
        points: the rows of steps.csv.
        runs: settings and scores of earlier evaluations beside this one.
        metric: the score to show first.
        compared: the result of --compare.
        difference: that of a metric, in words.
        folder: where the page is going to be, by default the folder to which it is written.
        title: the networks.
        about: their files and the list, in a few words.
    """

    issues: Issues
    maps: Maps = field(default_factory=dict)
    note: str = ""
    near: Neighbours = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    points: list[Row] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    compared: Compared | None = None
    difference: str = ""
    seed: int = 0
    metric: str = "top1"
    folder: Path | None = None
    title: str = "predictions"
    about: str = ""


def write(path: Path, scored: Scored, metrics: dict[str, Any], extra: Extra) -> None:
    """Write the page for `scored` and `metrics` (the content of metrics.json)."""
    predictions, files, classes = scored
    pictures = Pictures(files)
    issues = issue_cards(scored, extra.issues, pictures, extra.near)
    data = {
        "classes": _class_columns(scored),
        "pairs": confused_pairs(predictions, classes.count, MAX_PAIRS).T.tolist(),
        "errors": error_cards(scored, pictures, extra.maps, extra.near),
        "issues": issues,
    }
    sizes, sized = page_plots.by_size(predictions, files, extra.seed)
    folder = Path(__file__).parent
    numbers = headline_rows(metrics, scored.classes.task, extra.metric, group_sizes(scored))
    write_filled(
        path,
        folder / "report.html.j2",
        title=extra.title,
        about=extra.about,
        numbers=numbers,
        interval_note=interval_note(metrics, numbers),
        metrics=metrics,
        extra=extra,
        data=embed(data),
        style=(folder / "report.css").read_text(encoding="utf-8"),
        code=(folder / "report.js").read_text(encoding="utf-8"),
        plots=_plots(scored, extra, sizes),
        sized=sized,
        cells=" × ".join(map(str, next(iter(extra.maps.values()))[1].shape)) if extra.maps else "",
        runs=extra.runs,
        compared=_compared(scored, extra.compared),
        difference=visible(extra.difference),
        provenance=provenance(),
    )


def headline_rows(
    metrics: dict[str, Any], task: str, metric: str, sizes: dict[str, str] | None = None
) -> list[dict[str, str]]:
    """Return a row of text for each score: title, value, low and high of its interval (or ""), and its group's size.

    The row of `metric` is the first; the other metrics of the task follow, then what only an evaluation measures.
    """
    rows = []
    for name in dict.fromkeys((metric, *TASK_METRICS[task], *EXTENDED)):
        if name in metrics:
            low, high = metrics.get("intervals", {}).get(name, (None, None))
            texts = ["" if value is None else score_text(name, value) for value in (metrics[name], low, high)]
            row = dict(zip(("value", "low", "high"), texts, strict=True))
            rows.append({"name": name, "title": SCORES[name].title, **row, "size": (sizes or {}).get(name, "")})
    return rows


def interval_note(metrics: dict[str, Any], rows: list[dict[str, str]]) -> str:
    """Return what the intervals of `rows`, from `headline_rows`, are, and why some rows have none; "" without any."""
    if not metrics.get("intervals"):
        return ""
    resamples = metrics["options"]["resamples"]
    text = f"Below each score is its 95 % bootstrap interval, from {resamples:,} resamples of the images."
    reasons = [_why_no_interval(metrics, row["name"], row["title"]) for row in rows if not row["low"]]
    return " ".join([text, *dict.fromkeys(reasons)])


def _why_no_interval(metrics: dict[str, Any], name: str, title: str) -> str:
    """Return why a score has no interval beside others that have one: see `intervals` of each kind of task."""
    of_labels = "mAP" in metrics
    images = metrics["count"] + (0 if of_labels else metrics["unreadable"])
    if of_labels and name == "ece":
        return "The calibration error of labels has none."
    if images * metrics["num_classes"] > MAX_AUC_VALUES and name in (
        ("mAP", "macro_f1") if of_labels else ("roc_auc",)
    ):
        return f"{title} of more than {MAX_AUC_VALUES:,} probabilities has none, which would take minutes."
    return "A score that is equal in all resamples has no interval."


def group_sizes(scored: Scored) -> dict[str, str]:
    """Return the number of classes and images in head, middle and tail, as text, by the name of the score."""
    predictions, _, classes = scored
    count = per_class(predictions, classes.count)["count"]
    found = {}
    for name, member in shot_groups(classes.train_counts).items() if classes.train_counts else ():
        present, images = f"{(count[member] > 0).sum():,}", f"{count[member].sum():,}"
        found[f"{name}_accuracy"] = f"{count_of(present, 'class', 'classes')}, {count_of(images, 'image')}"
    return found


def score_text(name: str, value: float) -> str:
    """Return a score as every page shows it: in per cent where it is a share, else with four digits."""
    return percent(value) if SCORES[name].in_percent else f"{value:.4f}"


def percent(share: float) -> str:
    """Return a share as text, such as "12.34 %"."""
    return f"{100 * share:.2f} %"


def embed(data: object) -> str:
    """Return JSON for a <script>; a class called "</script>" does not end it. Bytes of a path stay lone surrogates."""
    text = json_text(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e").replace("\u2028", "\\u2028")


def provenance() -> dict[str, str]:
    """Return the command, the folder, and the versions of Python and the libraries."""
    import torch
    import torchvision

    # with --gpu -1 CUDA is not initialized; else the current device is that of --gpu
    device = torch.cuda.get_device_name() if torch.cuda.is_initialized() else "CPU"
    return {
        "command": shlex.join(["python", *sys.argv]),
        "folder": str(Path.cwd()),
        "python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "torch": f"{torch.__version__}, torchvision {torchvision.__version__}, {device}",
        "numpy": np.__version__,
    }


def _class_columns(scored: Scored) -> dict[str, list[str] | list[int]]:
    """Return the class table, one list per column."""
    predictions, _, classes = scored
    counts = per_class(predictions, classes.count)
    named = [visible(classes.name(label)) for label in range(classes.count)]
    return {
        "name": named if classes.names else [],
        "train": list(classes.train_counts) if classes.train_counts else [],
        **{key: counts[key].tolist() for key in ("count", "predicted", "correct")},
    }


def _plots(scored: Scored, extra: Extra, sizes: list[tuple[str, float, int]]) -> dict[str, str]:
    predictions, _, classes = scored
    counts = page_plots.by_train_count(predictions, classes.train_counts)
    return {
        "reliability": page_plots.reliability_diagram(predictions),
        "size": page_plots.accuracy_bars(sizes, "side of the image, pixels") if sizes else "",
        "count": page_plots.accuracy_bars(counts, "training images of the class") if counts else "",
        "curves": page_plots.training_curves(extra.history, extra.points) if extra.history else "",
    }


def _compared(scored: Scored, compared: Compared | None) -> dict[str, object] | None:
    if compared is None:
        return None
    predictions, files, classes = scored
    rows = [
        {
            "path": files.path(int(predictions.index[row])),
            "label": classes.name(int(predictions.label[row])),
            "here": classes.name(int(predictions.top[row, 0])),
            "there": _name(classes, int(compared.other[row])),
        }
        for row in compared.rows[:MAX_CHANGED].tolist()
    ]
    return {"rows": rows, "changed": len(compared.rows), **compared.test._asdict()}


def _name(classes: Classes, label: int) -> str:
    return classes.name(label) if label < classes.count else str(label)
