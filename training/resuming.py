"""The checkpoint that a run starts from: which one it is, and whether the run can continue from it."""

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from utils import checkpoint, distributed
from utils.classes import describe_difference, names_agree, noun
from utils.errors import MachineFault, UserError
from utils.files import atomic_write, link_over
from utils.logger import log

CACHE_FILES = "images-*.sqlite"  # The names are those of dataloader.stores.
NO_CHECKPOINT_MARKER = ".nothing_saved_yet"


def read_start(
    tag: str, folder: Path, load: str, resume: bool, restarted: bool, cache_given: bool
) -> tuple[bool, dict[str, Any] | None, str]:
    """Return whether to resume, the checkpoint to start from, and its path; without a checkpoint, None and "".

    Args:
        folder: the tag's checkpoints.
        load: the file of --load or --probe_init, or "".
        resume: the flag.
        restarted: torchrun restarted the run after a process died. It resumes by itself, if it has saved anything.
        cache_given: whether --cache is on the command line.

    Raises:
        UserError: there is no such checkpoint, or it cannot be resumed.
    """
    last, marker = folder / "last.pt", folder / NO_CHECKPOINT_MARKER
    if restarted and not (last.exists() or marker.exists()):
        raise UserError(
            f"torchrun restarted tag {tag!r}, and {folder}/ has nothing of it: "
            "the first process is on another machine now.\n"
            "Put checkpoints where all machines see them (--checkpoint_dir), or set the first machine by --node_rank. "
            "Then continue on the machine that has last.pt, with --resume."
        )
    if restarted and not marker.exists():
        log.info(f"torchrun restarted the run: it continues from {last}.")
        resume, load = True, str(last)
    if resume and load and os.path.realpath(load) == os.path.realpath(last):
        load = ""  # the run itself, by another name
    source = load or (str(last) if resume else "")
    content = checkpoint.load(source) if source else None
    if content is not None and resume:
        _check_resumable(content, source, cache_given)
    if distributed.may_restart() and source != str(last):
        with atomic_write(marker, "w") as file:
            file.write("Until this run writes its first checkpoint, a restart by torchrun starts from the beginning.\n")
    return resume, content, source


def _check_resumable(content: dict[str, Any], source: str, cache_given: bool) -> None:
    """Raise UserError if a checkpoint cannot be resumed, or would decide where this run writes."""
    if "training" not in content:
        raise UserError(
            f"{source} holds weights alone, so it cannot be resumed. Start from them: --load {source} without --resume."
        )
    _check_cache(content["opt"], source, cache_given)


def check_classes(content: dict[str, Any], source: str, names: list[str] | None, listed: Path) -> None:
    """Raise UserError if the checkpoint numbers the classes otherwise than `names`, the classes.txt beside `listed`."""
    data = content.get("data") or {}
    known, task = data.get("class_names"), data.get("task", "single")
    if known and names and not names_agree(known, names):
        raise UserError(
            f"{source} was trained with other {noun(task)} than {listed.parent / 'classes.txt'} names, or in another "
            f"order: {describe_difference(known, names, 'classes.txt', task)}. --resume keeps the {noun(task)}.\n"
            "Put the lists and classes.txt back as they were, or start from its weights: "
            f"--load {source} without --resume carries the classifier over by name."
        )


def holds(path: Path, row: dict[str, Any]) -> bool:
    """Return whether `path` is a checkpoint of the end of an epoch, with the scores of `row`, a row of the history."""
    if not path.is_file():
        return False
    try:
        return _ends_with(checkpoint.load(path), row)
    except MachineFault:
        raise
    except UserError:
        return False


def _ends_with(content: dict[str, Any], row: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of the end of the epoch of `row`, with its scores."""
    history = content.get("history")
    last = history[-1] if isinstance(history, list) and history else {}
    return content.get("within") is None and all(
        last.get(key) == row.get(key) for key in ("epoch", "val_top1", "val_loss")
    )


def predicts_as(path: Path, other: Path) -> bool:
    """Return whether two checkpoints predict alike, whatever eval.py has stored in one of them since."""
    try:
        return checkpoint.identity(checkpoint.load(path)) == checkpoint.identity(checkpoint.load(other))
    except MachineFault:
        raise
    except UserError:
        return False


def link_missing(last: Path, names: Iterable[str], history: Sequence[dict[str, Any]]) -> None:
    """Link the checkpoint `last` to those of `names`, beside it, that a killed run had not linked yet.

    A copy that eval.py has written since, with a temperature or thresholds, stays. So does a file of another origin.

    Args:
        history: the scores of each epoch of the run.
    """
    for name in names:
        path = last.with_name(name)
        if path.exists() and (path.samefile(last) or predicts_as(path, last) or _is_foreign(path, history)):
            continue
        link_over(last, path)
        log.info(f"{path} is {last} now: the run ended before it was linked.")


def _is_foreign(path: Path, history: Sequence[dict[str, Any]]) -> bool:
    """Return whether `path` is no checkpoint of an epoch of this run, such as an average that was put there."""
    try:
        content = checkpoint.load(path)
    except MachineFault:
        raise
    except UserError:
        return False  # it is damaged
    found = not any(_ends_with(content, row) for row in history)
    if found:
        log.warning(f"{path} is of no epoch of this run, so it stays.")
    return found


def _check_cache(saved: dict[str, Any], source: str, cache_given: bool) -> None:
    """Raise UserError if the checkpoint names a folder for --cache that holds none: a file must not create folders."""
    cache = str(saved.get("cache", "none"))
    folder = Path(cache.removeprefix("disk:"))
    if cache_given or not cache.startswith("disk:") or any(folder.glob(CACHE_FILES)):
        return
    raise UserError(
        f"{source} was trained with --cache {cache}, and {folder}/ holds no cache. "
        "A checkpoint does not decide where files go.\n"
        f"Add --cache {shlex.quote(cache)} to make one there, or --cache ram, which holds the same images."
    )
