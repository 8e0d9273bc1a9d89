"""How fast does train.py train, beside its bare step, beside its limit, and beside timm used as a library?

    python -m benchmarks.train                                       photographs cut from the machine's own pictures
    python -m benchmarks.train --list train.txt --networks EfficientNet-Lite0:64:64 ResNet50:128:32 --rounds 5

Each row runs in a process of its own, several rounds, in turn (A B C A B C …). "step" is forward, loss, backward and
optimizer step over one prepared batch; "loader" hands batches over and nothing is done with them; "loop" is train.py
itself: `main`, timed from batch to batch within its first epoch, without start, validation and saving. "cached" rows
read from --cache ram --cache_format raw, "jpeg" rows the files, which are in the page cache. timm's rows are its
create_model, create_loader, create_optimizer_v2 and the loop of its documentation, on the same files with the same crop
and flip; of its two rows in channels_last the faster counts. All take SGD with momentum; ours wait as train.py lets threads wait
(utils.run.set_openmp_spin), timm's as torch does. Where data and network share
the cores, the loop's limit is 1 / (1/step + 1/loader). torch.compile takes no part on either side. Prints medians,
ratios and the share of the time that train.py says it waited for data; writes train.json and train.png.
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
from typing import Any, NamedTuple
from unittest import mock

import dataloader
from benchmarks import harness as bench
from benchmarks.input_baselines import ZOOM, Work
from dataloader.file_list import FileList, read_list
from utils.errors import UserError
from utils.files import atomic_write
from utils.logger import log

NAME = "train"
NETWORKS = ("EfficientNet-Lite0:64:64", "ResNet50:128:32")
SKIP = 10  # batches that are not counted: what was made ahead is used up by then
LOADER_SECONDS = 3.0  # the loader alone is timed for so long at least
LR = 0.001
CACHED = ["--cache", "ram", "--cache_format", "raw"]
ROWS: dict[str, list[str]] = {  # a row, and the flags of train.py that it adds
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


class Aim(NamedTuple):
    """A ratio to report, and the least that is aimed at; `least` holds it by network, "" for any other; empty: no aim."""

    name: str
    of: Callable[[dict[str, float]], float]
    least: dict[str, float] = {}


AIMS = (
    Aim("loop cached / (1 / (1/step + 1/loader))", lambda rate: _of_limit(rate, "cached"), {"": 0.95}),
    Aim("loop jpeg / (1 / (1/step + 1/loader))", lambda rate: _of_limit(rate, "jpeg")),
    Aim("loop cached / step", lambda rate: rate["ours, loop cached"] / rate["ours, step"]),
    Aim("loop jpeg / timm defaults", lambda rate: rate["ours, loop jpeg"] / rate["timm defaults"], {"": 1.8}),
    Aim(
        "loop jpeg / timm best",
        lambda rate: rate["ours, loop jpeg"] / max(rate["timm channels_last"], rate["timm channels_last bf16"]),
        {"": 1.05, "EfficientNet-Lite0:64": 1.3},
    ),
)


def _of_limit(rate: dict[str, float], kind: str) -> float:
    return rate[f"ours, loop {kind}"] * (1 / rate["ours, step"] + 1 / rate[f"ours, loader {kind}"])


def option_parser() -> argparse.ArgumentParser:
    """The flags of this tool."""
    parser = bench.option_parser(NAME, __doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help="MODEL:PX:BATCH each")
    parser.add_argument("--only", nargs="+", default=list(ROWS), choices=list(ROWS), help="these rows alone")
    parser.add_argument(
        "--steps", type=int, default=30, help=f"steps that a row is timed for, after {SKIP} that are not"
    )
    parser.add_argument(
        "--precision", default="auto", help="of our rows; auto: as train.py measures it, once for all rounds"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and measure; returns the exit code."""
    return bench.run(lambda: option_parser().parse_args(argv), measure, compare)


# -------------------------------------------------------------------------------------------- all rows, in turn


