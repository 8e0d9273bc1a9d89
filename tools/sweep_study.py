"""The study of a sweep: the trials of all its commands, and what they must have in common to be compared."""

import argparse
import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from options import Options, choices
from tools.same_training import deciding_options, differing_options, network_identities, replaced_networks, shown
from tools.sweep_space import Space
from utils.errors import UserError
from utils.logger import log

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

MAX_NAMED_RUNS = 8  # in a message
STUDY = "study.db"  # in the folder of the sweep


def import_optuna() -> ModuleType:
    """Return Optuna, without its own logging. Raise UserError if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError(
            "tools.sweep needs Optuna, which is not installed. Try: python -m pip install 'optuna>=4,<6'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextlib.contextmanager
def study_errors(folder: Path) -> Iterator[None]:
    """Turn the errors of Optuna's file in `folder` into UserErrors: a full disk, a damaged file, another Optuna."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "optuna version" not in str(error):  # Optuna has no class for this one
            raise
        # Optuna's own text is about its users' code, so the reason is that of the database below
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        reason = str(getattr(cause, "orig", None) or cause or error).strip().splitlines()[0]
        raise UserError(
            f"{folder / STUDY}, which keeps the trials, cannot be read or written: {reason}\n"
            f"Where the disk is full (`df -h {folder}`) or the file read-only, mend that, and run the same command "
            "again to continue. Where the file is damaged or of another Optuna, put back a whole one, or try: another "
            "--name"
        ) from error


def open_study(opt: argparse.Namespace, folder: Path, metric: str) -> "Study":
    """Return the study of `metric` in study.db of `folder`, which is created if it is new.

    Raises:
        UserError: it was started with another metric, or Optuna is missing.
    """
    optuna = import_optuna()
    study = optuna.create_study(
        storage=f"sqlite:///{(folder / STUDY).resolve()}",
        study_name=opt.name,
        direction="minimize" if choices.METRICS[metric].lower_is_better else "maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
    )
    known = study.user_attrs.get("metric", "top1" if study.get_trials(deepcopy=False) else metric)
    if known != metric:
        raise UserError(
            f"The sweep {opt.name} was started with --metric {known}, not {metric}.\n"
            "Give that metric, or another --name."
        )
    study.set_user_attr("metric", metric)
    return study


def next_trial(study: "Study", opt: argparse.Namespace) -> "Trial":
    """Return the trial that is to run next.

    A sampler's random numbers depend on (--seed, number of the trial): those of a sampler that each command makes anew
    would begin again, and propose the settings of the first trials a second time.
    """
    samplers = import_optuna().samplers
    sampler = samplers.TPESampler if opt.sampler == "tpe" else samplers.RandomSampler
    number = len(study.get_trials(deepcopy=False))
    study.sampler = sampler(seed=int(np.random.SeedSequence([opt.seed, number]).generate_state(1)[0]))
    return study.ask()


def finished(study: "Study") -> "list[FrozenTrial]":
    """Return the trials that are complete, pruned or failed, without those that ended with an interrupted sweep."""
    cut = study.user_attrs.get("cut", [])
    return [
        trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished() and trial.number not in cut
    ]


def count_left(study: "Study", trials: int, combinations: list[dict[str, object]] | None) -> int:
    """Return how many trials are left to do; of a grid: how many combinations no finished trial has."""
    if combinations is None:
        return trials - len(finished(study))
    return len(_untried(combinations, finished(study)))


def _untried(combinations: Iterable[dict[str, object]], trials: "Iterable[FrozenTrial]") -> list[dict[str, object]]:
    """Return the combinations of a grid that none of the `trials` has."""
    known = {_as_key(_settings_of(trial)) for trial in trials}
    return [settings for settings in combinations if _as_key(settings) not in known]


def _settings_of(trial: "FrozenTrial") -> dict[str, object]:
    """Return the settings of a trial as they were enqueued, or as a sampler chose them."""
    settings: dict[str, object] = trial.system_attrs.get("fixed_params", trial.params)
    return settings


def _as_key(settings: dict[str, object]) -> str:
    return json.dumps(settings, sort_keys=True)  # tells 1, 1.0 and true apart, as Optuna's storage does


def enqueue(study: "Study", combinations: Iterable[dict[str, object]]) -> None:
    """Enqueue the settings of trials that an interruption cut off, and the missing ones of a grid."""
    states = import_optuna().trial.TrialState
    for trial in study.get_trials(states=(states.RUNNING,)):
        settings = trial.system_attrs.get("fixed_params", {}) | trial.params
        if settings:
            study.enqueue_trial(settings)
        study.set_user_attr("cut", [*study.user_attrs.get("cut", []), trial.number])
        study.tell(trial.number, state=states.FAIL)
        log.info(f"{study.study_name}-{trial.number} was interrupted; its settings run again")
    for settings in _untried(combinations, [*finished(study), *study.get_trials(states=(states.WAITING,))]):
        study.enqueue_trial(settings)


