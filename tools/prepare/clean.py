"""Drop or relabel images of a list: as a person decided, or the likeliest label errors, or copies and leaks.

    python datasets/clean.py datasets/val.txt --decisions label_decisions.csv --out datasets/val_clean.txt
    python datasets/clean.py datasets/train.txt --decisions results/lite0/oof/label_issues.csv --top 900 \\
        --doctor results/doctor/doctor.csv --out datasets/train_clean.txt

The decisions are a CSV with the columns path, label, action and new_label: the export of report.html, or the
label_issues.csv of an evaluation with its column `action` filled in. Rows without an action change nothing, but --top N
decides on the N likeliest errors of label_issues.csv. --doctor drops the copies and leaks that tools.doctor found. With
these two flags <out>.decisions.csv records each decision and its reason; corrected, it is a file for --decisions.
In another folder --out gets the classes.txt of the list beside it.

To clean a training list, predict each of its images by a network that has not seen it: python -m tools.folds.
"""

import argparse
import csv
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from dataloader.file_list import FileList, read_class_names, read_list
from options.parser import ToolParser, expanded
from options.wording import count_of
from tools.prepare.clean_copies import Copies, read_copies
from utils import tables
from utils.classes import names_agree
from utils.errors import UserError
from utils.files import atomic_write_all
from utils.logger import log
from utils.outputs import Output, begins_with, check, is_list
from utils.run import run_tool
from utils.text import exact, visible

ACTIONS = ("keep", "drop", "relabel")
COLUMNS = ("path", "label", "action", "new_label")


class Decision(NamedTuple):
    """What to do with an image of class `label`; new_label is None unless the action is "relabel".

    `action` is "" for an image to look at. `reason` is "" for a person's decision.
    """

    label: int
    action: str
    new_label: int | None
    reason: str = ""


class Automatic(NamedTuple):
    """What is decided without a person: the `top` likeliest errors get `action`; `doctor` is a doctor.csv."""

    top: int | None = None
    action: str = "drop"
    doctor: Path | None = None


NOTHING = Automatic()


def main(argv: Sequence[str] | None = None) -> int:
    """Parse `argv` and run; return the exit code: 0 success, 2 a user's mistake."""

    def act(opt: argparse.Namespace) -> None:
        _check_flags(opt)
        decisions, doctor = (None if path is None else Path(path) for path in (opt.decisions, opt.doctor))
        clean(Path(opt.list), decisions, Path(opt.out), opt.force, Automatic(opt.top, opt.action or "drop", doctor))

    return run_tool(lambda: option_parser().parse_args(argv), act)


def option_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = ToolParser("datasets/clean.py", "Drop or relabel images of a list, as decided in a CSV.")
    parser.add_argument("list", type=expanded, help="the list that was evaluated: image path, space, label per line")
    parser.add_argument(
        "--decisions",
        type=expanded,
        metavar="CSV",
        help="columns path, label, action (keep, drop, relabel), new_label",
    )
    parser.add_argument(
        "--top",
        type=int,
        metavar="N",
        help="decide on the N likeliest errors of --decisions, a label_issues.csv; its own actions come first",
    )
    parser.add_argument(
        "--action",
        choices=("drop", "relabel"),
        help="what --top does: drop the image (default), or give it the new_label of its row",
    )
    parser.add_argument(
        "--doctor",
        type=expanded,
        metavar="CSV",
        help="doctor.csv of tools.doctor: drop later copies within the list, and images that another list has too",
    )
    parser.add_argument(
        "--out", type=expanded, required=True, metavar="FILE", help="the new list; the old one is not changed"
    )
    parser.add_argument("--force", action="store_true", help="let --out replace a file of another kind")
    return parser


def _check_flags(opt: argparse.Namespace) -> None:
    """Raise UserError where the flags give nothing to do, or contradict each other."""
    if opt.decisions is None and opt.doctor is None:
        raise UserError("--decisions is needed: which images to drop or relabel? (or --doctor, for copies and leaks)")
    if opt.top is not None and opt.decisions is None:
        raise UserError("--top needs --decisions, the label_issues.csv of an evaluation of this list.")
    if opt.top is not None and opt.top < 1:
        raise UserError(f"--top is {opt.top}; allowed: 1 or more.")
    if opt.action is not None and opt.top is None:
        raise UserError("--action says what --top does; give both, or neither.")


