"""Measure how fast train.py trains, against its bare step, its limit, and timm used as a library.

    python -m benchmarks.train                     # on photographs cut from pictures on this machine
    python -m benchmarks.train --list train.txt --networks EfficientNet-Lite0:64:64 ResNet50:128:32 --rounds 5

Each row runs in its own process, several rounds, alternately (A B C A B C …). "step" is forward, loss, backward and
optimizer step over one prepared batch. "loader" makes batches that nobody uses. "loop" is train.py itself: `main`,
timed from batch to batch within its first epoch, without start, validation and saving. "cached" rows read from --cache
ram --cache_format raw; "jpeg" rows read the files, which are in the page cache. timm's rows are its create_model,
create_loader, create_optimizer_v2 and the loop of its documentation, on the same files with the same crop and flip;
the faster of its two rows in channels_last counts. All use SGD with momentum. Threads of ours wait as those of
train.py do (utils.run.set_openmp_spin), those of timm as torch's do. If data and network share the cores, the limit of
the loop is 1 / (1/step + 1/loader). Rows called "engine" run only if --only names them: they repeat train.py's own
step, with its copy to the device, guard and averages; "timm, step" is their counterpart. Only rows called "compiled"
use torch.compile. Prints medians, ratios, and the share of the time for which train.py waited for data. Writes
train.json and train.png.
"""

import argparse
import contextlib
import csv
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import dataloader
from benchmarks import harness as bench
from benchmarks.input_baselines import ZOOM, PipelineTask
from dataloader.file_list import FileList, read_list
from utils.batch import Batch
from utils.errors import UserError
from utils.files import atomic_write
from utils.logger import log

if TYPE_CHECKING:
    import torch

    from network.base_model import BaseModel
    from options import Options

NAME = "train"
NETWORKS = ("EfficientNet-Lite0:64:64", "ResNet50:128:32")
WARM_UP_BATCHES = 10  # not counted: by then the batches that were made ahead are used up
MIN_LOADER_SECONDS = 3.0  # the loader alone is timed for this long at least
LR = 0.001
MANY_EPOCHS = 1000  # of a row that ends by its steps
CACHED = ["--cache", "ram", "--cache_format", "raw"]
ROWS: dict[str, list[str]] = {  # row -> its flags of train.py
    "ours, step": [],
    "ours, loader cached": CACHED,
    "ours, loop cached": CACHED,
    "ours, loader jpeg": [],
    "ours, loop jpeg": [],
    "timm defaults": [],
    "timm channels_last": [],
    "timm channels_last bf16": [],
}
BEST = {"timm defaults": None, "timm channels_last": "fp32", "timm channels_last bf16": "bf16"}
STEP_ROWS: dict[str, list[str]] = {  # rows that --only names; each repeats the whole step over one batch
    "ours, engine": [],
    "ours, engine, no guard": ["--max_nan", "0"],
    "ours, engine, EMA": ["--ema", "0.9998"],
    "ours, engine, compiled": ["--compile"],
    "timm, step bf16": [],
    "timm, step bf16, compiled": [],
}
FLAGS = ROWS | STEP_ROWS


class Target(NamedTuple):
    """A ratio to report. `minimum` is what it should reach, by network, with "" for any other; empty: no target."""

    name: str
    ratio: Callable[[dict[str, float]], float]
    minimum: dict[str, float] = {}


TARGETS = (
    Target("loop cached / (1 / (1/step + 1/loader))", lambda rate: _of_limit(rate, "cached"), {"": 0.95}),
    Target("loop jpeg / (1 / (1/step + 1/loader))", lambda rate: _of_limit(rate, "jpeg")),
    Target("loop cached / step", lambda rate: rate["ours, loop cached"] / rate["ours, step"]),
    Target("loop jpeg / timm defaults", lambda rate: rate["ours, loop jpeg"] / rate["timm defaults"], {"": 1.8}),
    Target(
        "loop jpeg / timm best",
        lambda rate: rate["ours, loop jpeg"] / max(rate["timm channels_last"], rate["timm channels_last bf16"]),
        {"": 1.05, "EfficientNet-Lite0:64": 1.3},
    ),
    # of a GPU, which shares no core with the loader
    Target("loop jpeg / min(step, loader)", lambda rate: rate["ours, loop jpeg"] / _slower(rate)),
    Target("engine / timm", lambda rate: rate["ours, engine"] / rate["timm, step bf16"], {"": 0.98}),
    Target(
        "engine / timm, both compiled",
        lambda rate: rate["ours, engine, compiled"] / rate["timm, step bf16, compiled"],
        {"": 0.98},
    ),
    Target("engine / without guard", lambda rate: rate["ours, engine"] / rate["ours, engine, no guard"], {"": 0.97}),
    Target("engine with EMA / without", lambda rate: rate["ours, engine, EMA"] / rate["ours, engine"], {"": 0.97}),
)