def compare(opt: argparse.Namespace) -> None:
    """Measure all rows of all networks in turn, print tables and ratios, write JSON and plot."""
    if opt.steps < 2:
        raise UserError(f"--steps is {opt.steps}; allowed: 2 or more.")
    photos = read_list(bench.photographs(opt))
    rates: dict[str, dict[str, list[float]]] = {network: {row: [] for row in opt.only} for network in opt.networks}
    waits: dict[str, dict[str, list[float]]] = {network: {} for network in opt.networks}
    with tempfile.TemporaryDirectory() as folder:
        tasks = {network: _task(opt, network, photos, Path(folder)) for network in opt.networks}
        rows = [
            bench.Row((network, row), tasks[network] | {"row": row}, row not in BEST)
            for network in opt.networks
            for row in opt.only
        ]
        for (network, row), found in bench.in_turn(NAME, rows, opt):
            rates[network][row].append(found["rate"])
            if "data_wait" in found:
                waits[network].setdefault(row, []).append(found["data_wait"])
    report(rates, waits, {network: task["precision"] for network, task in tasks.items()}, opt)


def _task(opt: argparse.Namespace, network: str, photos: FileList, folder: Path) -> dict[str, Any]:
    """What the rows of a network are to do, with a list that is one epoch of just so many batches as are wanted."""
    name, side, batch = network.rsplit(":", 2) if network.count(":") > 1 else ("", "", "")
    if not (name and side.isdigit() and batch.isdigit()):
        raise UserError(f"--networks: {network!r}; allowed: MODEL:PX:BATCH, for example ResNet50:128:32")
    count = (SKIP + opt.steps) * int(batch)
    path, val = folder / f"train_{batch}.txt", folder / "val.txt"
    lines = [f"{photos.path(k % len(photos))} {photos.label[k % len(photos)]}\n" for k in range(count)]
    for file, content in ((path, lines), (val, lines[:2])):
        with atomic_write(file, "w") as written:
            written.writelines(content)
    task = {"model": name, "scale": int(side), "batch": int(batch), "workers": opt.workers, "steps": opt.steps}
    task |= {"list": str(path), "val": str(val), "precision": opt.precision}
    if opt.precision == "auto":
        log.info(f"{network}: choosing a precision")
        task["precision"] = bench.one(
            NAME, bench.Row(f"{network}, the choice of a precision", task | {"row": "precision"}, ours=True)
        )
    return task


def report(rates: dict[str, Any], waits: dict[str, Any], precisions: dict[str, str], opt: argparse.Namespace) -> None:
    """Print the tables and the ratios; write train.json and train.png."""
    log.info(f"\n{opt.steps} steps a row, {bench.conditions(opt)}")
    medians = {network: bench.medians(rows) for network, rows in rates.items()}
    found = {network: ratios(network, medians[network]) for network in rates}
    for network, rows in rates.items():
        shares = {row: f"{100 * share:.1f} %" for row, share in bench.medians(waits[network]).items()}
        bench.table(f"{network} ({precisions[network]}), images/s", rows, "waiting for data", shares)
        for name, (ratio, least) in found[network].items():
            aim = "" if least is None else f"   aim {least:.2f}: {'reached' if ratio >= least else 'MISSED'}"
            log.info(f"  {name:42s} {ratio:8.2f}{aim}")
    measured = {"rates": rates, "medians": medians, "data_wait": waits, "precision": precisions}
    measured["ratios"] = {
        network: {name: ratio for name, (ratio, _) in rows.items()} for network, rows in found.items()
    }
    measured["aims"] = {
        network: {name: least for name, (_, least) in rows.items() if least} for network, rows in found.items()
    }
    shown = {  # a loader alone is so much quicker that nothing else could be seen beside it
        f"{network} ({precisions[network]})": {row: values for row, values in rows.items() if "loader" not in row}
        for network, rows in rates.items()
    }
    bench.write(
        NAME,
        opt,
        measured,
        (shown, f"Images a second in training, {opt.workers} workers (median; whiskers: all rounds)"),
    )


def ratios(network: str, rate: dict[str, float]) -> dict[str, tuple[float, float | None]]:
    """Of each ratio whose rows were measured, what it is by the medians (images a second by row), and the aim or None."""
    found: dict[str, tuple[float, float | None]] = {}
    for aim in AIMS:
        with contextlib.suppress(KeyError):  # a row that was not asked for
            found[aim.name] = aim.of(rate), aim.least.get(network.rpartition(":")[0], aim.least.get(""))
    return found


# -------------------------------------------------------------------------------------------- one row


