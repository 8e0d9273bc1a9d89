"""Measure how fast eval.py predicts, against timm used as a library, and against what the machine can do at most.

    python -m benchmarks.eval                      # on photographs cut from pictures on this machine
    python -m benchmarks.eval --list train.txt --cases EfficientNet-Lite0:64 ResNet50:224 --rounds 5

Each row runs in its own process, several rounds, alternately (A B C A B C …). The time is that of one pass over the
list, from the request for the first batch to the last score. It includes the start of the workers, but not building
the network and two forward passes to warm up. The files are in the page cache. "forward" and "loader" are our two
parts, each alone; "cached" rows read from --cache ram, which is filled beforehand. timm's rows are its create_model,
create_loader and the loop of its documentation, on the same files, squashed to the same squares; "best" adds
channels_last and bf16. Neither side uses torch.compile: it costs minutes before the first image. Prints medians and
ratios; writes eval.json and eval.png.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness as bench
from dataloader.file_list import FileList, read_list
from utils.errors import UserError
from utils.logger import log

NAME = "eval"
CASES = ("EfficientNet-Lite0:64", "EfficientNet-Lite0:224", "ResNet50:224")
ROWS: dict[str, list[str]] = {  # row -> its flags of eval.py
    "ours fp32": ["--precision", "fp32"],
    "ours bf16": ["--precision", "bf16"],
    "ours bf16, x8": ["--precision", "bf16", "--tta", "x8"],
    "ours bf16, 2 networks": ["--precision", "bf16"],
    "ours fp32, cached": ["--precision", "fp32", "--cache", "ram"],
    "ours bf16, cached": ["--precision", "bf16", "--cache", "ram"],
    "forward fp32": ["--precision", "fp32"],
    "forward bf16": ["--precision", "bf16"],
    "loader, cached": ["--precision", "bf16", "--cache", "ram"],
    "timm fp32": [],
    "timm best": [],
}


def option_parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark."""
    parser = bench.option_parser(NAME, __doc__)
    parser.add_argument("--cases", nargs="+", default=CASES, help="each is MODEL:PX")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), help="measure only these rows")
    parser.add_argument("--batch", type=int, default=64)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and measure; return the exit code."""
    return bench.run(lambda: option_parser().parse_args(argv), measure, compare)


def compare(opt: argparse.Namespace) -> None:
    """Measure all rows of all cases alternately, print tables and conditions, write the JSON and the plot."""
    path = str(bench.photographs(opt))
    rates: dict[str, dict[str, list[float]]] = {case: {row: [] for row in opt.rows} for case in opt.cases}
    with tempfile.TemporaryDirectory() as folder:
        made = {case: random_checkpoint(Path(folder), case, path) for case in opt.cases}
        common = {"list": path, "batch": opt.batch, "workers": opt.workers, "gpu": opt.gpu}
        rows = [
            bench.Row((case, row), {"case": case, "row": row, "load": made[case], **common}, not row.startswith("timm"))
            for case in opt.cases
            for row in opt.rows
        ]
        for (case, row), rate in bench.interleaved(NAME, rows, opt):
            rates[case][row].append(rate)
    report(rates, opt)


def random_checkpoint(folder: Path, case: str, path: str) -> str:
    """Write a checkpoint of the case's network with random weights, and return its path."""
    from network import get_model
    from options import parse_train
    from utils import checkpoint

    name, _, side = case.rpartition(":")
    if not side.isdigit() or not name:
        raise UserError(f"--cases: {case!r}; allowed: MODEL:PX, for example ResNet50:224")
    count = int(read_list(path).label.max()) + 1
    model = get_model(name)(
        parse_train(["--model", name, "--num_classes", str(count), "--no-pretrained", "--scale", side])
    )
    data = {"num_classes": count, "class_names": None, "class_images": None, "preprocess": model.preprocess().as_dict()}
    saved = folder / f"{case.replace(':', '_')}.pt"
    checkpoint.save(saved, {"model": name, "weights": model.net.state_dict(), "data": data})
    return str(saved)


