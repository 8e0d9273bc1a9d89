"""Read what runs left in logs/: scores per epoch, points by step, options, times; and what of it is damaged."""

import contextlib
import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from evaluation.ranking import best_row
from evaluation.step_points import Row, read_table
from options import choices
from options.plain_yaml import YamlError, read_yaml
from options.wording import count_of
from utils.errors import UserError, path_hint, unknown_name
from utils.names import shorten

# Options that say where a run writes and how it was started, which make no difference to what it trains.
NOT_COMPARED = {"tag", "resume", "config", "overwrite", "checkpoint_dir", "log_dir", "result_dir"}
IN_OTHER_COLUMNS = {"model", "epochs"}
RECORDS = ("metrics.csv", "steps.csv", "options.yaml", "lists.json")
LISTS = {"train": "training list", "val": "validation list"}
OTHER_IMAGES = "The runs have different validation lists, so their scores cannot be compared."
OTHER_FOLDERS = (
    "The runs have validation lists of equal labels and file names, in different folders. Their scores can be compared "
    "only if the images are the same."
)
FINGERPRINT_LETTERS = 8  # that are shown of a list's
MAX_REASON_COLUMNS = 160  # of an error of the YAML parser
STAMP = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) [A-Z]+ (.*)")
FROM_THE_START = re.compile(r".* batches of \d+ per epoch, epochs 1 to \d+")


@dataclass(frozen=True)
class Listed:
    """What a list held: how many images, FileList.fingerprint, and that of the paths; "": its version noted none."""

    images: int
    fingerprint: str
    paths: str = ""

    def __str__(self) -> str:
        """Return it as a person reads it, such as "24 images (3f2a1c09, paths 77c0e1d2)"."""
        paths = f", paths {self.paths[:FINGERPRINT_LETTERS]}" if self.paths else ""
        return f"{count_of(self.images, 'image')} ({self.fingerprint[:FINGERPRINT_LETTERS]}{paths})"


