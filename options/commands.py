"""Commands that a script prints: complete, quoted for a shell, with every flag that differs from its default."""

import argparse
import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from options.options import build_parser
from options.parser import long_name

SCRIPTS = ("train.py", "eval.py", "submit.py", "clear.py")
CHECKPOINTS_OWN = (
    "tag",
    "config",
    "seed",
    "model",
    "scale",
    "fit",
    "precision",
    "on_bad_image",
)  # not for who evaluates a run
ENSEMBLES_OWN = ("load", "weights", "blend", "tta", "scale", "fit")  # what an ensemble.yaml says
GIVEN_COUNTS = ("data_root",)  # its default, typed, overrides the lists that a checkpoint remembers


def command(script: str, values: Mapping[str, Any]) -> str:
    """Return the shell command that runs `script` ("eval") with those of `values` that are its flags and not their defaults.

    A flag of GIVEN_COUNTS that `values["given"]` names is printed with its default too.
    The script is looked for where the running one is. What `values` calls None, and what is no flag of it, is left out.
    """
    given = set(values.get("given") or ()) & set(GIVEN_COUNTS)
    flags = build_parser(script).flags().values()
    words = [word for action in flags for word in _words(action, values.get(action.dest), action.dest in given)]
    return shlex.join(["python", _beside(f"{script}.py"), *words])


def words(parser: argparse.ArgumentParser, values: Mapping[str, Any]) -> list[str]:
    """Return those of `values` that are arguments of `parser` and not their defaults, as words: `["all.txt", "--val", "0.2"]`."""
    return [word for action in parser._actions for word in _words(action, values.get(action.dest), False)]


def after_training(script: str, checkpoint: str, opt: argparse.Namespace) -> str:
    """Return the command that evaluates `checkpoint`, or submits with it ("submit"), as the training run `opt` read its images."""
    shared = {name: value for name, value in vars(opt).items() if name not in CHECKPOINTS_OWN}
    return command(script, shared | {"load": [checkpoint]})


def resume_command(opt: argparse.Namespace, processes: int = 1) -> str:
    """Return the command that continues the training run `opt` from its last.pt, under torchrun if it had several processes."""
    own = {name: getattr(opt, name) for name in ("tag", "debug", "checkpoint_dir", "log_dir", "gpu", "workers")}
    text = command("train", own | {"resume": True})
    return f"torchrun --nproc_per_node={processes} {text.removeprefix('python ')}" if processes > 1 else text


def after_evaluation(opt: argparse.Namespace, ensemble: Any = None, temperature: str | None = None) -> str:
    """Return the command that submits with the members, views and weights that eval.py scored, `opt` being its options.

    Args:
        ensemble: the ensemble.yaml that holds the members, weights and views in their place. temperature: a fitted one.
    """
    values = {**vars(opt), "debug": False, "save_probs": False}
    if ensemble is not None:
        values |= {"ensemble": ensemble} | dict.fromkeys(ENSEMBLES_OWN)
    return command("submit", values | ({"temperature": temperature} if temperature else {}))


def _beside(script: str) -> str:
    running = sys.argv[0] if sys.argv else ""
    return os.path.join(os.path.dirname(running), script) if os.path.basename(running) in SCRIPTS else script


def _words(action: argparse.Action, value: Any, given: bool) -> list[str]:
    """The words of a command line for one flag; none where it has its default, unless it was `given`."""
    if value is None or (value == action.default and not given):
        return []
    if not action.option_strings:
        return [str(value)]
    flag = long_name(action)
    if action.nargs == 0:
        negative = [name for name in action.option_strings if name.startswith("--no-")]
        return [flag] if value else negative[:1]
    if isinstance(value, list | tuple):
        return [flag, *map(str, value)]
    return (
        [f"{flag}={value}"] if str(value).startswith("-") and not isinstance(value, int | float) else [flag, str(value)]
    )
