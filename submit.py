"""Predict the class of each image of the test list, and write a CSV: `id,predicted`, a row an image, in the list's order.

python submit.py --load checkpoints/resnest/20_ResNeSt101.pt
python submit.py --load a.pt b.pt --weights 2 1 --tta x8 --out best.csv
python submit.py --ensemble results/pair/a_20+b_20/ensemble.yaml --pseudo_label 0.95

Beside it goes <name>.provenance.json: the checkpoints' hashes, the options, the list's hash, versions.
"""

import argparse
import sys
from pathlib import Path

from options import parse_submit
from utils.run import run_command


def main(opt: argparse.Namespace) -> None:
    # Heavy imports stand here, so that --help and a mistyped flag answer at once.
    import dataloader
    from evaluation import results, submission
    from inference import load_predictor, predict, saved_probs, with_ensemble
    from utils import run_lock
    from utils.logger import log, start_logging
    from utils.outputs import check, inputs
    from utils.run import get_device, seed_everything

    start_logging()
    seed_everything(opt.seed, opt.deterministic)
    opt = with_ensemble(opt)
    out = Path(opt.out) if opt.out else Path(opt.result_dir) / opt.tag / f"submission.{opt.format}"
    run_lock.acquire(Path(opt.result_dir) / opt.tag, shared=True)
    loaded = load_predictor(opt, get_device(opt.gpu))
    classes = dataloader.Classes.from_dict(loaded.data)
    files = dataloader.open_list(opt, "test", known=loaded.lists)
    check(submission.planned(out, opt), inputs(opt, files), [files], opt.force)
    run_lock.acquire(out)
    dataloader.check_numbering(files, classes, pseudo=opt.pseudo_label is not None, numbers=opt.labels == "number")
    loaded.check_list(files)
    if opt.save_probs:
        saved_probs.check_size(len(files), classes.count, "--save_probs")

    loader = dataloader.eval_loader(opt, files, loaded.predictor.preprocesses)
    predictions, probabilities = predict(loaded.predictor, loader, keep=opt.save_probs)
    scored = results.Scored(predictions, files, classes)
    submission.set_aside(out, opt, loaded.hashes)
    submission.write(out, scored, opt)
    submission.write_provenance(out, scored, opt, loaded)
    if opt.pseudo_label is not None:
        submission.write_pseudo_labels(submission.pseudo_labels(out), scored, opt.pseudo_label)
    if probabilities is not None:
        saved_probs.write(out.with_name("probs.npz"), probabilities, predictions.readable, files, classes)
    guessed = int((~predictions.readable).sum())
    if guessed:
        log.warning(
            f"{guessed} of {len(files)} images could not be read; their rows hold the commonest training class."
        )
    if opt.debug and len(predictions.index) < len(files):
        log.warning(f"--debug: {len(predictions.index)} of {len(files)} rows; this is not a submission.")
    log.info(f"{len(predictions.index)} predictions: {out}")


if __name__ == "__main__":
    sys.exit(run_command(parse_submit, main))