@dataclass
class Run:
    """What logs/<tag>/ holds of a run.

    Attributes:
        options: of options.yaml, as text; {} if it cannot be read.
        lists: what the lists held, by a title of LISTS, from lists.json; {} for runs of versions without it.
        history: a row of scores per epoch, from metrics.csv.
        steps: the points of steps.csv.
        seconds: how long its commands ran, validation included and pauses left out, by log.txt; None if unknown.
        checkpoint: its best checkpoint, or its last one; "" if there is none.
        looked_in: the folder of its checkpoints.
        notes: what is missing or damaged.
    """

    tag: str
    options: dict[str, Any] = field(default_factory=dict)
    lists: dict[str, Listed] = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)
    steps: list[Row] = field(default_factory=list)
    seconds: float | None = None
    checkpoint: str = ""
    looked_in: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def compared(self) -> dict[str, Any]:
        """Return what is compared with other runs: the options, and what the lists held."""
        return self.options | self.lists

    @property
    def model(self) -> str:
        """Return the name of the network; "" if unknown."""
        return str(self.options.get("model") or "")

    @property
    def metric(self) -> str:
        """Return what made an epoch the best: --metric; top1 for runs of versions without it."""
        metric = self.options.get("metric")
        return metric if metric in choices.METRICS else "top1"

    @property
    def epochs(self) -> int:
        """Return how many epochs have ended."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    @property
    def planned(self) -> int | None:
        """Return how many epochs the run was to have; None if unknown."""
        text = str(self.options.get("epochs") or "")
        return int(text) if text.isdecimal() else None

    @property
    def epochs_text(self) -> str:
        """Return the epochs that have ended, of those planned: "7/30"."""
        return f"{self.epochs}/{self.planned}" if self.planned is not None else str(self.epochs)

    @property
    def time_text(self) -> str:
        """Return the time with its unit: "45 s", "12.3 min", "2.5 h"; "–" if it is unknown."""
        if self.seconds is None:
            return "–"
        if self.seconds < 100:
            return f"{self.seconds:.0f} s"
        return f"{self.seconds / 60:.1f} min" if self.seconds < 6000 else f"{self.seconds / 3600:.1f} h"

    @property
    def images_per_second(self) -> float | None:
        """Return the speed of training over all epochs, which have as many images each; None if unknown."""
        speeds = [row["images_per_second"] for row in self.history if row.get("images_per_second", 0) > 0]
        return statistics.harmonic_mean(speeds) if speeds else None

    def best(self, metric: str) -> tuple[float, int] | None:
        """Return the best validation score by a metric of --metric, and its epoch (the first of equals), or None."""
        row = best_row(self.history, metric)
        return None if row is None else (row[f"val_{metric}"], int(row["epoch"]))

    def where(self, metric: str) -> str:
        """Return the path of the checkpoint, or that there is none.

        Of a best.pt that was chosen by the run's own metric, also its epoch, if the best one by `metric` is another.
        """
        if not self.checkpoint:
            return f"none in {self.looked_in}/"
        own, shown = self.best(self.metric), self.best(metric)
        if Path(self.checkpoint).name != "best.pt" or own is None or (shown is not None and own[1] == shown[1]):
            return self.checkpoint
        return f"{self.checkpoint} (epoch {own[1]}, the best {self.metric})"

    def last(self, column: str) -> float | None:
        """Return the newest value of a column of metrics.csv; None without one."""
        return next((row[column] for row in reversed(self.history) if column in row), None)


def find_runs(logs: Path, tags: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the tags to compare, and the names of folders in `logs` that hold no run.

    Args:
        logs: the folder of all runs.
        tags: those asked for; none: all. A tag that is given twice counts once.

    Raises:
        UserError: `logs` does not exist or holds no run, or a tag is not in it.
    """
    if not logs.is_dir():
        raise UserError(
            f"There is no folder {logs}, which holds the records of runs.{path_hint(logs)}\nTry: --log_dir DIR"
        )
    folders = sorted(path.name for path in logs.iterdir() if path.is_dir() and not path.name.startswith("."))
    present = [name for name in folders if any((logs / name / record).exists() for record in RECORDS)]
    if not present:
        raise UserError(
            f"{logs}/ holds no run of train.py (a folder with metrics.csv or options.yaml).\nTry: --log_dir DIR"
        )
    asked = []
    for tag in tags:
        path = Path(tag)  # a shell completes logs/first/
        name = path.name if tag not in folders and path.parent.resolve() == logs.resolve() else tag
        if name not in folders:
            raise unknown_name("run", tag, present)
        asked.append(name)
    return list(dict.fromkeys(asked)) or present, [] if tags else sorted(set(folders) - set(present))


def read_run(logs: Path, tag: str, checkpoints: Path | None = None) -> Run:
    """Read the records of a run. What is missing or damaged becomes a note.

    Args:
        logs: the folder of all runs.
        tag: the run.
        checkpoints: the folder of all checkpoints; None: that of the run's options.
    """
    run, folder = Run(tag), logs / tag
    run.options = _read_options(run, folder / "options.yaml")
    run.lists = _read_lists(run, folder / "lists.json")
    run.history = _read_rows(run, folder / "metrics.csv", "epoch")
    if (folder / "steps.csv").exists():  # runs of earlier versions have none
        run.steps = _read_rows(run, folder / "steps.csv", "step")
    try:
        run.seconds = read_seconds(folder / "log.txt")
    except OSError as error:
        run.notes.append(f"{folder / 'log.txt'} cannot be read ({error.strerror}): the time is unknown")
    parent = checkpoints or Path(str(run.options.get("checkpoint_dir") or "checkpoints"))
    run.looked_in = str(parent / tag)
    kept = [parent / tag / "best.pt", parent / tag / "last.pt"]
    run.checkpoint = next((str(path) for path in kept if path.is_file()), "")
    return run


