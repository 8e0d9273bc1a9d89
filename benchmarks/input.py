"""Measure how fast the input pipeline is, against those of other projects, with the same files and augmentations.

    python -m benchmarks.input                        # on photographs cut from pictures on this machine
    python -m benchmarks.input --list train.txt --workers 4 --scale 224

Each pipeline runs in its own process, several rounds, alternately (A B C A B C …), so that a machine whose speed
drifts is fair to all of them; the first batches are not counted. Every pipeline ends with normalised float32 images on
the device, except for the two decode-only limits. Prints medians, their spread, and ratios; writes input.json and
input.png. DALI and SPDL take part if they are installed.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import harness as bench
from benchmarks.input_baselines import BASELINES, JITTER, NEEDS, ZOOM, PipelineTask, normalise
from dataloader.file_list import read_list
from utils.errors import UserError
from utils.logger import log

if TYPE_CHECKING:
    from dataloader import TrainLoader
    from dataloader.sampler import BatchIndices

NAME = "input"
WARM_UP_BATCHES = 4  # not counted
OURS: dict[str, list[str]] = {  # pipeline -> its flags of train.py
    "ours": ["--loader", "thread"],
    "ours, processes": ["--loader", "process"],
    "ours, cache jpeg": ["--cache", "ram"],
    "ours, cache raw": ["--cache", "ram", "--cache_format", "raw"],
}
LIMIT = "decode only"


def option_parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark."""
    parser = bench.option_parser(NAME, __doc__)
    parser.add_argument("--scale", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2, help="passes over the list per round")
    parser.add_argument("--only", nargs="+", help="measure only these pipelines")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and measure; return the exit code."""
    return bench.run(lambda: option_parser().parse_args(argv), measure, compare)


def compare(opt: argparse.Namespace) -> None:
    """Measure all pipelines alternately, print the table, write the JSON and the plot."""
    path = bench.photographs(opt)
    cases = [
        (name, full)
        for full in (False, True)
        for name in [LIMIT, *OURS, *_present()]
        if not opt.only or name in opt.only
    ]
    cases += [] if opt.only and "ours" not in opt.only else [("ours, default chain", True)]
    common = [str(path), opt.scale, opt.batch, opt.workers, opt.epochs, opt.gpu]
    rows = [bench.Row(_title(*case), [*case, *common], case[0] not in BASELINES) for case in cases]
    rates: dict[str, list[float]] = {}
    for title, rate in bench.interleaved(NAME, rows, opt):
        rates.setdefault(title, []).append(rate)
    report(rates, opt)


def measure(task: list[Any]) -> float:
    """Return the images per second of one pipeline after its warm-up; `task` is as `compare` writes it."""
    import torch

    from utils.run import get_device

    name, full, path, scale, batch, workers, epochs, gpu = task
    device = get_device(gpu)
    torch.set_num_threads(1)
    files = read_list(path)
    paths, labels = [files.path(k) for k in range(len(files))], files.label.tolist()
    wanted = PipelineTask(paths, labels, scale, batch, workers, full, epochs, device)
    source = BASELINES[name](wanted) if name in BASELINES else _ours(name, path, wanted)
    began, images = 0.0, 0
    for k, _ in enumerate(source):
        if k == WARM_UP_BATCHES:
            bench.synchronize(device)
            began, images = time.perf_counter(), 0
        images += batch
    if not began:
        raise UserError(
            f"{len(files)} images give fewer than {WARM_UP_BATCHES + 2} batches of {batch}. "
            "Give a longer list or more --epochs."
        )
    bench.synchronize(device)
    return images / (time.perf_counter() - began)


def _ours(name: str, path: str, task: PipelineTask) -> Iterator[object]:
    """Return the batches of this project's pipeline, or of its decoder alone with the same crops, as the limit."""
    from dataloader import TrainLoader
    from options import parse_train
    from utils.preprocess import Preprocess
    from utils.run import tune_malloc

    tune_malloc()  # as train.py does
    flags = f"--scale {task.scale} -b {task.batch} -w {task.workers} --epochs {task.epochs}"
    flags += f" --transform {'resize' if task.full else 'light'}"
    if name != "ours, default chain":  # as the others: crop and flip, and with `full` colour jitter
        flags += f" --zoom {ZOOM} --vflip 0 --transpose 0 --blur 0 --cutout 0 --jitter 1 --hue 0"
        flags += f" --brightness {JITTER} --contrast {JITTER} --saturation {JITTER}"
    opt = parse_train([*flags.split(), *OURS.get(name, [])])
    loader = TrainLoader(read_list(path), opt, Preprocess(task.scale, "squash", (0.5,) * 3, (0.5,) * 3))
    if name == LIMIT:
        return _decode_only(loader, task)
    return (normalise(batch.image, task.device) for batch in loader.batches(1))


def _decode_only(loader: "TrainLoader", task: PipelineTask) -> Iterator[object]:
    """Read and decode what the crops need, in as many threads, and drop it."""
    from dataloader.prefetch import prefetch_threaded
    from utils.rng import sample_rng

    geometry = loader.dataset.stages[0][1].geometry

    def need(rng: np.random.Generator, height: int, width: int) -> float:
        return geometry.choose_region(height, width, rng).decode_scale()

    def decode(key: "BatchIndices") -> int:
        for index in key.indices.tolist():
            loader.dataset.reader.read(index, partial(need, sample_rng(0, key.epoch, index)))
        return len(key.indices)

    return prefetch_threaded(decode, loader.sampler, task.workers, 300)


def report(rates: dict[str, list[float]], opt: argparse.Namespace) -> None:
    """Print the table; write input.json and input.png."""
    medians = bench.medians(rates)
    base = {title: medians.get(_title("ours", title.endswith(_title("", True))), 0.0) for title in rates}
    notes = {title: f"{base[title] / medians[title]:.2f} x" for title in rates if base[title]}
    log.info(f"\n{opt.scale} px, batches of {opt.batch}, {bench.conditions(opt)}")
    bench.table("images/s", rates, "ours is", notes)
    title = f"Images per second from the loader, {opt.workers} workers (median; whiskers: all rounds)"
    bench.write(NAME, opt, {"rates": rates, "medians": medians}, ({f"{opt.scale} px": rates}, title))


def _title(name: str, full: bool) -> str:
    if name == "ours, default chain":
        return name
    return f"{name} · crop, flip" + (", colour" if full else "")


def _present() -> list[str]:
    def there(module: str) -> bool:
        try:
            return importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            return False

    return [name for name in BASELINES if there(NEEDS[name])]


if __name__ == "__main__":
    sys.exit(main())
