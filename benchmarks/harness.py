"""What the benchmarks share: rows measured alternately, each in its own process; the table, the JSON and the plot.

Alternating rows (A B C A B C …) are fair to all of them on a machine whose speed drifts. A process per row means that
no row meets what another one has left behind.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dataloader.file_list import FileList, read_list
from options.parser import ToolParser, expanded
from tools.train_process import train_process
from utils.cores import usable_cores
from utils.errors import UserError
from utils.files import write_json
from utils.logger import log
from utils.outputs import check_folder
from utils.run import get_device, run_tool, set_openmp_spin

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 44  # of a table's first column, in characters
MAX_ERROR_CHARACTERS = 1500  # of what a row that failed has printed
Values = Mapping[str, Sequence[float]]  # row -> one value per round


class Row(NamedTuple):
    """What to measure. `task` goes to the benchmark's `measure`; `ours`: threads are set as run_command sets them."""

    title: Any
    task: Any
    ours: bool


def option_parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """Return a parser with the flags that all of them take, for `python -m benchmarks.<name>`."""
    parser = ToolParser(f"-m benchmarks.{name}", about)
    parser.add_argument(
        "--list",
        type=expanded,
        help="a list of images with labels; by default photographs are cut by benchmarks.photos",
    )
    parser.add_argument("--count", type=int, default=1500, help="how many photographs to cut")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--gpu", type=int, metavar="N", help="which GPU; -1: the CPU; by default GPU 0, or the CPU if there is none"
    )
    parser.add_argument("--out", type=expanded, default="results/benchmarks", help="folder for the JSON and the plot")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser


def run(
    parse: Callable[[], argparse.Namespace],
    measure: Callable[[Any], Any],
    compare: Callable[[argparse.Namespace], None],
) -> int:
    """Call `compare(parse())`, or with --one `measure(task)` and print its result as JSON; return the exit code."""

    def act(opt: argparse.Namespace) -> None:
        if opt.one:
            print(json.dumps(measure(json.loads(opt.one))))
        elif opt.rounds < 1:
            raise UserError(f"--rounds is {opt.rounds}; allowed: 1 or more.")
        else:
            compare(opt)

    return run_tool(parse, act)


def project_environment() -> dict[str, str]:
    """Return this process's environment, with the project first in PYTHONPATH: for `python -m` in another folder."""
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *([before] if before else [])])}


def run_script(words: Sequence[str], folder: Path, environ: Mapping[str, str] | None = None) -> None:
    """Run a script of the project, such as ["train.py", "--tag", "x"] or ["-m", "tools.folds"], in `folder`.

    Args:
        environ: `project_environment()` by default.

    Raises:
        UserError: it failed; the message has the end of its output.
    """
    command = [sys.executable, *(str(ROOT / word) if word.endswith(".py") else word for word in words)]
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        with train_process(command, output, folder=folder, environment=environ or project_environment()) as process:
            code = process.wait()
        output.seek(0)
        if code:
            raise UserError(f"{shlex.join(command)} failed:\n{output.read()[-MAX_ERROR_CHARACTERS:]}")


def gpu_words(task: Mapping[str, Any]) -> list[str]:
    """Return the --gpu of `task` as words for a script's parser; none by default."""
    return [] if task["gpu"] is None else ["--gpu", str(task["gpu"])]


def synchronize(device: "torch.device") -> None:
    """Wait until `device` has done its work, so that a clock that is read now measures it."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(gpu: int | None) -> str:
    """Return the name of the GPU that --gpu means, or the processor's with its number of cores."""
    import torch

    device = get_device(gpu)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name()} x {usable_cores()}"


