"""Errors about a list that cannot be used: the likeliest reason, and the command that corrects it."""

import os
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloader.folder_layout import class_folders, find_class_folders, find_only_folder, find_parts
from dataloader.targets import MAX_LABEL_DIGITS
from utils.errors import UserError, path_hint

UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
MAX_ZERO_SHARE = 0.25  # of the bytes of a text; of UTF-16 without its mark, half are zero
SIGNATURES = {  # the first bytes of files that are passed as lists by mistake
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
MAX_NAMES = 8  # in a message


MAX_DIGITS = f"at most {MAX_LABEL_DIGITS} digits"
TARGET_LINES = {  # of the tasks whose lists hold more than a class: an example of a line, and what it holds
    "multilabel": ("3,17,42", "labels with commas between them, `-` for none", "whole numbers from 0, each once, or -"),
    "regression": ("0.37", "one number or several with commas between them", "finite numbers"),
}


def expected(labelled: bool, task: str = "single") -> str:
    """Return what a line of a list should be."""
    if labelled and task in TARGET_LINES:
        example, what, _ = TARGET_LINES[task]
        return f"`/path/to/image.jpg {example}` per line (path, space, {what})"
    return "`/path/to/image.jpg 3` per line (path, space, label)" if labelled else "one image path per line"


def prepare_command(*words: object) -> str:
    """Return a command line for datasets/prepare.py, quoted for a shell."""
    return shlex.join(["python", "datasets/prepare.py", *map(str, words)])


def utf_8_advice(path: Path, begin: bytes) -> str:
    """Return the command that writes a UTF-8 copy of a file which begins with `begin`, if that marks it as UTF-16."""
    if begin[:2] not in UTF_16_MARKS:
        return ""
    names = (shlex.quote(str(name)) for name in (path, path.with_name(f"{path.stem}_utf8{path.suffix}")))
    return "\nTry: iconv -f UTF-16 -t UTF-8 {} > {}".format(*names)


# ------------------------------------------------------------------------------------------------ the list itself


def check_text(path: Path, text: NDArray[np.uint8]) -> None:
    """Raise UserError where `text`, the bytes of `path`, uint8 (n,), is not UTF-8: an image, an archive, zero bytes."""
    zeros = len(text) - int(np.count_nonzero(text))
    kind = next((kind for begin, kind in SIGNATURES.items() if bytes(text[: len(begin)]) == begin), None)
    if kind is not None:
        raise UserError(f"{path} is {kind}, not a list; expected a text file, one image path per line.")
    if bytes(text[:2]) in UTF_16_MARKS or zeros > MAX_ZERO_SHARE * len(text):
        raise UserError(
            f"The list {path} is not UTF-8 text. Is it UTF-16, as Windows often writes it? Save it as UTF-8."
            f"{utf_8_advice(path, bytes(text[:2]))}"
        )
    if zeros:
        at = int(np.argmin(text))
        line = int(np.count_nonzero(text[:at] == 10)) + 1
        raise UserError(
            f"{path}, line {line} holds a zero byte, which no path does: the file is binary, or the line is damaged. "
            "Expected text."
        )


def no_label(path: Path, line: int, text: NDArray[np.uint8]) -> UserError:
    """Return the error for a line without a label; `text`: the bytes of the line, uint8 (n,)."""
    shown = bytes(text[:200]).decode(errors="replace")
    hint = ""
    if path.suffix.lower() in (".csv", ".tsv") or (line == 1 and re.search(r"[,;\t|]", shown)):
        hint = f"\nTo make lists from a table: {prepare_command('csv', path)}"
    elif path.suffix.lower() == ".json" or shown.strip() in ("{", "["):
        hint = f"\nTo make lists from a JSON file: {prepare_command('coco', path)}"
    return UserError(f"{path}, line {line} has no label: {shown!r}; expected {expected(True)}.{hint}")


def bad_label(path: Path, line: int, text: NDArray[np.uint8]) -> UserError:
    """Return the error for a label that is not a number; `text`: the bytes of the label, uint8 (n,)."""
    shown = bytes(text[:60]).decode(errors="replace")
    problem = f"{path}, line {line}: the label is {shown!r}; allowed: a whole number from 0."
    if re.fullmatch("[0-9]+", shown):
        problem = f"{path}, line {line}: the label is {shown!r}; allowed: a whole number from 0, {MAX_DIGITS}."
    elif re.fullmatch(r"-|[0-9]+(,[0-9]+)+", shown):
        problem += " Several labels per image are for the networks of: train.py --task multilabel"
    elif re.fullmatch(r"[-+]?[0-9]*\.[0-9]+(,[-+.0-9]+)*", shown):
        problem += " Numbers are for the networks of: train.py --task regression"
    return UserError(problem)


def bad_targets(path: Path, line: int, text: NDArray[np.uint8], task: str, count: int | None) -> UserError:
    """Return the error for a line whose targets do not fit `task`.

    Args:
        text: the bytes of the targets, uint8 (n,).
        count: how many numbers the first line has, if this line has other ones; None: its targets are misspelt.
    """
    shown = bytes(text[:60]).decode(errors="replace")
    if count is not None:
        return UserError(f"{path}, line {line} has other targets than the first line: {shown!r}; allowed: {count}.")
    problem = f"{path}, line {line}: the target is {shown!r}; allowed with --task {task}: {TARGET_LINES[task][2]}."
    if shown.startswith(","):  # `1 ,2`: the target is what follows the last blank
        problem += " Write no space beside the commas."
    elif task == "multilabel" and re.search(f"[0-9]{{{MAX_LABEL_DIGITS + 1}}}", shown):
        problem += f" A label has {MAX_DIGITS}."
    return UserError(problem)


def missing_list(path: Path, labelled: bool, task: str = "single") -> str:
    """Return the message for a list that does not exist: what its folder holds, and how to make lists from that."""
    folder, name = path.parent, path.stem
    problem = f"There is no list {path}; expected {expected(labelled, task)}."
    has_flag = name in ("train", "val", "test")  # else any flag may have named it
    where = f"Say where the lists are: --data_root DIR, --{name}_list FILE." if has_flag else "Say where it is."
    if name == "val":
        where += "\nTo train without validation: --val_freq 0."
    general = "Or make lists: `python datasets/prepare.py --help`."
    if not folder.exists():
        return f"{problem} The folder {folder} does not exist.{path_hint(folder)}\n{where}\n{general}"
    if not folder.is_dir():
        return f"{problem} {folder} is a file, not a folder.\n{where}"
    try:
        tables = sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith((".csv", ".json")))
        proposal = _propose_command(folder, folder)
    except OSError as error:
        return f"{problem} {error.filename or folder} cannot be read: {error.strerror}."
    if proposal is not None:
        return f"{problem} {folder} holds {proposal.holds}, but no such list.\nTry: {proposal.command}\n{where}"
    if tables:
        kind = "csv" if tables[0].lower().endswith(".csv") else "coco"
        command = prepare_command(kind, folder / tables[0], "--out", folder)
        return f"{problem} {folder} holds {tables[0]}.\nMake lists from it: {command}\n{where}"
    present = ", ".join(sorted(str(other) for other in folder.glob("*.txt"))[:MAX_NAMES]) or "no .txt file"
    return f"{problem} In {folder}/ there is: {present}.\n{where}\n{general}"


