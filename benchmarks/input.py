"""How fast is the input pipeline, beside other people's, on the same files with the same crop and augmentations?

    python -m benchmarks.input                        photographs cut from the machine's own pictures
    python -m benchmarks.input --list train.txt --workers 4 --scale 224

Each pipeline runs in a process of its own, several rounds, in turn (A B C A B C …), so that a machine whose speed
drifts is fair to all; the first batches are not counted. Every pipeline's images end normalised as float32, but for
the two decode-only limits. Prints medians, their spread, and ratios; writes input.json and input.png.
DALI and SPDL take part where they are installed.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks import harness as bench
from benchmarks.input_baselines import JITTER, NEEDS, RIVALS, ZOOM, Work, normalise
from dataloader.file_list import read_list
from utils.errors import UserError
from utils.logger import log

NAME = "input"
SKIP = 4  # batches that are not counted
OURS = {
    "ours": [],
    "ours, processes": ["--loader", "process"],
    "ours, cache jpeg": ["--cache", "ram"],
    "ours, cache raw": ["--cache", "ram", "--cache_format", "raw"],
}
LIMIT = "decode only"


def option_parser() -> argparse.ArgumentParser:
    """The flags of this tool."""
    parser = bench.option_parser(NAME, __doc__)
    parser.add_argument("--scale", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2, help="passes over the list in a round")
    parser.add_argument("--only", nargs="+", help="these pipelines alone")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and measure; returns the exit code."""
    return bench.run(lambda: option_parser().parse_args(argv), measure, compare)


def compare(opt: argparse.Namespace) -> None:
    """Measure all pipelines in turn, print the table, write JSON and plot."""
    path = bench.photographs(opt)
    cases = [
        (name, full)
        for full in (False, True)
        for name in [LIMIT, *OURS, *_present()]
        if not opt.only or name in opt.only
    ]
    cases += [] if opt.only and "ours" not in opt.only else [("ours, default chain", True)]
    work = [str(path), opt.scale, opt.batch, opt.workers, opt.epochs]
    rows = [bench.Row(_title(*case), [*case, *work], case[0] not in RIVALS) for case in cases]
    rates: dict[str, list[float]] = {}
    for title, rate in bench.in_turn(NAME, rows, opt):
        rates.setdefault(title, []).append(rate)
    report(rates, opt)


def measure(task: list[Any]) -> float:
    """Images a second of one pipeline, from its fifth batch to its last; `task` as `compare` writes it."""
    import torch

    name, full, path, scale, batch, workers, epochs = task
    torch.set_num_threads(1)
    files = read_list(path)
    work = Work([files.path(k) for k in range(len(files))], files.label.tolist(), scale, batch, workers, full, epochs)
    source = RIVALS[name](work) if name in RIVALS else _ours(name, path, work)
    began, images = 0.0, 0
    for k, _ in enumerate(source):
        if k == SKIP:
            began, images = time.perf_counter(), 0
        images += batch
    if not began:
        raise UserError(
            f"{len(files)} images give fewer than {SKIP + 2} batches of {batch}; use a longer list or --epochs."
        )
    return images / (time.perf_counter() - began)


def _ours(name: str, path: str, work: Work) -> Iterator[Any]:
    """This project's pipeline, and, as the limit, its decoder alone with the same crops."""
    from dataloader import TrainLoader
    from options import parse_train
    from utils.preprocess import Preprocess
    from utils.run import tune_malloc

    tune_malloc()  # as train.py does
    flags = [
        "--scale",
        str(work.scale),
        "-b",
        str(work.batch),
        "-w",
        str(work.workers),
        "--epochs",
        str(work.epochs),
        "--gpu",
        "-1",
    ]
    flags += ["--transform", "resize" if work.full else "light"]
    if name != "ours, default chain":
        flags += [
            "--zoom",
            str(ZOOM),
            "--vflip",
            "0",
            "--transpose",
            "0",
            "--blur",
            "0",
            "--cutout",
            "0",
            "--jitter",
            "1",
            "--hue",
            "0",
        ]
        flags += [word for kind in ("brightness", "contrast", "saturation") for word in (f"--{kind}", str(JITTER))]
    opt = parse_train(flags + OURS.get(name, []))
    loader = TrainLoader(read_list(path), opt, Preprocess(work.scale, "squash", (0.5,) * 3, (0.5,) * 3))
    if name == LIMIT:
        return _decode_only(loader, work)
    return (normalise(batch.image) for batch in loader.batches(1))


def _decode_only(loader: Any, work: Work) -> Iterator[Any]:
    """Reads and decodes what the crops need, in as many threads, and throws it away."""
    from dataloader.prefetch import prefetch_threaded
    from utils.rng import sample_rng

    geometry = loader.dataset.stages[0][1].geometry

    def need(rng: np.random.Generator, height: int, width: int) -> float:
        return geometry.choose_region(height, width, rng).decode_scale()

    def decode(key: Any) -> int:
        for index in key.indices.tolist():
            loader.dataset.reader.read(index, partial(need, sample_rng(0, key.epoch, index)))
        return len(key.indices)

    return prefetch_threaded(decode, loader.sampler, work.workers, 300)


def report(rates: dict[str, list[float]], opt: argparse.Namespace) -> None:
    """Print the table; write input.json and input.png."""
    medians = bench.medians(rates)
    base = {title: medians.get(_title("ours", title.endswith(_title("", True))), 0.0) for title in rates}
    beside = {title: f"{base[title] / medians[title]:.2f} x" for title in rates if base[title]}
    log.info(f"\n{opt.scale} px, batches of {opt.batch}, {bench.conditions(opt)}")
    bench.table("images/s", rates, "ours is", beside)
    title = f"Images a second from the loader, {opt.workers} workers (median; whiskers: all rounds)"
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

    return [name for name in RIVALS if there(NEEDS[name])]


if __name__ == "__main__":
    sys.exit(main())
