"""Kill tools.folds at random moments, run it again until it is complete, and compare its bits with an undisturbed run.

    python -m benchmarks.crash_folds --kills 10 --data_root datasets/fashion-mnist

Each kill is a SIGKILL: of the tool alone, whose training then saves its state, or of the tool and its training. A run
is killed until it has had all kills or is complete; then the next run begins. In the end oof.npz of each run must equal
that of the undisturbed one byte for byte. Writes crash_folds.json; exit code 1 if a run differs.
"""

import argparse
import collections
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import project_environment
from options.parser import ToolParser, expanded
from utils.errors import UserError
from utils.files import write_json
from utils.logger import log
from utils.run import run_tool

RUN = (
    "--model timm:test_resnet --no-pretrained --preset original --scale 32 -b 12 -w 0 --gpu -1 --lr 0.01 "
    "--optimizer sgd --precision fp32 --epochs 3 --save_minutes 0"
)
TAG, OUTPUT = "folds", "output.log"
EARLIEST = 0.125  # of the latest moment at which a start is killed
# What the log of a run says last: the first that matches tells where the kill was.
MOMENTS = {
    "in a training": r"Fold \d+ of \d+: (training|resuming)",
    "in predictions or reports": r"is trained already|batch norms folded|probabilities of|is predicted already",
}
START = "at the start"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, kill, compare; return the exit code."""
    parser = ToolParser("-m benchmarks.crash_folds", __doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--data_root", type=expanded, required=True, help="a folder with train.txt")
    parser.add_argument(
        "--out", type=expanded, default="results/crash_folds", help="folder for the runs and crash_folds.json"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--latest",
        type=float,
        default=0.4,
        metavar="SHARE",
        help="of the undisturbed time: a start is killed by then",
    )
    parser.add_argument("--train", default=RUN, help="the flags of train.py")
    return run_tool(lambda: parser.parse_args(argv), compare_runs)


def compare_runs(opt: argparse.Namespace) -> int:
    """Kill runs, and compare them with an undisturbed one; return 1 if one differs, else 0."""
    out = Path(opt.out).resolve()
    words = ["--folds", str(opt.folds), "--", "--tag", TAG, *opt.train.split()]
    words += ["--data_root", str(Path(opt.data_root).resolve())]
    rng = np.random.default_rng(opt.seed)
    began = time.monotonic()
    _finish(_fresh(out / "whole"), words)
    length = time.monotonic() - began
    whole = (out / "whole" / "results" / TAG / "oof.npz").read_bytes()
    kills, results = 0, list[dict[str, Any]]()
    while kills < opt.kills:
        folder = _fresh(out / f"run{len(results)}")
        found = _disturb(folder, words, opt.latest * length, opt.kills - kills, rng)
        if not found:
            length *= 0.7  # it ended before its first kill: the machine is faster now
            continue
        equal = (folder / "results" / TAG / "oof.npz").read_bytes() == whole
        kills += len(found)
        results.append({"kills": found, "equal": equal})
        write_json(out / "crash_folds.json", {"settings": vars(opt), "seconds": length, "results": results})
        judged = "equals" if equal else "DIFFERS from"
        log.info(f"run {len(results)}: killed {len(found)} times, oof.npz {judged} that of the undisturbed run")
    moments = collections.Counter(moment for result in results for moment in result["kills"])
    words_of = ", ".join(f"{moment} {times}" for moment, times in moments.most_common())
    good = sum(bool(result["equal"]) for result in results)
    log.info(f"{good} of {len(results)} runs equal the undisturbed one; {kills} kills: {words_of}")
    return 0 if good == len(results) else 1


def _fresh(folder: Path) -> Path:
    """Return the folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _start(folder: Path, words: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start tools.folds in `folder`; its output is added to output.log."""
    line = [sys.executable, "-m", "tools.folds", *words]
    with open(folder / OUTPUT, "ab") as file:
        return subprocess.Popen(
            line, cwd=folder, env=project_environment(), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def _finish(folder: Path, words: Sequence[str]) -> None:
    """Run tools.folds to its end. Raises UserError if it fails."""
    code = _start(folder, words).wait()
    if code:
        shown = (folder / OUTPUT).read_text(encoding="utf-8", errors="replace")[-2000:]
        raise UserError(f"tools.folds ended with exit code {code} in {folder}:\n{shown}")


def _disturb(folder: Path, words: Sequence[str], latest: float, most: int, rng: np.random.Generator) -> list[str]:
    """Kill runs in `folder` at random moments, at most `most` times, then run to the end; return where they were.

    `latest`: seconds after its start by which a run is killed, unless it ends before.
    """
    kills: list[str] = []
    while len(kills) < most:
        process = _start(folder, words)
        try:
            process.wait(rng.uniform(EARLIEST, 1) * latest)
        except subprocess.TimeoutExpired:
            hard = rng.random() < 0.5
            if hard:  # its training too
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
            kills.append(_moment(folder) + (", with its training" if hard else ""))
            log.info(f"kill {len(kills)}: {kills[-1]}")
        else:
            break
    _finish(folder, words)
    return kills


def _moment(folder: Path) -> str:
    """Return where a killed run was, by its output since its start."""
    text = (folder / OUTPUT).read_text(encoding="utf-8", errors="replace")
    (folder / OUTPUT).unlink()
    places = {moment: [found.start() for found in re.finditer(pattern, text)] for moment, pattern in MOMENTS.items()}
    last = {moment: max(starts) for moment, starts in places.items() if starts}
    return max(last, key=lambda moment: last[moment]) if last else START


if __name__ == "__main__":
    sys.exit(main())