class _Proposal(NamedTuple):
    """What a folder holds, and the command that makes lists from it."""

    holds: str
    command: str


def parts_command(parts: dict[str, Path], out: object) -> str:
    """Return the command that makes lists of the parts of a data set, from `find_parts`, in the folder `out`.

    A val/ without class folders holds no labels, and is left out.
    """
    words: list[object] = ["folder", parts["train"]]
    words += ["--val_root", parts["val"]] if "val" in parts and class_folders(parts["val"]) else []
    words += ["--test", parts["test"]] if "test" in parts else []
    return prepare_command(*words, "--out", out)


def _propose_command(folder: Path, out: Path) -> _Proposal | None:
    """Return the command for a folder whose folders, or those in its only one, hold images by class or are train/, …

    None for any other folder. `out`: where the lists are wanted.
    """
    found = find_class_folders(folder)
    if found is None:
        inner = find_only_folder(folder)
        return _propose_command(inner, out) if inner is not None else None
    if found[0] != folder:
        parts = find_parts(folder)
        names = ", ".join(str(part.relative_to(folder)) for part in parts.values())
        return _Proposal(f"the folders {names}", parts_command(parts, out))
    classes = class_folders(folder)
    shown = ", ".join(classes[:MAX_NAMES]) + (", …" if len(classes) > MAX_NAMES else "")
    return _Proposal(f"class folders ({shown})", prepare_command("folder", folder, "--out", out))
