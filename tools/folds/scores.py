"""The scores of out-of-fold predictions, of each fold and of all, with their report."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.list_checks import units_of
from dataloader.targets import select
from evaluation import results, target_intervals, target_results
from evaluation.bootstrap import intervals
from evaluation.metrics import Predictions
from evaluation.ranking import metrics_in_order
from evaluation.report.page import Extra
from evaluation.scored import Scored, TargetScored
from evaluation.scoring import score
from evaluation.targets import TargetPredictions
from evaluation.thresholds import FittedThresholds
from inference import Inference, open_inference, predict, predict_targets, rows_to_keep
from inference.report_extra import report_extra, target_extra
from options import Options, given_words, parse_eval
from options.choices import TASKS
from tools.folds.neighbours import FoldFeatures
from tools.folds.oof import checkpoint_of
from tools.folds.plan import FoldsRun
from utils.classes import Classes
from utils.files import write_json
from utils.logger import log
from utils.outputs import check, inputs
from utils.task import has_probabilities


def write_report(run: FoldsRun, oof: Path, fitted: FittedThresholds | None) -> None:
    """Score oof.npz, write the report to results/<tag>/oof/ and the scores to folds.json, and log them.

    `fitted`: the thresholds that oof.npz holds, with which labels are scored; None: 0.5.
    """
    opt = report_flags(run, oof)
    folder = run.folder / results.FOLDS_REPORT
    check(results.planned(folder, opt), inputs(opt, run.files))
    inference = open_inference(opt, run.files, tasks=TASKS)
    if has_probabilities(run.classes.task):
        metrics, each = _write_class_report(run, inference, folder)
    else:
        metrics, each = _write_target_report(run, inference, folder, fitted)
    _write_scores(run, metrics, each)
    _log_table(run, metrics, each)
    log.info(f"Report: {folder}/report.html")


FoldsScores = tuple[dict[str, Any], list[dict[str, Any]]]  # of all images, and of each fold


def _write_class_report(run: FoldsRun, inference: Inference, folder: Path) -> FoldsScores:
    """Write the report of predicted classes, and return the scores."""
    opt, metric = inference.opt, run.train.metric
    rows = rows_to_keep(len(run.files), run.classes.count, sample=False)
    predictions, _ = predict(inference.predictor, inference.batches(), rows=rows)
    scored = Scored(predictions, run.files, inference.classes)
    each = [fold_scores(run, predictions, number) for number in range(len(run.folds))]
    with results.replacing(folder, opt) as staging:
        report = results.write(staging, scored, opt, inference.loaded.identities, earlier=folder)
        if report.metrics["count"]:
            extra = report_extra(inference, scored, report, folder, FoldFeatures(run), metric)
            results.write_page(staging, scored, report, _described(run, extra, each))
        results.set_aside(folder, inference.loaded.identities)
    return report.metrics, each


def _write_target_report(
    run: FoldsRun, inference: Inference, folder: Path, fitted: FittedThresholds | None
) -> FoldsScores:
    """Write the report of predicted labels or numbers, and return the scores. `fitted`: see `write_report`."""
    predictions = predict_targets(inference.predictor, inference.batches(), run.classes.count)
    classes = inference.classes
    scored = TargetScored(predictions, run.files, classes)
    each = [target_fold_scores(run, predictions, number, classes) for number in range(len(run.folds))]
    extra = _described(run, target_extra(inference, folder, run.train.metric), each)
    with results.replacing(folder, inference.opt) as staging:
        identities = inference.loaded.identities
        metrics = target_results.write(staging, scored, inference.opt, identities, extra=extra, thresholds=fitted)
        results.set_aside(folder, inference.loaded.identities)
    return metrics, each


def _described(run: FoldsRun, extra: Extra, each: list[dict[str, Any]]) -> Extra:
    """Return `extra` with the title of the page and what it says of each fold."""
    metric = run.train.metric
    values = ", ".join(f"{one[metric]:.4f}" for one in each)
    return replace(
        extra,
        title=f"{run.train.tag}: {len(run.folds)} folds of {run.train.model}, out of fold",
        about=f"{run.files.source}, each image by the network that has not seen it; {metric} by fold: {values}",
    )


def report_flags(run: FoldsRun, oof: Path) -> Options:
    """Return the options of eval.py that evaluate oof.npz on the whole training list."""
    train = run.train
    values = {"tag": train.tag, "load": oof, "val_list": run.files.source, "metric": train.metric, "seed": train.seed}
    return parse_eval(
        given_words(values | {"result_dir": run.opt.result_dir, "resamples": run.opt.resamples, "gpu": -1})
    )


def fold_scores(run: FoldsRun, predictions: Predictions, number: int) -> dict[str, Any]:
    """Return the scores of fold `number`, from 0, on its held-out part, with their intervals."""
    part = part_of(predictions, run.fold_of == number)
    scores: dict[str, Any] = {**score(part, run.classes)}
    if run.opt.resamples:
        image = units_of(run.files)[part.index]
        found = intervals(part, run.classes, run.train.seed, run.opt.resamples, image)
        scores["intervals"] = {name: value for name, value in found.items() if name in scores}
    return scores


def target_fold_scores(run: FoldsRun, predictions: TargetPredictions, number: int, classes: Classes) -> dict[str, Any]:
    """Return the scores of fold `number`, from 0, as `fold_scores` does, of the labels or numbers of `classes`."""
    keep = run.fold_of == number
    part = TargetPredictions(
        predictions.index[keep],
        np.asarray(predictions.value[keep]),
        predictions.readable[keep],
        select(predictions.targets, keep),
    )
    scores: dict[str, Any] = {**score(part, classes)}
    if run.opt.resamples:
        image = units_of(run.files)[part.index]
        scores["intervals"] = target_intervals.intervals(part, classes, run.train.seed, run.opt.resamples, image)
    return scores


def part_of(predictions: Predictions, keep: NDArray[np.bool_]) -> Predictions:
    """Return the predictions of the images that `keep`, bool (N,), marks; without whole rows of probabilities."""
    names = ("index", "label", "top", "probability", "true_probability", "readable")
    columns = {name: getattr(predictions, name)[keep] for name in names}
    return replace(predictions, **columns, rows=None)


def _write_scores(run: FoldsRun, metrics: dict[str, Any], each: list[dict[str, Any]]) -> None:
    """Write folds.json: the scores of all images and of each fold."""
    names = [*each[0], "intervals"]
    folds = [
        {
            "fold": fold.number,
            "tag": fold.tag,
            "checkpoint": str(checkpoint_of(run, fold)),
            "train_images": int((run.fold_of != fold.number - 1).sum()),
            **scores,
        }
        for fold, scores in zip(run.folds, each, strict=True)
    ]
    content = {
        "metric": run.train.metric,
        "list": str(run.files.source),
        "list_hash": run.files.content_hash(),
        "seed": run.opt.seed,
        "tta": run.opt.tta,
        "oof": {name: metrics[name] for name in names if name in metrics},
        "folds": folds,
    }
    write_json(run.folder / results.FOLDS_SCORES, content)


def _log_table(run: FoldsRun, metrics: dict[str, Any], each: list[dict[str, Any]]) -> None:
    """Log the run's metric and two more, of each fold and of all images."""
    names = [name for name in metrics_in_order(run.train.metric) if name in metrics][:3]
    lines = [f"fold {fold.number}" for fold in run.folds] + ["all"]
    for line, scores in zip(lines, [*each, metrics], strict=True):
        shown = "  ".join(f"{name} {scores[name]:.6f}{_interval(scores, name)}" for name in names)
        log.info(f"{line:8s}{scores['count']:>8,} images  {shown}")
    if run.opt.resamples:
        log.info("In brackets: 95 % intervals over other images, not over other trainings.")


def _interval(scores: dict[str, Any], name: str) -> str:
    found = scores.get("intervals", {}).get(name)
    return f" [{found[0]:.4f}, {found[1]:.4f}]" if found else ""
