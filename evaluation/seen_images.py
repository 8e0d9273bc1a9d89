"""How many images of a list a network has learned from, as far as its checkpoint records its lists."""

import os
from collections.abc import Mapping

import cv2
import numpy as np

from dataloader.file_list import FileList, read_list
from dataloader.list_checks import is_list_of, path_fingerprint, shared_images
from utils.errors import UserError
from utils.logger import log
from utils.seen_lists import Seen

COMPARED_IMAGES = 9  # of two lists with equal labels and file names
THUMBNAIL_PIXELS, CELLS = 64, 16  # the longer side as read, and both sides as compared
MAX_LEVELS = 40.0  # of 255: 19 photographs differed by 62 from each other, and by 31 from their central crops (medians)


def warn_seen(what: str, seen: Seen, files: FileList, effect: str, doubts: bool = True) -> None:
    """Warn where a network has learned from images of `files`, or that cannot be told.

    Args:
        what: the network, for messages. seen: its utils.seen_lists.seen_lists. effect: a sentence about what is fitted
            to the images, or measured on them. doubts: whether to warn where it cannot be told.
    """
    count = count_seen(what, seen, files) if doubts else find_seen(seen, files)[0]
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
        images = f"other images than these {count}" if count else "images"
        log.warning(
            f"{what} {doubt}, so it cannot be checked whether it has seen {images} of {files.source}. "
            "If it has, it predicts them better than others, and no score of theirs is out of fold."
        )
    return count


def find_seen(seen: Seen, files: FileList) -> tuple[int, list[str]]:
    """Return how many of the images of `files` are in the lists `seen`, and in words why there may be more."""
    found, doubts = np.zeros(len(files), bool), []
    fingerprint = files.fingerprint()
    for one in seen:
        if one.get("fingerprint") == fingerprint and not _has_other_images(one, files):
            return len(files), []
        shared, doubt = _shared(one, files)
        found[shared] = True
        doubts += [doubt] if doubt else []
    return int(found.sum()), list(dict.fromkeys(doubts))


def _has_other_images(one: Mapping[str, str | None], files: FileList) -> bool:
    """Return whether a list of `data.seen`, which has the fingerprint of `files`, is known to have other images.

    A fingerprint is of labels and file names, which two folders may share. A copy of the images elsewhere, in whatever
    size or format, has the same images: only lists that are both there, and look different, are told apart.
    """
    path = one.get("path")
    if path is None or os.path.realpath(path) == os.path.realpath(files.source):
        return False
    theirs = _read(path, one)
    if theirs is None or theirs.fingerprint() != one.get("fingerprint"):
        return False
    return path_fingerprint(theirs) != path_fingerprint(files) and not _look_alike(theirs, files)


def _look_alike(theirs: FileList, ours: FileList) -> bool:
    """Return whether images at the same places of two lists look alike; also where none can be read in both."""
    differences = []
    for index in np.unique(np.linspace(0, len(ours) - 1, COMPARED_IMAGES).astype(np.int64)).tolist():
        pair = [one.thumbnail(index, THUMBNAIL_PIXELS) for one in (theirs, ours)]
        cells = [cv2.resize(one, (CELLS, CELLS), interpolation=cv2.INTER_AREA) for one in pair if one is not None]
        if len(cells) == 2:
            differences.append(float(cv2.absdiff(*cells).mean()))
    return not differences or float(np.median(differences)) <= MAX_LEVELS


def _shared(one: Mapping[str, str | None], files: FileList) -> tuple[list[int], str]:
    """Return the images of `files` that a list of `data.seen` has too, and why that may not be all; "": it is."""
    path, known = one.get("path"), one.get("fingerprint")
    if path is None:
        return [], "does not record where its training list is, or that of a network that it was made from"
    theirs = _read(path, one)
    if theirs is None:
        return [], f"was trained on {path}, which cannot be read now"
    shared = shared_images(theirs, files).tolist()
    if len(shared) < len(files) and known is not None and not is_list_of(theirs, known):
        return shared, f"was trained on {path}, which has changed since"
    return shared, ""


def _read(path: str, one: Mapping[str, str | None]) -> FileList | None:
    """Return the list of `data.seen` at its `path`, or None where it cannot be read now."""
    try:
        return read_list(path, task=one.get("task") or "single")
    except UserError:
        return None
