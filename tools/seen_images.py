"""How many images of a list a checkpoint has learned from, as far as it records its lists."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dataloader.file_list import FileList, read_list
from dataloader.lists import shared_images
from utils.errors import UserError
from utils.logger import log
from utils.seen_lists import seen_lists


def count_seen(what: str, content: dict[str, Any], files: FileList) -> int:
    """Return how many of the images of `files` a checkpoint has learned from, and warn where that cannot be told.

    Args:
        what: the checkpoint, for messages.
    """
    count, doubts = find_seen(content, files)
    for doubt in doubts:
        log.warning(
            f"{what} {doubt}, so it cannot be checked whether it has seen images of {files.source}. "
            "If it has, no score of theirs is out of fold."
        )
    return count


def find_seen(content: dict[str, Any], files: FileList) -> tuple[int, list[str]]:
    """Return how many of the images of `files` a checkpoint has learned from, and in words why there may be more."""
    seen, doubts = np.zeros(len(files), bool), []
    fingerprint = files.fingerprint()
    for one in seen_lists(content):
        if one.get("fingerprint") == fingerprint:
            return len(files), []
        shared, doubt = _shared(one, files)
        seen[shared] = True
        doubts += [doubt] if doubt else []
    return int(seen.sum()), list(dict.fromkeys(doubts))


def _shared(one: Mapping[str, str | None], files: FileList) -> tuple[list[int], str]:
    """Return the images of `files` that a list of `data.seen` has too, and why that may not be all; "": it is."""
    path, known = one.get("path"), one.get("fingerprint")
    if path is None:
        return [], "does not record where its training list is, or that of a network that it was made from"
    try:
        theirs = read_list(path, task=one.get("task") or "single")
    except UserError:
        return [], f"was trained on {path}, which cannot be read now"
    shared = shared_images(theirs, files).tolist()
    if not shared and known not in (None, theirs.fingerprint()):
        return [], f"was trained on {path}, which has changed since"
    return shared, ""