def _read_options(run: Run, path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
        if not isinstance(content, dict):
            raise YamlError("it holds no lines of `option: value`")
    except FileNotFoundError:
        run.notes.append(f"{path} is missing: its options are unknown")
        return {}
    except (OSError, YamlError) as error:
        run.notes.append(
            f"{path} cannot be read, so its options are unknown: {shorten(str(error), MAX_REASON_COLUMNS)}"
        )
        return {}
    return content


def _read_lists(run: Run, path: Path) -> dict[str, Listed]:
    """Return the lists of a run by their titles; {} for a run of a version without the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {
            LISTS[name]: Listed(int(one["images"]), str(one["fingerprint"]), str(one.get("paths", "")))
            for name, one in content.items()
            if name in LISTS
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        reason = shorten(str(error), MAX_REASON_COLUMNS)
        run.notes.append(f"{path} cannot be read, so the content of its lists is unknown: {reason}")
        return {}


def _read_rows(run: Run, path: Path, order: str) -> list[Row]:
    """Return the rows of a table whose column `order` rises; note what is wrong."""
    try:
        rows, notes = read_table(path, (order, "epoch") if order == "step" else (order,))
    except FileNotFoundError:
        run.notes.append(f"{path} is missing: no epoch has ended")
        return []
    except UserError as error:
        run.notes.append(str(error))
        return []
    kept: list[Row] = []
    for row in rows:
        if not kept or row[order] > kept[-1][order]:
            kept.append(row)
    if len(kept) < len(rows):
        notes.append(f"{path}: {len(rows) - len(kept)} row(s) out of order, left out")
    run.notes += notes
    return kept


def read_seconds(path: Path) -> float | None:
    """Return how long the commands of a run took, from the times in its log.txt; None if it has none.

    The time between the end of a command and the next --resume does not count. A run that began again from nothing
    counts from there.
    """
    total, began, before, resumed = 0.0, None, None, False
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            found = STAMP.match(line)
            if found is None:
                if FROM_THE_START.match(line) and not resumed:  # what is above belongs to an earlier run
                    total, began = 0.0, before
                continue
            with contextlib.suppress(ValueError):  # no date, such as 2026-99-99
                now = datetime.strptime(f"{found[1]}.{found[2]}", "%Y-%m-%d %H:%M:%S.%f")
                resumes = found[3].startswith("Resuming ")
                if resumes or began is None:
                    total += _between(began, before)
                    began = now
                resumed = resumes or (resumed and not found[3].startswith("epoch "))
                before = now
    return None if began is None else total + _between(began, before)


def _between(began: datetime | None, ended: datetime | None) -> float:
    """Return the seconds between two times; 0 if the clock was set back."""
    return max(0.0, (ended - began).total_seconds()) if began is not None and ended is not None else 0.0


def common_metric(runs: Sequence[Run]) -> str:
    """Return the metric that all runs were trained for; top1 if they differ."""
    metrics = {run.metric for run in runs if run.history}
    return metrics.pop() if len(metrics) == 1 else "top1"


def differing_options(runs: Sequence[Run]) -> list[str]:
    """Return the names of the options that are not the same in all runs whose options are known, and such of LISTS.

    An option that the version of a run did not have is equal to one that is not set. Lists are compared by their
    content, among the runs that recorded it: under one name a list may have changed from one run to the next.
    """
    known = [run.options for run in runs if run.options]
    names = list(dict.fromkeys(name for options in known for name in options))
    names = [name for name in names if name not in NOT_COMPARED | IN_OTHER_COLUMNS]
    names = [name for name in names if len({option_text({name: None} | options, name) for options in known}) > 1]
    return names + [title for title in LISTS.values() if _lists_differ(runs, title) or _folders_differ(runs, title)]


def _lists_differ(runs: Sequence[Run], title: str) -> bool:
    """Return whether the runs that recorded their list `title`, one of LISTS, had lists of another content."""
    found = [run.lists[title] for run in runs if title in run.lists]
    return len({(one.images, one.fingerprint) for one in found}) > 1


def _folders_differ(runs: Sequence[Run], title: str) -> bool:
    """Return whether the runs that recorded the paths of their list `title` had different ones."""
    found = [run.lists[title] for run in runs if title in run.lists]
    return len({one.paths for one in found if one.paths}) > 1


def validation_warning(runs: Sequence[Run]) -> str:
    """Return why the scores of the runs cannot be compared, or may not be; "" if they can, as far as is recorded."""
    if _lists_differ(runs, LISTS["val"]):
        return OTHER_IMAGES
    return OTHER_FOLDERS if _folders_differ(runs, LISTS["val"]) else ""


def option_text(options: dict[str, Any], name: str) -> str:
    """Return the value of an option as text: "none" for null, and "–" if the run's version did not have it."""
    if name not in options:
        return "–"
    value = options[name]
    return " ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)
