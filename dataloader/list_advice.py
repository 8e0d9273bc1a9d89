"""What is said of a list that cannot be used, or whose images cannot be read: the likeliest reason, and the command that mends it."""

import os
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloader.file_finder import BACKSLASH, CASE, ENDING, FORM, FileFinder
from utils.errors import UserError
from utils.logger import log

if TYPE_CHECKING:
    from dataloader.file_list import FileList

UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # its byte-order marks; without one, half of its bytes are zero
KINDS = {  # the first bytes of files that are given as lists by mistake
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"RIFF": "a RIFF file, as WebP images are",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"PK\x03\x04": "a ZIP archive, as checkpoints, .npz and .xlsx files are",
    b"\x1f\x8b": "a gzip archive",
    b"%PDF": "a PDF document",
    b"\x80": "a pickle",
}
LOOKED_AT = 32  # of the images that cannot be read
MAX_NAMES = 8  # of the names that a message shows
SPLITS = {"train", "training", "val", "valid", "validation", "test"}


def expected(labelled: bool) -> str:
    """Return what a line should be."""
    return "`/path/to/image.jpg 3` per line (path, space, label)" if labelled else "one image path per line"


def prepare(*words: object) -> str:
    """Return a command line of datasets/prepare.py, quoted for a shell."""
    return shlex.join(["python", "datasets/prepare.py", *map(str, words)])


# ------------------------------------------------------------------------------------------------ the list itself


def check_text(path: Path, text: NDArray[np.uint8]) -> None:
    """Raise UserError where `text`, the bytes of `path`, is no UTF-8 text: an image, an archive, UTF-16, zero bytes."""
    zeros = len(text) - int(np.count_nonzero(text))
    kind = next((kind for begin, kind in KINDS.items() if bytes(text[: len(begin)]) == begin), None)
    if kind is not None:
        raise UserError(f"{path} is {kind}, not a list; expected a text file, one image path per line.")
    if bytes(text[:2]) in UTF_16 or zeros > 0.25 * len(text):
        raise UserError(f"The list {path} is not UTF-8 text (UTF-16, as Windows often writes it?). Save it as UTF-8.")
    if zeros:
        at = int(np.argmin(text))
        line = int(np.count_nonzero(text[:at] == 10)) + 1
        raise UserError(
            f"{path}, line {line} holds a zero byte: no path does. It is a binary file, or the line is damaged; expected text."
        )


def no_label(path: Path, line: int, text: NDArray[np.uint8]) -> UserError:
    """Return the error for a line without a label."""
    shown = bytes(text[:200]).decode(errors="replace")
    hint = ""
    if path.suffix.lower() in (".csv", ".tsv") or (line == 1 and re.search(r"[,;\t|]", shown)):
        hint = f"\nTo make lists of a table: {prepare('csv', path)}"
    elif path.suffix.lower() == ".json" or shown.strip() in ("{", "["):
        hint = f"\nTo make lists of a JSON file: {prepare('coco', path)}"
    return UserError(f"{path}, line {line} has no label: {shown!r}; expected {expected(True)}.{hint}")


def bad_label(path: Path, line: int, text: NDArray[np.uint8]) -> UserError:
    """Return the error for a label that is no number."""
    shown = bytes(text[:60]).decode(errors="replace")
    return UserError(f"{path}, line {line}: the label is {shown!r}; allowed: a whole number from 0.")


def missing_list(path: Path, labelled: bool) -> str:
    """Return what is said where there is no list `path`: what its folder holds instead, and how to make lists of that."""
    folder = path.parent
    without = "\nTo train without validation: --val_freq 0." if path.stem == "val" else ""
    said = f"There is no list {path}; expected {expected(labelled)}."
    flag = (
        f", --{path.stem}_list FILE" if path.stem in ("train", "val", "test") else ""
    )  # else it may have come by any flag
    where = f"Say where they are: --data_root DIR{flag}.{without}" if flag else f"Say where it is.{without}"
    if not folder.exists():
        return (
            f"{said} The folder {folder} does not exist.\n{where}\nOr make lists: `python datasets/prepare.py --help`."
        )
    if not folder.is_dir():
        return f"{said} {folder} is a file, not a folder.\n{where}"
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
        tables = sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith((".csv", ".json")))
        command = _prepare_folders(folder, names)
    except OSError as error:
        return f"{said} {error.filename or folder} cannot be read: {error.strerror}."
    if command is not None:
        return f"{said} {folder} holds {command.holds}, and no such list.\nTry: {command.line}\n{where}"
    if tables:
        kind = "csv" if tables[0].lower().endswith(".csv") else "coco"
        return f"{said} {folder} holds {tables[0]}.\nMake lists of it: {prepare(kind, folder / tables[0], '--out', folder)}\n{where}"
    present = ", ".join(sorted(str(other) for other in folder.glob("*.txt"))[:MAX_NAMES]) or "no .txt file"
    return f"{said} In {folder}/ there is: {present}.\n{where}\nOr make lists: `python datasets/prepare.py --help`."


