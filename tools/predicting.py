"""What the tools share that predict a list with one checkpoint: flags, and the network ready to run."""

import argparse
from typing import TYPE_CHECKING

from options import given_words, parse_eval
from utils.errors import UserError

if TYPE_CHECKING:
    from dataloader.file_list import FileList
    from inference.session import Inference


def add_flags(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """Add -b, with the default `batch_size`, -w and --gpu."""
    parser.add_argument("-b", "--batch_size", type=int, default=batch_size)
    parser.add_argument("-w", "--workers", type=int)
    parser.add_argument("--gpu", type=int)


def require_classes(path: str, tool: str) -> None:
    """Raise UserError where the checkpoint `path` is of a task without classes of which one is right."""
    from utils import checkpoint
    from utils.task import has_probabilities

    task = (checkpoint.load(path).get("data") or {}).get("task", "single")
    if not has_probabilities(task):
        raise UserError(f"{path} is of --task {task}; {tool} is for one class per image: single, ordinal.")


def open_checkpoint(
    opt: argparse.Namespace, files: "FileList", *words: str, match_classes: bool = True, shared: bool = False
) -> "Inference":
    """Load the checkpoint `opt.load` to predict `files`, with the flags of `add_flags`.

    Args:
        words: more flags of eval.py.
        match_classes: whether labels are renumbered to the checkpoint's classes.
        shared: whether the tool can run in several processes.

    Raises:
        UserError: as inference.open_inference.
    """
    from inference import open_inference
    from utils.run import tune_malloc

    tune_malloc()
    common = ["--load", opt.load, "-b", str(opt.batch_size), *given_words(opt, "workers", "gpu")]
    return open_inference(parse_eval([*common, *words]), files, match_classes, shared=shared)