def _of_limit(rate: dict[str, float], kind: str) -> float:
    return rate[f"ours, loop {kind}"] * (1 / rate["ours, step"] + 1 / rate[f"ours, loader {kind}"])


def _slower(rate: dict[str, float]) -> float:
    return min(rate["ours, step"], rate["ours, loader jpeg"])


def option_parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark."""
    parser = bench.option_parser(NAME, __doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help="each is MODEL:PX:BATCH")
    parser.add_argument("--only", nargs="+", default=list(ROWS), choices=list(FLAGS), help="measure only these rows")
    parser.add_argument(
        "--steps", type=int, default=30, help=f"steps for which a row is timed, after {WARM_UP_BATCHES} that are not"
    )
    parser.add_argument(
        "--precision", default="auto", help="of our rows; auto: chosen as train.py does, once for all rounds"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and measure; return the exit code."""
    return bench.run(lambda: option_parser().parse_args(argv), measure, compare)


# -------------------------------------------------------------------------------------------- all rows, in turn


def compare(opt: argparse.Namespace) -> None:
    """Measure all rows of all networks alternately, print tables and ratios, write the JSON and the plot."""
    if opt.steps < 2:
        raise UserError(f"--steps is {opt.steps}; allowed: 2 or more.")
    photos = read_list(bench.photographs(opt))
    rates: dict[str, dict[str, list[float]]] = {network: {row: [] for row in opt.only} for network in opt.networks}
    waits: dict[str, dict[str, list[float]]] = {network: {} for network in opt.networks}
    with tempfile.TemporaryDirectory() as folder:
        tasks = {network: _task(opt, network, photos, Path(folder)) for network in opt.networks}
        rows = [
            bench.Row((network, row), tasks[network] | {"row": row}, row.startswith("ours"))
            for network in opt.networks
            for row in opt.only
        ]
        for (network, row), found in bench.interleaved(NAME, rows, opt):
            rates[network][row].append(found["rate"])
            if "data_wait" in found:
                waits[network].setdefault(row, []).append(found["data_wait"])
    report(rates, waits, {network: task["precision"] for network, task in tasks.items()}, opt)


def _task(opt: argparse.Namespace, network: str, photos: FileList, folder: Path) -> dict[str, Any]:
    """Return the task of the rows of a network, with a list that makes an epoch of exactly the batches to time."""
    name, side, batch = network.rsplit(":", 2) if network.count(":") > 1 else ("", "", "")
    if not (name and side.isdigit() and batch.isdigit()):
        raise UserError(f"--networks: {network!r}; allowed: MODEL:PX:BATCH, for example ResNet50:128:32")
    count = (WARM_UP_BATCHES + opt.steps) * int(batch)
    path, val = folder / f"train_{batch}.txt", folder / "val.txt"
    lines = [f"{photos.path(k % len(photos))} {photos.label[k % len(photos)]}\n" for k in range(count)]
    for file, content in ((path, lines), (val, lines[:2])):
        with atomic_write(file, "w") as written:
            written.writelines(content)
    task = {"model": name, "scale": int(side), "batch": int(batch), "workers": opt.workers, "steps": opt.steps}
    task |= {"list": str(path), "val": str(val), "precision": opt.precision, "gpu": opt.gpu}
    if opt.precision == "auto":
        log.info(f"{network}: choosing a precision")
        task["precision"] = bench.one(
            NAME, bench.Row(f"{network}, the choice of a precision", task | {"row": "precision"}, ours=True)
        )
    return task


