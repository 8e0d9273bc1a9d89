"""What the benchmarks share: rows measured in turn, each in a process of its own; the table, the JSON and the plot.

A machine whose speed drifts is fair to all rows that way (A B C A B C …), and what one leaves behind no other meets.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataloader.file_list import read_list
from options.parser import ToolParser, expanded
from utils.errors import UserError
from utils.files import write_json
from utils.logger import log
from utils.outputs import check_folder
from utils.run import run_tool, set_openmp_spin

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 44  # of a table's first column
Values = Mapping[str, Sequence[float]]  # of each row, one a round


class Row(NamedTuple):
    """What is to be measured: `task` is what the tool's `measure` is given. `ours`: with the threads as run_command sets them."""

    title: Any
    task: Any
    ours: bool


def option_parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """The flags that all of them take; `name` is the tool's, as in `python -m benchmarks.<name>`."""
    parser = ToolParser(f"-m benchmarks.{name}", about)
    parser.add_argument(
        "--list",
        type=expanded,
        help="a list of images with labels; by default photographs are cut by benchmarks.photos",
    )
    parser.add_argument("--count", type=int, default=1500, help="how many photographs to cut")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=expanded, default="results/benchmarks", help="folder for the JSON and the plot")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser


def run(
    parse: Callable[[], argparse.Namespace],
    measure: Callable[[Any], Any],
    compare: Callable[[argparse.Namespace], None],
) -> int:
    """`compare(parse())`, or with --one `measure(task)`, whose result is printed as JSON; returns the exit code."""

    def act(opt: argparse.Namespace) -> None:
        if opt.one:
            print(json.dumps(measure(json.loads(opt.one))))
        elif opt.rounds < 1:
            raise UserError(f"--rounds is {opt.rounds}; allowed: 1 or more.")
        else:
            compare(opt)

    return run_tool(parse, act)


def photographs(opt: argparse.Namespace) -> Path:
    """--list, or a list of `opt.count` photographs, cut where they are not there from an earlier run."""
    if opt.list:
        names = [f"{what}.{kind}" for what in ("eval", "input", "train") for kind in ("json", "png")]
        check_folder(Path(opt.out), names, opt, read_list(opt.list))
        return Path(opt.list).resolve()
    from benchmarks.photos import FOLDERS, make_photos

    folder = Path(opt.out).resolve() / "photos"
    path = folder / "train.txt"
    if path.is_file() and len(read_list(path)) == opt.count:
        return path
    return make_photos(folder, opt.count, list(FOLDERS))


def into_page_cache(files: Any) -> None:
    """Read each file of a FileList once, so that no row waits for the disk."""
    for index in range(len(files)):
        Path(files.path(index)).read_bytes()


def one(name: str, row: Row) -> Any:
    """What `python -m benchmarks.<name> --one` measures for `row`.

    Raises:
        UserError: it failed; with the end of what it said.
    """
    words = [sys.executable, "-m", f"benchmarks.{name}", "--one", json.dumps(row.task)]
    environ = dict(os.environ)
    if row.ours:
        set_openmp_spin(environ)
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environ)
    if done.returncode:
        raise UserError(f"{row.title} did not run:\n{done.stderr[-1500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def in_turn(name: str, rows: Sequence[Row], opt: argparse.Namespace) -> Iterator[tuple[Any, Any]]:
    """Yield (title, what was measured) of each of `rows`, over and over.

    Each is printed and kept in <name>.rows.json as it comes, so that a benchmark that is ended has lost none; `write` deletes
    the file, for its own holds them all.
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
    """On what, and how often, it was measured: for the line above a table."""
    return (
        f"{opt.workers} workers, {opt.rounds} rounds, {platform.processor() or platform.machine()} x {os.cpu_count()}"
    )


def medians(rates: Values) -> dict[str, float]:
    """The median of each row that was measured."""
    return {row: float(np.median(values)) for row, values in rates.items() if values}


def table(title: str, rates: Values, heading: str = "", beside: Mapping[str, str] | None = None) -> None:
    """A line a row: median, lowest and highest; and, under `heading`, what stands `beside` it."""
    log.info(f"\n{title:{WIDTH}s} {'median':>8s} {'lowest':>8s} {'highest':>8s}   {heading}".rstrip())
    for row, median in medians(rates).items():
        values = rates[row]
        log.info(
            f"{row:{WIDTH}s} {median:8.0f} {min(values):8.0f} {max(values):8.0f}   {(beside or {}).get(row, '')}".rstrip()
        )


def write(name: str, opt: argparse.Namespace, measured: dict[str, Any], bars: tuple[Mapping[str, Values], str]) -> None:
    """Write <name>.json, with the settings, and <name>.png, bars of (values by row, by panel; title), into --out."""
    from evaluation.report import plots

    out = Path(opt.out)
    write_json(out / f"{name}.json", {"settings": _settings(opt), "cores": os.cpu_count(), **measured})
    _rows_file(name, opt).unlink(missing_ok=True)
    panels = {panel: {row: list(values) for row, values in rows.items() if values} for panel, rows in bars[0].items()}
    panels = {panel: rows for panel, rows in panels.items() if rows}
    if panels:
        plots.bars(out / f"{name}.png", panels, bars[1])
    log.info(f"\nWritten: {out}/{name}.json" + (f", {out}/{name}.png" if panels else ""))
