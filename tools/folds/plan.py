"""What a run of folds consists of, how far it is, and what a second call must have in common with the first.

`plan.json` in results/<tag>/folds/ is written before anything is trained. A second call with the same plan continues;
one with another plan is refused. A fold is trained once its `fold<k>.trained` is there.
"""

import argparse
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.file_list import FileList
from evaluation.results import FOLDS_SCORES
from options import Options, command
from tools.folds import flags
from tools.folds.draw import list_paths, write_lists
from tools.same_training import deciding_options, differing_options, network_identities, replaced_networks, shown
from training.earlier import holds_run, remove_earlier
from utils import run_lock
from utils.classes import Classes, describe_difference, names_agree
from utils.errors import UserError
from utils.files import write_json
from utils.logger import log
from utils.outputs import Output, begins_with, has_key, is_probabilities

PLAN, DRAWN = "plan.json", "drawn.json"
OOF, ENSEMBLE = "oof.npz", "ensemble.yaml"
NETWORKS = "networks"  # of the plan: those that the folds start from or learn from
WAIT_SECONDS = 120.0  # for a run of an earlier call, which saves its state before it ends


@dataclass(frozen=True)
class Fold:
    """One fold: its number from 1, the tag of its run, its lists, and the folders and files that belong to it."""

    number: int
    tag: str
    train_list: Path
    val_list: Path
    checkpoints: Path
    logs: Path
    trained: Path  # is there once the run is complete
    probs: Path  # the probabilities of its held-out part

    def is_trained(self) -> bool:
        """Return whether its run is complete."""
        return self.trained.is_file() and (self.checkpoints / "last.pt").is_file()


@dataclass(frozen=True)
class FoldsRun:
    """All that a run of folds is made of.

    Attributes:
        opt: the flags of this tool.
        train: those of train.py, and `words` as they were typed.
        files: the whole training list.
        fold_of: int64 (N,), the fold of each image, from 0.
        folder: results/<tag>.
        state: its folder `folds`.
    """

    opt: argparse.Namespace
    train: Options
    words: list[str]
    files: FileList
    classes: Classes
    fold_of: NDArray[np.int64]
    folder: Path
    state: Path
    folds: list[Fold]


def make_run(
    opt: argparse.Namespace,
    train: Options,
    words: list[str],
    listed: tuple[FileList, Classes],
    fold_of: NDArray[np.int64],
) -> FoldsRun:
    """Return the run of folds; nothing is written. `fold_of` is the fold of each image, int64 (N,), from 0."""
    folder = flags.folder_of(opt, train)
    found = [_fold(opt, train, number) for number in range(1, opt.folds + 1)]
    return FoldsRun(opt, train, words, *listed, fold_of, folder, folder / "folds", found)


def _fold(opt: argparse.Namespace, train: Options, number: int) -> Fold:
    """Return the fold of this number, from 1; nothing is written."""
    tag, state = flags.fold_tag(train.tag, number), flags.folder_of(opt, train) / "folds"
    paths = list_paths(flags.lists_folder(opt, train), number)
    folders = Path(train.checkpoint_dir) / tag, Path(train.log_dir) / tag
    return Fold(number, tag, *paths, *folders, state / f"fold{number}.trained", state / f"fold{number}.npz")


def outputs(run: FoldsRun) -> list[Output]:
    """Return the files that are written to results/<tag>, for utils.outputs.check."""
    return [
        Output(run.folder / OOF, "out-of-fold probabilities", is_probabilities),
        Output(run.folder / FOLDS_SCORES, "the scores of folds", has_key("folds")),
        Output(run.folder / ENSEMBLE, "an ensemble", begins_with("load:")),
    ]


def begin(run: FoldsRun) -> None:
    """Write the lists and the plan, or check that this call continues the plan that is there.

    Raises:
        UserError: the tag has another plan, or runs of another origin; or the folder for lists has other folds.
    """
    path, content = run.state / PLAN, _content(run)
    known = _read(path)
    for left in [*run.folder.glob(".*.tmp"), *run.state.glob(".*.tmp")]:  # of a killed call
        left.unlink(missing_ok=True)
    if run.opt.overwrite:
        _start_over(run)
    elif known is None:
        _refuse_earlier(run)
    elif differing := _differences(known, content):
        raise UserError(
            f"The folds of tag {run.train.tag!r} were begun otherwise:{shown(differing)}\n"
            "Give what was given then to continue, another --tag, or --overwrite (before --) to begin again."
        )
    else:
        done = sum(fold.is_trained() for fold in run.folds)
        log.info(f"The folds of tag {run.train.tag!r} continue: {done} of {len(run.folds)} are trained.")
    _write_drawn(run, content)
    before = {} if known is None or run.opt.overwrite else known.get(NETWORKS, {})
    write_json(path, {**content, NETWORKS: {**network_identities(run.train), **before}})


def check_networks(run: FoldsRun) -> None:
    """Raise UserError if --load, --probe_init or --teacher is another network than when the folds were begun."""
    known = (_read(run.state / PLAN) or {}).get(NETWORKS, {})
    if replaced := replaced_networks(known, network_identities(run.train)):
        raise UserError(
            f"{' and '.join(replaced)}: another network than when the folds of tag {run.train.tag!r} were begun, so "
            "the folds would not be of one recipe.\n"
            "Put back what was there to continue. Or give another --tag, or --overwrite (before --) to begin again."
        )