def measure(task: dict[str, Any]) -> Any:
    """Images a second of one row, {"rate"}, with train.py's "data_wait" where it is train.py; `task` as `compare` writes it."""
    from utils.run import tune_malloc

    files, row = read_list(task["list"]), task["row"]
    bench.into_page_cache(files)
    if row in BEST:
        return {"rate": _rate(_timm(task, files), task["steps"])}
    tune_malloc()  # as train.py does
    if row == "precision":
        return _model(task).set_precision("auto")
    if "loop" in row:
        return _loop(task)
    if "step" in row:
        return {"rate": _rate(_steps(task, files), task["steps"])}
    return {"rate": _rate(_loaded(task, files), task["steps"], LOADER_SECONDS)}


def _rate(images: Iterator[int], steps: int, seconds: float = 0.0) -> float:
    """Images a second of an endless iterator, over `steps` of its items after the first SKIP, and for `seconds` at least."""
    for _ in range(SKIP):
        next(images)
    began, count, done = time.perf_counter(), 0, 0
    while done < steps or time.perf_counter() - began < seconds:
        count += next(images)
        done += 1
    return count / (time.perf_counter() - began)


def _options(task: dict[str, Any], *more: str) -> argparse.Namespace:
    """train.py's, for this row."""
    from options import parse_train

    words = ["--model", task["model"], "--no-pretrained", "--gpu", "-1", "--optimizer", "sgd", "--lr", str(LR)]
    words += ["--train_list", task["list"], "--val_list", task["val"], "--precision", task["precision"]]
    words += ["--scale", str(task["scale"]), "-b", str(task["batch"]), "-w", str(task["workers"])]
    words += ["--transform", "light", "--zoom", str(ZOOM), *ROWS.get(task["row"], []), *more]
    return parse_train(words)


def _model(task: dict[str, Any]) -> Any:
    """The network as train.py places it."""
    import torch

    from network import get_model

    opt = _options(task)
    opt.num_classes = int(read_list(task["list"]).label.max()) + 1
    model = get_model(opt.model)(opt)
    model.place(torch.device("cpu"))
    return model


def _steps(task: dict[str, Any], files: FileList) -> Iterator[int]:
    """The bare step, again and again over one batch that lies ready."""
    model, opt = _model(task), _options(task, "-w", "0")
    model.set_precision(task["precision"])
    loader = dataloader.train_loader(opt, files, model.preprocess())
    model.setup_training(model.opt, steps_per_epoch=len(loader))
    images, targets = model.prepare(next(loader.batches(1)))
    while True:
        with model.autocast():
            loss = model.criterion(model.net(images), targets)
        loss.backward()
        model.optimizer.step()
        model.optimizer.zero_grad(set_to_none=True)
        yield len(targets)


def _loaded(task: dict[str, Any], files: FileList) -> Iterator[int]:
    """The loader's batches, taken as fast as it gives them."""
    opt = _options(task, "--epochs", "1000")
    loader = dataloader.train_loader(opt, files, _model(task).preprocess())
    return (len(batch.label) for batch in loader.batches(1))


def _timm(task: dict[str, Any], files: FileList) -> Iterator[int]:
    """timm's training, over as many epochs as it takes."""
    from benchmarks.train_baselines import timm_training
    from options.choices import MODELS

    paths = [files.path(k) for k in range(len(files))]
    work = Work(paths, files.label.tolist(), task["scale"], task["batch"], task["workers"], full=False, epochs=1000)
    arch = MODELS[task["model"]][1]
    return timm_training(arch, work, LR, BEST[task["row"]])


class _Enough(Exception):  # noqa: N818  # not an error
    """What was to be timed is over."""


def _loop(task: dict[str, Any]) -> dict[str, float]:
    """train.py's main, until its first epoch is recorded: from the hand-over of batch SKIP to that of the last."""
    handed: list[float] = []
    plain = dataloader.TrainLoader.batches

    def marked(loader: Any, epoch: int, step: int = 0) -> Iterator[Any]:
        for batch in plain(loader, epoch, step):
            if batch.epoch > 1:
                raise _Enough
            handed.append(time.perf_counter())
            yield batch

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        opt = _options(task, "--tag", "bench", "--epochs", "3", "--val_freq", "3")
        with mock.patch.object(dataloader.TrainLoader, "batches", marked), contextlib.suppress(_Enough):
            runpy.run_path(str(bench.ROOT / "train.py"))["main"](opt)
        with open("logs/bench/metrics.csv", newline="") as file:
            first = next(csv.DictReader(file))
    steps = len(handed) - 1 - SKIP
    return {"rate": steps * task["batch"] / (handed[-1] - handed[SKIP]), "data_wait": float(first["data_wait"])}


if __name__ == "__main__":
    sys.exit(main())
