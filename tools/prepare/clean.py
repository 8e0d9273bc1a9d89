"""Apply decisions about the labels of a list: keep, drop or relabel each image.

    python datasets/clean.py datasets/val.txt --decisions label_decisions.csv --out datasets/val_clean.txt

The decisions are a CSV with the columns path, label, action and new_label: the export of report.html, or the
label_issues.csv of an evaluation with its column `action` filled in. Rows without an action change nothing. To clean
a training list, evaluate it: python eval.py --val_list datasets/train.txt (best with a network not trained on it).
"""

import argparse
import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dataloader.file_list import FileList, read_list
from options.parser import ToolParser, expanded
from utils.errors import UserError
from utils.files import atomic_write
from utils.logger import log
from utils.outputs import Output, check, is_list
from utils.run import run_tool
from utils.text import exact, visible

ACTIONS = ("keep", "drop", "relabel")
COLUMNS = ("path", "label", "action", "new_label")


class Decision(NamedTuple):
    """What to do with an image of class `label`; new_label is None unless the action is "relabel"."""

    label: int
    action: str
    new_label: int | None


def main(argv: Sequence[str] | None = None) -> int:
    """Parse `argv` and run; return the exit code: 0 success, 2 a user's mistake."""

    def act(opt: argparse.Namespace) -> None:
        clean(Path(opt.list), Path(opt.decisions), Path(opt.out), opt.force)

    return run_tool(lambda: option_parser().parse_args(argv), act)


def option_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = ToolParser("datasets/clean.py", "Drop or relabel images of a list, as decided in a CSV.")
    parser.add_argument("list", type=expanded, help="the list that was evaluated: image path, space, label per line")
    parser.add_argument(
        "--decisions",
        type=expanded,
        required=True,
        metavar="CSV",
        help="columns path, label, action (keep, drop, relabel), new_label",
    )
    parser.add_argument(
        "--out", type=expanded, required=True, metavar="FILE", help="the new list; the old one is not changed"
    )
    parser.add_argument("--force", action="store_true", help="let --out replace a file of another kind")
    return parser


def clean(source: Path, decisions: Path, out: Path, force: bool = False) -> dict[str, int]:
    """Write the new list, and return the number of decisions by action.

    Raises:
        UserError: the CSV is malformed, an action or a label is unknown, an image is not in the list or has another
            label there, two decisions about it differ, or `out` is an input or (without `force`) a file of another
            kind. Then nothing is written.
    """
    files = read_list(source)
    read = {str(source): "the list itself", str(decisions): "--decisions"}
    check([Output(out, "a list", is_list)], read, [files], force)
    decided = read_decisions(decisions)
    paths = [os.path.abspath(files.path(index)) for index in range(len(files))]
    known = {visible(path): index for index, path in enumerate(paths)}  # as report.html shows and exports a path
    known |= {exact(path): index for index, path in enumerate(paths)}
    missing = [path for path in decided if path not in known]
    if missing:
        raise UserError(
            f"{decisions}: {len(missing)} image(s) are not in {source}, the first: {missing[0]}. "
            "Is this the list that was evaluated?"
        )
    chosen: dict[int, Decision] = {}
    for path, decision in decided.items():
        index = known[path]
        if chosen.setdefault(index, decision) != decision:
            raise UserError(f"{decisions}: there are two decisions about {path}.")
        if files.label[index] != decision.label:
            raise UserError(
                f"{decisions}: {path} has label {decision.label}, "
                f"but {int(files.label[index])} in {files.location(index)}. "
                "The list has changed since the decisions were made; evaluate it again."
            )
    counts = dict.fromkeys(ACTIONS, 0)
    with atomic_write(out, "w") as file:
        for index in range(len(files)):
            label = int(files.label[index])
            decision = chosen.get(index, Decision(label, "", None))
            if decision.action:
                counts[decision.action] += 1
            if decision.action != "drop":
                label = label if decision.new_label is None else decision.new_label
                file.write(f"{_written(files, index, out)} {label}\n")
    changes = f"{counts['drop']} dropped, {counts['relabel']} relabelled, {counts['keep']} kept"
    log.info(f"{out}: {len(files) - counts['drop']} images; {changes}")
    return counts


def read_decisions(path: Path) -> dict[str, Decision]:
    """Return the decisions by absolute path, without rows that have no action.

    Raises:
        UserError: the file cannot be read, a column is missing, or a row is wrong (the message names the line).
    """
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file)
            if not set(COLUMNS) <= set(reader.fieldnames or []):
                raise UserError(f"{path} has the columns {reader.fieldnames}; needed: {', '.join(COLUMNS)}.")
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise UserError(f"The decisions {path} cannot be read: {error.strerror}.") from error
    decided: dict[str, Decision] = {}
    for line, row in rows:
        action = (row["action"] or "").strip().lower()
        if not action:
            continue
        decision = _decision(f"{path}, line {line}", row, action)
        place = os.path.abspath(row["path"])
        if decided.get(place, decision) != decision:
            raise UserError(f"{path}, line {line}: there is another decision about {row['path']} above.")
        decided[place] = decision
    return decided


def _decision(where: str, row: dict[str, str], action: str) -> Decision:
    """Return the decision of a row. Raises UserError, which begins with `where`, if the row is wrong."""
    if action not in ACTIONS:
        raise UserError(f"{where}: the action is {action!r}; allowed: {', '.join(ACTIONS)}, or empty.")
    try:
        label, new_label = int(row["label"]), int(row["new_label"]) if action == "relabel" else None
    except (TypeError, ValueError):
        raise UserError(
            f"{where}: label {row['label']!r}, new_label {row['new_label']!r}; both must be class numbers."
        ) from None
    if new_label is not None and new_label < 0:
        raise UserError(f"{where}: new_label is {new_label}; classes are numbered from 0.")
    return Decision(label, action, new_label)


def _written(files: FileList, index: int, out: Path) -> str:
    """Return the path as the old list has it if both lists are in one folder; else the absolute path."""
    written = files.as_written(index)
    same_folder = out.resolve().parent == files.source.resolve().parent
    return written if same_folder or written.startswith("/") else os.path.abspath(files.path(index))


if __name__ == "__main__":
    sys.exit(main())
