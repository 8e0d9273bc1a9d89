"""Score one checkpoint, or the average of several, on the validation list.

    python eval.py --load checkpoints/resnest/20_ResNeSt101.pt -b 24
    python eval.py --load a.pt b.pt --weights 2 1 --tta x8
    python eval.py --load a.pt b.pt probs.npz --blend greedy
    python eval.py --load a.pt --calibrate --compare results/old/20/predictions.csv

Writes results/<tag>/<epoch>/, for a checkpoint of another tag results/<tag>/<its tag>_<epoch>_<views>/: report.html,
metrics.json, predictions.csv, per_class.csv, confused.csv, label_issues.csv, pictures; probs.npz with --save_probs,
changed.csv with --compare. --calibrate also rewrites the checkpoint, to add the temperature.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from options import after_evaluation, choices, parse_eval
from utils.run import run_command

if TYPE_CHECKING:
    from dataloader.prefetch import BatchLoader
    from evaluation.metrics import Predictions
    from inference import Predictor
    from utils.batch import EvalBatch


def main(opt: argparse.Namespace) -> None:
    # Heavy imports are here, so that --help and a mistyped flag answer at once.
    from evaluation import results
    from evaluation.scored import Scored
    from inference import Features, fit_ensemble, open_inference, predict, rows_to_keep, saved_probs, write_ensemble
    from inference.report_extra import report_extra
    from inference.temperature import announce_calibration, calibrate, temperature_flag
    from utils import run_lock
    from utils.logger import log, start_logging
    from utils.outputs import check, inputs
    from utils.run import seed_everything

    # ---------------------------------------------------------------------------------------- what to score
    start_logging()
    seed_everything(opt.seed, opt.deterministic)
    run_lock.acquire(Path(opt.result_dir) / opt.tag, shared=True)
    asked, run = opt, open_inference(opt, "val")
    opt, files, classes = run.opt, run.files, run.classes  # the flags with what --ensemble says
    metric = opt.metric or run.loaded.metric
    folder = Path(opt.result_dir) / opt.tag / run.loaded.name
    check(results.planned(folder, opt), inputs(opt, files))
    run_lock.acquire(folder)
    if opt.calibrate:
        announce_calibration(run)

    # ---------------------------------------------------------------------------------------- probabilities
    predictor, fits_weights = run.predictor, opt.blend in choices.FITTED_BLENDS
    if fits_weights:
        predictor, measured = fit_ensemble(opt, run.loaded, run.batches(), metric)
    rows = rows_to_keep(len(files), classes.count, sample=opt.calibrate, seed=opt.seed)
    with Features(predictor, len(files), collect=opt.report) as features:  # the report alone shows neighbours
        loader = run.batches(predictor)
        predictions, probabilities = predict(predictor, loader, keep=opt.save_probs, rows=rows, features=features)
    scored = Scored(predictions, files, classes)
    fitted = calibrate(run, predictions) if opt.calibrate else None

    # ---------------------------------------------------------------------------------------- results
    with results.place(folder, opt) as new:
        found = results.write(new, scored, opt, fitted, folder, run.loaded.identities)
        if fits_weights:
            write_ensemble(new, folder, opt, run.loaded, measured)
        if probabilities is not None:
            saved_probs.write(new / results.PROBS, probabilities, predictions.readable, files, classes)
        if opt.report and found.metrics["count"]:
            results.write_page(new, scored, found, report_extra(run, scored, found, folder, features, metric))
        results.set_aside(folder, run.loaded.identities)
    if found.compared:
        log.info(f"{results.describe_comparison(opt.compare, found.compared)}: {folder}/changed.csv")
    log.info(results.summary_line(found.metrics, metric))
    log.info(f"Results: {folder}/")
    if run.can_submit() and not (fits_weights and opt.debug):  # --debug writes no ensemble.yaml
        ensemble = folder / "ensemble.yaml" if fits_weights else None
        log.info(f"Next: {after_evaluation(asked, ensemble, temperature_flag(run, fitted))}")


def evaluate(
    predictor: "Predictor",
    loader: "BatchLoader[EvalBatch]",
    num_classes: int,
    see: "Callable[[Predictions], None] | None" = None,
) -> dict[str, float]:
    """Return the scores of evaluation.metrics.score over a loader, which train.py prints.

    `see` is called with the predictions.
    """
    from evaluation import metrics
    from inference import predict

    predictions = predict(predictor, loader)[0]
    if see is not None:
        see(predictions)
    return metrics.score(predictions, num_classes)


if __name__ == "__main__":
    sys.exit(run_command(parse_eval, main))
