"""What eval.py leaves in results/<tag>/<epoch>/: scores, tables, pictures."""

import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils import saved_probs
from utils.files import atomic_write, write_json
from utils.metrics import Predictions, per_class, score
from utils.report import plots


class Scored(NamedTuple):
    """Predictions with the list (`files.path(index)`) and the classes (`classes.name(label)`) that they speak of."""

    predictions: Predictions
    files: Any
    classes: Any


def write(folder: Path, scored: Scored, options: dict[str, Any]) -> dict[str, Any]:
    """Write metrics.json, predictions.csv, per_class.csv, confusion.png and errors.png; returns the metrics."""
    metrics = score(scored.predictions, scored.classes.count)
    made_by = {key: options[key] for key in ("load", "weights", "tta", "scale", "fit", "precision")}
    _write_predictions(folder / "predictions.csv", scored)
    _write_classes(folder / "per_class.csv", scored)
    if metrics["count"]:
        plots.confusion(folder / "confusion.png", scored)
        plots.errors(folder / "errors.png", scored)
    write_json(folder / "metrics.json", {**metrics, "options": made_by})
    return metrics


def headline(metrics: dict[str, Any]) -> str:
    """The scores in a line; six digits, so that two runs can be compared by eye."""
    text = "top1 {top1:.6f}  top5 {top5:.6f}  mean class {mean_class_accuracy:.6f}  loss {loss:.6f}  ({count} images".format(**metrics)
    return text + (f", {metrics['unreadable']} unreadable)" if metrics["unreadable"] else ")")


def write_probabilities(path: Path, probabilities: NDArray[np.float16], scored: Scored) -> None:
    """Write probs.npz, float16 (N, C), which --load takes: see utils.saved_probs.write."""
    saved_probs.write(path, probabilities, scored.predictions.readable, scored.files, scored.classes)


def _write_predictions(path: Path, scored: Scored) -> None:
    """A row an image, in the list's order; an unreadable one has no prediction."""
    predictions, files, classes = scored
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label", "predicted", "probability", "label_name", "predicted_name", "label_probability", "top5"])
        for row, index in enumerate(predictions.index.tolist()):
            label, top = int(predictions.label[row]), predictions.top[row].tolist()
            cells: list[Any] = ["", "", classes.name(label), "", "", ""]
            if predictions.readable[row]:
                shown = " ".join(map(str, top))
                true = f"{predictions.true_probability[row]:.6f}"
                cells = [top[0], f"{predictions.probability[row, 0]:.6f}", classes.name(label), classes.name(top[0]), true, shown]
            writer.writerow([files.path(index), label, *cells])


def _write_classes(path: Path, scored: Scored) -> None:
    columns = per_class(scored.predictions, scored.classes.count)
    trained = scored.classes.images or [""] * scored.classes.count
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class", "name", "train_images", "count", "predicted", "correct", "accuracy"])
        for label in range(scored.classes.count):
            count, predicted, correct = (int(columns[key][label]) for key in ("count", "predicted", "correct"))
            accuracy = f"{columns['accuracy'][label]:.6f}" if count else ""
            writer.writerow([label, scored.classes.name(label), trained[label], count, predicted, correct, accuracy])
