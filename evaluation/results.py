"""What eval.py leaves in results/<tag>/<epoch>/: scores, tables, pictures."""

import argparse
import json
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from evaluation import label_issues
from evaluation.bootstrap import Compared, compare, intervals
from evaluation.calibration import Fitted
from evaluation.metrics import Predictions, confused_pairs, more_scores, per_class, score
from evaluation.report import page, plots
from options import choices
from utils import tables
from utils.files import atomic_write, write_json
from utils.logger import log
from utils.outputs import Output
from utils.whole_folder import whole_folder

MADE_BY = ("load", "weights", "tta", "scale", "fit", "precision", "temperature", "blend", "resamples")
ENSEMBLE, PROBS, EARLIER = "ensemble.yaml", "probs.npz", "probs.earlier.npz"
METRICS = "metrics.json"
TABLES = (METRICS, "predictions.csv", "per_class.csv", "confused.csv", "label_issues.csv", "changed.csv")
WRITTEN = (*TABLES, "confusion.png", "errors.png", "report.html", ENSEMBLE, PROBS)  # what an evaluation writes
RUN = ("top1", "top5", "mean_class_accuracy", "loss", "count")  # what is kept of earlier evaluations beside this one


class Scored(NamedTuple):
    """Predictions with the list (`files.path(index)`) and the classes (`classes.name(label)`) that they speak of."""

    predictions: Predictions
    files: Any
    classes: Any


class Found(NamedTuple):
    """What `write` found out: the metrics of metrics.json, likely label errors, and the comparison, if one was asked for."""

    metrics: dict[str, Any]
    issues: label_issues.Issues
    compared: Compared | None


def planned(folder: Path, opt: argparse.Namespace) -> list[Output]:
    """The files in `folder` that an evaluation replaces or removes."""
    left = {
        name
        for name, written in ((ENSEMBLE, opt.blend in choices.FITTED_BLENDS), (PROBS, opt.save_probs))
        if not written
    }
    return [Output(folder / name, name) for name in WRITTEN if name not in left]


def set_aside(folder: Path, identities: Sequence[str]) -> None:
    """Rename `folder` where it holds the results of other checkpoints than those of `identities`, and log its new name.

    So do the results of a version that did not note whose they are.
    """
    try:
        noted, state = _metrics(folder).get("checkpoints"), (folder / METRICS).stat()
    except OSError:
        return
    if _same(noted, identities):
        return
    place = Path(os.path.realpath(folder))  # a link stays a link
    other = place.with_name(f"{place.name}.{time.strftime('%Y%m%d-%H%M%S', time.localtime(state.st_mtime))}")
    while os.path.lexists(other):
        other = other.with_name(f"{other.name}+")
    place.rename(other)
    log.warning(f"{folder}/ held the results of another checkpoint: they are in {other.name}/ beside it now.")


def _same(noted: Any, identities: Sequence[str]) -> bool:
    """Whether what metrics.json notes is of these checkpoints, in any order."""
    return isinstance(noted, list) and sorted(map(str, noted)) == sorted(identities)


def _metrics(folder: Path) -> dict[str, Any]:
    """What metrics.json of `folder` holds; nothing where there is none that can be read."""
    try:
        content = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def place(folder: Path, opt: argparse.Namespace) -> AbstractContextManager[Path]:
    """A new folder to write an evaluation into, which on leaving replaces `folder` as a whole: see utils.whole_folder.

    Of an earlier evaluation in `folder`, only its fitted blend, which names its own members, stays beside the new scores,
    and what --load reads; its probabilities, which may have taken hours, become probs.earlier.npz. Other people's files stay.
    """
    loaded = {os.path.realpath(path) for path in opt.load or ()}

    def keep(name: str) -> str | None:
        if name not in WRITTEN or name == ENSEMBLE or os.path.realpath(folder / name) in loaded:
            return name
        renamed = EARLIER if name == PROBS else None
        log.info(
            f"{folder / name} is of an earlier evaluation: it is " + (f"now {renamed}." if renamed else "removed.")
        )
        return renamed

    return whole_folder(folder, keep)


def write(
    new: Path,
    scored: Scored,
    opt: argparse.Namespace,
    fitted: Fitted | None = None,
    earlier: Path | None = None,
    identities: Sequence[str] = (),
) -> Found:
    """Score, and write metrics.json, the CSVs and the pictures into the folder `new`.

    `earlier`: the folder whose metrics.json knows of evaluations with other settings, by default `new` itself. `identities`:
    of the checkpoints, as utils.checkpoint.identity gives them.

    Raises:
        UserError: --compare names a file that does not fit; nothing was written then.
    """
    predictions, files, classes = scored
    compared = compare(predictions, files, opt.compare, classes.names) if opt.compare else None
    metrics = {**score(predictions, classes.count), **more_scores(predictions, classes.count, classes.train_counts)}
    if opt.resamples:
        metrics["intervals"] = intervals(predictions, classes.count, classes.train_counts, opt.seed, opt.resamples)
    if fitted:
        metrics["calibration"] = fitted._asdict()
    if compared:
        metrics["compare"] = {"with": opt.compare, **{name: getattr(compared, name) for name in compared._fields[:5]}}
        _write_changed(new / "changed.csv", scored, compared)
    issues = label_issues.find(predictions, classes.count)
    label_issues.write(new / "label_issues.csv", issues, scored)
    _write_predictions(new / "predictions.csv", scored)
    _write_classes(new / "per_class.csv", scored)
    _write_confused(new / "confused.csv", scored)
    if metrics["count"]:
        plots.confusion(new / "confusion.png", scored)
        plots.errors(new / "errors.png", scored)
    made_by = {key: getattr(opt, key) for key in MADE_BY}
    runs = _earlier(earlier or new, made_by, identities)
    metrics = {**metrics, "options": made_by, "checkpoints": list(identities)}
    write_json(new / METRICS, {**metrics, "runs": [*runs, _run(metrics)]})
    return Found(metrics, issues, compared)


