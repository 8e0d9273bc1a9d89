"""The flags of this tool and those of train.py: what they allow together, checked before anything is trained."""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from options import Options, build_parser, choices, rules
from options.parser import ToolParser, expanded
from utils import distributed
from utils.errors import UserError, path_hint

CHECKPOINTS = ("last", "best")
# What a fold decides, or this tool has a flag for: {flag of train.py: what to do instead}.
TAKEN = {
    "val_list": "each fold validates on the part that it holds out; leave it out",
    "resume": "a second call continues by itself; leave it out",
    "overwrite": "give --overwrite before --, where it starts all folds again",
}


def option_parser(description: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this tool; the words after -- are train.py's."""
    parser = ToolParser("-m tools.folds", description)
    parser.add_argument("--folds", type=int, default=5, metavar="K", help="number of folds, and of networks")
    parser.add_argument("--seed", type=int, default=42, help="of the folds; the same seed gives the same folds")
    parser.add_argument(
        "--group_table", type=expanded, metavar="FILE", help="a CSV file that says which images belong together"
    )
    parser.add_argument(
        "--group_column", metavar="NAME", help="its column of groups (product, patient); images of one share a fold"
    )
    parser.add_argument("--path_column", metavar="NAME", help="its column of image paths")
    parser.add_argument(
        "--group_root", type=expanded, metavar="DIR", help="where its relative paths start; default: its folder"
    )
    parser.add_argument(
        "--group_by",
        metavar="REGEX",
        help="instead of a table: images whose paths match with the same captured text share a fold",
    )
    parser.add_argument(
        "--allow_rare", action="store_true", help="allow classes with fewer images than folds, with a warning"
    )
    parser.add_argument(
        "--folds_out", type=expanded, metavar="DIR", help="folder for the lists; default: results/<tag>/folds"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="train each fold with torchrun in N processes, one per GPU",
    )
    parser.add_argument(
        "--checkpoint",
        choices=CHECKPOINTS,
        help="which network of a fold predicts; best is chosen on the held-out part, so its score is a little too good "
        "(default: last; with --patience: best)",
    )
    tta = build_parser("eval").flags()["tta"]
    parser.add_argument("--tta", choices=tta.choices, default="none", help="views of each image that is predicted")
    parser.add_argument(
        "--resamples", type=int, default=1000, metavar="N", help="bootstrap resamples for the intervals; 0: none"
    )
    parser.add_argument(
        "--fit_thresholds",
        choices=[name for name in choices.THRESHOLDS if name != "half"],
        help="with --task multilabel: fit the thresholds with the highest F1 to the out-of-fold predictions, one for "
        "all labels or one per label, for ensemble.yaml (default: 0.5)",
    )
    parser.add_argument("--result_dir", type=expanded, default="results", metavar="DIR")
    parser.add_argument(
        "--overwrite", action="store_true", help="delete the earlier folds of this tag, and begin again"
    )
    return parser


def parse_train_flags(opt: argparse.Namespace, words: Sequence[str]) -> Options:
    """Return train.py's options from `words`, checked against `opt`, the flags of this tool.

    Raises:
        SystemExit: code 2, after a message: a flag of train.py is wrong.
        UserError: flags are wrong, alone or together; the message lists all problems.
    """
    train = build_parser("train").parse(words)
    processes = distributed.world_size()
    if processes > 1:
        raise UserError(
            f"torchrun started tools.folds in {processes} processes; it starts those of its trainings itself.\n"
            f"Try: python -m tools.folds --processes {processes} …, without torchrun."
        )
    problems = _own_problems(opt) + _train_problems(opt, train)
    if problems:
        raise UserError("\n".join(problems) + "\nAll flags: python -m tools.folds --help, python train.py --help")
    return train


def _own_problems(opt: argparse.Namespace) -> list[str]:
    """Return the problems of this tool's flags."""
    numbers = {"folds": (opt.folds, 2, 1000), "processes": (opt.processes, 1, 1024)}
    numbers |= {"seed": (opt.seed, 0, 2**32 - 1), "resamples": (opt.resamples, 0, 100_000)}
    wrong = [
        f"--{name} is {value}; allowed: {low} to {high}."
        for name, (value, low, high) in numbers.items()
        if not low <= value <= high
    ]
    if opt.group_by is not None and opt.group_table is not None:
        wrong.append("--group_by and --group_table both say what belongs together; leave one out.")
    if opt.group_by is not None:
        try:
            re.compile(opt.group_by)
        except re.error as error:
            wrong.append(f"--group_by {opt.group_by!r} is not a regular expression: {error}.")
    return wrong + _table_problems(opt)


def _table_problems(opt: argparse.Namespace) -> list[str]:
    """Return the problems of the flags for --group_table."""
    names = ("group_column", "path_column")
    if opt.group_table is None:
        given = [f"--{name}" for name in (*names, "group_root") if getattr(opt, name) is not None]
        return [f"{', '.join(given)} is of a table. Try: --group_table FILE, a CSV file, with it."] if given else []
    path = Path(opt.group_table)
    if not path.is_file():
        return [f"There is no file {path} for --group_table.{path_hint(path)}"]
    missing = [f"--{name}" for name in names if getattr(opt, name) is None]
    if not missing:
        return []
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        header = file.readline().strip()[:200]
    return [f"--group_table needs {' and '.join(missing)}; the first line of {path} is: {header}"]


def _train_problems(opt: argparse.Namespace, train: Options) -> list[str]:
    """Return where the flags of train.py contradict the folds."""
    wrong = [f"--{name} after -- does not fit: {why}." for name, why in TAKEN.items() if vars(train)[name]]
    longest = fold_tag(train.tag, opt.folds)
    if not rules.tag(train) and rules.tag(argparse.Namespace(tag=longest)):
        wrong.append(f"--tag {train.tag} is too long: its last fold would be {longest!r}. Try: a shorter --tag")
    if opt.fit_thresholds and train.task != "multilabel":
        wrong.append(
            f"--fit_thresholds is for several labels per image, and --task is {train.task}; allowed: multilabel. "
            "Leave it out."
        )
    if opt.checkpoint == "best" and not train.val_freq:
        wrong.append("--checkpoint best needs validations, and --val_freq 0 has none; leave one out.")
    return wrong


def fold_tag(tag: str, fold: int) -> str:
    """Return the tag of the run that trains fold `fold`, from 1."""
    return f"{tag}_fold{fold}"


def which_checkpoint(opt: argparse.Namespace, train: Options) -> str:
    """Return "last" or "best": --checkpoint, or by default best where --patience ends a run after its best epoch."""
    return opt.checkpoint or ("best" if train.patience else "last")


def folder_of(opt: argparse.Namespace, train: Options) -> Path:
    """Return the folder for the results, <result_dir>/<tag>."""
    return Path(opt.result_dir) / train.tag


def lists_folder(opt: argparse.Namespace, train: Options) -> Path:
    """Return the folder for the lists of the folds, and for what a second call needs to continue."""
    return Path(opt.folds_out) if opt.folds_out else folder_of(opt, train) / "folds"


def same_file(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Return whether two paths are one file, as far as they exist."""
    return os.path.realpath(one) == os.path.realpath(other)
