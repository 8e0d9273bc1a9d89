"""Write what eval.py leaves in results/<tag>/<epoch>/: scores, tables, pictures."""

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataloader.file_list import ABSOLUTE_HASH, LIST_HASH, FileList
from dataloader.list_checks import units_of
from evaluation import label_issues
from evaluation.bootstrap import intervals
from evaluation.calibration import FittedTemperature
from evaluation.compare import Compared
from evaluation.metrics import confused_pairs, extended_scores, per_class
from evaluation.paired import Difference, describe, kappa_scores, paired_scores
from evaluation.ranking import scores_text
from evaluation.report import page, plots
from evaluation.scored import Scored
from evaluation.scoring import score
from evaluation.thresholds import ONE, PER_LABEL
from options import choices, command
from options.wording import count_of
from utils import tables
from utils.errors import UserError
from utils.files import atomic_write, write_json
from utils.logger import format_count, log
from utils.outputs import Output
from utils.whole_folder import whole_folder

SETTINGS = ("load", "weights", "tta", "scale", "fit", "precision", "temperature", "blend", "resamples")
ENSEMBLE, PROBS, EARLIER = "ensemble.yaml", "probs.npz", "probs.earlier.npz"
METRICS = "metrics.json"
FOLDS_REPORT, FOLDS_SCORES = "oof", "folds.json"  # of tools.folds, in results/<tag>/
TABLES = (METRICS, "predictions.csv", "per_class.csv", "confused.csv", "label_issues.csv", "changed.csv")
PICTURES = ("confusion.png", "errors.png", "average_precision.png", "scatter.png")
OUTPUTS = (*TABLES, "per_target.csv", *PICTURES, "report.html", ENSEMBLE, PROBS)
RUN_SCORES = ("top1", "top5", "mean_class_accuracy", "loss", "count")  # kept of earlier evaluations


class EvaluationReport(NamedTuple):
    """What `write` computed: the content of metrics.json, likely label errors, and the comparison of --compare.

    Ordered classes are also compared by qwk: `difference`.
    """

    metrics: dict[str, Any]
    issues: label_issues.Issues
    compared: Compared | None
    difference: Difference | None = None


def planned(folder: Path, opt: argparse.Namespace) -> list[Output]:
    """Return the files in `folder` that an evaluation replaces or removes."""
    optional = {ENSEMBLE: writes_ensemble(opt), PROBS: opt.save_probs}
    return [Output(folder / name, name) for name in OUTPUTS if optional.get(name, True)]


def writes_ensemble(opt: argparse.Namespace) -> bool:
    """Return whether an evaluation writes ensemble.yaml: it fits the weights of several members, or their thresholds.

    A file of probabilities counts too: unlike a checkpoint, it cannot hold thresholds.
    """
    several = len(opt.load) > 1 or opt.load[0].endswith(".npz")
    return opt.blend in choices.FITTED_BLENDS or (opt.fit_thresholds in (ONE, PER_LABEL) and several)


def keep_folds(folder: Path, opt: argparse.Namespace) -> None:
    """Raise UserError if `folder`, where eval.py would write, is the report of tools.folds.

    That one is of the same predictions, but it has more: the scores by fold, and the thresholds that were fitted.
    """
    if folder.name == FOLDS_REPORT and (folder.parent / FOLDS_SCORES).is_file():
        again = command("eval", {**vars(opt), "tag": f"{opt.tag}_{FOLDS_REPORT}"})
        raise UserError(
            f"{folder}/ is the report of tools.folds, with the scores by fold; eval.py would replace it. Give another "
            f"--tag. Try: {again}"
        )


