"""How many images of a list a checkpoint was trained on, as far as it records its own list."""

import os
from typing import Any

from dataloader.file_list import FileList, read_list
from dataloader.lists import shared_images
from utils.errors import UserError
from utils.logger import log


def count_seen(what: str, content: dict[str, Any], files: FileList) -> int:
    """Return how many of the images of `files` a checkpoint was trained on, and warn where that cannot be told.

    Args:
        what: the checkpoint, for messages.
    """
    data = content.get("data") or {}
    known = data.get("train_list")
    if known is not None and known == files.fingerprint():
        return len(files)
    listed = _recorded_list(content)
    unknown = f"whether it has seen images of {files.source}. If it has, no score of theirs is out of fold."
    if listed is None:
        log.warning(f"{what} does not record where its training list is, so it cannot be checked {unknown}")
        return 0
    try:
        theirs = read_list(listed, task=data.get("task", "single"))
    except UserError:
        log.warning(f"{what} was trained on {listed}, which cannot be read now, so it cannot be checked {unknown}")
        return 0
    count = len(shared_images(theirs, files))
    if not count and known not in (None, theirs.fingerprint()):
        log.warning(f"{what} was trained on {listed}, which has changed since, so it cannot be checked {unknown}")
    return count


def _recorded_list(content: dict[str, Any]) -> str | None:
    """Return the path of the training list that a checkpoint records; early versions record options alone."""
    data, opt = content.get("data") or {}, content.get("opt") or {}
    listed = (data.get("lists") or {}).get("train")
    if listed is None and "train_list" not in data:
        root = opt.get("data_root")
        listed = opt.get("train_list") or (os.path.join(root, "train.txt") if root else None)
    return listed
