"""Run a learning-rate range test: train while the learning rate rises, and find where the loss falls fastest.

    python -m tools.lr_find --data_root datasets/fashion-mnist --model ResNet18 --optimizer sgd --scale 96
    python -m tools.lr_find --model timm:convnext_tiny --optimizer adamw --low 1e-7 --high 0.1 --steps 200

Takes train.py's options. The learning rate rises by the same factor at each step (Smith, "Cyclical Learning Rates for
Training Neural Networks", 2017, section 3.3). Writes a PNG and a CSV into logs/<tag>/. It reads no run, except for the
checkpoint of --load, and changes none.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from options import Options, build_parser, command
from options.choices import AUTO_BATCH
from options.defaults import fill_defaults
from options.parser import Parser, expanded
from options.shared_flags import force
from options.wording import count_of
from utils import distributed, tables
from utils.errors import UserError
from utils.files import atomic_write, check_regular
from utils.logger import log, progress
from utils.outputs import Output, begins_with, check, inputs, is_plot
from utils.run import run_tool

if TYPE_CHECKING:
    from dataloader import TrainLoader
    from training.engine import Engine

# The running mean that detects an explosion is corrected for its start at zero (Kingma and Ba, 2015, section 3).
SMOOTHING = 0.9
WIDTH = 0.05  # standard deviation of the Gaussian mean behind the suggestion, as a share of the steps
MAX_LOSS_RATIO = 4.0  # the test ends when the smoothed loss exceeds the lowest one by this factor
MIN_STEPS = 10  # before these the running mean holds too few batches to detect an explosion


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, draw; return the exit code."""
    return run_tool(lambda: option_parser().parse(argv), find, write_flags="--out FILE")


def find(opt: Options) -> None:
    """Test the range of learning rates, and report. Raises UserError for several processes, or an empty range."""
    distributed.refuse_several_processes("Range tests")
    if opt.low >= opt.high:
        raise UserError(f"--low {opt.low:g} is not below --high {opt.high:g}. Give, for example, --low 1e-6 --high 1.")
    report(opt, *range_test(opt))


def option_parser() -> Parser:
    """Return the parser of this tool: train.py's flags, and how far and how fast the learning rate rises."""
    parser = build_parser("train")
    parser.prog = "-m tools.lr_find"
    group = parser.group("range test")
    group("--low", type=float, default=1e-6, low=1e-12, high=1e3, help="the learning rate of the first step")
    group("--high", type=float, default=1.0, low=1e-12, high=1e4, help="the learning rate of the last step")
    group(
        "--steps", type=int, default=100, low=10, high=100_000, help="optimizer steps, unless the loss explodes earlier"
    )
    force(group, "--out")
    group(
        "--out",
        type=expanded,
        metavar="FILE",
        help="where the PNG goes, and the CSV beside it; by default logs/<tag>/lr_find.png",
    )
    return parser


def range_test(opt: Options) -> tuple[Options, np.ndarray, np.ndarray]:
    """Train with a rising learning rate.

    Return the options of the test, with what was chosen, and the learning rates and losses of the steps taken, float64
    (N,) each.

    Every step is the engine's own, with its loss, mixing, clipping, --sam and --accumulate. The loss of a step is
    the mean over its batches. A loss that is not finite, or far above the lowest one, ends the test.

    Raises:
        UserError: a list or a checkpoint cannot be read, or a flag does not fit the network.
    """
    import torch

    from training.guard import Diverged

    # The weights of --load replace the pretrained ones.
    pretrained = opt.pretrained and not (opt.load or opt.probe_init)
    opt = opt.replace(lr=opt.lr or 1.0, pretrained=pretrained, swa=0, max_nan=0)
    engine, loader, opt = build(opt, opt.steps * opt.accumulate)  # an epoch has at least one batch
    lowest_factor = opt.low / engine.settings.lr
    engine.schedule = lambda step: lowest_factor * (opt.high / opt.low) ** (step / (opt.steps - 1))
    rates, losses, mean, lowest = [], [], 0.0, math.inf
    batches = loader.batches(1, 0)
    for number in progress(range(1, opt.steps + 1), "range test"):
        rates.append(engine.learning_rate())
        before, parts = engine.step_count, []
        try:
            while engine.step_count == before:
                parts.append(engine.train_step(next(batches)).loss)
        except Diverged:
            rates.pop()
            break
        loss = float(torch.stack(parts).mean())
        losses.append(loss)
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smooth = mean / (1 - SMOOTHING**number)
        lowest = min(lowest, smooth) if number > MIN_STEPS else lowest
        if not math.isfinite(loss) or (number > MIN_STEPS and smooth > MAX_LOSS_RATIO * lowest):
            log.info(f"The loss exploded at a learning rate of {rates[-1]:.3g}, step {number}.")
            break
    return opt, np.array(rates[: len(losses)]), np.array(losses)


def plot_path(opt: argparse.Namespace) -> Path:
    """Return where the PNG goes."""
    return Path(opt.out or Path(opt.log_dir) / opt.tag / "lr_find.png")


