"""Train a classifier on the images of a list.

    python train.py --tag resnest --model ResNeSt101 --optimizer sgd --scheduler 2x -b 24 --lr 0.0001
    python train.py --tag resnest --resume
    python train.py --tag finer --model ResNeSt101 --load checkpoints/resnest/best.pt --scale 320

Writes checkpoints/<tag>/ (<epoch>_<Model>.pt, last.pt, best.pt) and logs/<tag>/ (log.txt, metrics.csv, curves.png,
options.yaml, TensorBoard).
"""

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eval import evaluate
from options import after_training, parse_train
from utils.run import run_command

if TYPE_CHECKING:
    from dataloader import TrainLoader
    from network import BaseModel
    from training.run import TrainingRun


def main(opt: argparse.Namespace) -> None:
    # Heavy imports stand here, so that --help and a mistyped flag answer at once.
    from torch import OutOfMemoryError

    import dataloader
    from inference import Member, Predictor
    from network import get_model
    from network.loading import load_weights
    from scheduler import run_length
    from training.agreement import check_agree
    from training.guard import Diverged
    from training.run import TrainingRun
    from utils import distributed
    from utils.logger import start_logging
    from utils.run import get_device, seed_everything

    # ---------------------------------------------------------------------------------------- where to begin
    start_logging()
    device = get_device(opt.gpu)
    again = distributed.init(device)
    run = TrainingRun.begin(opt, again)
    opt.epochs = run_length(opt.scheduler, opt.epochs, said="epochs" in opt.given)
    if run.complete():
        return
    seed_everything(opt.seed, opt.deterministic)

    # ---------------------------------------------------------------------------------------- data
    train_files = dataloader.open_list(opt, "train", drop_missing=True)
    val_files = dataloader.open_list(opt, "val") if opt.val_freq else None
    if val_files is not None:
        dataloader.warn_shared(train_files, val_files)
    run.check_classes(dataloader.read_class_names(train_files.source.parent), train_files.source)
    classes = dataloader.find_classes(train_files, opt.num_classes)
    if val_files is not None:
        val_files = dataloader.align_labels(val_files, classes, "the training list")
    opt.num_classes = classes.count
    run.take_lists(train_files.fingerprint(), dataloader.lists_of(opt))
    check_agree(opt, {"training": train_files, "validation": val_files}, classes.names)

    # ---------------------------------------------------------------------------------------- network
    model = get_model(opt.model)(run.network_options())
    if run.start is not None:
        load_weights(model, run.start, run.source, strict=opt.resume, names=classes.names)
    model.place(device)
    opt.precision_used = model.set_precision(opt.precision, kept=opt.resume and "precision" not in opt.given)
    train_loader = dataloader.train_loader(opt, train_files, model.preprocess())
    model.setup_training(opt, len(train_loader), classes.train_counts, classes.names)
    if run.start is not None and opt.resume:
        model.load_state(run.start)

    # ---------------------------------------------------------------------------------------- training
    predictor = Predictor([Member(model, model.preprocess())])
    val_loader = dataloader.eval_loader(opt, val_files, predictor.preprocesses) if val_files is not None else None
    run.describe(model, train_files, val_files, classes)
    with run.going():
        while run.next_epoch <= opt.epochs:
            failed: Exception | None = None
            try:
                train(run, model, train_loader, lambda: evaluate(predictor, val_loader, classes.count, run.seen(model)))
            except (Diverged, OutOfMemoryError) as error:
                failed = error.with_traceback(None)
            if failed is not None:
                run.recover(failed, model)
    run.finish(lambda script, path: after_training(script, path, opt))


def train(run: "TrainingRun", model: "BaseModel", loader: "TrainLoader", score: Callable[[], dict[str, Any]]) -> None:
    """Train the epochs that are left, and validate: `score()` gives the scores of the weights that `model` shows."""
    batches = loader.batches(run.next_epoch, run.batches_done)
    for epoch in range(run.next_epoch, run.opt.epochs + 1):
        with run.watch(epoch, model) as watch:
            for batch in watch(batches):
                watch.loss(model.update(batch))
            if not watch.ended:
                model.end_epoch(epoch, loader)
            scores = watch.close()
        if run.validates(epoch):
            with run.validating(watch):
                scores |= validate(model, score)
        run.end_epoch(epoch, scores, model)


def validate(model: "BaseModel", score: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Score the weights, and the averages of --ema and --swa beside them; the best are what the model shows from now on.

    Returns:
        The scores of the best, as val_<name>; where there are averages, each one's top-1 besides, as val_<which>_top1.
    """
    found = {}
    for which in model.averages.names():
        model.showing = which
        found[which] = score()
    model.showing = max(found, key=lambda which: (found[which]["top1"], -found[which]["loss"]))
    scores = {f"val_{name}": value for name, value in found[model.showing].items()}
    return scores | ({f"val_{which}_top1": one["top1"] for which, one in found.items()} if len(found) > 1 else {})


if __name__ == "__main__":
    sys.exit(run_command(parse_train, main))