def set_aside(folder: Path, identities: Sequence[str]) -> None:
    """Rename `folder` if it holds the results of other checkpoints than those of `identities`, and log its new name.

    Results of earlier versions, which name no checkpoints, are renamed as well.
    """
    try:
        noted, state = _metrics(folder).get("checkpoints"), (folder / METRICS).stat()
    except OSError:
        return
    if _same(noted, identities):
        return
    real = Path(os.path.realpath(folder))  # a link stays a link
    other = real.with_name(f"{real.name}.{time.strftime('%Y%m%d-%H%M%S', time.localtime(state.st_mtime))}")
    while os.path.lexists(other):
        other = other.with_name(f"{other.name}+")
    real.rename(other)
    log.warning(f"{folder}/ held the results of another checkpoint. It is renamed to {other.name}/.")


def _same(noted: object, identities: Sequence[str]) -> bool:
    """Return whether metrics.json names these checkpoints, in any order."""
    return isinstance(noted, list) and sorted(map(str, noted)) == sorted(identities)


def _metrics(folder: Path) -> dict[str, Any]:
    """Return the content of metrics.json in `folder`; empty if there is none that can be read."""
    try:
        content = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def replacing(folder: Path, opt: argparse.Namespace) -> AbstractContextManager[Path]:
    """Give a new folder to write an evaluation into; on leaving, it replaces `folder` as a whole (utils.whole_folder).

    Of an earlier evaluation in `folder`, two things stay beside the new scores: the ensemble.yaml of a fitted blend,
    which names its own members, and what --load reads. Its probabilities, which may have taken hours, become
    probs.earlier.npz. Files of other origin stay.
    """
    loaded = {os.path.realpath(path) for path in opt.load or ()}

    def keep(name: str) -> str | None:
        if name not in OUTPUTS or name == ENSEMBLE or os.path.realpath(folder / name) in loaded:
            return name
        renamed = EARLIER if name == PROBS else None
        done = f"renamed to {renamed}" if renamed else "removed"
        log.info(f"{folder / name} belongs to an earlier evaluation; it is {done}.")
        return renamed

    return whole_folder(folder, keep)


def write(
    staging: Path,
    scored: Scored,
    opt: argparse.Namespace,
    identities: Sequence[str],
    *,
    earlier: Path | None = None,
    temperature: FittedTemperature | None = None,
    compared: Compared | None = None,
) -> EvaluationReport:
    """Score, and write metrics.json, the CSVs and the pictures into the folder `staging`.

    Args:
        identities: of the checkpoints, from utils.checkpoint.identity.
        earlier: the folder whose metrics.json lists evaluations with other settings; by default `staging` itself.
        temperature: the one that was fitted to these predictions, if any; the scores do not use it.
        compared: the result of --compare.
    """
    predictions, _, classes = scored
    difference = _order_difference(scored, compared, opt) if compared and classes.task == "ordinal" else None
    scores = score(predictions, classes)
    more = extended_scores(predictions, classes.count, classes.train_counts)
    metrics: dict[str, Any] = {**scores, **more}
    if opt.resamples:
        image = units_of(scored.files)[predictions.index]
        metrics["intervals"] = intervals(predictions, classes, opt.seed, opt.resamples, image)
    if temperature:
        metrics["calibration"] = temperature._asdict()
    if compared:
        metrics["compare"] = {"with": opt.compare, "counted": compared.counted, **compared.test._asdict()}
        metrics["compare"] |= difference.as_dict() if difference else {}
        _write_changed(staging / "changed.csv", scored, compared)
    if opt.blend == "rank":
        log.warning(
            "--blend rank gives no probabilities: log_loss, loss and ece are of means of 1/rank, and mean nothing."
        )
    issues = label_issues.find(predictions, classes.count)
    label_issues.write(staging / "label_issues.csv", issues, scored)
    _write_predictions(staging / "predictions.csv", scored)
    _write_classes(staging / "per_class.csv", scored)
    _write_confused(staging / "confused.csv", scored)
    if metrics["count"]:
        plots.confusion(staging / "confusion.png", predictions, classes)
        plots.errors(staging / "errors.png", scored)
    made_by = settings_of(opt, scored.files)
    runs = _earlier(earlier or staging, made_by, identities)
    metrics |= made_by | {"checkpoints": list(identities)}
    write_json(staging / METRICS, {**metrics, "runs": [*runs, _run(metrics)]})
    return EvaluationReport(metrics, issues, compared, difference)


