"""Predict the class of each image of the test list, and write a CSV: `id,predicted`, in the list's order.

    python submit.py --load checkpoints/resnest/20_ResNeSt101.pt
    python submit.py --load a.pt b.pt --weights 2 1 --tta x8 --out best.csv
    python submit.py --ensemble results/pair/a_20+b_20/ensemble.yaml --pseudo_label 0.95
    python submit.py --load checkpoints/resnest/best.pt --like sample_submission.csv

Beside it goes <name>.provenance.json: the checkpoints' hashes, the options, the list's hash, versions.
"""

import argparse
import sys
from pathlib import Path

from options import parse_submit
from utils.run import run_command


def main(opt: argparse.Namespace) -> None:
    # Heavy imports are here, so that --help and a mistyped flag answer at once.
    from evaluation import submission
    from evaluation.sample_submission import open_sample
    from evaluation.scored import Scored
    from inference import open_inference, predict, saved_probs
    from utils import run_lock
    from utils.logger import start_logging
    from utils.outputs import check, inputs
    from utils.run import seed_everything

    # ---------------------------------------------------------------------------------------- what to predict
    start_logging()
    seed_everything(opt.seed, opt.deterministic)
    run_lock.acquire(Path(opt.result_dir) / opt.tag, shared=True)
    run = open_inference(opt, "test")
    opt = run.opt  # the flags with what --ensemble says
    out = Path(opt.out) if opt.out else Path(opt.result_dir) / opt.tag / f"submission.{opt.format}"
    sample = open_sample(opt, run.files, run.classes) if opt.like else None
    check(submission.planned(out, opt, sample), inputs(opt, run.files), [run.files], opt.force)
    run_lock.acquire(out)

    # ---------------------------------------------------------------------------------------- predictions
    rows = sample.rows_to_keep() if sample else None
    predictions, probabilities = predict(run.predictor, run.batches(), keep=opt.save_probs, rows=rows)
    scored = Scored(predictions, run.files, run.classes)

    # ---------------------------------------------------------------------------------------- files
    submission.set_aside(out, opt, run.loaded.hashes)
    submission.write(out, scored, opt, sample)
    members = zip(run.loaded.paths, run.loaded.hashes, run.loaded.predictor.weights, strict=True)
    submission.write_provenance(out, scored, opt, members)
    if opt.pseudo_label is not None:
        submission.write_pseudo_labels(submission.pseudo_labels(out), scored, opt.pseudo_label)
    if probabilities is not None:
        saved_probs.write(out.with_name("probs.npz"), probabilities, predictions.readable, run.files, run.classes)
    submission.log_summary(out, scored)


if __name__ == "__main__":
    sys.exit(run_command(parse_submit, main))
