"""Where the lists are: what the flags say, else what the checkpoint remembers, else datasets/."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.logger import log

DEFAULT = "datasets"  # of --data_root
KINDS = {"train": "training", "val": "validation", "test": "test"}


def list_path(opt: argparse.Namespace, name: str) -> Path:
    """Return --train_list, --val_list or --test_list, or <name>.txt under --data_root."""
    given = getattr(opt, f"{name}_list")
    return Path(given) if given else Path(opt.data_root) / f"{name}.txt"


def lists_of(opt: argparse.Namespace) -> dict[str, str]:
    """Return what a checkpoint remembers of a training run's lists: absolute paths, by "data_root", "train", "val" and "test".

    The test list is expected in --data_root; or beside --train_list, where that alone was given.
    """
    beside = opt.train_list and opt.data_root == DEFAULT and "data_root" not in opt.given
    root = Path(opt.train_list).parent if beside else Path(opt.data_root)
    found = {
        "data_root": root,
        "train": list_path(opt, "train"),
        "val": list_path(opt, "val"),
        "test": root / "test.txt",
    }
    return {name: os.path.abspath(path) for name, path in found.items()}


def known_list(opt: argparse.Namespace, name: str, known: Mapping[str, Any]) -> tuple[Path | None, str]:
    """Return where the checkpoints had their list `name`, and which of them say so; (None, "") where a flag says, or none of them.

    Args:
        known: {checkpoint's path: what `lists_of` gave}.

    Raises:
        UserError: they had different ones.
    """
    if _said(opt, name):
        return None, ""
    found = {
        path: lists[name]
        for path, lists in known.items()
        if isinstance(lists, Mapping) and isinstance(lists.get(name), str)
    }
    if len(set(map(os.path.realpath, found.values()))) > 1:
        shown = "\n".join(f"  {path}: {listed}" for path, listed in found.items())
        raise UserError(
            f"The checkpoints remember different {KINDS[name]} lists:\n{shown}\nSay which is meant: --{name}_list FILE, or --data_root DIR."
        )
    return next((Path(listed) for listed in found.values()), None), " and ".join(found)


def choose_list(opt: argparse.Namespace, name: str, known: Mapping[str, Any]) -> Path:
    """Return the path of the list `name` for these checkpoints, and log it where no flag says which it is; `known` as in `known_list`.

    Raises:
        UserError: the list that they remember is gone, or they remember different ones.
    """
    path, whose = known_list(opt, name, known)
    if path is None:
        chosen = list_path(opt, name)
        if not _said(opt, name):
            log.info(f"The {KINDS[name]} list is {chosen}: no checkpoint says where its lists were.")
        return chosen
    if not path.is_file():
        raise UserError(
            f"There is no list {path}, where {whose} had its {KINDS[name]} list.\n"
            f"Say where it is now: --{name}_list FILE, or --data_root DIR, which holds {name}.txt."
        )
    log.info(f"The {KINDS[name]} list is {path}, as {whose} remembers it; --{name}_list and --data_root override it.")
    return path


def _said(opt: argparse.Namespace, name: str) -> bool:
    return bool(getattr(opt, f"{name}_list")) or "data_root" in opt.given