def clean(
    source: Path, decisions: Path | None, out: Path, force: bool = False, automatic: Automatic = NOTHING
) -> dict[str, int]:
    """Write the new list, and return the number of decisions by action.

    The classes.txt beside the old list is written beside `out` too.

    Raises:
        UserError: a CSV is malformed, an action or a label is unknown, an image is not in the list or has another label
            there, two decisions about it differ, `out` is an input, a classes.txt or (without `force`) a file of
            another kind, or the classes.txt beside `out` names other classes.
            Then nothing is written.
    """
    if out.name == "classes.txt":
        raise UserError(
            f"--out is {out}, the file of the class names of its folder; allowed: any other name.\n"
            f"Try: --out {out.with_name('train_clean.txt')}"
        )
    files = read_list(source)
    beside = out.with_name(f"{out.stem}.decisions.csv")
    record = beside if automatic != NOTHING else None
    read = {str(source): "the list itself", str(source.parent / "classes.txt"): "the class names"}
    read |= {str(decisions): "--decisions", str(automatic.doctor): "--doctor"}
    read = {path: what for path, what in read.items() if path != "None"}
    outputs = [Output(out, "a list", is_list)]
    outputs += [Output(record, "a record of decisions", begins_with(*COLUMNS, "reason"))] if record else []
    check(outputs, read, [files], force)
    names = _names_for(source, out)
    chosen = _chosen(decisions, files, automatic) if decisions else {}
    _check_new_labels(chosen, files, source.parent / "classes.txt", out.parent / "classes.txt")
    copies = read_copies(automatic.doctor, files) if automatic.doctor else Copies({}, {})
    for index, reason in copies.drop.items():
        if index not in chosen or chosen[index].reason:  # a person's decision has no reason
            chosen[index] = Decision(int(files.label[index]), "drop", None, reason)
    for index, reason in copies.look.items():
        chosen.setdefault(index, Decision(int(files.label[index]), "", None, reason))
    counts = dict.fromkeys(ACTIONS, 0)
    written = [out, *([record] if record else []), *([out.parent / "classes.txt"] if names else [])]
    with atomic_write_all(written, "w") as opened:
        for index in range(len(files)):
            label = int(files.label[index])
            decision = chosen.get(index, Decision(label, "", None))
            if decision.action:
                counts[decision.action] += 1
            if decision.action != "drop":
                label = label if decision.new_label is None else decision.new_label
                opened[0].write(f"{_written(files, index, out)} {label}\n")
        if record:
            _write_record(opened[1], files, chosen)
        if names:
            opened[-1].writelines(f"{name}\n" for name in names)
    changes = f"{counts['drop']} dropped, {counts['relabel']} relabelled, {counts['keep']} kept"
    left = count_of(len(files) - counts["drop"], "image")
    log.info(f"{out}: {left}; {changes}" + (f"; why: {record}" if record else ""))
    if names:
        log.info(f"{written[-1]}: {len(names)} classes, as beside {source}")
    if not record and beside.is_file() and not (decisions and beside.samefile(decisions)):
        log.warning(
            f"{beside} is of an earlier run: it does not say why this list has changed. Delete it, or rename it."
        )
    open_conflicts = sum(not chosen[index].action for index in copies.look)
    if open_conflicts:
        found = count_of(open_conflicts, "image")
        log.warning(f"{found} with a copy of another label, listed in {record}: decide on them.")
    return counts


def _chosen(decisions: Path, files: FileList, automatic: Automatic) -> dict[int, Decision]:
    """Return the decision about each line of the list, by its index. Raises UserError: see `clean`."""
    decided = read_decisions(decisions, automatic)
    paths = [os.path.abspath(files.path(index)) for index in range(len(files))]
    known = _places(map(visible, paths))  # as report.html shows and exports a path
    known |= _places(map(exact, paths))
    missing = [path for path in decided if path not in known]
    if missing:
        raise UserError(
            f"{decisions}: {len(missing)} image(s) are not in {files.source}, the first: {missing[0]}. "
            "Is this the list that was evaluated?"
        )
    chosen: dict[int, Decision] = {}
    for path, decision in decided.items():
        for index in known[path]:
            if chosen.setdefault(index, decision) != decision:
                raise UserError(f"{decisions}: there are two decisions about {path}. Keep one of them.")
            if files.label[index] == decision.label:
                continue
            if any(files.label[known[path]] == decision.label):
                raise UserError(
                    f"{decisions}: {path} has label {decision.label}, but the list has it with other labels too: "
                    f"{int(files.label[index])} in {files.location(index)}. Take the wrong lines out of the list first."
                )
            raise UserError(
                f"{decisions}: {path} has label {decision.label}, "
                f"but {int(files.label[index])} in {files.location(index)}. "
                "The list has changed since the decisions were made; evaluate it again."
            )
    return chosen


