"""Write what eval.py leaves of predicted labels or numbers: scores, tables, pictures, a page."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.list_checks import units_of
from evaluation import multilabel, paired, regression
from evaluation.calibration import FittedTemperature, label_ece
from evaluation.report import figures, plots, target_plots
from evaluation.report.page import Extra, percent
from evaluation.report.pictures import MAX_ERRORS, SIDE
from evaluation.report.target_page import Details, Table
from evaluation.report.target_page import write as write_target_page
from evaluation.results import METRICS, settings_of
from evaluation.scored import TargetScored
from evaluation.target_compare import TargetCompared, prediction_heads, write_changed
from evaluation.target_intervals import intervals
from evaluation.targets import label_sets, numbers
from evaluation.thresholds import FittedThresholds
from utils import tables
from utils.files import atomic_write, write_json

MAX_MISTAKES = 15  # labels in the tables of the commonest mistakes
MAX_NAMED = 12  # labels or numbers of an image, in words


def write(
    staging: Path,
    scored: TargetScored,
    opt: argparse.Namespace,
    identities: Sequence[str],
    *,
    extra: Extra | None,
    temperature: FittedTemperature | None = None,
    thresholds: FittedThresholds | None = None,
    compared: TargetCompared | None = None,
) -> dict[str, Any]:
    """Score, and write metrics.json, the CSVs, the pictures, and with `extra` the page into the folder `staging`.

    Args:
        identities, temperature: as evaluation.results.write takes them.
        thresholds: those of `scored`, if they were fitted to these predictions.
        compared: the result of --compare.

    Returns:
        The content of metrics.json.
    """
    predictions, files, classes = scored
    is_labels = classes.task == "multilabel"
    if is_labels:
        counts = multilabel.count_labels(predictions, multilabel.thresholds_of(classes))
        metrics: dict[str, Any] = dict(multilabel.scores_of(predictions, counts))
        metrics["ece"] = label_ece(predictions)
        if temperature:
            metrics["calibration"] = temperature._asdict()
        metrics["threshold"] = multilabel.short_thresholds(classes)
        if thresholds:
            about = {key: value for key, value in thresholds._asdict().items() if key != "values"}
            metrics["fitted_thresholds"] = about
        table = _write_labels(staging / "per_class.csv", counts, scored)
    else:
        each = regression.per_target(predictions)
        metrics = dict(regression.scores_of(predictions, each, classes.std))
        table = _write_targets(staging / "per_target.csv", each, scored)
    if opt.resamples:
        image = units_of(files)[predictions.index]
        metrics["intervals"] = intervals(predictions, classes, opt.seed, opt.resamples, image)
    if compared:
        metrics["compare"] = {"with": opt.compare, "changed": len(compared.rows), **compared.difference.as_dict()}
        write_changed(staging / "changed.csv", scored, compared)
    metrics |= {"task": classes.task, **settings_of(opt, files), "checkpoints": list(identities)}
    _write_predictions(staging / "predictions.csv", scored)
    write_json(staging / METRICS, metrics)
    if not metrics["count"]:
        return metrics
    worst = worst_rows(scored)
    described = [describe(scored, row) for row in worst.tolist()]
    images = [files.thumbnail(int(index), SIDE) for index in predictions.index[worst[:24]]]
    title = "Images with a wrong label, the worst first" if is_labels else "The worst predictions"
    plots.gallery(staging / "errors.png", images, _captions(scored, worst[:24]), title, 6, plots.WIDE_CELL)
    mistakes = {}
    if is_labels:
        target_plots.average_precision(
            staging / "average_precision.png", counts.average_precision, counts.positive, classes
        )
        found = multilabel.commonest_mistakes(counts, MAX_MISTAKES)
        mistakes = {"Missed most often": found["missed"], "Invented most often": found["invented"]}
    else:
        rows = np.flatnonzero(predictions.scorable)
        names = [classes.name(k) for k in range(classes.count)]
        target_plots.scatter(
            staging / "scatter.png", numbers(predictions)[rows], predictions.value[rows].astype(np.float64), names
        )
    if extra is not None:
        extra.difference = paired.describe(opt.compare, compared.difference) if compared else ""
        details = Details(table, mistakes, worst, described)
        write_target_page(staging / "report.html", scored, metrics, extra, details)
    return metrics


def worst_rows(scored: TargetScored) -> NDArray[np.int64]:
    """Return the rows of the wrong predictions, the worst first, int64 (M,), M at most MAX_ERRORS.

    An image is wrong if any of its labels is missed or invented, or any of its numbers is not exact. Labels are judged
    by their mean cross entropy, numbers by their mean distance in standard deviations.
    """
    predictions, _, classes = scored
    is_labels = classes.task == "multilabel"
    found, losses = [], []
    for rows, values in predictions.blocks():
        if is_labels:
            present = label_sets(predictions).rows(rows).astype(bool)
            wrong = ((values >= multilabel.thresholds_of(classes)) != present).any(axis=1)
            loss = multilabel.cross_entropy(values, present).mean(axis=1)
        else:
            scale = np.array(classes.std if classes.std is not None else 1.0)
            loss = (np.abs(values - numbers(predictions)[rows]) / scale).mean(axis=1)
            wrong = loss > 0
        found.append(rows[wrong])
        losses.append(loss[wrong])
    rows, loss = np.concatenate(found), np.concatenate(losses)
    return rows[np.argsort(-loss, kind="stable")][:MAX_ERRORS]


def _captions(scored: TargetScored, rows: NDArray[np.int64]) -> list[str]:
    """Return the captions of errors.png: the wrong labels of each image, the surest mistake first, or its numbers."""
    predictions, _, classes = scored
    if classes.task != "multilabel":
        pairs = [(numbers(predictions)[row].tolist(), predictions.value[row].tolist()) for row in rows.tolist()]
        return [
            "\n".join(figures.number_line(*line, plots.WIDE_CELL) for line in (("true ", true), ("predicted ", found)))
            for true, found in pairs
        ]
    threshold, images = multilabel.thresholds_of(classes), []
    for row in rows.tolist():
        values = np.asarray(predictions.value[row])
        present = label_sets(predictions).rows(np.array([row]))[0].astype(bool)
        wrong = np.flatnonzero((values >= threshold) != present)
        wrong = wrong[np.argsort(-np.abs(values - present)[wrong], kind="stable")]
        images.append(
            [("missed " if present[k] else "invented ", k, f" {100 * values[k]:.0f} %") for k in wrong.tolist()]
        )
    return figures.label_captions(classes, images, plots.WIDE_CELL)


def describe(scored: TargetScored, row: int) -> tuple[str, str]:
    """Return what is true and what is predicted of the image of `row`, in words."""
    predictions, _, classes = scored
    values = predictions.value[row]
    if classes.task == "multilabel":
        true = [classes.name(label) for label in label_sets(predictions).of(row).tolist()]
        order = multilabel.likeliest_labels(values, multilabel.thresholds_of(classes)).tolist()
        found = [f"{classes.name(label)} {100 * values[label]:.0f} %" for label in order]
        return _listed(true), _listed(found)
    true, found = ([f"{value:.4g}" for value in some] for some in (numbers(predictions)[row], values))
    return _listed(true), _listed(found)


def _listed(names: list[str]) -> str:
    return (", ".join(names[:MAX_NAMED]) + (", …" if len(names) > MAX_NAMED else "")) or "none"


def _write_predictions(path: Path, scored: TargetScored) -> None:
    """Write a row per image, in the order of the list; an unreadable image has no prediction."""
    predictions, files, classes = scored
    is_labels = classes.task == "multilabel"
    with atomic_write(path, "w") as file:
        writer = tables.writer(file)
        writer.writerow(["path", *prediction_heads(classes)])
        threshold = multilabel.thresholds_of(classes) if is_labels else None
        for row, index in enumerate(predictions.index.tolist()):
            cells = _number_cells(scored, row) if threshold is None else _label_cells(scored, row, threshold)
            writer.writerow([files.path(index), *cells])


def _label_cells(scored: TargetScored, row: int, threshold: NDArray[np.float64]) -> list[object]:
    predictions, _, classes = scored
    true = label_sets(predictions).of(row).tolist() if predictions.targets is not None else []
    target = [" ".join(map(str, true)), " ".join(classes.name(label) for label in true)]
    if not predictions.readable[row]:
        return [target[0], "", "", target[1], ""]
    values = predictions.value[row]
    order = multilabel.likeliest_labels(values, threshold).tolist()
    sure = " ".join(f"{values[label]:.6f}" for label in order)
    return [target[0], " ".join(map(str, order)), sure, target[1], " ".join(map(classes.name, order))]


def _number_cells(scored: TargetScored, row: int) -> list[object]:
    predictions = scored.predictions
    true = numbers(predictions)[row].tolist() if predictions.targets is not None else [""] * scored.classes.count
    found = [repr(float(value)) for value in predictions.value[row]] if predictions.readable[row] else [""] * len(true)
    return [cell for pair in zip(true, found, strict=True) for cell in pair]


def _write_labels(path: Path, counts: multilabel.LabelCounts, scored: TargetScored) -> Table:
    """Write a row per label; return the same as a table of the page, the lowest average precision first."""
    classes = scored.classes
    trained: Sequence[int | str] = classes.train_counts or [""] * classes.count
    f1, rows, threshold = counts.f1(), [], multilabel.thresholds_of(classes)
    with atomic_write(path, "w") as file:
        writer = tables.writer(file)
        writer.writerow(
            [
                "class",
                "name",
                "train_images",
                "count",
                "predicted",
                "correct",
                "precision",
                "recall",
                "f1",
                "average_precision",
                "threshold",
            ]
        )
        for k in range(classes.count):
            count, predicted, right = int(counts.positive[k]), int(counts.predicted[k]), int(counts.right[k])
            precision, recall = right / predicted if predicted else np.nan, right / count if count else np.nan
            shares = [precision, recall, float(f1[k]), float(counts.average_precision[k])]
            in_file = ["" if np.isnan(share) else f"{share:.6f}" for share in shares]
            writer.writerow([k, classes.name(k), trained[k], count, predicted, right, *in_file, f"{threshold[k]:.6f}"])
            on_page = ["" if np.isnan(share) else percent(share) for share in shares]
            rows.append(
                [classes.name(k), str(trained[k]), f"{count:,}", f"{predicted:,}", *on_page, f"{threshold[k]:.4f}"]
            )
    order = np.argsort(np.nan_to_num(counts.average_precision, nan=2.0), kind="stable").tolist()
    titles = [
        "Label",
        "Training images",
        "Images",
        "Predicted",
        "Precision",
        "Recall",
        "F1",
        "Average precision",
        "Threshold",
    ]
    return Table(titles, [rows[k] for k in order])


def _write_targets(path: Path, each: dict[str, NDArray[np.float64]], scored: TargetScored) -> Table:
    """Write a row per number of a regression; return the same as a table of the page."""
    classes = scored.classes
    rows = [[classes.name(k), *(f"{each[name][k]:.6g}" for name in regression.NAMES)] for k in range(classes.count)]
    with atomic_write(path, "w") as file:
        writer = tables.writer(file)
        writer.writerow(["name", *regression.NAMES])
        writer.writerows(rows)
    return Table(["", "MAE", "RMSE", "R²", "Spearman"], rows)