def report(rates: dict[str, Any], waits: dict[str, Any], precisions: dict[str, str], opt: argparse.Namespace) -> None:
    """Print the tables and the ratios; write train.json and train.png."""
    log.info(f"\n{opt.steps} steps per row, {bench.conditions(opt)}")
    medians = {network: bench.medians(rows) for network, rows in rates.items()}
    found = {network: ratios(network, medians[network]) for network in rates}
    for network, rows in rates.items():
        shares = {row: f"{100 * share:.1f} %" for row, share in bench.medians(waits[network]).items()}
        bench.table(f"{network} ({precisions[network]}), images/s", rows, "waiting for data", shares)
        for name, (ratio, minimum) in found[network].items():
            reached = "reached" if minimum is None or ratio >= minimum else "MISSED"
            log.info(f"  {name:42s} {ratio:8.2f}" + ("" if minimum is None else f"   target {minimum:.2f}: {reached}"))
    measured = {"rates": rates, "medians": medians, "data_wait": waits, "precision": precisions}
    measured["ratios"] = {
        network: {name: ratio for name, (ratio, _) in rows.items()} for network, rows in found.items()
    }
    measured["targets"] = {
        network: {name: minimum for name, (_, minimum) in rows.items() if minimum} for network, rows in found.items()
    }
    shown = {  # a loader alone is so much faster that the other bars would be too short to read
        f"{network} ({precisions[network]})": {row: values for row, values in rows.items() if "loader" not in row}
        for network, rows in rates.items()
    }
    title = f"Images per second in training, {opt.workers} workers (median; whiskers: all rounds)"
    bench.write(NAME, opt, measured, (shown, title))


def ratios(network: str, rate: dict[str, float]) -> dict[str, tuple[float, float | None]]:
    """Return each ratio of measured rows, from the medians (images per second by row), with its target or None."""
    found: dict[str, tuple[float, float | None]] = {}
    for target in TARGETS:
        with contextlib.suppress(KeyError):  # a row that was not asked for
            minimum = target.minimum.get(network.rpartition(":")[0], target.minimum.get(""))
            found[target.name] = target.ratio(rate), minimum
    return found


# -------------------------------------------------------------------------------------------- one row


def measure(task: dict[str, Any]) -> Any:
    """Return {"rate"}, images per second of one row, with "data_wait" if it is train.py; `task` is `compare`'s."""
    from utils.run import get_device, tune_malloc

    files, row = read_list(task["list"]), task["row"]
    bench.into_page_cache(files)
    device = get_device(task["gpu"])
    if row.startswith("timm"):
        return {"rate": _rate(_timm(task, files, device), device, task["steps"])}
    tune_malloc()  # as train.py does
    if row == "precision":
        return _model(task, device).set_precision("auto", batch_size=_options(task).batch_size)[0]
    if "loop" in row:
        return _loop(task, device)
    if row.startswith("ours, engine"):
        return {"rate": _rate(_engine_steps(task, files, device), device, task["steps"])}
    if "step" in row:
        return {"rate": _rate(_steps(task, files, device), device, task["steps"])}
    return {"rate": _rate(_loaded(task, files, device), device, task["steps"], MIN_LOADER_SECONDS)}


def _rate(images: Iterator[int], device: "torch.device", steps: int, seconds: float = 0.0) -> float:
    """Return the images per second of an iterator after its warm-up, over at least `steps` items and `seconds`."""
    for _ in range(WARM_UP_BATCHES):
        next(images)
    bench.synchronize(device)
    began, count, done = time.perf_counter(), 0, 0
    while done < steps or time.perf_counter() - began < seconds:
        count += next(images)
        done += 1
    bench.synchronize(device)
    return count / (time.perf_counter() - began)


def _options(task: dict[str, Any], *more: str) -> "Options":
    """Return the options of train.py for this row."""
    from options import parse_train

    words = ["--model", task["model"], "--no-pretrained", "--preset", "original", *bench.gpu_words(task)]
    words += ["--optimizer", "sgd", "--lr", str(LR)]
    words += ["--train_list", task["list"], "--val_list", task["val"], "--precision", task["precision"]]
    words += ["--scale", str(task["scale"]), "-b", str(task["batch"]), "-w", str(task["workers"])]
    words += ["--transform", "light", "--zoom", str(ZOOM), *FLAGS.get(task["row"], []), *more]
    return parse_train(words)


