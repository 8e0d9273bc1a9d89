"""Checks of a command's lists before anything is written: missing files, unreadable images, images listed twice."""

import hashlib
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.decode import read_image
from dataloader.file_list import FileList, missing_files
from dataloader.image_advice import correcting_command, explain_unreadable
from utils import distributed
from utils.errors import ImageError, UserError
from utils.logger import log

MAX_NAMES = 10  # of missing images in a message
TRIAL_IMAGES = 16  # of a list, decoded before the start
TRIAL_SCALE = 1 / 16  # of an image's size
HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
HASH_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))
HASH_CHUNK_BYTES = 1 << 20
NAME_CHUNK_LINES = 1 << 16
SLASH, DOT = ord("/"), ord(".")


def check_images(files: FileList, drop_missing: bool, on_bad_image: str, max_pixels: int) -> FileList:
    """Look for the listed files, decode a few of them, and return the list.

    Missing files are counted and named in a warning.

    Args:
        drop_missing: leave missing files out of the returned list; else they stay, and count as unreadable.
        on_bad_image: "error" makes a missing file an error.
        max_pixels: the most pixels of a readable image.

    Raises:
        UserError: files are missing under "error", all files are missing, or no image can be read.
    """
    missing = missing_files(files)
    if missing.any():
        _report_missing(files, missing, drop_missing, on_bad_image)
    _try_decoding(files, np.flatnonzero(~missing), max_pixels)
    return files.select(~missing) if drop_missing else files


def _report_missing(files: FileList, missing: NDArray[np.bool_], drop_missing: bool, on_bad_image: str) -> None:
    """Warn of missing files; raise UserError under "error", or where all are missing."""
    indices = np.flatnonzero(missing)
    count = len(indices)
    shown = [f"  {files.path(index)} ({files.location(index)})" for index in indices[:MAX_NAMES].tolist()]
    if count > MAX_NAMES:
        shown.append(f"  … and {count - MAX_NAMES} more")
    reason = explain_unreadable(files, indices)
    if count == len(files):
        advice = reason or f"Correct the list's paths (relative ones start at {files.source.parent}/)."
        raise UserError("\n".join([f"No image of {files.source} is there, of {count}:", *shown, advice]))
    over = ", over half of them" if 2 * count > len(files) else ""
    text = "\n".join([f"{count} of {len(files)} images of {files.source} are not there{over}:", *shown])
    if reason:
        text += f"\n{reason}"
    if on_bad_image == "error":
        raise UserError(f"{text}\nCorrect the list, or continue without these images: --on_bad_image skip.")
    log.warning(f"{text}\n" + ("They are left out." if drop_missing else "They count as unreadable."))


def _try_decoding(files: FileList, present: NDArray[np.int64], max_pixels: int) -> None:
    """Decode a few images from all over the list; warn where over half of them cannot be read.

    Raises:
        UserError: none of them can be read.
    """
    chosen = present[np.unique(np.linspace(0, len(present) - 1, TRIAL_IMAGES).astype(np.int64))]
    bad, first = [], ""
    for index in chosen.tolist():
        try:
            read_image(files.path(index), lambda height, width: TRIAL_SCALE, max_pixels)
        except ImageError as error:
            bad.append(index)
            first = first or f"{error} ({files.location(index)})"
    if 2 * len(bad) <= len(chosen):
        return
    reason = explain_unreadable(files, np.array(bad))
    details = f"the first: {first}" + (f"\n{reason}" if reason else "")
    tried = f"the {len(chosen)} images" if len(chosen) == len(files) else f"{len(chosen)} images, spread over the list,"
    if len(bad) == len(chosen):
        doctor = shlex.join(["python", "-m", "tools.doctor", str(files.source)])
        raise UserError(
            f"None of {tried} of {files.source} can be read; {details}\nTo see everything wrong: `{doctor}`"
        )
    log.warning(f"{len(bad)} of {tried} of {files.source} cannot be read, over half of them; {details}")


# ------------------------------------------------------------------------------------------------ changed since


