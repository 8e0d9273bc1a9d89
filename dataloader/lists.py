"""The lists of a command: found, read, and looked at before anything is written."""

import argparse
import os
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.decode import read_image
from dataloader.file_list import FileList, missing_files, read_list
from dataloader.list_paths import choose_list, list_path
from utils import distributed
from utils.errors import ImageError, UserError
from utils.logger import log

MAX_NAMES = 10  # of missing images that a message shows
TRIED = 16  # images of a list that are decoded before the start
SMALL = 1 / 16  # of an image's size: what the trial decodes
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))
BYTES = 1 << 20  # hashed at a time


def open_list(
    opt: argparse.Namespace, name: str, drop_missing: bool = False, known: Mapping[str, Any] | None = None
) -> FileList:
    """Read the list called "train", "val" or "test", look for its files, and decode a few of them.

    Missing ones are counted and named; --on_bad_image says whether that is an error. `drop_missing` takes them out
    of the list (training); else they stay, and count as unreadable. With --no-check_files, and where only saved
    probabilities are blended, no file is looked at. `known`: the lists that the checkpoints remember
    (inference.loading.Loaded.lists), which are read where no flag says another; see dataloader.list_paths.

    Raises:
        UserError: the list is unusable, files are missing under --on_bad_image error, or no image can be read.
    """
    path = list_path(opt, name) if known is None else choose_list(opt, name, known)
    files = read_list(path, labelled=name != "test")
    if not opt.check_files or _from_files_alone(opt, name):
        return files
    gone = missing_files(files)
    if gone.any():
        _say_missing(files, gone, opt, drop_missing)
    _try_some(files, np.flatnonzero(~gone), opt)
    return files.select(~gone) if drop_missing else files


def _from_files_alone(opt: argparse.Namespace, name: str) -> bool:
    """Whether eval.py and submit.py blend files of probabilities alone, so that no image is read."""
    return name != "train" and isinstance(opt.load, list) and all(path.endswith(".npz") for path in opt.load)


def _say_missing(files: FileList, gone: NDArray[np.bool_], opt: argparse.Namespace, drop_missing: bool) -> None:
    """Warn of missing files; raise UserError under --on_bad_image error, or where all are missing."""
    count, shown = (
        int(gone.sum()),
        [f"  {files.path(index)} ({files.where(index)})" for index in np.flatnonzero(gone)[:MAX_NAMES].tolist()],
    )
    shown += [f"  … and {count - MAX_NAMES} more"] if count > MAX_NAMES else []
    why = files.why_unreadable(np.flatnonzero(gone))
    if gone.all():
        mend = why or f"Mend the list's paths (relative ones start at {files.source.parent}/)."
        raise UserError("\n".join([f"No image of {files.source} is there, of {count}:", *shown, mend]))
    over = ", over half of them" if 2 * count > len(files) else ""
    text = "\n".join(
        [f"{count} of {len(files)} images of {files.source} are not there{over}:", *shown] + [why] * bool(why)
    )
    if opt.on_bad_image == "error":
        raise UserError(f"{text}\nMend the list, or go on without them: --on_bad_image skip.")
    log.warning(f"{text}\n" + ("They are left out." if drop_missing else "They count as unreadable."))


def _try_some(files: FileList, there: NDArray[np.int64], opt: argparse.Namespace) -> None:
    """Decode a few images, spread over the list: warn where over half of them cannot be read.

    Raises:
        UserError: none of them can be read.
    """
    some = there[np.unique(np.linspace(0, len(there) - 1, TRIED).astype(np.int64))]
    bad, first = [], ""
    for index in some.tolist():
        try:
            read_image(files.path(index), lambda height, width: SMALL, opt.max_pixels)
        except ImageError as error:
            bad.append(index)
            first = first or f"{error} ({files.where(index)})"
    if 2 * len(bad) <= len(some):
        return
    why = files.why_unreadable(np.array(bad))
    text = f"the first: {first}" + (f"\n{why}" if why else "")
    tried = f"the {len(some)} images" if len(some) == len(files) else f"{len(some)} images, spread over the list,"
    if len(bad) == len(some):
        doctor = shlex.join(["python", "-m", "tools.doctor", str(files.source)])
        raise UserError(f"None of {tried} of {files.source} can be read; {text}\n`{doctor}` names all that is wrong.")
    log.warning(f"{len(bad)} of {tried} of {files.source} cannot be read, over half of them; {text}")


