"""Why the images of a list cannot be read: the likeliest reason, and the command that corrects it."""

import os
import re
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataloader.decode import LFS_POINTER, WEB_PAGE, text_instead
from dataloader.file_finder import BACKSLASH, CASE, ENDING, FORM, FileFinder
from dataloader.file_list import FileList
from dataloader.list_advice import prepare_command
from utils.errors import UserError
from utils.logger import log

MAX_EXAMINED = 32  # of the images that cannot be read
MAX_NAMES = 8  # in a message
DIFFERENCES = {
    ENDING: "without its ending",
    FORM: "in another Unicode form (NFC, NFD)",
    BACKSLASH: "with backslashes",
    CASE: "with another case",
}


def explain_unreadable(files: FileList, indices: NDArray[np.int64]) -> str:
    """Return why the images at `indices`, int64 (M,), cannot be read: the most frequent reason, and how to correct it.

    The text is empty where no reason is found. MAX_EXAMINED images, spread over `indices`, are examined.
    """
    finder = FileFinder()
    chosen = np.unique(np.linspace(0, len(indices) - 1, MAX_EXAMINED).astype(np.int64))
    examples: dict[str, list[str]] = {}
    for index in indices[chosen].tolist():
        reason, example = _reason(files, index, finder)
        if reason:
            examples.setdefault(reason, []).append(example)
    if not examples:
        return ""
    reason = Counter({reason: len(sentences) for reason, sentences in examples.items()}).most_common(1)[0][0]
    return f"{examples[reason][0]}\n{_advice(reason, files)}".strip()


def check_readable(files: FileList, index: NDArray[np.int64], readable: NDArray[np.bool_]) -> None:
    """Raise UserError where none of the images `index`, int64 (M,), is `readable`, bool (M,); warn if most are not."""
    bad = index[~readable]
    if 2 * len(bad) <= len(index):
        return
    why = explain_unreadable(files, bad)
    why = f"\n{why}" if why else ""
    if readable.any():
        log.warning(f"{len(bad)} of {len(index)} images of {files.source} cannot be read, over half of them.{why}")
        return
    raise UserError(
        f"None of the {len(index)} images of {files.source} can be read, so there is nothing to predict.{why}"
    )


def _reason(files: FileList, index: int, finder: FileFinder) -> tuple[str, str]:
    """Return why one image cannot be read, as a key of `_advice` and as a sentence; two empty texts if unknown."""
    path, listed = files.path(index), files.as_written(index)
    try:
        os.stat(path)
    except PermissionError:
        return "permission", f"{path!r} may not be read: permission denied."
    except (OSError, ValueError):
        return _reason_missing(files, index, finder)
    if not os.path.isfile(path):
        return "folder", f"{path!r} is not a file."
    try:
        with open(path, "rb") as file:
            begin = file.read(64)
    except OSError as error:
        denied = isinstance(error, PermissionError)
        return ("permission", f"{path!r} may not be read: {error.strerror}.") if denied else ("", "")
    if not begin.strip():
        return "empty", f"{listed!r} is empty."
    text = text_instead(begin)
    if text == LFS_POINTER:
        return "lfs", f"{listed!r} is {text}, not the image."
    if text == WEB_PAGE:
        return "html", f"{listed!r} is {text}, as a failed download leaves it."
    return "", ""