def is_list_of(files: FileList, fingerprint: str) -> bool:
    """Return whether a FileList.fingerprint is that of the list, or of its images that are there, as in training."""
    return fingerprint == files.fingerprint() or fingerprint == files.select(~missing_files(files)).fingerprint()


def warn_changed(files: FileList, name: str, known: Mapping[str, Mapping[str, Any]]) -> None:
    """Warn where a list is where checkpoints had theirs, and is another one now: with other images, labels or order.

    Args:
        files: the list, its labels numbered as those of the checkpoints.
        name: "train" or "val", which list it is.
        known: {path of a checkpoint: its `data`}; earlier versions recorded less, and are not compared.
    """
    if not distributed.is_main():  # the main process alone warns
        return
    changed = []
    for path, data in known.items():
        listed, fingerprint = (data.get("lists") or {}).get(name), data.get(f"{name}_list")
        if listed is None or fingerprint is None or os.path.realpath(listed) != os.path.realpath(files.source):
            continue
        if not is_list_of(files, fingerprint):
            changed.append(path)
    if not changed:
        return
    owners = " and ".join(changed) if len(changed) <= 2 else f"{len(changed)} checkpoints, the first {changed[0]},"
    did, effect = "learned from it", "So these images may be others."
    if name == "val":
        did = "got its scores" if len(changed) == 1 else "got their scores"
        effect = "Scores on it cannot be compared with those, and are too good on images that were trained on."
    log.warning(f"{files.source} has changed since {owners} {did}: other images, labels or another order. {effect}")


# ------------------------------------------------------------------------------------------------ listed twice


def warn_repeated(files: FileList) -> None:
    """Warn where several lines of a labelled list name one image: it counts once per line, perhaps with two labels."""
    if not distributed.is_main():  # the main process alone warns
        return
    again, first = repeated_images(files)
    if not len(again):
        return
    text = f"{len(again)} of {len(files)} lines of {files.source} name an image that an earlier line names, the first: "
    text += _two_lines(files, int(first[0]), int(again[0])) + "."
    if files.targets is None:
        differ = np.flatnonzero(files.label[again] != files.label[first])
    else:
        pairs = zip(again.tolist(), first.tolist(), strict=True)
        differ = np.flatnonzero([files.target_text(k) != files.target_text(j) for k, j in pairs])
    if len(differ):
        j, k = int(first[differ[0]]), int(again[differ[0]])
        text += f"\n{len(differ)} of them give it another label, the first: {_two_lines(files, j, k)}: "
        text += f"{files.target_text(j)} and {files.target_text(k)}."
    text += "\nAn image counts once per line, in training and in scores. "
    if files.targets is None:
        text += "To keep one line per image, and none where the labels differ:\n" + correcting_command(files)
    else:
        text += "Keep one line per image."
    log.warning(text)


def _two_lines(files: FileList, first: int, again: int) -> str:
    """Return an image and its two lines, for messages."""
    return f"{files.path(first)} (lines {files.line[first]} and {files.line[again]})"


