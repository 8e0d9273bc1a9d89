"""Train a classifier on the images of a list.

    python train.py --tag resnest --model ResNeSt101 --optimizer sgd --scheduler 2x -b 24 --lr 0.0001
    python train.py --tag resnest --resume
    python train.py --tag finer --model ResNeSt101 --load checkpoints/resnest/best.pt --scale 320

Writes the checkpoints <epoch>_<Model>.pt, last.pt and best.pt into checkpoints/<tag>/. Writes log.txt, metrics.csv,
steps.csv, curves.png, options.yaml, lists.json and TensorBoard's files into logs/<tag>/.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from evaluation.ranking import merit
from options import Options, after_training, parse_train
from utils.clock import Stopwatch, process_seconds
from utils.run import run_command

if TYPE_CHECKING:
    import torch

    from dataloader import TrainLoader
    from dataloader.prefetch import BatchLoader
    from training.engine import Engine
    from training.run import TrainingRun
    from training.run_lists import RunLists
    from training.start import RunStart
    from utils.batch import EvalBatch

Scorer = Callable[[str], dict[str, float]]  # "raw", "ema" or "swa" -> the scores with those weights


def main(opt: Options, started: float = 0.0) -> None:
    """Train. `started`: seconds that this process has taken already, which count in --hours."""
    watch = Stopwatch(started)
    # Heavy imports are here, so that --help and a mistyped flag answer at once.
    import dataloader
    from network import get_model
    from network.loading import load_weights
    from training.run import RunFacts, TrainingRun
    from training.setup import build_engine, check_names, fit_classifier, run_settings
    from training.start import RunStart
    from utils import distributed
    from utils.logger import start_logging
    from utils.run import get_device, seed_everything

    # ---------------------------------------------------------------------------------------- where to begin
    start_logging()
    device = get_device(opt.gpu)
    distributed.init(device)
    distributed.broadcast_from_main(lambda: check_names(opt))
    start = RunStart.begin(opt, restarted=distributed.was_restarted(), watch=watch)
    opt = start.opt
    if start.is_complete():
        start.link_last_epoch()
        return
    seed_everything(opt.seed, opt.deterministic)

    # ---------------------------------------------------------------------------------------- data
    opt, lists = open_lists(opt, start, device)
    classes = lists.classes
    if start.is_out_of_patience():  # not before: on other images, --patience counts from here on
        start.link_last_epoch()
        return

    # ---------------------------------------------------------------------------------------- network
    model = get_model(opt.model)(start.network_options(opt))
    model.set_target_units(classes)
    if start.content is not None:
        load_weights(model, start.content, start.source, resume=start.resumed, names=classes.names)
    model.to_device(device)
    opt = start.fill_defaults(opt, model.net, len(lists.train), classes.present())
    precision, reason = model.set_precision(
        opt.precision, kept=start.resumed and "precision" not in opt.given, batch_size=opt.batch_size
    )
    repeats_as_before = not start.chooses(opt, "batch_size", "repeat_aug")
    train_loader = dataloader.train_loader(opt, lists.train, model.preprocess(), repeats_as_before)
    if opt.fit_head and not start.resumed:
        fit_classifier(opt.replace(loader=train_loader.kind), model, lists.train)
    engine = build_engine(opt, model, len(train_loader), classes.train_counts, classes.names)
    start.check_teacher(engine.teacher)
    if start.resumed:
        engine.load_state_dict(start.resumed_content)

    # ---------------------------------------------------------------------------------------- training
    facts = RunFacts(lists, precision, start.reason_for(precision, reason))
    run = TrainingRun(run_settings(opt), start, engine, facts)
    start.content = None  # its tensors are in the engine now
    val_loader = None
    if lists.val is not None:  # its workers are of the same kind: a process must not start beside threads that read
        val_loader = dataloader.eval_loader(opt.replace(loader=train_loader.kind), lists.val, (model.preprocess(),))
    score = scorer(run, val_loader)
    with run.handle_signals():
        while not run.is_over():
            failed: Exception | None = None
            try:
                train(run, train_loader, score)
            except Exception as error:
                if not run.can_recover(error):
                    raise
                failed = error.with_traceback(None)
            if failed is not None:  # outside the handler: the traceback would keep the memory of the failed step
                run.recover(failed)
    run.finish(lambda script, path: after_training(script, path, opt, lists.paths["test"]))


def open_lists(opt: Options, start: "RunStart", device: "torch.device") -> tuple[Options, "RunLists"]:
    """Open the lists, and check them against each other and against what the run continues from.

    Returns:
        The options with what follows from the lists: where they were drawn, the number of classes and the batch; and
        the lists.
    """
    import dataloader
    from training.run_lists import RunLists
    from training.setup import resolve_batch

    opt = dataloader.draw_lists(opt, start.logs / "lists")
    train_files = dataloader.open_list(opt, "train", drop_missing=True, task=opt.task)
    val_files = dataloader.open_list(opt, "val", task=opt.task) if opt.val_freq else None
    if val_files is not None:
        dataloader.warn_shared(train_files, val_files)
    start.check_classes(dataloader.read_class_names(train_files.source.parent), train_files.source)
    classes = dataloader.find_classes(train_files, opt.num_classes, opt.task)
    train_files, classes = train_files.with_count(classes.count), start.keep_units(classes)
    if val_files is not None:
        val_files = dataloader.align_labels(val_files, classes, "the training list")
        start.check_metric(classes.count)
    start.warn_other_lists(dataloader.lists_of(opt))
    train_list = train_files.fingerprint()
    start.adopt_training_list(train_list)
    start.check_probe(classes)
    opt = opt.replace(num_classes=classes.count)
    opt = opt.replace(batch_size=resolve_batch(opt, device, len(train_files), classes))
    if val_files is None:
        val_list = start.adopt_validation_list(None)
    else:
        val_list = start.adopt_validation_list(val_files.fingerprint(), dataloader.evaluated_images(opt, val_files))
    lists = RunLists(train_files, val_files, classes, train_list, val_list, dataloader.lists_of(opt))
    lists.check_alike(vars(opt), opt.teacher)
    return opt, lists


def scorer(run: "TrainingRun", loader: "BatchLoader[EvalBatch] | None") -> Scorer:
    """Return what scores the network with the weights "raw", "ema" or "swa" on the validation list."""
    from inference import Member, Predictor
    from inference.evaluating import evaluate

    model, classes = run.engine.model, run.facts.lists.classes

    def score(weights: str) -> dict[str, float]:
        assert loader is not None  # as --val_freq asks for scores
        member = Member(model, model.preprocess(), net=run.engine.net(weights), which=weights)
        return evaluate(Predictor([member]), loader, classes, run.on_predictions(weights), run.cut_points_of(weights))

    return score


def train(run: "TrainingRun", loader: "TrainLoader", score: Scorer) -> None:
    """Train the epochs that are left, and validate: `score(weights)` gives the scores."""
    engine, batches = run.engine, loader.batches(*run.state.next_batch)
    while not run.is_over():
        epoch = run.state.next_epoch
        with run.track(epoch) as tracker:
            for batch in tracker.track(batches):
                tracker.update(engine.train_step(batch))
            resumed_at_end = tracker.ended
            scores = tracker.close()
            if not resumed_at_end:
                engine.end_epoch(epoch, loader)
        if run.should_validate(epoch):
            with run.interruptible(tracker):
                scores |= validate(engine, score, run.state.metric)
        run.end_epoch(epoch, scores)


def validate(engine: "Engine", score: Scorer, metric: str) -> dict[str, float]:
    """Score the weights, and the averages of --ema and --swa; the best become the engine's active weights.

    Returns:
        The scores of the best by `metric`, as val_<name>. If there are averages, also the metric of each, as
        val_<which>_<metric>.
    """
    each = {weights: score(weights) for weights in engine.available_weights()}
    engine.active_weights = max(each, key=lambda weights: (merit(each[weights], metric), -each[weights]["loss"]))
    scores = {f"val_{name}": value for name, value in each[engine.active_weights].items()}
    return scores | ({f"val_{weights}_{metric}": one[metric] for weights, one in each.items()} if len(each) > 1 else {})


if __name__ == "__main__":
    sys.exit(run_command(parse_train, lambda opt: main(opt, process_seconds())))