class Command(NamedTuple):
    """What a folder holds, and the command that makes lists of it."""

    holds: str
    line: str


def _prepare_folders(folder: Path, names: list[str]) -> Command | None:
    """The command for a folder whose folders `names` hold images, as classes, or as train/, val/, test/; None for others."""
    parts = {name.lower(): name for name in names if name.lower() in SPLITS}
    train = next((name for key, name in parts.items() if key.startswith("train")), None)
    if train is not None and _class_folders(folder / train):
        words: list[object] = ["folder", folder / train]
        val = next(
            (name for key, name in parts.items() if key.startswith("val") and _class_folders(folder / name)), None
        )
        words += ["--val_root", folder / val] if val else []
        words += ["--test", folder / parts["test"]] if "test" in parts else []
        return Command(f"the folders {', '.join(parts.values())}", prepare(*words, "--out", folder))
    classes = _class_folders(folder, names)
    if not classes:
        return None
    shown = ", ".join(classes[:MAX_NAMES]) + (", …" if len(classes) > MAX_NAMES else "")
    return Command(f"class folders ({shown})", prepare("folder", folder, "--out", folder))


def _class_folders(folder: Path, names: list[str] | None = None) -> list[str]:
    """Those of the folders in `folder` that hold an image; none where the first few do not."""
    from dataloader.decode import image_suffixes

    if names is None:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    held = [
        name
        for name in names[:LOOKED_AT]
        if any(other.lower().endswith(image_suffixes()) for other in os.listdir(folder / name))
    ]
    return held + names[LOOKED_AT:] if held else []


# ------------------------------------------------------------------------------------------------ its images


def likeliest_reason(files: "FileList", indices: NDArray[np.int64]) -> str:
    """Return why the images at `indices` cannot be read: the commonest reason among some of them, and what mends it.

    Empty where none is found. Looks at LOOKED_AT images, spread over `indices`.
    """
    finder = FileFinder()
    some = np.unique(np.linspace(0, len(indices) - 1, LOOKED_AT).astype(np.int64))
    found: dict[str, list[str]] = {}
    for index in indices[some].tolist():
        reason, example = _reason(files, index, finder)
        if reason:
            found.setdefault(reason, []).append(example)
    if not found:
        return ""
    reason = Counter({reason: len(examples) for reason, examples in found.items()}).most_common(1)[0][0]
    return f"{found[reason][0]}\n{_advice(reason, files)}".strip()


def check_readable(files: "FileList", index: NDArray[np.int64], readable: NDArray[np.bool_]) -> None:
    """See FileList.check_readable."""
    bad = index[~readable]
    if 2 * len(bad) <= len(index):
        return
    why = likeliest_reason(files, bad)
    why = f"\n{why}" if why else ""
    if readable.any():
        log.warning(f"{len(bad)} of {len(index)} images of {files.source} cannot be read, over half of them.{why}")
        return
    raise UserError(
        f"None of the {len(index)} images of {files.source} can be read, so there is nothing to predict.{why}"
    )