def settings_of(opt: argparse.Namespace, files: FileList) -> dict[str, Any]:
    """Return what metrics.json says of how it was made: `options`, and the list with the hashes of its content."""
    options = {key: getattr(opt, key) for key in SETTINGS}
    options["precision_used"] = vars(opt).get("precision_used", [])  # one for each network, see inference.session
    return {"options": options, "list": str(files.source), **files.hashes()}


def _order_difference(scored: Scored, compared: Compared, opt: argparse.Namespace) -> Difference | None:
    """Return the paired difference in qwk of ordered classes; None if no image is readable in both evaluations."""
    predictions = scored.predictions
    rows = np.flatnonzero(predictions.scorable & (compared.other >= 0))
    if not len(rows):
        return None
    columns = predictions.label[rows], predictions.top[rows, 0], compared.other[rows]
    label, first, other = (np.asarray(column, np.int64) for column in columns)
    scores = kappa_scores(label, first, other, scored.classes.count)
    image = units_of(scored.files)[predictions.index[rows]]
    return paired_scores("qwk", scores, image, opt.seed, opt.resamples)


def write_page(staging: Path, scored: Scored, report: EvaluationReport, extra: page.Extra) -> None:
    """Write report.html into `staging`, which becomes extra.folder.

    Among the runs beside it, single networks without TTA come first. Those of another list are left out: the lists
    would differ, not the settings. So are those of versions that did not note the list.
    """
    extra.compared = report.compared
    extra.difference = describe(report.metrics["compare"]["with"], report.difference) if report.difference else ""
    folder = extra.folder or staging
    others = {path.parent: path.parent for path in folder.parent.glob(f"[!.]*/{METRICS}")} | {folder: staging}
    noted = [_metrics(others[beside]).get("runs") for beside in sorted(others)]
    runs = [run for of_one in noted for run in (of_one if isinstance(of_one, list) else ()) if _is_run(run)]
    metrics = report.metrics
    alike = [run for run in runs if run.get("count") == metrics["count"] and _same_list(run, metrics)]
    if len(alike) < len(runs):
        log.info(
            f"report.html leaves out {format_count(len(runs) - len(alike))} evaluation(s) in {folder.parent}/: of "
            "another list, with other images unreadable, or by a version that did not note the list."
        )
    extra.runs = sorted(alike, key=lambda run: (len(run["load"]), run["tta"] != "none", run["temperature"] != "none"))
    page.write(staging / "report.html", scored, report.metrics, extra)


def _is_run(run: object) -> bool:
    """Return whether this is a row of `_run`: another program's metrics.json may be in a folder beside ours."""
    return (
        isinstance(run, dict)
        and {"load", "tta", "temperature", *RUN_SCORES} <= run.keys()
        and isinstance(run["load"], list)
    )


def _run(metrics: dict[str, Any]) -> dict[str, Any]:
    return metrics["options"] | {key: metrics[key] for key in ("list", LIST_HASH, ABSOLUTE_HASH, *RUN_SCORES)}


def _same_list(run: Mapping[str, Any], made_by: Mapping[str, Any]) -> bool:
    """Return whether a run notes the list of `made_by`, from `settings_of`, by this or another name of the list."""
    here, there = ({about.get(LIST_HASH), about.get(ABSOLUTE_HASH)} - {None} for about in (made_by, run))
    return LIST_HASH in run and not here.isdisjoint(there)


