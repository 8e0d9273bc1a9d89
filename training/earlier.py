"""An earlier run of the same tag: a new run replaces it only where it is told to."""

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from utils.errors import UserError
from utils.logger import log

WRITTEN = re.compile(r"(\d+_.+|last|best)\.pt")
DERIVED = (".norm.pt", ".prior.pt")  # of tools.long_tail
RECORDS = ("metrics.csv", "curves.png", "confusion.png", "first_batch.png", "bad_images.csv")


def check_earlier(
    tag: str, folder: Path, logs: Path, reads: Mapping[str, str], resume: bool, overwrite: bool, clear: str
) -> None:
    """Raise UserError where a run that begins under `tag` would replace an earlier one without being told to.

    Also where it would replace the checkpoint that it starts from, or its teacher: --overwrite does not cover that.

    Args:
        folder, logs: the tag's checkpoints and logs.
        reads: the paths of --load and --teacher, by the name of the flag; "" without.
        clear: the command that puts the earlier run into the trash.
    """
    checkpoints, epochs = _checkpoints(folder), _epochs(logs)
    if not checkpoints and not epochs:
        return
    inside = [name for name, path in reads.items() if path and Path(path).resolve().parent == folder.resolve()]
    if resume and (not reads["load"] or "load" in inside):
        return
    if inside and checkpoints:
        flag = inside[0]
        raise UserError(
            f"--{flag} {reads[flag]} is of tag {tag!r} itself, and the new run would replace it.\n"
            f"Try: another --tag" + (", or --resume to continue the run." if flag == "load" else ".")
        )
    if overwrite:
        return
    names = ", ".join(path.name for path in checkpoints[:6]) + (
        f" and {len(checkpoints) - 6} more" if len(checkpoints) > 6 else ""
    )
    there = [f"{folder}/ holds {names}"] * bool(checkpoints) + [f"{logs}/metrics.csv has {epochs} epoch(s)"] * bool(
        epochs
    )
    raise UserError(
        f"There is a run of tag {tag!r} already, which this one would replace: {'; '.join(there)}.\n"
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