def _reason(files: "FileList", index: int, finder: FileFinder) -> tuple[str, str]:
    """Why one image cannot be read, as a key of `_advice` and as a sentence; two empty texts where that is not known."""
    path, listed = files.path(index), files.as_written(index)
    try:
        os.stat(path)
    except PermissionError:
        return "permission", f"{path!r} may not be read: permission denied."
    except (OSError, ValueError):
        return _reason_missing(files, index, finder)
    if not os.path.isfile(path):
        return "folder", f"{path!r} is no file."
    try:
        with open(path, "rb") as file:
            begin = file.read(64).lstrip().lower()
    except OSError as error:
        return (
            ("permission", f"{path!r} may not be read: {error.strerror}.")
            if isinstance(error, PermissionError)
            else ("", "")
        )
    if not begin:
        return "empty", f"{listed!r} is empty."
    if begin.startswith(b"version https://git-lfs"):
        return "lfs", f"{listed!r} is a pointer of Git LFS, not the image."
    if begin.startswith((b"<!doctype html", b"<html")):
        return "html", f"{listed!r} is a web page, as a failed download leaves it."
    return "", ""


def _reason_missing(files: "FileList", index: int, finder: FileFinder) -> tuple[str, str]:
    """As `_reason`, for a path that is not there."""
    path, listed = files.path(index), files.as_written(index)
    bare = re.fullmatch(r"(.*?)[ \t]+[0-9]{1,9}", path, re.DOTALL)
    if files.label[index] < 0 and bare is not None and os.path.exists(bare[1]):
        return "labels", f"The lines of {files.source} end in labels: {bare[1]!r} is there, {path!r} is not."
    if files.label[index] >= 0 and (os.path.exists(f"{path} {files.label[index]}")):
        return "no labels", f"The lines of {files.source} have no labels: {f'{path} {files.label[index]}'!r} is there."
    found = finder.find(path)
    if found is not None:
        what = {
            ENDING: "without its ending",
            FORM: "in another Unicode form (NFC, NFD)",
            BACKSLASH: "with backslashes",
            CASE: "in other capitals",
        }[found[1]]
        return found[1], f"The list names the file {found[0]!r} {what}: {listed!r}."
    longer = finder.with_ending(path)
    if longer:
        return "endings", f"{listed!r} has no ending; there are {', '.join(map(repr, longer[:MAX_NAMES]))}."
    if "\r" in listed:
        return "CR", f"{listed!r} holds a carriage return: the list mixes line ends (CR and LF)."
    if re.match(r"[A-Za-z]:[\\/]|\\\\", listed):
        return "windows", f"{listed!r} is a path of Windows."
    if len(listed) > 2 and listed[0] == listed[-1] and listed[0] in "'\"":
        return "quotes", f"{listed!r} is in quotes; a list has none."
    if not listed.startswith("/") and os.path.exists(listed):
        return (
            "here",
            f"{listed!r} is there from {Path.cwd()}, but a relative path starts at the list's folder, {files.source.parent}.",
        )
    above = missing = Path(path).parent
    if above.is_dir():
        return "", ""
    while not above.exists() and above != above.parent:
        missing, above = above, above.parent
    return "moved", f"The folder {str(missing)!r} is not there."


def _advice(reason: str, files: "FileList") -> str:
    """What mends `reason`, as a sentence, most often with a command; empty for what the sentence before says already."""
    out, stem = files.source.parent / "mended", files.source.stem
    made = "train" if files.label[0] >= 0 else "test"
    part: tuple[object, ...] = ("--val", 0) if made == "train" else ("--part", "test")
    if stem == "val" and (files.source.parent / "classes.txt").is_file():
        made, part = "val", ("--part", "val", "--classes", files.source.parent / "classes.txt")
    then = f"\nThen give --{stem}_list {shlex.quote(str(out / made))}.txt." if stem in ("train", "val", "test") else ""
    mended = f"Try: {prepare('list', files.source, *part, '--out', out)}{then}"
    return {
        "labels": mended,
        "no labels": "Add a label to each line, or give the list as --test_list to submit.py.",
        "here": f"Try: {prepare('list', files.source, *part, '--root', '.', '--out', out)}{then}",
        ENDING: mended,
        FORM: mended,
        BACKSLASH: mended,
        CASE: "Write the names as the files have them.",
        "endings": f"Try: {prepare('list', files.source, *part, '--suffix', '.jpg', '--out', out)}{then}",
        "CR": "Save the list with LF alone at line ends.",
        "windows": "Write the paths as this machine has them.",
        "quotes": "Write the paths without quotes; spaces in them are fine.",
        "moved": "Is a disk not mounted, or were the images moved? Mend the list's paths.",
        "permission": "Give yourself the right to read it (`chmod`).",
        "lfs": "Try: git lfs pull",
    }.get(reason, "")