def processor_name() -> str:
    """Return the processor's name, as Linux gives it; elsewhere what Python knows."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    known = platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), known)


def photographs(opt: argparse.Namespace) -> Path:
    """Return --list, or a list of `opt.count` photographs, which are cut if no earlier run has cut them."""
    if opt.list:
        names = [f"{what}.{kind}" for what in ("eval", "input", "serve", "train") for kind in ("json", "png")]
        check_folder(Path(opt.out), names, opt, read_list(opt.list))
        return Path(opt.list).resolve()
    from benchmarks.photos import FOLDERS, make_photos

    folder = Path(opt.out).resolve() / "photos"
    path = folder / "train.txt"
    if path.is_file() and len(read_list(path)) == opt.count:
        return path
    return make_photos(folder, opt.count, list(FOLDERS))


def into_page_cache(files: FileList) -> None:
    """Read each file of the list once, so that no row waits for the disk."""
    for index in range(len(files)):
        Path(files.path(index)).read_bytes()


def one(name: str, row: Row) -> Any:
    """Measure `row` by `python -m benchmarks.<name> --one`; return what it measured.

    Raises:
        UserError: it failed; the message holds the end of its output.
    """
    words = [sys.executable, "-m", f"benchmarks.{name}", "--one", json.dumps(row.task)]
    environ = dict(os.environ)
    if row.ours:
        set_openmp_spin(environ)
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environ)
    if done.returncode:
        raise UserError(f"{row.title} did not run:\n{done.stderr[-MAX_ERROR_CHARACTERS:]}")
    return json.loads(done.stdout.splitlines()[-1])


def interleaved(name: str, rows: Sequence[Row], opt: argparse.Namespace) -> Iterator[tuple[Any, Any]]:
    """Measure each of `rows` in turn, opt.rounds times; yield (title, what was measured).

    Each result is printed, and kept in <name>.rows.json at once, so that an interrupted benchmark loses none. `write`
    deletes that file, for its own holds them all.
    """
    kept: list[dict[str, Any]] = []
    turns, began = [row for _ in range(opt.rounds) for row in rows], time.monotonic()
    for number, row in enumerate(turns, 1):
        found = one(name, row)
        kept.append({"round": (number - 1) // len(rows) + 1, "row": row.title, "measured": found})
        write_json(_rows_file(name, opt), {"settings": _settings(opt), "of": len(turns), "rows": kept})
        title = row.title if isinstance(row.title, str) else " ".join(row.title)
        rate = found["rate"] if isinstance(found, dict) else found
        left = (time.monotonic() - began) / number * (len(turns) - number) / 60
        log.info(f"{number}/{len(turns)}  {title:{WIDTH}s} {rate:8.0f}   {left:.0f} min left")
        yield row.title, found


def _rows_file(name: str, opt: argparse.Namespace) -> Path:
    return Path(opt.out) / f"{name}.rows.json"


def _settings(opt: argparse.Namespace) -> dict[str, Any]:
    return {key: value for key, value in vars(opt).items() if key != "one"}


def conditions(opt: argparse.Namespace) -> str:
    """Return on what, and how often, it was measured: for the line above a table."""
    return f"{opt.workers} workers, {opt.rounds} rounds, {device_name(opt.gpu)}"


def medians(rates: Values) -> dict[str, float]:
    """Return the median of each row that was measured."""
    return {row: float(np.median(values)) for row, values in rates.items() if values}


def table(title: str, rates: Values, heading: str = "", notes: Mapping[str, str] | None = None) -> None:
    """Log a line per row: median, lowest and highest, and its note, if it has one, under `heading`."""
    log.info(f"\n{title:{WIDTH}s} {'median':>8s} {'lowest':>8s} {'highest':>8s}   {heading}".rstrip())
    for row, median in medians(rates).items():
        values, note = rates[row], (notes or {}).get(row, "")
        log.info(f"{row:{WIDTH}s} {median:8.0f} {min(values):8.0f} {max(values):8.0f}   {note}".rstrip())


def write(name: str, opt: argparse.Namespace, measured: dict[str, Any], bars: tuple[Mapping[str, Values], str]) -> None:
    """Write <name>.json with the settings, and <name>.png with `bars`, (values by row, by panel; title), into --out."""
    from evaluation.report import tool_plots

    out = Path(opt.out)
    about = {"settings": _settings(opt), "cores": usable_cores(), "device": device_name(opt.gpu)}
    write_json(out / f"{name}.json", {**about, **measured})
    _rows_file(name, opt).unlink(missing_ok=True)
    panels = {panel: {row: list(values) for row, values in rows.items() if values} for panel, rows in bars[0].items()}
    panels = {panel: rows for panel, rows in panels.items() if rows}
    if panels:
        tool_plots.bars(out / f"{name}.png", panels, bars[1])
    log.info(f"\nWritten: {out}/{name}.json" + (f", {out}/{name}.png" if panels else ""))