def _check_new_labels(chosen: dict[int, Decision], files: FileList, *names_files: Path) -> None:
    """Raise UserError where a new label is beyond the classes that the first of `names_files` that is there names."""
    named = next(((path, names) for path in names_files if (names := read_class_names(path.parent))), None)
    for index, decision in chosen.items():
        if named is not None and decision.new_label is not None and decision.new_label >= len(named[1]):
            raise UserError(
                f"{files.path(index)} gets new_label {decision.new_label}, and {named[0]} names {len(named[1])} "
                f"classes; allowed: 0 to {len(named[1]) - 1}."
            )


def _places(paths: Iterable[str]) -> dict[str, list[int]]:
    """Return at which lines of the list each path is, by their index: an image may be listed twice."""
    places: dict[str, list[int]] = {}
    for index, path in enumerate(paths):
        places.setdefault(path, []).append(index)
    return places


def _write_record(file: IO[str], files: FileList, chosen: dict[int, Decision]) -> None:
    """Write each decision with its reason, in the order of the list."""
    writer = tables.writer(file)
    writer.writerow([*COLUMNS, "reason"])
    for index, decision in sorted(chosen.items()):
        new = "" if decision.new_label is None else decision.new_label
        path = exact(os.path.abspath(files.path(index)))
        writer.writerow([path, decision.label, decision.action, new, decision.reason or "decided by hand"])


def read_decisions(path: Path, automatic: Automatic = NOTHING) -> dict[str, Decision]:
    """Return the decisions by absolute path, without rows that have no action.

    Of rows without an action, the `automatic.top` of lowest quality get one.

    Raises:
        UserError: the file cannot be read, a column is missing, or a row is wrong (the message names the line).
    """
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = tables.dict_reader(file)
            needed = COLUMNS if automatic.top is None else (*COLUMNS, "quality")
            if not set(needed) <= set(reader.fieldnames or []):
                raise UserError(f"{path} has the columns {reader.fieldnames}; needed: {', '.join(needed)}.")
            rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.reader.line_num} is not CSV: {error}.") from error
    except OSError as error:
        raise UserError(f"The decisions {path} cannot be read: {error.strerror}.") from error
    reasons = {} if automatic.top is None else _likeliest(path, rows, automatic.top)
    decided: dict[str, Decision] = {}
    for line, row in rows:
        action = (row["action"] or "").strip().lower()
        reason = "" if action else reasons.get(line, "")
        if not action and not reason:
            continue
        decision = _decision(f"{path}, line {line}", row, action or automatic.action)._replace(reason=reason)
        place = os.path.abspath(row["path"])
        before = decided.get(place)
        if before is None or (before.reason and not decision.reason):  # a person's decision has no reason, and wins
            decided[place] = decision
        elif bool(before.reason) == bool(reason) and before._replace(reason=reason) != decision:
            where = f"{path}, line {line}"
            raise UserError(f"{where}: there is another decision about {row['path']} above. Keep one of them.")
    return decided


def _likeliest(path: Path, rows: list[tuple[int, dict[str, str]]], top: int) -> dict[int, str]:
    """Return the lines of the `top` rows of lowest quality, with the reason for a decision about each."""
    quality: dict[int, float] = {}
    for line, row in rows:
        try:
            quality[line] = float(row["quality"])
        except (TypeError, ValueError):
            raise UserError(f"{path}, line {line}: quality {row['quality']!r} is no number.") from None
    if top > len(rows):
        log.warning(f"--top is {top}; {path} has {count_of(len(rows), 'row')}.")
    lines = sorted(quality, key=quality.__getitem__)[:top]
    return {line: f"likely label error {place} (quality {quality[line]:.6f})" for place, line in enumerate(lines, 1)}


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


def _names_for(source: Path, out: Path) -> list[str]:
    """Return the class names to write beside `out`: those beside the list `source`, unless they are there already.

    Raises:
        UserError: the classes.txt there names other classes.
    """
    names, there = read_class_names(source.parent), read_class_names(out.parent)
    beside = out.parent / "classes.txt"
    if there is None:
        return names or []
    if names is None:
        log.warning(f"{source} has no classes.txt: the labels of {out} get the names in {beside}.")
    elif not names_agree(names, there):
        raise UserError(
            f"{beside} names other classes than {source.parent / 'classes.txt'}: the labels of {out} would get its "
            f"names.\nTry: --out {source.with_name(out.name)}, or another folder"
        )
    return []


def _written(files: FileList, index: int, out: Path) -> str:
    """Return the path as the old list has it if both lists are in one folder; else the absolute path."""
    written = files.as_written(index)
    same_folder = out.resolve().parent == files.source.resolve().parent
    return written if same_folder or written.startswith("/") else os.path.abspath(files.path(index))


if __name__ == "__main__":
    sys.exit(main())
