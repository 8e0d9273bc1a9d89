"""Predict the class of each image of the test list, and write a CSV: `id,predicted`, in the list's order.

    python submit.py --load checkpoints/resnest/20_ResNeSt101.pt
    python submit.py --load a.pt b.pt --weights 2 1 --tta x8 --out best.csv
    python submit.py --ensemble results/pair/a_20+b_20/ensemble.yaml --pseudo_label 0.95
    python submit.py --load checkpoints/resnest/best.pt --like sample_submission.csv
    python submit.py --load checkpoints/resnest/best.pt --images a.jpg photos/ '*.png'
    torchrun --standalone --nproc_per_node=2 submit.py --load checkpoints/resnest/best.pt -b 48

Beside it goes <name>.provenance.json: the checkpoints' hashes, the options, the list's hash, versions.
With --images there is no list: the predictions are printed as a table, or with --format as CSV or JSON.
"""

import argparse
import sys
from pathlib import Path

from options import choices, parse_submit
from options.wording import count_of
from utils.run import run_command


def main(opt: argparse.Namespace) -> None:
    """Predict the test list, and write the submission."""
    # Heavy imports are here, so that --help and a mistyped flag answer at once.
    from dataloader import check_numbering
    from evaluation import submission, submission_files
    from evaluation.sample_submission import open_sample
    from inference import open_inference, predict_list, saved_probs
    from utils import distributed, run_lock
    from utils.logger import start_logging
    from utils.outputs import check, inputs
    from utils.run import seed_everything

    if opt.images:
        predict_images(opt)
        return

    # ---------------------------------------------------------------------------------------- what to predict
    start_logging()
    seed_everything(opt.seed, opt.deterministic)
    run_lock.acquire(Path(opt.result_dir) / opt.tag, shared=True)
    run = open_inference(opt, "test", tasks=choices.TASKS, shared=True)
    opt = run.opt  # the flags with what --ensemble says
    name = f"submission{'_debug' if opt.debug else ''}.{opt.format}"  # a few rows must not replace a submission
    out = Path(opt.out) if opt.out else Path(opt.result_dir) / opt.tag / name
    with distributed.share_errors():
        submission.check_top_k(opt, run.classes)
        if opt.pseudo_label is not None:
            check_numbering(out.parent, run.classes, pseudo=True, numbers=True)
        sample = open_sample(opt, run.files, run.classes) if opt.like else None
        submission.check_joiner(opt, run.classes, sample)
        if distributed.is_main():
            check(submission_files.planned(out, opt, sample), inputs(opt, run.files), [run.files], opt.force)
            run_lock.acquire(out)
            run_lock.acquire(submission_files.provenance_file(out))  # which files of other formats share

    # ---------------------------------------------------------------------------------------- predictions
    rows = sample.rows_to_keep() if sample else None
    scored, values = predict_list(run, keep=opt.save_probs, rows=rows)
    if not distributed.is_main():  # the main process has the predictions of all
        return

    # ---------------------------------------------------------------------------------------- files
    submission_files.set_aside(out, opt, run.loaded.hashes)
    if values is not None:  # the largest file first: a disk that it fills keeps the earlier set whole
        path, seen = submission_files.probabilities_file(out), run.loaded.all_seen
        saved_probs.write(path, values, scored.predictions.readable, run.files, run.classes, seen=seen)
    if opt.pseudo_label is not None:
        submission_files.write_pseudo_labels(out, scored, opt.pseudo_label)
    submission_files.write(out, scored, opt, sample)
    submission_files.write_provenance(out, scored, opt, run.loaded.provenance())
    submission.log_summary(out, scored)


def predict_images(opt: argparse.Namespace) -> None:
    """Predict the images that --images names, and print the answers, or write them to --out."""
    from dataloader.file_list import FileList
    from dataloader.listing.named import STANDARD_INPUT, find_images
    from evaluation import answers
    from inference import open_inference, predict_list
    from inference.blend import warn_of_ranks
    from utils import distributed, run_lock
    from utils.errors import UserError
    from utils.logger import log, start_logging
    from utils.outputs import check, inputs
    from utils.run import get_device, seed_everything

    start_logging(to_stderr=True)
    if sys.stdout is None and not opt.out:
        raise UserError("--images prints the answers, and standard output is closed. Try: --out FILE")
    seed_everything(opt.seed, opt.deterministic)
    if distributed.world_size() > 1:  # before a mistake, which one process prints for all
        distributed.init(get_device(opt.gpu), distributed.PREDICTION_TIMEOUT)
    with distributed.share_errors():
        if STANDARD_INPUT in opt.images:
            distributed.refuse_several_processes("Names from standard input")
        lines = sys.stdin.buffer.read() if STANDARD_INPUT in opt.images else b""
        files = FileList.of_paths(find_images(opt.images, lines), "--images")
        if opt.out and distributed.is_main():
            check([answers.planned(Path(opt.out))], inputs(opt), [files], opt.force)
            run_lock.acquire(Path(opt.out))
    run = open_inference(opt, files, match_classes=False, tasks=choices.TASKS, shared=True)
    warn_of_ranks(run.opt.blend)
    scored = predict_list(run)[0]
    if not distributed.is_main():
        return
    count = len(scored.predictions.index)
    if count < len(files):
        log.warning(f"--debug: the answers are of {count} of {len(files)} images.")
    found = answers.answers(scored, opt.top_k if "top_k" in opt.given else answers.DEFAULT_TOP)
    if opt.out:
        answers.write(Path(opt.out), found, opt.format)
        log.info(f"{count_of(len(found.each), 'prediction')}: {opt.out}")
    else:
        answers.write_to(sys.stdout, found, opt.format if "format" in opt.given else "table")


if __name__ == "__main__":
    sys.exit(run_command(parse_submit, main))
