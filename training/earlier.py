"""An earlier run of the same tag: a new run replaces it only if it is told to."""

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from options.wording import count_of
from utils.errors import UserError
from utils.logger import log

DERIVED = (".norm.pt", ".prior.pt")  # What tools.long_tail adds to the name of a checkpoint.
WRITTEN = re.compile(r"(\d+_.+|(last|best)(\.norm|\.prior)?)\.pt")
MAX_NAMED = 6  # checkpoints, in a message
RECORDS = ("metrics.csv", "steps.csv", "curves.png", "confusion.png", "first_batch.png", "bad_images.csv")


def check_earlier(
    folder: Path, logs: Path, reads: Mapping[str, str], resume: bool, overwrite: bool, clear: str
) -> None:
    """Raise UserError if a new run would replace an earlier one without --overwrite.

    Raise it too if the run would replace the checkpoint that it starts from or continues, or its teacher, even with
    --overwrite.

    Args:
        folder, logs: the checkpoints and logs of its tag, which is their name.
        reads: the paths of --load and --teacher, by the name of the flag; "" without.
        clear: the command that puts the earlier run into the trash.
    """
    tag, checkpoints, epochs = folder.name, _checkpoints(folder), _epochs(logs)
    if not checkpoints and not epochs:
        return
    inside = [name for name, path in reads.items() if path and Path(path).resolve().parent == folder.resolve()]
    if resume and (not reads["load"] or "load" in inside):
        if overwrite:  # its best epoch, and what it continues from, would be gone before the first new checkpoint
            raise UserError(
                f"--resume and --overwrite contradict: one continues the run of tag {tag!r}, the other deletes it. "
                "Try: leave one out"
            )
        return
    if inside and checkpoints:
        flag = inside[0]
        raise UserError(
            f"--{flag} {reads[flag]} is of tag {tag!r} itself, and the new run would replace it.\n"
            f"Try: another --tag" + (", or --resume to continue the run." if flag == "load" else ".")
        )
    if overwrite:
        return
    more = f" and {len(checkpoints) - MAX_NAMED} more" if len(checkpoints) > MAX_NAMED else ""
    names = ", ".join(path.name for path in checkpoints[:MAX_NAMED]) + more
    there = [f"{folder}/ holds {names}"] if checkpoints else []
    there += [f"{logs}/metrics.csv has {epochs} epoch(s)"] if epochs else []
    go_on = "Leave --load out" if resume else "Give --resume"
    raise UserError(
        f"There is a run of tag {tag!r} already, which this one would replace: {'; '.join(there)}.\n"
        f"{go_on} to continue it, --overwrite to delete it, or another --tag. "
        f"To put it into the trash, try: {clear}"
    )


def holds_run(folder: Path, logs: Path) -> bool:
    """Return whether there is anything of a run, in its checkpoints `folder` or its `logs`, that a new one replaces."""
    return bool(_checkpoints(folder)) or _epochs(logs) > 0


def remove_earlier(folder: Path, logs: Path) -> None:
    """Delete the checkpoints and tables of an earlier run, and log how many.

    log.txt and TensorBoard's files stay; the new run appends to them.
    """
    checkpoints = _checkpoints(folder)
    records = [logs / name for name in RECORDS if (logs / name).exists()]
    for path in [*checkpoints, *records]:
        path.unlink(missing_ok=True)
    if checkpoints or records:
        log.warning(
            f"--overwrite: deleted {count_of(len(checkpoints), 'checkpoint')} of the earlier run in {folder}/, "
            f"{count_of(len(records), 'file')} in {logs}/."
        )


def _checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, by name: those it wrote itself, and those that tools.long_tail made of them."""
    found = folder.glob("*.pt") if folder.is_dir() else ()
    return sorted(path for path in found if WRITTEN.fullmatch(path.name))


def _epochs(logs: Path) -> int:
    """Return how many epochs metrics.csv of `logs` has; 0 without one."""
    try:
        with open(logs / "metrics.csv", newline="", encoding="utf-8", errors="replace") as file:
            return max(0, sum(1 for _ in csv.reader(file)) - 1)
    except OSError:
        return 0