def _model(task: dict[str, Any], device: "torch.device") -> "BaseModel":
    """Return the network as train.py places it."""
    from network import get_model

    opt = _options(task).replace(num_classes=int(read_list(task["list"]).label.max()) + 1)
    model = get_model(opt.model)(opt)
    model.to_device(device)
    return model


def _steps(task: dict[str, Any], files: FileList, device: "torch.device") -> Iterator[int]:
    """Repeat the bare step over one prepared batch; yield the number of its images."""
    from training.setup import build_engine

    model, opt = _model(task, device), _options(task, "-w", "0")
    model.set_precision(task["precision"])
    loader = dataloader.train_loader(opt, files, model.preprocess())
    engine = build_engine(model.opt, model, batches_per_epoch=len(loader))
    images, targets = engine.prepare(next(loader.batches(1)))
    while True:
        with model.autocast():
            loss = model.criterion(model.net(images), targets)
        loss.backward()
        engine.optimizer.step()
        engine.optimizer.zero_grad(set_to_none=True)
        yield len(targets)


def _engine_steps(task: dict[str, Any], files: FileList, device: "torch.device") -> Iterator[int]:
    """Repeat train.py's own step over one batch, with its copy and its normalisation; yield the number of images."""
    from training.setup import build_engine

    model, opt = _model(task, device), _options(task, "-w", "0")
    model.set_precision(task["precision"])
    loader = dataloader.train_loader(opt, files, model.preprocess())
    engine = build_engine(model.opt, model, batches_per_epoch=len(loader))
    batch = next(loader.batches(1))
    while True:
        engine.train_step(batch)
        yield len(batch.label)


def _loaded(task: dict[str, Any], files: FileList, device: "torch.device") -> Iterator[int]:
    """Return the sizes of the loader's batches, taken as fast as it makes them."""
    opt = _options(task, "--epochs", str(MANY_EPOCHS))
    loader = dataloader.train_loader(opt, files, _model(task, device).preprocess())
    return (len(batch.label) for batch in loader.batches(1))


def _timm(task: dict[str, Any], files: FileList, device: "torch.device") -> Iterator[int]:
    """Train with timm, for as many epochs as it takes; yield the number of images per step."""
    from benchmarks.train_baselines import timm_training
    from options.choices import MODELS

    paths = [files.path(k) for k in range(len(files))]
    labels, arch = files.label.tolist(), MODELS[task["model"]][1]
    wanted = PipelineTask(paths, labels, task["scale"], task["batch"], task["workers"], False, MANY_EPOCHS, device)
    row = task["row"]
    if row in STEP_ROWS:
        return timm_training(arch, wanted, LR, "bf16", repeat=True, compiled="compiled" in row)
    return timm_training(arch, wanted, LR, BEST[row])


class _FirstEpochDone(Exception):  # noqa: N818  # not an error
    """The part of train.py that is timed is over."""


def _loop(task: dict[str, Any], device: "torch.device") -> dict[str, float]:
    """Run train.py's main until its first epoch is recorded; time it from the end of the warm-up to the last batch."""
    handed: list[float] = []
    edges = (WARM_UP_BATCHES, WARM_UP_BATCHES + task["steps"] - 1)
    plain = dataloader.TrainLoader.batches

    def marked(loader: dataloader.TrainLoader, epoch: int, step: int = 0) -> Iterator[Batch]:
        for batch in plain(loader, epoch, step):
            if batch.epoch > 1:
                raise _FirstEpochDone
            if len(handed) in edges:  # elsewhere it would hold up the loop that is measured
                bench.synchronize(device)
            handed.append(time.perf_counter())
            yield batch

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        opt = _options(task, "--tag", "bench", "--epochs", "3", "--val_freq", "3")
        with mock.patch.object(dataloader.TrainLoader, "batches", marked), contextlib.suppress(_FirstEpochDone):
            runpy.run_path(str(bench.ROOT / "train.py"))["main"](opt)
        with open("logs/bench/metrics.csv", newline="") as file:
            first = next(csv.DictReader(file))
    steps = len(handed) - 1 - WARM_UP_BATCHES
    return {
        "rate": steps * task["batch"] / (handed[-1] - handed[WARM_UP_BATCHES]),
        "data_wait": float(first["data_wait"]),
    }


if __name__ == "__main__":
    sys.exit(main())
