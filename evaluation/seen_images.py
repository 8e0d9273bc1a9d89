"""How many images of a list a network has learned from, as far as its checkpoint records its lists."""

from collections.abc import Mapping

import numpy as np

from dataloader.file_list import FileList, read_list
from dataloader.lists import shared_images
from utils.errors import UserError
from utils.logger import log
from utils.seen_lists import Seen


def warn_seen(what: str, seen: Seen, files: FileList, effect: str) -> None:
    """Warn where a network has learned from images of `files`, to which something is fitted, or that cannot be told.

    Args:
        what: the network, for messages. seen: its utils.seen_lists.seen_lists. effect: a sentence about the fit.
    """
    warn_of_count(what, count_seen(what, seen, files), files, effect)


def warn_of_count(what: str, count: int, files: FileList, effect: str) -> None:
    """Warn where a network has learned from `count` images of `files`, if there are any. The rest is as `warn_seen`."""
    if count:
        log.warning(
            f"{what} was trained on {count} of the {len(files)} images of {files.source}. {effect} "
            "Give a list of other images."
        )


def count_seen(what: str, seen: Seen, files: FileList) -> int:
    """Return how many of the images of `files` a network has learned from, and warn where that cannot be told.

    Args:
        what: the network, for messages. seen: its utils.seen_lists.seen_lists.
    """
    count, doubts = find_seen(seen, files)
    for doubt in doubts:
        log.warning(
            f"{what} {doubt}, so it cannot be checked whether it has seen images of {files.source}. "
            "If it has, it predicts them better than others, and no score of theirs is out of fold."
        )
    return count


def find_seen(seen: Seen, files: FileList) -> tuple[int, list[str]]:
    """Return how many of the images of `files` are in the lists `seen`, and in words why there may be more."""
    found, doubts = np.zeros(len(files), bool), []
    fingerprint = files.fingerprint()
    for one in seen:
        if one.get("fingerprint") == fingerprint:
            return len(files), []
        shared, doubt = _shared(one, files)
        found[shared] = True
        doubts += [doubt] if doubt else []
    return int(found.sum()), list(dict.fromkeys(doubts))


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
