"""Commands that a script prints: complete, quoted for a shell, with every option that differs from its default."""

import argparse
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from options.options import build_parser
from options.parser import long_name

SCRIPTS = ("train.py", "eval.py", "submit.py", "clear.py")
TOOL_FOLDERS = ("tools", "datasets", "benchmarks")  # beside the scripts; their commands run in any folder
# Options of a training run that the evaluation of its checkpoint does not take over.
NOT_EVALUATED = ("tag", "config", "seed", "model", "scale", "fit", "precision", "on_bad_image")
NO_TEST_LIST = "TEST_LIST"  # stands in a printed command for the list that the user has yet to name
ENSEMBLE_OPTIONS = ("load", "weights", "blend", "tta", "scale", "fit")  # options that an ensemble.yaml holds
PRINTED_IF_GIVEN = ("data_root",)  # given with its default value, it overrides the lists that a checkpoint remembers


def command(script: str, values: Mapping[str, Any]) -> str:
    """Return the shell command that runs `script` ("eval") with those of `values` that are not defaults.

    An option of PRINTED_IF_GIVEN that `values["given"]` names is printed even with its default. Values of None and
    names that are no option of the script are left out. The script has the folder of the running script.
    """
    given = set(values.get("given") or ()) & set(PRINTED_IF_GIVEN)
    flags = build_parser(script).flags().values()
    words = [word for action in flags for word in _words(action, values.get(action.dest), action.dest in given)]
    return shlex.join(["python", _beside(f"{script}.py"), *words])


def words(parser: argparse.ArgumentParser, values: Mapping[str, Any]) -> list[str]:
    """Return the words for those of `values` that are not defaults of `parser`: `["all.txt", "--val", "0.2"]`."""
    return [word for action in parser._actions for word in _words(action, values.get(action.dest), False)]


def after_training(script: str, checkpoint: str, opt: argparse.Namespace, test_list: str) -> str:
    """Return the command of `script` ("eval", "submit") for `checkpoint`, with the data options of its run `opt`.

    Args:
        test_list: the one that submit.py would read. Where there is none, the command has a place to name one.
    """
    values = {name: value for name, value in vars(opt).items() if name not in NOT_EVALUATED} | {"load": [checkpoint]}
    return command(script, values if os.path.isfile(test_list) else values | {"test_list": NO_TEST_LIST})


def resume_command(opt: argparse.Namespace, processes: int = 1, in_all: int = 0) -> str:
    """Return the command that continues the training run `opt` from its last.pt.

    Args:
        processes: those of this machine; more than 1 need torchrun.
        in_all: those of all machines. Where they are more, each machine has a command that is not known here.
    """
    own = {name: getattr(opt, name) for name in ("tag", "debug", "checkpoint_dir", "log_dir", "gpu", "workers")}
    text = command("train", own | {"resume": True})
    if in_all > processes:
        start = "the torchrun of this run again on each machine, with its --nnodes and --node_rank, and"
        return f"{start}\n    {text.removeprefix('python ')}"
    return f"torchrun --nproc_per_node={processes} {text.removeprefix('python ')}" if processes > 1 else text


def after_evaluation(
    opt: argparse.Namespace,
    ensemble: str | os.PathLike[str] | None = None,
    temperature: str | None = None,
    threshold: list[float] | None = None,
) -> str:
    """Return the command that submits with the members, views and weights that eval.py scored with the options `opt`.

    Args:
        ensemble: path of an ensemble.yaml, which replaces the members, weights and views of `opt`.
        temperature, threshold: fitted ones, which replace those of `opt`.
    """
    values = {**vars(opt), "debug": False, "save_probs": False}
    if ensemble is not None:
        values |= {"ensemble": ensemble} | dict.fromkeys(ENSEMBLE_OPTIONS)
    fitted = {"temperature": temperature, "threshold": threshold}
    return command("submit", values | {name: value for name, value in fitted.items() if value})


def _beside(script: str) -> str:
    """Return the path of `script` from this folder: beside the running script, or in the project of a running tool."""
    running = sys.argv[0] if sys.argv else ""
    if os.path.basename(running) not in SCRIPTS:
        project = Path(__file__).resolve().parent.parent
        is_tool = not {project / name for name in TOOL_FOLDERS}.isdisjoint(Path(running).resolve().parents)
        return str(project / script) if is_tool and not Path(script).exists() else script
    beside = os.path.join(os.path.dirname(running), script)
    if Path(running).is_symlink() and not Path(beside).exists():  # a link to the one script
        return os.path.join(os.path.dirname(os.path.realpath(running)), script)
    return beside


def _words(action: argparse.Action, value: object, given: bool) -> list[str]:
    """Return the words of one flag; none if the value is the default, unless `given`."""
    if value is None or (value == action.default and not given):
        return []
    if not action.option_strings:
        return [str(value)]
    flag = long_name(action)
    if action.nargs == 0:
        negative = [name for name in action.option_strings if name.startswith("--no-")]
        return [flag] if value else negative[:1]
    if action.nargs == "?" and value == action.const:
        return [flag]
    if isinstance(value, list | tuple):
        return [flag, *map(str, value)]
    return (
        [f"{flag}={value}"] if str(value).startswith("-") and not isinstance(value, int | float) else [flag, str(value)]
    )