def measure(task: dict[str, Any]) -> float:
    """Return the images per second of one row, over one pass of the list; `task` as `compare` writes it."""
    from utils.run import get_device, tune_malloc

    files = read_list(task["list"])
    bench.into_page_cache(files)
    if task["row"].startswith("timm"):
        from benchmarks.eval_baselines import timm_pass

        run = timm_pass(task, files, get_device(task["gpu"]))
    else:
        tune_malloc()  # as eval.py does
        run = _ours(task, files)
    device = get_device(task["gpu"])
    bench.synchronize(device)
    began = time.perf_counter()
    images = run()
    bench.synchronize(device)
    return images / (time.perf_counter() - began)


def _ours(task: dict[str, Any], files: FileList) -> Callable[[], int]:
    """Return a function that makes the pass and returns its number of images; all that is not timed is done before."""
    from dataloader import eval_loader
    from inference import load_predictor, predict
    from options import parse_eval
    from utils.run import get_device

    row = task["row"]
    load = [task["load"]] * (2 if "2 networks" in row else 1)
    words = ["--load", *load, "-b", str(task["batch"]), "-w", str(task["workers"]), *bench.gpu_words(task)]
    opt = parse_eval([*words, *ROWS[row]])
    predictor = load_predictor(opt, get_device(opt.gpu)).predictor
    loader = eval_loader(opt, files, predictor.preprocesses)
    batches = [next(iter(loader)).images] * 2
    for images in batches:
        predictor(images)
    if "cached" in row:
        for _ in loader:
            pass

    def forward() -> int:
        count = -(-min(len(files), 512) // task["batch"])
        for _ in range(count):
            predictor(batches[0])
        return count * len(batches[0][0])

    if row.startswith("forward"):
        return forward
    if row.startswith("loader"):
        return lambda: sum(len(batch.label) for batch in loader)
    return lambda: len(predict(predictor, loader)[0].index)


def report(rates: dict[str, dict[str, list[float]]], opt: argparse.Namespace) -> None:
    """Print the tables; write eval.json and eval.png."""
    log.info(f"\nbatches of {opt.batch}, {bench.conditions(opt)}")
    medians = {case: bench.medians(rows) for case, rows in rates.items()}
    found: dict[str, dict[str, float]] = {}
    for case, rows in rates.items():
        bench.table(f"{case}, images/s", rows)
        found[case] = ratios(medians[case])
        for name, ratio in found[case].items():
            log.info(f"  {name:42s} {ratio:8.2f}")
    title = f"Images per second in evaluation, {opt.workers} workers (median; whiskers: all rounds)"
    bench.write(NAME, opt, {"rates": rates, "medians": medians, "ratios": found}, (rates, title))


def ratios(rate: dict[str, float]) -> dict[str, float]:
    """Return the ratios of the medians (images per second by row) whose rows were measured."""
    wanted = {
        "ours fp32 / timm fp32": ("ours fp32", "timm fp32"),
        "ours bf16 / timm fp32": ("ours bf16", "timm fp32"),
        "ours bf16 / timm best": ("ours bf16", "timm best"),
        "time of x8 / none": ("ours bf16", "ours bf16, x8"),
        "time of 2 networks / one": ("ours bf16", "ours bf16, 2 networks"),
    }
    found = {name: rate[a] / rate[b] for name, (a, b) in wanted.items() if a in rate and b in rate}
    for precision, name in (("bf16", "cached / (1 / (1/forward + 1/loader))"), ("fp32", "cached / its limit, fp32")):
        cached, forward = f"ours {precision}, cached", f"forward {precision}"
        if {cached, forward, "loader, cached"} <= rate.keys():
            found[name] = rate[cached] * (1 / rate[forward] + 1 / rate["loader, cached"])
    return found


if __name__ == "__main__":
    sys.exit(main())
