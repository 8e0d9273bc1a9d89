"""The files of a submission of any task: which ones submit.py writes, what it sets aside for them, their provenance."""

import argparse
import csv
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from evaluation import submission, target_submission
from evaluation.multilabel import short_thresholds
from evaluation.sample_submission import Sample
from evaluation.sample_submission.table import error_handling
from evaluation.scored import Scored, TargetScored
from evaluation.submission import separator
from utils.files import check_regular, file_hash, write_json
from utils.logger import log
from utils.outputs import Output, has_key, is_label_list, is_probabilities

PACKAGES = ("torch", "torchvision", "timm", "numpy", "opencv-python-headless")
NOT_OPTIONS = ("given", "config")


def planned(out: Path, opt: argparse.Namespace, sample: Sample | None = None) -> list[Output]:
    """Return what submit.py is going to write: the submission `out`, and the files beside it."""
    check_regular(out)
    files = [Output(out, "a submission of these flags", lambda path: _is_submission(path, opt, sample))]
    files.append(Output(provenance_file(out), "a submission's provenance", has_key("submission")))
    if opt.pseudo_label is not None:
        files.append(Output(pseudo_labels(out), "a list of pseudo-labels", is_label_list))
    if opt.save_probs:
        files.append(Output(probabilities_file(out), "a file of probabilities", is_probabilities))
    return files


def pseudo_labels(out: Path) -> Path:
    """Return the path of the list of --pseudo_label, beside the submission `out`."""
    return out.with_name(f"{_own_stem(out)}.pseudo.txt")


def probabilities_file(out: Path) -> Path:
    """Return the path of the probabilities of --save_probs, beside the submission `out`.

    Those of submission.csv, the name without --out, are probs.npz.
    """
    return out.with_name("probs.npz" if out.name == "submission.csv" else f"{_own_stem(out)}.probs.npz")


def _own_stem(out: Path) -> str:
    """Return the beginning of the names of the files that belong to `out` alone: a.csv and a.json may differ."""
    return out.stem if out.suffix == ".csv" else out.name


def set_aside(out: Path, opt: argparse.Namespace, hashes: Sequence[str]) -> None:
    """Rename the files of an earlier run that do not belong to the new submission `out`, and log their new names.

    Files of other members are renamed in every format, with their provenance, pseudo-labels and probabilities. Of the
    same members, only pseudo-labels and probabilities that this run does not write again are renamed. A submission
    under a name that --out gave is not renamed but replaced.

    Args:
        hashes: sha256 of each member's file.
    """
    records = _records(out)
    unknown = out.name not in records and out.exists()
    if not opt.out and (unknown or any(_members(record) != sorted(hashes) for record in records.values())):
        submissions = [out.with_name(name) for name in sorted({out.name, *records})]
        found = [*submissions, provenance_file(out)]
        found += [beside(path) for path in submissions for beside in (pseudo_labels, probabilities_file)]
        what = f"The submission in {out.parent}/ belongs to other checkpoints, or to an earlier state of these"
    else:
        asked = records.get(out.name, {}).get("options") or {}
        found = [pseudo_labels(out)] if opt.pseudo_label is None and asked.get("pseudo_label") is not None else []
        found += [probabilities_file(out)] if not opt.save_probs and asked.get("save_probs") else []
        what = f"The earlier {out.name} had files that this run does not write"
    read = {os.path.realpath(path) for path in [*opt.load, opt.test_list] if path}
    found = [path for path in found if path.is_file() and os.path.realpath(path) not in read]
    if not found:
        return
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(max(path.stat().st_mtime for path in found)))
    while any(os.path.lexists(_stamped(path, stamp)) for path in found):
        stamp += "+"
    for path in found:
        path.rename(_stamped(path, stamp))
    log.warning(f"{what}. Renamed: {', '.join(f'{path.name} to {_stamped(path, stamp).name}' for path in found)}.")


def write(out: Path, scored: Scored | TargetScored, opt: argparse.Namespace, sample: Sample | None = None) -> None:
    """Write the submission `out`, in the form of submit.py's flags, or of `sample`, as the module of its task does."""
    if isinstance(scored, TargetScored):
        target_submission.warn_unused(scored, opt)
        target_submission.write(out, scored, opt, sample)
    else:
        submission.warn_unused(opt)
        submission.write(out, scored, opt, sample)


def write_pseudo_labels(out: Path, scored: Scored | TargetScored, min_probability: float) -> None:
    """Write the list of --pseudo_label beside the submission `out`, as the module of its task does."""
    if isinstance(scored, TargetScored):
        target_submission.write_pseudo_labels(pseudo_labels(out), scored, min_probability)
    else:
        submission.write_pseudo_labels(pseudo_labels(out), scored, min_probability)


def _stamped(path: Path, stamp: str) -> Path:
    first, _, rest = path.name.partition(".")
    return path.with_name(f"{first}.{stamp}.{rest}")


def provenance_file(out: Path) -> Path:
    """Return the path of the provenance of the submission `out`, which files of the same stem share."""
    return out.with_name(f"{out.stem}.provenance.json")


def _records(out: Path) -> dict[str, dict[str, Any]]:
    """Return what the provenance of `out` holds about each file of the same stem, by its name; empty if unreadable."""
    try:
        content = json.loads(provenance_file(out).read_text(encoding="utf-8"))
        others = content.pop("others", {})  # versions before it noted the last file alone
        return {Path(content["submission"]["path"]).name: content, **others}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _members(record: dict[str, Any]) -> list[str] | None:
    """Return the sha256 of each member of a submission, sorted; None if its record does not hold them."""
    try:
        return sorted(str(member["sha256"]) for member in record["members"])
    except (KeyError, TypeError):
        return None


def _is_submission(path: Path, opt: argparse.Namespace, sample: Sample | None) -> bool:
    """Return whether the file is the one that its provenance describes, or has the form that the flags ask for."""
    try:
        if _records(path)[path.name]["submission"]["sha256"] == file_hash(path):
            return True
    except (OSError, KeyError, TypeError):
        pass
    try:
        if opt.format == "json":
            rows = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
            return isinstance(rows, list) and all(
                isinstance(row, dict) and set(row) == {"id", "predicted"} for row in rows
            )
        if sample is not None:
            table = sample.table
            with open(path, encoding=table.encoding, errors=error_handling(table.encoding), newline="") as file:
                return next(csv.reader(file, delimiter=table.separator), None) == table.header
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return bool(opt.header) and next(csv.reader(file, delimiter=separator(opt)), None) == list(opt.columns)
    except (OSError, ValueError, csv.Error):
        return False


def write_provenance(
    path: Path, scored: Scored | TargetScored, opt: argparse.Namespace, members: list[dict[str, object]]
) -> None:
    """Write <stem>.provenance.json beside `path`: members, options, list, versions, and the sha256 of each file.

    What it held about files of other names, such as the same submission in another format, stays in its key `others`.

    Args:
        members: path, sha256 and weight of each.
    """
    others = {name: record for name, record in _records(path).items() if name != path.name}
    content = {
        "submission": {"path": str(path), "sha256": file_hash(path), "rows": len(scored.predictions.index)},
        "unreadable": int((~scored.predictions.readable).sum()),
        "members": members,
        **({"threshold": short_thresholds(scored.classes)} if scored.classes.task == "multilabel" else {}),
        "list": {"path": str(scored.files.source), "hash": scored.files.content_hash(), "images": len(scored.files)},
        "command": sys.argv,
        "options": {name: value for name, value in vars(opt).items() if name not in NOT_OPTIONS},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        **({"others": others} if others else {}),
    }
    write_json(provenance_file(path), content)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