# ------------------------------------------------------------------------------------------------ two lists


def warn_shared(train: FileList, val: FileList) -> None:
    """Warn where a path is in both lists: a score on what was trained on says nothing."""
    if distributed.rank():  # one process speaks for all
        return
    shared = shared_images(train, val)
    if len(shared):
        first = int(shared[0])
        log.warning(
            f"{len(shared)} of {len(val)} images of {val.source} are in {train.source} too, the first: "
            f"{val.path(first)} ({val.where(first)}). Scores on images that were trained on say nothing; take them out of one list."
        )


def shared_images(train: FileList, val: FileList) -> NDArray[np.int64]:
    """Return which images of `val` (places, ascending) `train` names too, by absolute path without `.` and `..`."""
    ours, theirs = path_hashes(val), path_hashes(train)
    order = np.argsort(theirs)
    place = np.searchsorted(theirs, ours, sorter=order)
    place[place == len(theirs)] = 0
    alike = np.flatnonzero(theirs[order[place]] == ours)
    same = [
        os.path.abspath(val.path(k)) == os.path.abspath(train.path(j))
        for k, j in zip(alike.tolist(), order[place[alike]].tolist(), strict=True)
    ]
    return alike[np.array(same, bool)]


def path_hashes(files: FileList) -> NDArray[np.uint64]:
    """Return a hash of each image's absolute path, uint64 (N,): equal for equal paths, in whichever list.

    A polynomial modulo 2^64, from the list's bytes at once: 2.5 million Python strings would take many times longer.
    """
    found = np.empty(len(files), np.uint64)
    folder = np.frombuffer(os.fsencode(os.path.join(os.path.abspath(files.source.parent), "")), np.uint8)
    prefix = _hash(folder, np.zeros(1, np.int64), np.array([len(folder)]))[0]
    shift = np.uint64(pow(int(FACTOR), len(folder), 1 << 64))
    slash = ord("/")
    relative = files.text[files.start] != slash
    found[:] = _hash(files.text, files.start, files.length)
    found[relative] = prefix + shift * found[relative]
    odd = np.flatnonzero(_unusual(files))
    if len(odd):
        names = [os.fsencode(os.path.abspath(files.path(index))) for index in odd.tolist()]
        ends = np.cumsum([len(name) for name in names])
        found[odd] = _hash(
            np.frombuffer(b"".join(names), np.uint8), np.concatenate([[0], ends[:-1]]), np.diff(ends, prepend=0)
        )
    return found


def _unusual(files: FileList) -> NDArray[np.bool_]:
    """Which paths may not be in their shortest form: those that begin with a dot, or hold "//" or "/."."""
    text, found = files.text, []
    for first in range(0, len(text), BYTES):  # by parts: masks of the whole text would be as large as the list
        part = text[first : first + BYTES + 1]
        found.append(
            np.flatnonzero((part[:-1] == ord("/")) & ((part[1:] == ord("/")) | (part[1:] == ord(".")))) + first
        )
    places = np.concatenate(found)
    inside = np.searchsorted(places, files.start + files.length - 1) > np.searchsorted(places, files.start)
    return inside | (text[files.start] == ord(".")) | (text[files.start + files.length - 1] == ord("/"))


def _hash(text: NDArray[np.uint8], start: NDArray[np.int64], length: NDArray) -> NDArray[np.uint64]:
    """Return the sum of byte k of each text[start:start + length], plus one, times FACTOR^k, modulo 2^64; starts ascend."""
    found = np.empty(len(start), np.uint64)
    end = start + length
    most = min(len(text), max(BYTES, int(length.max())))
    power = np.cumprod(np.full(most, FACTOR)) * INVERSE
    back = np.cumprod(np.full(most, INVERSE)) * FACTOR
    at = 0
    while at < len(start):
        first = int(start[at])
        stop = max(at + 1, int(np.searchsorted(end, first + BYTES, "right")))  # a path longer than BYTES by itself
        part = text[first : int(end[stop - 1])].astype(np.uint64) + np.uint64(1)
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(part * power[: len(part)])])
        begin = start[at:stop] - first
        found[at:stop] = (sums[end[at:stop] - first] - sums[begin]) * back[begin]
        at = stop
    return found