def write_page(new: Path, scored: Scored, found: Found, extra: page.Extra) -> None:
    """Write report.html into `new`, which is going to be extra.folder; of the runs beside it, the plain ones come first."""
    extra.compared = found.compared
    folder = extra.folder or new
    others = {path.parent: path.parent for path in folder.parent.glob(f"[!.]*/{METRICS}")} | {folder: new}
    noted = [_metrics(others[beside]).get("runs") for beside in sorted(others)]
    runs = [run for of_one in noted for run in (of_one if isinstance(of_one, list) else ()) if _is_run(run)]
    runs = [run for run in runs if run["count"] == found.metrics["count"]]
    extra.runs = sorted(runs, key=lambda run: (len(run["load"]), run["tta"] != "none", run["temperature"] != "none"))
    page.write(new / "report.html", scored, found.metrics, extra)


def _is_run(run: Any) -> bool:
    """Whether this is what `_run` notes: another program's metrics.json may be in a folder beside ours."""
    return (
        isinstance(run, dict) and {"load", "tta", "temperature", *RUN} <= run.keys() and isinstance(run["load"], list)
    )


def _run(metrics: dict[str, Any]) -> dict[str, Any]:
    return {**{key: metrics["options"][key] for key in MADE_BY}, **{key: metrics[key] for key in RUN}}


def _earlier(folder: Path, made_by: dict[str, Any], identities: Sequence[str]) -> list[dict[str, Any]]:
    """The runs that the metrics.json of this folder remembers of the same checkpoints, but for one with the same settings."""
    content = _metrics(folder)
    runs = content.get("runs", []) if _same(content.get("checkpoints"), identities) else []
    ignored = {"resamples"}
    return [run for run in runs if any(run.get(key) != made_by[key] for key in MADE_BY if key not in ignored)]


def headline(metrics: dict[str, Any]) -> str:
    """The scores in a line; six digits, so that two runs can be compared by eye."""
    text = "top1 {top1:.6f}  top5 {top5:.6f}  mean class {mean_class_accuracy:.6f}  loss {loss:.6f}  ({count} images".format(
        **metrics
    )
    return text + (f", {metrics['unreadable']} unreadable)" if metrics["unreadable"] else ")")


def against(path: str, compared: Compared) -> str:
    """Return what --compare found, in words."""
    return (
        f"Against {path}: {compared.only_this} images right here alone, {compared.only_other} right there alone, {compared.both} both, "
        f"{compared.neither} neither; McNemar's exact test p = {compared.p_value:.3g}; {len(compared.rows)} predictions changed"
    )


def _write_predictions(path: Path, scored: Scored) -> None:
    """A row an image, in the list's order; an unreadable one has no prediction."""
    predictions, files, classes = scored
    with atomic_write(path, "w") as file:
        writer = tables.writer(file)
        writer.writerow(
            ["path", "label", "predicted", "probability", "label_name", "predicted_name", "label_probability", "top5"]
        )
        for row, index in enumerate(predictions.index.tolist()):
            label, top = int(predictions.label[row]), predictions.top[row].tolist()
            cells: list[Any] = ["", "", classes.name(label), "", "", ""]
            if predictions.readable[row]:
                shown = " ".join(map(str, top))
                true = f"{predictions.true_probability[row]:.6f}"
                cells = [
                    top[0],
                    f"{predictions.probability[row, 0]:.6f}",
                    classes.name(label),
                    classes.name(top[0]),
                    true,
                    shown,
                ]
            writer.writerow([files.path(index), label, *cells])


def _write_classes(path: Path, scored: Scored) -> None:
    columns = per_class(scored.predictions, scored.classes.count)
    trained = scored.classes.train_counts or [""] * scored.classes.count
    with atomic_write(path, "w") as file:
        writer = tables.writer(file)
        writer.writerow(["class", "name", "train_images", "count", "predicted", "correct", "accuracy"])
        for label in range(scored.classes.count):
            count, predicted, correct = (int(columns[key][label]) for key in ("count", "predicted", "correct"))
            accuracy = f"{columns['accuracy'][label]:.6f}" if count else ""
            writer.writerow([label, scored.classes.name(label), trained[label], count, predicted, correct, accuracy])


def _write_confused(path: Path, scored: Scored) -> None:
    """The commonest confusions, at most page.MOST_PAIRS."""
    predictions, _, classes = scored
    with atomic_write(path, "w") as file:
        writer = tables.writer(file)
        writer.writerow(["label", "predicted", "images", "label_name", "predicted_name"])
        for label, first, images in confused_pairs(predictions, classes.count, page.MOST_PAIRS).tolist():
            writer.writerow([label, first, images, classes.name(label), classes.name(first)])


def _write_changed(path: Path, scored: Scored, compared: Compared) -> None:
    predictions, files, _ = scored
    with atomic_write(path, "w") as file:
        writer = tables.writer(file)
        writer.writerow(["path", "label", "predicted", "other_predicted"])
        for row in compared.rows.tolist():
            where = files.path(int(predictions.index[row]))
            writer.writerow(
                [where, int(predictions.label[row]), int(predictions.top[row, 0]), int(compared.other[row])]
            )