def _content(run: FoldsRun) -> dict[str, Any]:
    """Return what a second call must have in common with the first, as JSON gives it back."""
    drawn = hashlib.sha256(run.fold_of.astype("<i8").tobytes()).hexdigest()
    content = {
        "folds": run.opt.folds,
        "list": run.files.content_hash(),
        "drawn": drawn,
        "classes": run.classes.names,
        "processes": run.opt.processes,
        "checkpoint_dir": run.train.checkpoint_dir,
        "options": deciding_options(run.train),
    }
    found: dict[str, Any] = json.loads(json.dumps(content))
    return found


def _read(path: Path) -> dict[str, Any] | None:
    """Return the content of a file of `write_json`; None if there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _differences(known: dict[str, Any], content: dict[str, Any]) -> list[str]:
    """Return in words how the plan `content` differs from the `known` one."""
    found = [
        f"--{name} {known.get(name)} -> {content[name]}"
        for name in ("folds", "processes")
        if _moved(known, content, name)
    ]
    folder = known.get("checkpoint_dir", content["checkpoint_dir"])  # plans of earlier versions have none
    if not flags.same_file(folder, content["checkpoint_dir"]):
        found.append(f"--checkpoint_dir {folder} -> {content['checkpoint_dir']}")
    if _moved(known, content, "list"):
        found.append("the training list has other images, paths or labels")
    elif _moved(known, content, "drawn") and not _moved(known, content, "folds"):
        found.append("the images are in other folds (--seed, the groups, or the version of scikit-learn)")
    if not _moved(known, content, "list") and (renamed := _renamed(known, content)):
        found.append(renamed)
    before = known.get("options")
    before = before if isinstance(before, dict) else {}
    return found + differing_options(before, content["options"])


def _moved(known: dict[str, Any], content: dict[str, Any], name: str) -> bool:
    return bool(known.get(name) != content[name])


def _renamed(known: dict[str, Any], content: dict[str, Any]) -> str:
    """Return in words how the class names of the plan `content` differ from those of the `known` one; "" if not."""
    before, now = known.get("classes", content["classes"]), content["classes"]  # plans of earlier versions have none
    if bool(before) != bool(now):
        return "classes.txt names the classes now" if now else "classes.txt names no classes now"
    if names_agree(before, now):
        return ""
    return f"the classes have other names, or another order: {describe_difference(before, now, 'classes.txt')}"


def _refuse_earlier(run: FoldsRun) -> None:
    """Raise UserError if a new plan would meet runs that it has not begun."""
    there = [fold for fold in run.folds if holds_run(fold.checkpoints, fold.logs)]
    if there:
        raise UserError(
            f"There are runs of tag {', '.join(fold.tag for fold in there)} already, which these folds did not begin.\n"
            "Give another --tag, or --overwrite (before --) to delete them. "
            f"To put one into the trash, try: {clear_command(run, there[0])}"
        )


def clear_command(run: FoldsRun, fold: Fold) -> str:
    """Return the command that puts the run of a fold into the trash."""
    folders = {"checkpoint_dir": run.train.checkpoint_dir, "log_dir": run.train.log_dir}
    return command("clear", {"tag": fold.tag, **folders})


def _start_over(run: FoldsRun) -> None:
    """Delete the plan, then what belongs to it: a call that is killed in between does not continue half of it.

    The runs that the new plan has no place for go before, while the plan tells of them.
    """
    for number in _further(run, _read(run.state / PLAN)):
        fold = _fold(run.opt, run.train, number)
        wait_until_free(fold)
        remove_earlier(fold.checkpoints, fold.logs)
    (run.state / PLAN).unlink(missing_ok=True)
    products = [run.folder / name for name in (OOF, ENSEMBLE, FOLDS_SCORES)]
    marks = [*run.state.glob("fold*.trained"), *run.state.glob("fold*.npz")]
    for path in [*products, *marks]:
        path.unlink(missing_ok=True)
    for fold in run.folds:
        wait_until_free(fold)
        remove_earlier(fold.checkpoints, fold.logs)


def _further(run: FoldsRun, known: dict[str, Any] | None) -> range:
    """Return the numbers of the folds that the earlier plan or lists `known` have beyond those of `run`."""
    before = (known or {}).get("folds")
    return range(run.opt.folds + 1, before + 1 if isinstance(before, int) else 0)


def wait_until_free(fold: Fold) -> None:
    """Wait for a run of an earlier call: told to end, it saves its state first. train.py reports one that goes on."""
    for folder in (fold.checkpoints, fold.logs):
        if not run_lock.wait_until_free(folder, 0):
            log.info(f"{folder} is in use by an earlier run, which may be saving its state; waiting.")
            run_lock.wait_until_free(folder, WAIT_SECONDS)


def _write_drawn(run: FoldsRun, content: dict[str, Any]) -> None:
    """Write the lists of the folds, unless their folder has those of other folds.

    Raises:
        UserError: it has.
    """
    folder = flags.lists_folder(run.opt, run.train)
    mine = {name: content[name] for name in ("folds", "list", "drawn")}
    known = _read(folder / DRAWN)
    if known is not None and known != mine and not run.opt.overwrite:
        raise UserError(
            f"{folder}/ has the lists of other folds (another list, --folds, --seed, or other groups), "
            "and their runs may still need them.\nTry: another --folds_out"
        )
    for number in _further(run, known):
        for path in list_paths(folder, number):
            path.unlink(missing_ok=True)
    write_lists(folder, run.files, run.fold_of, run.classes)
    write_json(folder / DRAWN, mine)