def _reason_missing(files: FileList, index: int, finder: FileFinder) -> tuple[str, str]:
    """Return what `_reason` does, for a path that does not exist."""
    path, listed = files.path(index), files.as_written(index)
    bare = re.fullmatch(r"(.*?)[ \t]+[0-9]{1,9}", path, re.DOTALL)
    if files.label[index] < 0 and bare is not None and os.path.exists(bare[1]):
        return "labels", f"The lines of {files.source} end in labels: {bare[1]!r} is there, {path!r} is not."
    with_label = f"{path} {files.label[index]}"
    if files.label[index] >= 0 and os.path.exists(with_label):
        return "no labels", f"The lines of {files.source} have no labels: {with_label!r} is there."
    before = _before_numbers(listed, files) if files.is_labelled() else None
    if before is not None:
        return "spaces", f"{listed!r} is the image {before!r} and numbers: there is a space between labels or numbers."
    found = finder.find(path)
    if found is not None:
        return found[1], f"The list names the file {found[0]!r} {DIFFERENCES[found[1]]}: {listed!r}."
    longer = finder.with_ending(path)
    if longer:
        return "endings", f"{listed!r} has no ending; there are {', '.join(map(repr, longer[:MAX_NAMES]))}."
    if "\r" in listed:
        return "CR", f"{listed!r} holds a carriage return: the list mixes line ends (CR and LF)."
    if re.match(r"[A-Za-z]:[\\/]|\\\\", listed):
        return "windows", f"{listed!r} is a Windows path."
    if len(listed) > 2 and listed[0] == listed[-1] and listed[0] in "'\"":
        return "quotes", f"{listed!r} is in quotes; a list has none."
    if not listed.startswith("/") and os.path.exists(listed):
        start = f"a relative path starts at the list's folder, {files.source.parent}"
        return "here", f"{listed!r} is there from {Path.cwd()}, but {start}."
    above = missing = Path(path).parent
    if above.is_dir():
        return "", ""
    while not above.exists() and above != above.parent:
        missing, above = above, above.parent
    return "moved", f"The folder {str(missing)!r} is not there."


def _before_numbers(listed: str, files: FileList) -> str | None:
    """Return the existing path in one that ends in words of numbers: a line `img.png 1, 2` has the path `img.png 1,`.

    None where there is no such image.
    """
    while (match := re.fullmatch(r"(.*\S)[ \t]+[-+.,0-9eE]+", listed, re.DOTALL)) is not None:
        listed = match[1]
        if os.path.exists(os.path.join(files.source.parent, listed)):
            return listed
    return None


def _advice(reason: str, files: FileList) -> str:
    """Return how to correct `reason`, mostly with a command; empty where the reason itself says it."""
    corrected = correcting_command(files)
    return {
        "labels": corrected,
        "no labels": "Add a label to each line, or give the list as --test_list to submit.py.",
        "spaces": "Write commas alone between them, with --task multilabel or regression: `1,2`, not `1, 2`.",
        "here": correcting_command(files, "--root", "."),
        ENDING: corrected,
        FORM: corrected,
        BACKSLASH: corrected,
        CASE: "Write the names with the case of the files.",
        "endings": correcting_command(files, "--suffix", ".jpg"),
        "CR": "Save the list with LF line ends.",
        "windows": "Write the paths as this machine has them.",
        "quotes": "Write the paths without quotes; spaces in them are fine.",
        "moved": "Is a disk not mounted, or were the images moved? Correct the paths of the list.",
        "permission": "Give yourself permission to read it (`chmod`).",
        "lfs": "Try: git lfs pull",
    }.get(reason, "")


def correcting_command(files: FileList, *flags: str) -> str:
    """Return the advice to write the list anew: the command with these `flags`, and the flag that gives the new list.

    It cannot write sets of labels or numbers; then the text says what to do by hand.
    """
    if files.targets is not None:
        return "Correct the paths of the list."
    out, stem = files.source.parent / "corrected", files.source.stem
    made = "train" if files.label[0] >= 0 else "test"
    part: tuple[object, ...] = ("--val", 0) if made == "train" else ("--part", "test")
    if stem == "val" and (files.source.parent / "classes.txt").is_file():
        made, part = "val", ("--part", "val", "--classes", files.source.parent / "classes.txt")
    then = f"\nThen give --{stem}_list {shlex.quote(str(out / made))}.txt." if stem in ("train", "val", "test") else ""
    return f"Try: {prepare_command('list', files.source, *part, *flags, '--out', out)}{then}"