def repeated_images(files: FileList) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices, ascending, of the images that an earlier line names, and for each that of its first line.

    Both are int64 (M,). Images are equal by their paths, as `path_hashes` takes them.
    """
    hashes = path_hashes(files)
    ordered = np.sort(hashes)
    if not (ordered[1:] == ordered[:-1]).any():  # several times faster than what follows
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    order = np.argsort(hashes, kind="stable")
    equal = np.concatenate([[False], hashes[order[1:]] == hashes[order[:-1]]])
    begin = np.maximum.accumulate(np.where(equal, 0, np.arange(len(order))))  # of each run of equal hashes
    again, first = order[equal], order[begin[equal]]
    pairs, real = zip(again.tolist(), first.tolist(), strict=True), _RealPaths()
    same = np.array([real.image(files.path(k)) == real.image(files.path(j)) for k, j in pairs], bool)
    ascending = np.argsort(again[same])
    return again[same][ascending], first[same][ascending]


def warn_shared(train: FileList, val: FileList) -> None:
    """Warn where an image is in both lists: a score on training images says nothing."""
    if not distributed.is_main():  # the main process alone warns
        return
    shared = shared_images(train, val)
    if len(shared):
        first = int(shared[0])
        log.warning(
            f"{len(shared)} of {len(val)} images of {val.source} are in {train.source} too, the first: "
            f"{val.path(first)} ({val.location(first)}). "
            "Scores on training images say nothing; take them out of one list."
        )


def shared_images(train: FileList, val: FileList) -> NDArray[np.int64]:
    """Return the indices, int64 (M,), ascending, of the images of `val` that `train` lists too, by `path_hashes`."""
    val_hashes, train_hashes = path_hashes(val), path_hashes(train)
    order = np.argsort(train_hashes)
    match = np.searchsorted(train_hashes, val_hashes, sorter=order)
    match[match == len(train_hashes)] = 0
    alike = np.flatnonzero(train_hashes[order[match]] == val_hashes)
    pairs, real = zip(alike.tolist(), order[match[alike]].tolist(), strict=True), _RealPaths()
    same = [real.image(val.path(k)) == real.image(train.path(j)) for k, j in pairs]
    return alike[np.array(same, bool)]


def listed_images(files: FileList, effect: str) -> NDArray[np.uint64]:
    """Return `path_hashes` of the list, uint64 (N,); log the `effect` of images that it lists again.

    `warn_repeated` is what warns of them, when the list is opened.
    """
    image = path_hashes(files)
    again = len(image) - len(np.unique(image))
    if again:
        log.info(f"{again} image(s) of {files.source} are listed again; {effect}.")
    return image


def units_of(files: FileList) -> NDArray[np.integer]:
    """Return what a resample draws, (N,): equal where lines are of one image, or where images are of one group."""
    return path_hashes(files) if files.group is None else files.group


def path_fingerprint(files: FileList) -> str:
    """Return the sha256, as hex, of the absolute paths of the images, in order.

    It tells apart lists of equal labels and file names in two folders, which have one FileList.fingerprint.
    """
    return hashlib.sha256(_written_hashes(files).tobytes()).hexdigest()


def path_hashes(files: FileList) -> NDArray[np.uint64]:
    """Return a hash of each image's absolute path, uint64 (N,): equal for equal paths, in whichever list.

    Links to folders are resolved: /data/a.png is /disk/a.png where /data is a link to /disk.
    """
    hashes, names = _written_hashes(files), _name_starts(files)
    _, example, folder = np.unique(
        _hash(files.text, files.start, names - files.start), return_index=True, return_inverse=True
    )
    real, prefixes = _RealPaths(), []
    for image in example.tolist():
        written = os.path.dirname(os.path.abspath(files.path(image)))
        target = real.folder(written)
        prefixes.append(b"" if target == written else os.fsencode(os.path.join(target, "")))
    linked = np.flatnonzero(np.array([bool(prefix) for prefix in prefixes])[folder])
    if len(linked):
        length = files.start[linked] + files.length[linked] - names[linked]
        begin = np.array([_hash_of(prefix) for prefix in prefixes], np.uint64)
        shift = np.array([pow(int(HASH_FACTOR), len(prefix), 1 << 64) for prefix in prefixes], np.uint64)
        hashes[linked] = begin[folder[linked]] + shift[folder[linked]] * _hash(files.text, names[linked], length)
    return hashes


class _RealPaths:
    """Resolves links in folders. Each folder is looked at once: a large list has many images in each."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def image(self, path: str) -> str:
        """Return the absolute path of an image, with the links of its folder resolved."""
        folder, name = os.path.split(os.path.abspath(path))
        return os.path.join(self.folder(folder), name)

    def folder(self, path: str) -> str:
        """Return a normalised absolute path without links."""
        if path not in self._known:
            above, name = os.path.split(path)
            found = os.path.join(self.folder(above), name) if name else path
            self._known[path] = os.path.realpath(found) if Path(found).is_symlink() else found
        return self._known[path]


