"""An earlier run of the same tag: a new run replaces it only where it is told to."""

import argparse
import csv
import re
from pathlib import Path

from options import command
from utils.errors import UserError
from utils.logger import log

WRITTEN = re.compile(r"(\d+_.+|last|best)\.pt")
DERIVED = (".norm.pt", ".prior.pt")  # of tools.long_tail
RECORDS = ("metrics.csv", "curves.png", "confusion.png", "first_batch.png", "bad_images.csv")


def check_earlier(opt: argparse.Namespace, folder: Path, logs: Path) -> None:
    """Raise UserError where a run that begins under this tag would replace what an earlier one left, without being told to.

    Also where it would replace the checkpoint that it is to start from, or its teacher: --overwrite does not cover that.

    Args:
        folder, logs: the tag's checkpoints and logs.
    """
    checkpoints, epochs = _checkpoints(folder), _epochs(logs)
    if not checkpoints and not epochs:
        return
    inside = [
        name
        for name in ("load", "teacher")
        if vars(opt).get(name) and Path(getattr(opt, name)).resolve().parent == folder.resolve()
    ]
    if opt.resume and (not opt.load or "load" in inside):
        return
    if inside and checkpoints:
        flag = inside[0]
        raise UserError(
            f"--{flag} {getattr(opt, flag)} is of tag {opt.tag!r} itself, and the new run would replace it.\n"
            f"Try: another --tag" + (", or --resume to continue the run." if flag == "load" else ".")
        )
    if opt.overwrite:
        return
    names = ", ".join(path.name for path in checkpoints[:6]) + (
        f" and {len(checkpoints) - 6} more" if len(checkpoints) > 6 else ""
    )
    there = [f"{folder}/ holds {names}"] * bool(checkpoints) + [f"{logs}/metrics.csv has {epochs} epoch(s)"] * bool(
        epochs
    )
    clear = command("clear", {name: getattr(opt, name) for name in ("tag", "checkpoint_dir", "log_dir")})
    raise UserError(
        f"There is a run of tag {opt.tag!r} already, which this one would replace: {'; '.join(there)}.\n"
        "Give --resume to continue it, --overwrite to delete it, or another --tag. "
        f"To put it into the trash, try: {clear}"
    )


def remove_earlier(folder: Path, logs: Path) -> None:
    """Delete the checkpoints and tables that an earlier run left, and log how many. log.txt and TensorBoard's files are added to."""
    checkpoints = _checkpoints(folder)
    records = [logs / name for name in RECORDS if (logs / name).exists()]
    for path in [*checkpoints, *records]:
        path.unlink(missing_ok=True)
    if checkpoints or records:
        log.warning(
            f"--overwrite: deleted {len(checkpoints)} checkpoints of the earlier run in {folder}/, {len(records)} files in {logs}/."
        )


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that a run wrote itself, by name."""
    found = folder.glob("*.pt") if folder.is_dir() else ()
    return sorted(path for path in found if WRITTEN.fullmatch(path.name) and not path.name.endswith(DERIVED))


def _epochs(logs: Path) -> int:
    """How many epochs metrics.csv of `logs` has; 0 without one."""
    try:
        with open(logs / "metrics.csv", newline="", encoding="utf-8", errors="replace") as file:
            return max(0, sum(1 for _ in csv.reader(file)) - 1)
    except OSError:
        return 0