def _earlier(folder: Path, made_by: dict[str, Any], identities: Sequence[str]) -> list[dict[str, Any]]:
    """Return the runs of the same checkpoints in metrics.json of `folder`, without one of the same settings and list.

    `made_by`: from `settings_of`. A run of an earlier version, which did not note its list, counts as one of this list.
    """
    content = _metrics(folder)
    runs = content.get("runs", []) if _same(content.get("checkpoints"), identities) else []
    compared = [key for key in SETTINGS if key != "resamples"]
    return [
        run
        for run in runs
        if any(run.get(key) != made_by["options"][key] for key in compared)
        or (LIST_HASH in run and not _same_list(run, made_by))
    ]


def summary_line(metrics: dict[str, Any], metric: str = "top1") -> str:
    """Return the scores on one line, `metric` first."""
    text = f"{scores_text(metrics, metric)}  ({count_of(metrics['count'], 'image')}"
    return text + (f", {metrics['unreadable']} unreadable)" if metrics["unreadable"] else ")")


def describe_comparison(path: str, compared: Compared) -> str:
    """Return what --compare found, in words."""
    test, counted = compared.test, compared.counted
    return (
        f"Compared with {path}: {test.only_this} {counted} are correct only here, {test.only_other} only there, "
        f"{test.both} in both, {test.neither} in neither. McNemar's exact test: p = {test.p_value:.3g}. "
        f"{count_of(len(compared.rows), 'prediction')} changed"
    )


def _write_predictions(path: Path, scored: Scored) -> None:
    """Write one row per image, in the order of the list; an unreadable image has no prediction."""
    predictions, files, classes = scored
    with atomic_write(path, "w") as file:
        writer = tables.writer(file)
        writer.writerow(
            ["path", "label", "predicted", "probability", "label_name", "predicted_name", "label_probability", "top5"]
        )
        for row, index in enumerate(predictions.index.tolist()):
            label, top = int(predictions.label[row]), predictions.top[row].tolist()
            cells: list[object] = ["", "", classes.name(label), "", "", ""]
            if predictions.readable[row]:
                probabilities = predictions.probability[row, 0], predictions.true_probability[row]
                first, true = (f"{value:.6f}" for value in probabilities)
                cells = [top[0], first, classes.name(label), classes.name(top[0]), true, " ".join(map(str, top))]
            writer.writerow([files.path(index), label, *cells])


def _write_classes(path: Path, scored: Scored) -> None:
    columns = per_class(scored.predictions, scored.classes.count)
    trained: Sequence[int | str] = scored.classes.train_counts or [""] * scored.classes.count
    with atomic_write(path, "w") as file:
        writer = tables.writer(file)
        writer.writerow(["class", "name", "train_images", "count", "predicted", "correct", "accuracy"])
        for label in range(scored.classes.count):
            count, predicted, correct = (int(columns[key][label]) for key in ("count", "predicted", "correct"))
            accuracy = f"{columns['accuracy'][label]:.6f}" if count else ""
            writer.writerow([label, scored.classes.name(label), trained[label], count, predicted, correct, accuracy])


def _write_confused(path: Path, scored: Scored) -> None:
    """Write the most frequent confusions, at most page.MAX_PAIRS."""
    predictions, _, classes = scored
    with atomic_write(path, "w") as file:
        writer = tables.writer(file)
        writer.writerow(["label", "predicted", "images", "label_name", "predicted_name"])
        for label, first, images in confused_pairs(predictions, classes.count, page.MAX_PAIRS).tolist():
            writer.writerow([label, first, images, classes.name(label), classes.name(first)])


def _write_changed(path: Path, scored: Scored, compared: Compared) -> None:
    predictions, files, _ = scored
    with atomic_write(path, "w") as file:
        writer = tables.writer(file)
        writer.writerow(["path", "label", "predicted", "other_predicted"])
        for row in compared.rows.tolist():
            labels = (predictions.label[row], predictions.top[row, 0], compared.other[row])
            writer.writerow([files.path(int(predictions.index[row])), *map(int, labels)])
