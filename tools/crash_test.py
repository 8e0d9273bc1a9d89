"""Kill training runs at random moments, go on until they are done, and compare them with one that nobody disturbed.

    python -m tools.crash_test --runs 30 --data_root datasets/fashion-mnist

Each run is killed by SIGKILL (in a step, while saving, in evaluation, between epochs, wherever it is) until it is
complete; then its weights, optimizer state and the scores of its epochs must be bit for bit those of the undisturbed
run, with 0, 1 or 3 workers. Writes crash_test.json; exit code 1 where one differs.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils import checkpoint
from utils.files import write_json
from utils.logger import log, progress, start_logging

ROOT = Path(__file__).resolve().parent.parent
TIMED = ("images_per_second", "data_wait")
RUN = "--model timm:test_resnet --no-pretrained --scale 32 -b 12 --gpu -1 --lr 0.01 --optimizer sgd --precision fp32 --epochs 4"
MOST_STARTS = 60  # of one run; by then it should have got somewhere


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, kill, compare; returns the exit code."""
    parser = argparse.ArgumentParser(prog="-m tools.crash_test", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--data_root", required=True, help="a folder with train.txt and val.txt")
    parser.add_argument("--out", default="results/crash_test", help="where the runs and crash_test.json go")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--train", default=RUN, help="the flags of train.py")
    opt = parser.parse_args(argv)
    start_logging()
    out = Path(opt.out).resolve()
    flags = [*opt.train.split(), "--data_root", str(Path(opt.data_root).resolve()), "--save_minutes", "0"]
    rng = np.random.default_rng(opt.seed)
    began = time.monotonic()
    assert train(out, "whole", [*flags, "-w", "0"]).wait() == 0, (out / "whole.log").read_text()[-2000:]
    length = time.monotonic() - began
    results = []
    for number in progress(range(opt.runs), "killing"):
        workers, loader = (0, 1, 3)[number % 3], ("thread", "process")[number // 3 % 2]
        kills = disturbed(out, f"run{number}", [*flags, "-w", str(workers), "--loader", loader], length, rng)
        results.append(
            {"run": number, "workers": workers, "loader": loader, "kills": kills, "wrong": differences(out, "whole", f"run{number}")}
        )
    wrong = [result for result in results if result["wrong"]]
    write_json(out / "crash_test.json", {"settings": vars(opt), "results": results})
    kills = sum(result["kills"] for result in results)
    log.info(f"{len(results) - len(wrong)} of {len(results)} runs, killed {kills} times, ended as the undisturbed one")
    for result in wrong:
        log.warning(json.dumps(result))
    return 1 if wrong else 0


def train(out: Path, tag: str, flags: list[str]) -> "subprocess.Popen[bytes]":
    """Start train.py with `flags`; what it says is added to <out>/<tag>.log."""
    out.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, str(ROOT / "train.py"), "--tag", tag, *flags]
    with open(out / f"{tag}.log", "ab") as file:
        return subprocess.Popen(words, cwd=out, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def disturbed(out: Path, tag: str, flags: list[str], length: float, rng: np.random.Generator) -> int:
    """Run to the end, killing at random moments of the `length` seconds that it takes; returns how often it was killed.

    One that ended before its first kill (the machine is quicker now) begins anew, with earlier moments.
    """
    kills = 0
    for start in range(MOST_STARTS):
        resume = ["--resume"] if (out / "checkpoints" / tag / "last.pt").exists() else []
        process = train(out, tag, flags + resume)
        try:
            code = process.wait(rng.uniform(0.3, 1.0) * length if start < MOST_STARTS - 1 else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            continue
        if code:
            raise RuntimeError(f"{tag} ended with {code}:\n{(out / f'{tag}.log').read_text()[-2000:]}")
        if kills:
            return kills
        length *= 0.7
        for folder in ("checkpoints", "logs"):
            shutil.rmtree(out / folder / tag)
    raise RuntimeError(f"{tag} was started {MOST_STARTS} times, killed {kills} times, and is not done")


def differences(out: Path, whole: str, tag: str) -> list[str]:
    """What of `tag` is not as in `whole`: tensors and plain values of each checkpoint, rows of metrics.csv."""
    wrong = []
    names = {path.name for path in (out / "checkpoints" / whole).iterdir()}
    if names != {path.name for path in (out / "checkpoints" / tag).iterdir()}:
        wrong.append("the checkpoints' names")
    for name in sorted(names):
        one, other = (dict(leaves(checkpoint.load(out / "checkpoints" / run / name))) for run in (whole, tag))
        wrong += [f"{name}: {key}" for key in one.keys() | other.keys() if not same(one.get(key), other.get(key)) and not _own(key)]
    rows = []
    for run in (whole, tag):
        with open(out / "logs" / run / "metrics.csv") as file:
            rows.append([{key: value for key, value in row.items() if key not in TIMED} for row in csv.DictReader(file)])
    return wrong + (["metrics.csv"] if rows[0] != rows[1] else [])


def leaves(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) for each value in nested dicts and lists."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list | tuple) else None
    if items is None:
        yield path, content
        return
    for key, value in items:
        yield from leaves(value, f"{path}/{key}")


def same(one: Any, other: Any) -> bool:
    """Whether two leaves are equal, tensors bit for bit."""
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


def _own(key: str) -> bool:
    """Whether a value is a run's own: its name, its workers, what a clock measured."""
    return key in ("/opt/tag", "/opt/workers", "/opt/loader", "/opt/resume", "/opt/load") or key.endswith(TIMED)


if __name__ == "__main__":
    sys.exit(main())
