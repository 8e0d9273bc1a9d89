"""Score one checkpoint, or the average of several, on the validation list.

    python eval.py --load checkpoints/resnest/20_ResNeSt101.pt -b 24
    python eval.py --load a.pt b.pt --weights 2 1 --tta x8
    python eval.py --load a.pt b.pt probs.npz --blend greedy
    python eval.py --load a.pt --calibrate --compare results/old/20/predictions.csv
    torchrun --standalone --nproc_per_node=2 eval.py --load a.pt -b 48

Writes results/<tag>/<epoch>/, for a checkpoint of another tag results/<tag>/<its tag>_<epoch>_<views>/: report.html,
metrics.json, predictions.csv, per_class.csv, confused.csv, label_issues.csv, pictures; probs.npz with --save_probs,
changed.csv with --compare. --calibrate and --fit_thresholds also rewrite the checkpoint, to add what they fit.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from options import after_evaluation, choices, parse_eval
from options.wording import count_of
from utils.run import run_command

if TYPE_CHECKING:
    from evaluation.target_compare import OtherTargets
    from inference import Inference


def main(opt: argparse.Namespace) -> None:
    """Evaluate the checkpoints of --load, and write their scores."""
    # Heavy imports are here, so that --help and a mistyped flag answer at once.
    from evaluation import results
    from evaluation.compare import OtherClasses, compare
    from evaluation.paired import describe
    from evaluation.scored import Scored
    from inference import Features, fit_ensemble, open_inference, predict, rows_to_keep, saved_probs, write_ensemble
    from inference.other_evaluation import open_other
    from inference.report_extra import report_extra
    from inference.rewriting import announce_rewriting
    from inference.seen import warn_of_seen_images
    from inference.temperature import calibrate, keep_temperature, temperature_flag
    from utils import distributed, run_lock
    from utils.logger import log, start_logging
    from utils.outputs import check, inputs
    from utils.run import seed_everything
    from utils.task import has_probabilities

    # ---------------------------------------------------------------------------------------- what to score
    start_logging()
    seed_everything(opt.seed, opt.deterministic)
    run_lock.acquire(Path(opt.result_dir) / opt.tag, shared=True)
    asked, run = opt, open_inference(opt, "val", tasks=choices.TASKS, shared=True)
    opt, files, classes = run.opt, run.files, run.classes  # the flags with what --ensemble says
    metric = opt.metric or run.loaded.metric
    folder = Path(opt.result_dir) / opt.tag / run.loaded.name
    other = None
    with distributed.share_errors():
        if distributed.is_main():
            results.keep_folds(folder, asked)
            check(results.planned(folder, opt), inputs(opt, files))
            other = open_other(run)
            run_lock.acquire(folder)
            announce_rewriting(run)
            warn_of_seen_images(run)

    if not has_probabilities(classes.task):
        assert not isinstance(other, OtherClasses)
        evaluate_targets(asked, run, folder, metric, other)
        return
    assert other is None or isinstance(other, OtherClasses)

    # ---------------------------------------------------------------------------------------- probabilities
    predictor, fits_weights = run.predictor, opt.blend in choices.FITTED_BLENDS
    if fits_weights:
        predictor, blend_scores = fit_ensemble(run, metric)
    rows = rows_to_keep(len(files), classes.count, sample=opt.calibrate, seed=opt.seed)
    with Features(predictor, len(files), collect=opt.report) as features:  # the report alone shows neighbours
        loader = run.batches(predictor)
        predictions, probabilities = predict(predictor, loader, keep=opt.save_probs, rows=rows, features=features)
    if not distributed.is_main():  # the main process has the predictions of all
        return
    scored = Scored(predictions, files, classes)
    temperature = calibrate(run, predictions) if opt.calibrate else None
    if temperature:
        keep_temperature(run, temperature)

    # ---------------------------------------------------------------------------------------- results
    with results.replacing(folder, opt) as staging:
        compared = compare(scored, other) if other else None
        report = results.write(
            staging, scored, opt, run.loaded.identities, earlier=folder, temperature=temperature, compared=compared
        )
        if fits_weights:
            write_ensemble(staging, folder, run, blend_scores)
        if probabilities is not None:
            seen = run.loaded.all_seen
            saved_probs.write(staging / results.PROBS, probabilities, predictions.readable, files, classes, seen=seen)
        if opt.report and report.metrics["count"]:
            results.write_page(staging, scored, report, report_extra(run, scored, report, folder, features, metric))
        results.set_aside(folder, run.loaded.identities)
    if report.difference:
        log.info(describe(opt.compare, report.difference))
    if report.compared:
        log.info(f"{results.describe_comparison(opt.compare, report.compared)}: {folder}/changed.csv")
    log_results(asked, run, folder, results.summary_line(report.metrics, metric), temperature_flag(run, temperature))


def evaluate_targets(
    asked: argparse.Namespace, run: "Inference", folder: Path, metric: str, other: "OtherTargets | None"
) -> None:
    """Score predicted labels or numbers, and write the results into `folder`.

    Args:
        asked: the flags as they were given. other: the evaluation to compare with.
    """
    from evaluation import paired, results, target_compare, target_results
    from evaluation.scored import TargetScored
    from inference import fit_ensemble, predict_targets, saved_probs, write_ensemble
    from inference.report_extra import target_extra
    from inference.temperature import calibrate, keep_temperature, temperature_flag
    from inference.thresholds import fit_and_log, keep_thresholds, threshold_flag
    from utils import distributed
    from utils.logger import log

    predictor, blend_scores = run.predictor, None
    if run.opt.blend in choices.FITTED_BLENDS:
        predictor, blend_scores = fit_ensemble(run, metric)
    predictions = predict_targets(predictor, run.batches(predictor), run.classes.count)
    if not distributed.is_main():
        return
    temperature = calibrate(run, predictions) if run.opt.calibrate else None
    thresholds = fit_and_log(run, predictions) if run.opt.fit_thresholds else None
    if temperature:  # after both are fitted: where one cannot be, the checkpoint stays as it was
        keep_temperature(run, temperature)
    if run.opt.fit_thresholds:
        keep_thresholds(run, thresholds)
    classes = replace(run.classes, thresholds=thresholds.values) if thresholds else run.classes
    scored = TargetScored(predictions, run.files, classes)
    compared = target_compare.compare(scored, other, run.opt.seed, run.opt.resamples) if other else None
    extra = target_extra(run, folder, metric) if run.opt.report else None
    with results.replacing(folder, run.opt) as staging:
        metrics = target_results.write(
            staging,
            scored,
            run.opt,
            run.loaded.identities,
            extra=extra,
            temperature=temperature,
            thresholds=thresholds,
            compared=compared,
        )
        if results.writes_ensemble(run.opt):
            write_ensemble(staging, folder, run, blend_scores, thresholds)
        if run.opt.save_probs:
            path, seen = staging / results.PROBS, run.loaded.all_seen
            saved_probs.write(path, predictions.value, predictions.readable, run.files, classes, seen=seen)
        results.set_aside(folder, run.loaded.identities)
    if compared:
        log.info(paired.describe(run.opt.compare, compared.difference))
        log.info(f"{count_of(len(compared.rows), 'prediction')} changed: {folder}/changed.csv")
    edges = threshold_flag(run, thresholds, temperature.temperature if temperature else None)
    summary = results.summary_line(metrics, metric)
    log_results(asked, run, folder, summary, temperature_flag(run, temperature), edges)


def log_results(
    asked: argparse.Namespace,
    run: "Inference",
    folder: Path,
    summary: str,
    temperature: str | None,
    thresholds: list[float] | None = None,
) -> None:
    """Log the scores, the folder, and the command that submits.

    Args:
        asked: the flags as they were given. summary: the scores on one line. temperature, thresholds: what the command
            needs as flags; an ensemble.yaml holds the thresholds.
    """
    from evaluation import results
    from utils.logger import log

    log.info(summary)
    log.info(f"Results: {folder}/")
    writes = results.writes_ensemble(run.opt)
    if run.can_submit() and not (writes and run.opt.debug):  # --debug writes no ensemble.yaml
        ensemble = folder / results.ENSEMBLE if writes else None
        log.info(f"Next: {after_evaluation(asked, ensemble, temperature, None if writes else thresholds)}")


if __name__ == "__main__":
    sys.exit(run_command(parse_eval, main))
