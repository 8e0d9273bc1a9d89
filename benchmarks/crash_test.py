"""Kill training runs at random moments, resume them until they are complete, and compare them with an undisturbed run.

    python -m benchmarks.crash_test --runs 30 --data_root datasets/fashion-mnist

Each run is killed by SIGKILL again and again until it is complete: in a step, while saving, in evaluation, between
epochs. Its stack tells where it was. Then its weights, its optimizer state, the scores of its epochs and the points of
its curves must equal those of the undisturbed run bit for bit, with 0, 1 or 3 workers. Writes crash_test.json; exit
code 1 if a run differs.
"""

import argparse
import collections
import importlib.util
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.compare import CLOCKED, leaves, scores
from options.parser import ToolParser, expanded
from utils import checkpoint
from utils.files import write_json
from utils.logger import log, progress
from utils.run import run_tool

ROOT = Path(__file__).resolve().parent.parent
RUN = (
    "--model timm:test_resnet --no-pretrained --preset original "
    "--scale 32 -b 12 --gpu -1 --lr 0.01 --optimizer sgd --precision fp32 "
    "--epochs 4"
)
MAX_STARTS = 60  # of one run; by then it should be complete
# Runs train.py so that SIGUSR2 makes it write the stacks of its threads to a file. The file exists once that works.
WATCHED = """
import faulthandler, os, runpy, signal, sys
stacks, script, sys.argv = sys.argv[1], sys.argv[2], sys.argv[2:]
file = open(stacks + ".begun", "w")
faulthandler.register(signal.SIGUSR2, file)
os.rename(stacks + ".begun", stacks)
sys.path.insert(0, os.path.dirname(script))
runpy.run_path(script, run_name="__main__")
"""
Function = tuple[str, str]  # its file and its name; a test checks that each of these exists
# Where a run was: the first of these functions that is on the stack of its main thread.
MOMENTS: dict[str, Function] = {
    "in evaluation": ("train.py", "validate"),
    "between epochs": ("training/run.py", "end_epoch"),
    "in a step": ("train.py", "train"),
}
OTHER_MOMENT = "at the start or the end"
MAIN: Function = ("utils/run.py", "run_command")  # on the stack of the main thread alone
SAVING: tuple[Function, ...] = (("utils/checkpoint.py", "save"), ("training/checkpoint_writer.py", "_write"))
LAST_FRAME = '"<string>"'  # the main thread's lowest frame, with which the stacks end
SEES_POINTS = importlib.util.find_spec("tensorboard") is not None


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, kill, compare; return the exit code."""
    parser = ToolParser("-m benchmarks.crash_test", __doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--data_root", type=expanded, required=True, help="a folder with train.txt and val.txt")
    parser.add_argument(
        "--out", type=expanded, default="results/crash_test", help="folder for the runs and crash_test.json"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--train", default=RUN, help="the flags of train.py")
    return run_tool(lambda: parser.parse_args(argv), compare_runs)


def compare_runs(opt: argparse.Namespace) -> int:
    """Kill runs, and compare them with an undisturbed one; return 1 if one differs, else 0."""
    if not SEES_POINTS:
        log.warning("The points of TensorBoard are not compared. Try: python -m pip install tensorboard")
    out = Path(opt.out).resolve()
    flags = [*opt.train.split(), "--data_root", str(Path(opt.data_root).resolve()), "--save_minutes", "0"]
    rng = np.random.default_rng(opt.seed)
    began = time.monotonic()
    assert train(out, "whole", [*flags, "-w", "0", "--overwrite"]).wait() == 0, (out / "whole.log").read_text()[-2000:]
    length = time.monotonic() - began
    results = []
    for number in progress(range(opt.runs), "killing"):
        workers, loader = (0, 1, 3)[number % 3], ("thread", "process")[number // 3 % 2]
        kills = disturbed(out, f"run{number}", [*flags, "-w", str(workers), "--loader", loader], length, rng)
        differing = differences(out, "whole", f"run{number}")
        results.append({"run": number, "workers": workers, "loader": loader, "kills": kills, "wrong": differing})
        write_json(out / "crash_test.json", {"settings": vars(opt), "results": results})
        log.info(
            f"run {number}: killed {len(kills)} times, {'DIFFERS from' if differing else 'equals'} the undisturbed one"
        )
    wrong = [result for result in results if result["wrong"]]
    moments = collections.Counter(moment for result in results for moment in result["kills"])
    words = ", ".join(f"{moment} {times}" for moment, times in moments.most_common())
    equal = len(results) - len(wrong)
    log.info(f"{equal} of {len(results)} runs equal the undisturbed one; {moments.total()} kills: {words}")
    for result in wrong:
        log.warning(json.dumps(result))
    return 1 if wrong else 0


def train(out: Path, tag: str, flags: list[str]) -> "subprocess.Popen[bytes]":
    """Start train.py with `flags`; its output is added to <out>/<tag>.log."""
    out.mkdir(parents=True, exist_ok=True)
    stacks = out / f"{tag}.stacks"
    stacks.unlink(missing_ok=True)
    words = [sys.executable, "-c", WATCHED, str(stacks), str(ROOT / "train.py"), "--tag", tag, *flags]
    with open(out / f"{tag}.log", "ab") as file:
        return subprocess.Popen(words, cwd=out, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def kill(process: "subprocess.Popen[bytes]", stacks: Path) -> str:
    """Kill a process of `train`, whose file for stacks is `stacks`; return where it was a moment before."""
    found, until = "", time.monotonic() + 1
    if stacks.exists():
        process.send_signal(signal.SIGUSR2)
        while LAST_FRAME not in found and time.monotonic() < until:
            found = stacks.read_text()
    process.kill()
    process.wait()
    main_thread = next((stack for stack in found.split("\n\n") if on_stack(MAIN, stack)), "")
    moment = next((moment for moment, function in MOMENTS.items() if on_stack(function, main_thread)), OTHER_MOMENT)
    return moment + (", saving" if any(on_stack(function, found) for function in SAVING) else "")


def on_stack(function: Function, stack: str) -> bool:
    """Return whether `function` is on a stack as faulthandler prints it."""
    file, name = function
    return re.search(rf'/{re.escape(file)}", line \d+ in {name}$', stack, re.MULTILINE) is not None


def disturbed(out: Path, tag: str, flags: list[str], length: float, rng: np.random.Generator) -> list[str]:
    """Run to the end, with kills at random moments of its `length` in seconds; return where it was at each kill.

    A run that ended before its first kill (the machine may be faster now) starts again, with earlier moments.
    """
    kills: list[str] = []
    for start in range(MAX_STARTS):
        resume = ["--resume"] if (out / "checkpoints" / tag / "last.pt").exists() else ["--overwrite"]
        process = train(out, tag, flags + resume)
        try:
            code = process.wait(rng.uniform(0.3, 1.0) * length if start < MAX_STARTS - 1 else None)
        except subprocess.TimeoutExpired:
            kills.append(kill(process, out / f"{tag}.stacks"))
            continue
        if code:
            raise RuntimeError(f"{tag} ended with {code}:\n{(out / f'{tag}.log').read_text()[-2000:]}")
        if kills:
            return kills
        length *= 0.7
        for folder in ("checkpoints", "logs"):
            shutil.rmtree(out / folder / tag)
    raise RuntimeError(f"{tag} was started {MAX_STARTS} times, killed {len(kills)} times, and is not done")


def differences(out: Path, whole: str, tag: str) -> list[str]:
    """Return what differs between two runs: values of each checkpoint, metrics.csv, steps.csv, TensorBoard's points."""
    wrong = []
    names = {path.name for path in (out / "checkpoints" / whole).iterdir()}
    if names != {path.name for path in (out / "checkpoints" / tag).iterdir()}:
        wrong.append("the checkpoints' names")
    for name in sorted(names):
        one, other = (dict(leaves(checkpoint.load(out / "checkpoints" / run / name))) for run in (whole, tag))
        wrong += [
            f"{name}: {key}"
            for key in one.keys() | other.keys()
            if not same(one.get(key), other.get(key)) and not _may_differ(key)
        ]
    logs = out / "logs"
    steps = [(logs / run / "steps.csv").read_bytes() for run in (whole, tag)]
    wrong += ["steps.csv"] if steps[0] != steps[1] else []
    wrong += ["metrics.csv"] if scores(logs / whole / "metrics.csv") != scores(logs / tag / "metrics.csv") else []
    return wrong + (["TensorBoard's points"] if points(logs / whole) != points(logs / tag) else [])


def points(logs: Path) -> list[tuple[str, int, float]] | None:
    """Return (name, step, value) of each point in TensorBoard, without clocked ones; None if it is not installed."""
    if not SEES_POINTS:
        return None
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of runs that were interrupted
    events = EventAccumulator(str(logs), size_guidance={"scalars": 0}).Reload()
    names = [name for name in events.Tags()["scalars"] if not name.endswith(CLOCKED)]
    return [(name, event.step, event.value) for name in names for event in events.Scalars(name)]


def same(one: object, other: object) -> bool:
    """Return whether two leaves are equal, tensors bit for bit."""
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


def _may_differ(key: str) -> bool:
    """Return whether a value may differ between runs: name, workers, paths of lists, what a clock measured."""
    if key.startswith(("/data/lists/", "/data/seen/")):
        return True
    return key in ("/opt/tag", "/opt/workers", "/opt/loader", "/opt/resume", "/opt/load") or key.endswith(CLOCKED)


if __name__ == "__main__":
    sys.exit(main())