def continued_space(study: "Study", space: Space) -> Space:
    """Return the space of the sweep: `space`, or in an earlier version's sweep the whole numbers that it began with.

    Raises:
        UserError: the sweep was started with another space.
    """
    known: Space = study.user_attrs.get("space", space)
    if known != space and known.keys() == space.keys():
        whole = {name: {**rule, "whole": known[name].get("whole")} for name, rule in space.items() if "low" in rule}
        if known == space | whole:  # earlier versions took whole bounds of any flag for a range of whole numbers
            names = ", ".join(name for name in whole if whole[name] != space[name])
            log.warning(
                f"The sweep {study.study_name} goes on with whole numbers for {names}, as it began. "
                "Try: another --name, to search between them"
            )
            return known
    if known != space:
        raise UserError(
            f"The sweep {study.study_name} was started with another space: {study.user_attrs['space']}.\n"
            "Give that space, or another --name."
        )
    study.set_user_attr("space", space)
    return space


def check_same_options(study: "Study", settings: argparse.Namespace, space: Space) -> None:
    """Raise UserError if earlier trials had other flags after --; warn if no flags were noted (earlier versions)."""
    options = deciding_options(settings, space)
    known = study.user_attrs.get("options")
    if known is None and study.get_trials(deepcopy=False):
        log.warning(
            f"The sweep {study.study_name} does not record the flags after -- of its earlier trials. They can be "
            "compared with new ones if the flags were the same."
        )
    if known is not None and (differing := differing_options(known, options)):
        raise UserError(
            f"The sweep {study.study_name} was started with other flags after --, so its trials cannot be compared "
            f"with new ones:{shown(differing)}\nGive the flags that were given then to continue, or another --name."
        )
    study.set_user_attr("options", options)


def check_same_lists(study: "Study", settings: Options, space: Space) -> None:
    """Raise UserError if earlier trials had lists of another content; warn if it was not noted (earlier versions).

    Lists that the space varies, and those that are not there, are left to train.py.
    """
    import dataloader
    from dataloader.file_list import read_list

    lists = {}
    for name in ("train", "val") if settings.val_freq else ("train",):
        path = dataloader.list_path(settings, name)
        if not {"data_root", f"{name}_list"} & space.keys() and path.is_file():
            lists[name] = read_list(path, task=settings.task).content_hash()
    known = study.user_attrs.get("lists")
    if known is None and finished(study):
        log.warning(
            f"The sweep {study.study_name} does not record what the lists of its earlier trials held. They can be "
            "compared with new ones if the lists were the same."
        )
    changed = [name for name, digest in lists.items() if (known or {}).get(name, digest) != digest]
    if changed:
        paths = " and ".join(str(dataloader.list_path(settings, name)) for name in changed)
        raise UserError(
            f"{paths} changed since the sweep {study.study_name} was started, so its trials cannot be compared with "
            "new ones.\nRestore what was there to continue, or try: another --name."
        )
    study.set_user_attr("lists", {**(known or {}), **lists})


def check_same_networks(study: "Study", settings: Options, space: Space) -> None:
    """Raise UserError if a file of --load, --probe_init or --teacher holds another network than for earlier trials."""
    known = study.user_attrs.get("networks", {})  # earlier versions did not note them
    now = network_identities(settings, space)
    if replaced := replaced_networks(known, now):
        raise UserError(
            f"{' and '.join(replaced)}: another network than when the sweep {study.study_name} was started, so its "
            "trials cannot be compared with new ones.\n"
            "Put back what was there to continue, or try: another --name."
        )
    study.set_user_attr("networks", {**now, **known})


def check_new(study: "Study", settings: argparse.Namespace) -> None:
    """Raise UserError if a new sweep would meet runs of a deleted one of the same name."""
    if study.get_trials(deepcopy=False) or settings.overwrite:
        return
    parents = [Path(folder) for folder in (settings.checkpoint_dir, settings.log_dir) if Path(folder).is_dir()]
    ours = re.compile(rf"{re.escape(study.study_name)}-\d+")
    left = sorted({path.name for parent in parents for path in parent.iterdir() if ours.fullmatch(path.name)})
    if left:
        named = ", ".join(left[:MAX_NAMED_RUNS]) + (" …" if len(left) > MAX_NAMED_RUNS else "")
        raise UserError(
            f"There are runs of an earlier sweep {study.study_name!r}: {named}.\n"
            "Try: another --name; or --overwrite after --, to replace them; "
            "or python clear.py --tag NAME, which puts one into the trash."
        )