def build(opt: Options, epochs: int | None = None) -> "tuple[Engine, TrainLoader, Options]":
    """Return the engine, ready to train, its loader, and their options, as train.py does, without starting a run.

    Args:
        epochs: how many the loader has, whatever the run would have; its defaults follow from its own.

    Raises:
        UserError: as range_test.
    """
    import dataloader
    from network import get_model
    from network.loading import known_units, load_weights
    from training.probe_init import check_probe
    from training.setup import build_engine, fit_classifier
    from training.start import facts_of, warn_unused
    from utils import checkpoint
    from utils.run import get_device, seed_everything, tune_malloc

    tune_malloc()
    if opt.resume:
        raise UserError(
            "--resume continues with a run's own learning rate. "
            "Leave it out, or start from its weights: --load CHECKPOINT."
        )
    if opt.batch_size == AUTO_BATCH:
        raise UserError(
            f"-b {AUTO_BATCH} is for train.py, which logs the number. The learning rate depends on it. Try: -b NUMBER"
        )
    seed_everything(opt.seed, opt.deterministic)
    files = dataloader.open_list(opt, "train", drop_missing=True, task=opt.task)
    out = plot_path(opt)
    check_regular(out)
    planned = [
        Output(out, "a drawn picture", is_plot),
        Output(out.with_suffix(".csv"), "a table of learning rates", begins_with("lr", "loss")),
    ]
    check(planned, inputs(opt, files), [files], opt.force)
    classes = dataloader.find_classes(files, opt.num_classes, opt.task)
    opt, files = opt.replace(num_classes=classes.count), files.with_count(classes.count)
    source = opt.load or opt.probe_init
    content = checkpoint.load(Path(source)) if source else None
    if content is not None and opt.probe_init:
        check_probe(content, source, vars(opt), classes)
    if content is not None:
        classes = known_units(classes, content, source)
    model = get_model(opt.model)(opt)
    model.set_target_units(classes)
    if content is not None:
        load_weights(model, content, source, names=classes.names)
    model.to_device(get_device(opt.gpu))
    facts = facts_of(opt, len(files), classes.present(), model.net)
    opt, _ = fill_defaults(opt, replace(facts, features=0))  # a given --lr, as this tool finds it, goes without a fit
    warn_unused(opt)
    model.set_precision(opt.precision, batch_size=opt.batch_size)
    opt = opt.replace(epochs=epochs or opt.epochs)
    loader = dataloader.train_loader(opt, files, model.preprocess())
    if opt.fit_head:
        fit_classifier(opt.replace(loader=loader.kind), model, files)
    engine = build_engine(opt, model, len(loader), classes.train_counts, classes.names)
    return engine, loader, opt.replace(batch_size=loader.sampler.batch_size)  # of few images it is smaller


def smoothed(losses: np.ndarray) -> np.ndarray:
    """Return the losses (N,) without the noise of batches: a Gaussian mean over a twentieth of them, without lag."""
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(losses, max(1.0, len(losses) * WIDTH), mode="nearest") if len(losses) else losses


def suggest(rates: np.ndarray, losses: np.ndarray) -> float | None:
    """Return the learning rate at which the smoothed loss falls fastest against log(lr), or None if it never falls.

    Only the part before the lowest loss counts.

    Args:
        rates, losses: (N,), of range_test.
    """
    fine = np.isfinite(losses)
    rates, means = rates[fine], smoothed(losses[fine])
    lowest = int(np.argmin(means)) if len(means) else 0
    if lowest < MIN_STEPS:
        return None
    slope = np.gradient(means[: lowest + 1], np.log(rates[: lowest + 1]))
    steepest = int(np.argmin(slope))
    return float(rates[steepest]) if slope[steepest] < 0 else None


def report(opt: argparse.Namespace, used: argparse.Namespace, rates: np.ndarray, losses: np.ndarray) -> None:
    """Write the PNG and the CSV, and log the suggested learning rate and the command to train with it.

    Args:
        opt: the flags of the call, which the command repeats. used: the options of the test.
        rates, losses: (N,), of range_test.

    Raises:
        UserError: the loss never fell between --low and --high.
    """
    from evaluation.report.tool_plots import range_test as draw

    best, out = suggest(rates, losses), plot_path(opt)
    accumulated = f" × {used.accumulate}" if used.accumulate > 1 else ""
    title = f"{used.model}, {used.optimizer}, batches of {used.batch_size}{accumulated}"
    out.parent.mkdir(parents=True, exist_ok=True)
    fine = np.isfinite(losses)
    draw(out, {"rate": rates[fine], "loss": losses[fine], "smoothed": smoothed(losses[fine])}, best, title)
    with atomic_write(out.with_suffix(".csv"), "w") as file:
        writer = tables.writer(file)
        writer.writerows([("lr", "loss"), *zip(rates.tolist(), losses.tolist(), strict=True)])
    low, high = (rates[0], rates[-1]) if len(rates) else (opt.low, opt.low)
    log.info(f"{count_of(len(losses), 'step')}, learning rates {low:.3g} to {high:.3g}: {out}")
    if best is None:
        raise UserError(
            f"The loss never fell in {count_of(len(losses), 'step')} from --low {opt.low:g} to --high {opt.high:g}; "
            f"see {out}.\n"
            "Try: a wider range, more --steps, or a larger -b if the batches are noisy."
        )
    log.info(f"The loss falls fastest at a learning rate of {best:.2g}. To train with it:\n{train_command(opt, best)}")


def train_command(opt: argparse.Namespace, lr: float) -> str:
    """Return the command that trains with the options `opt` of this tool and the learning rate `lr`.

    It names every option that differs from its default, also those of --config, so --config itself is left out.
    """
    return command("train", vars(opt) | {"lr": float(f"{lr:.2g}"), "config": None})


if __name__ == "__main__":
    sys.exit(main())
