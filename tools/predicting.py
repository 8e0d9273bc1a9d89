"""What the tools share that predict a list with one checkpoint: flags, and the network ready to run."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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


def read_whole(path: str, give: str = "a checkpoint") -> tuple[dict[str, Any], str]:
    """Return what a checkpoint holds, its network, classes and preprocessing among it, and the sha256 of its file.

    The sha256 is "" of what is no single file.

    Args:
        give: what the tool takes, for the message.

    Raises:
        UserError: it cannot be read, or holds weights alone.
    """
    from utils import checkpoint
    from utils.files import read_hashed

    content, sha256 = read_hashed(path, lambda: checkpoint.load(path))
    if not content.keys() >= {"model", "opt", "data"} or "preprocess" not in content["data"]:
        raise UserError(
            f"{path} holds weights, but not their network, preprocessing and what they predict. "
            f"Give {give} of train.py."
        )
    return content, sha256


def require_classes(content: Mapping[str, Any], path: str, tool: str) -> None:
    """Raise UserError where a checkpoint's `content` is of a task without classes of which one is right."""
    from utils.task import has_probabilities

    task = (content.get("data") or {}).get("task", "single")
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
    common = given_words(vars(opt), "load", "batch_size", "workers", "gpu")
    return open_inference(parse_eval([*common, *words]), files, match_classes, shared=shared)
