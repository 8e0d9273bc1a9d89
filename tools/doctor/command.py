"""Check lists before training: unreadable images, leaks from train to val and test, duplicates, classes or targets.

    python -m tools.doctor datasets/train.txt datasets/val.txt datasets/test.txt
    python -m tools.doctor train.txt val.txt --task multilabel
    python -m tools.doctor train.txt unknown.txt --unlabelled unknown.txt --out results/doctor --workers 16

Writes doctor.html (with pictures), doctor.csv (one row per finding) and doctor.json into --out. The first list is the
training list. Results per file are kept in --out/doctor.sqlite, so that a second run, or one after an interruption,
reads only what is new. The exit code is 0 without errors, 1 with errors (missing, unreadable or leaked images), and 2
after a mistake of the user.
"""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataloader.classes import report_order
from dataloader.decode import MAX_PIXELS
from dataloader.file_list import FileList, read_list
from dataloader.list_advice import expected
from options.choices import TASKS
from options.parser import ToolParser, expanded
from tools.doctor import page
from tools.doctor import report as doctor_report
from tools.doctor.classes import read_names
from tools.doctor.duplicates import Pairs, contents, exact, near
from tools.doctor.findings import MASKS, Findings
from tools.doctor.report import Report
from tools.doctor.scan import Scan, Store, default_workers, scan
from tools.doctor.targets import check_targets
from utils import run_lock
from utils.errors import UserError
from utils.outputs import check_folder
from utils.run import run_tool

MAX_BITS = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and check; return the exit code."""
    parser = ToolParser("-m tools.doctor", __doc__)
    parser.add_argument("lists", type=expanded, nargs="+", metavar="LIST", help="list files, train.txt first")
    parser.add_argument(
        "--unlabelled",
        type=expanded,
        action="append",
        default=[],
        metavar="FILE",
        help="a list without labels; another one, or one of those above",
    )
    parser.add_argument("--task", choices=TASKS, default="single", help="what a line of a list holds, as for train.py")
    parser.add_argument("--out", type=expanded, default="results/doctor", metavar="DIR", help="folder for the findings")
    parser.add_argument("--workers", type=int, default=default_workers(), help="threads")
    parser.add_argument(
        "--near",
        type=int,
        default=4,
        metavar="BITS",
        help="how many of 64 bits may differ between near copies; -1: exact copies only",
    )
    parser.add_argument("--max_pixels", type=int, default=MAX_PIXELS, metavar="N", help="as in train.py")
    return run_tool(lambda: parser.parse_args(argv), check, again="run the same command again to continue")


def check(opt: argparse.Namespace) -> int:
    """Check the lists of `opt`, log and write the findings; return 1 if there are errors, else 0.

    Raises:
        UserError: --workers, --near or --max_pixels is out of range, or a list cannot be read.
    """
    if opt.workers < 1:
        raise UserError(f"--workers is {opt.workers}; allowed: 1 or more.")
    if not -1 <= opt.near <= MAX_BITS:
        raise UserError(f"--near is {opt.near}; allowed: 0 to {MAX_BITS}, or -1 for exact copies only.")
    if not 1 <= opt.max_pixels <= 2 * MAX_PIXELS:
        raise UserError(f"--max_pixels is {opt.max_pixels}; allowed: 1 to {2 * MAX_PIXELS}.")
    began = time.monotonic()
    lists = open_lists(opt.lists, opt.unlabelled, opt.task)
    names_file, names = read_names(lists)
    folder = Path(opt.out)
    check_folder(folder, ("doctor.sqlite", "doctor.csv", "doctor.html", "doctor.json"), opt, *lists)
    run_lock.acquire(folder)
    store = Store(folder / "doctor.sqlite")
    if opt.task == "ordinal" and names:
        report_order(names, str(names_file))
    try:
        seen = scan(lists, store, opt.workers, opt.max_pixels)
        found = Findings()
        _check_files(found, seen)
        _check_copies(found, seen, store, opt.near)
        balances, about = check_targets(found, seen, opt.task, names_file, names)
        report = Report(seen, found, balances, names, time.monotonic() - began, opt.task, about)
        doctor_report.write_csv(folder / "doctor.csv", report)
        page.write_page(folder / "doctor.html", report, store)
        doctor_report.write_summary(folder / "doctor.json", report)
    finally:
        store.close()
    doctor_report.show(report, folder)
    return 1 if found.errors() else 0


def open_lists(paths: Sequence[str], unlabelled: Sequence[str], task: str = "single") -> list[FileList]:
    """Read the lists, whose lines hold what `task` asks for.

    Those of `unlabelled`, and those named test… without labels at the ends of lines, have no labels.

    Raises:
        UserError: a list does not exist, is no file, occurs twice, holds no image, or has lines without a label.
    """
    bare = {os.path.realpath(path) for path in unlabelled}
    wanted = list(paths)
    wanted += [
        path for path in unlabelled if os.path.realpath(path) not in {os.path.realpath(known) for known in paths}
    ]
    taken: dict[str, str] = {}
    for path in wanted:
        if not os.path.isfile(path):
            what = "is no regular file" if os.path.exists(path) else "does not exist"
            raise UserError(f"The list {path} {what}; expected a text file, {expected(True)}.")
        if os.path.realpath(path) in taken:
            raise UserError(f"{path} and {taken[os.path.realpath(path)]} are the same list. Name each once.")
        taken[os.path.realpath(path)] = path
    return [_open_list(path, os.path.realpath(path) in bare, task) for path in wanted]


def _open_list(path: str, unlabelled: bool, task: str) -> FileList:
    if unlabelled:
        return read_list(path, labelled=False)
    try:
        return read_list(path, task=task)
    except UserError as error:
        if Path(path).name.lower().startswith("test"):
            return read_list(path, labelled=False)
        if "label" in str(error) or "target" in str(error):
            raise UserError(f"{error}\nIf the list has no labels, try: --unlabelled {path}") from error
        raise


def _check_files(found: Findings, seen: Scan) -> None:
    for name, mask in MASKS.items():
        found.add(name, np.flatnonzero(seen.flags & np.uint32(mask)))


def _check_copies(found: Findings, seen: Scan, store: Store, bits: int) -> None:
    groups = contents(seen)
    _add_pairs(found, seen, exact(seen, groups), ("leak", "duplicate", "conflicting_labels"))
    if bits >= 0:
        _add_pairs(found, seen, near(seen, groups, store, bits), ("near_leak", "near_duplicate", "near_conflict"))


def _add_pairs(found: Findings, seen: Scan, pairs: Pairs, names: tuple[str, str, str]) -> None:
    """Add pairs as findings of three `names`: between lists; within a list with one label; with different labels."""
    across = seen.list_of(pairs.later) != seen.list_of(pairs.earlier)
    here, there = seen.label[pairs.later], seen.label[pairs.earlier]
    differ = (here != there) & (here >= 0) & (there >= 0)
    for name, rows in zip(names, (across, ~across & ~differ, differ), strict=True):
        found.add(name, pairs.later[rows], pairs.earlier[rows], pairs.distance[rows])