def _name_starts(files: FileList) -> NDArray[np.int64]:
    """Return where the name of each image begins in the text, int64 (N,): after the last "/" of its path."""
    found = np.empty(len(files), np.int64)
    for first in range(0, len(files), NAME_CHUNK_LINES):
        chunk = slice(first, first + NAME_CHUNK_LINES)
        start, end = files.start[chunk], files.start[chunk] + files.length[chunk]
        after = np.flatnonzero(files.text[start[0] : end[-1]] == SLASH) + start[0] + 1
        after = np.concatenate([[0], after])
        found[chunk] = np.maximum(after[np.searchsorted(after, end, "right") - 1], start)
    return found


def _written_hashes(files: FileList) -> NDArray[np.uint64]:
    """Return a hash of each image's absolute path, uint64 (N,), links as they are.

    It is a polynomial modulo 2^64, computed on the bytes of the list. With Python strings, 2.5 million paths would
    take many times longer.
    """
    hashes = np.empty(len(files), np.uint64)
    folder = os.fsencode(os.path.join(os.path.abspath(files.source.parent), ""))
    prefix = _hash_of(folder)
    shift = np.uint64(pow(int(HASH_FACTOR), len(folder), 1 << 64))
    relative = files.text[files.start] != SLASH
    hashes[:] = _hash(files.text, files.start, files.length)
    hashes[relative] = prefix + shift * hashes[relative]
    unnormalised = np.flatnonzero(_may_need_normalising(files))
    if len(unnormalised):
        names = [os.fsencode(os.path.abspath(files.path(index))) for index in unnormalised.tolist()]
        text = np.frombuffer(b"".join(names), np.uint8)
        ends = np.cumsum([len(name) for name in names])
        hashes[unnormalised] = _hash(text, np.concatenate([[0], ends[:-1]]), np.diff(ends, prepend=0))
    return hashes


def _may_need_normalising(files: FileList) -> NDArray[np.bool_]:
    """Return which paths, bool (N,), begin with a dot, end in "/", or hold "//" or "/."."""
    text, found = files.text, []
    for first in range(0, len(text), HASH_CHUNK_BYTES):  # masks of the whole text would be as large as the list
        part = text[first : first + HASH_CHUNK_BYTES + 1]
        byte, following = part[:-1], part[1:]
        found.append(np.flatnonzero((byte == SLASH) & ((following == SLASH) | (following == DOT))) + first)
    places = np.concatenate(found)
    last = files.start + files.length - 1
    inside = np.searchsorted(places, last) > np.searchsorted(places, files.start)
    return inside | (text[files.start] == DOT) | (text[last] == SLASH)


def _hash_of(name: bytes) -> np.uint64:
    """Return the hash of one name."""
    if not name:
        return np.uint64(0)
    found: np.uint64 = _hash(np.frombuffer(name, np.uint8), np.zeros(1, np.int64), np.array([len(name)]))[0]
    return found


def _hash(text: NDArray[np.uint8], start: NDArray[np.int64], length: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Return the hash of each text[start:start + length], uint64; starts ascend.

    The hash is the sum of (byte k + 1) times HASH_FACTOR^k, modulo 2^64.
    """
    hashes = np.empty(len(start), np.uint64)
    end = start + length
    span = min(len(text), max(HASH_CHUNK_BYTES, int(length.max())))
    power = np.cumprod(np.full(span, HASH_FACTOR)) * HASH_INVERSE
    inverse_power = np.cumprod(np.full(span + 1, HASH_INVERSE)) * HASH_FACTOR  # an empty part may begin at the end
    at = 0
    while at < len(start):
        first = int(start[at])
        # a path longer than a chunk is hashed by itself
        stop = max(at + 1, int(np.searchsorted(end, first + HASH_CHUNK_BYTES, "right")))
        part = text[first : int(end[stop - 1])].astype(np.uint64) + np.uint64(1)
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(part * power[: len(part)])])
        begin = start[at:stop] - first
        hashes[at:stop] = (sums[end[at:stop] - first] - sums[begin]) * inverse_power[begin]
        at = stop
    return hashes
