"""What every source of lists shares: images with labels, classes and their numbers, tidying, writing, the summary."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataloader.file_list import missing_files, read_list
from utils.errors import UserError, unknown_name
from utils.files import atomic_write
from utils.logger import log

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass
class Part:
    """N images of one list: absolute paths, class numbers (None: a list without labels), and a group each, if asked for."""

    paths: list[str]
    labels: list[int] | None
    groups: list[str] | None = None

    def select(self, keep: Iterable[int]) -> "Part":
        """The images with these indices, in this order."""
        keep = list(keep)
        labels, groups = ([column[k] for k in keep] if column is not None else None for column in (self.labels, self.groups))
        return Part([self.paths[k] for k in keep], labels, groups)  # type: ignore[arg-type]  # two columns of two types


@dataclass
class Found:
    """What a source holds: its class names, in the order of their numbers, and a Part for each of train, val, test."""

    names: list[str]
    parts: dict[str, Part]


@dataclass
class Tally:
    """What was left out: how often each reason came up, and the first example. Nothing is lost in silence."""

    reasons: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, reason: str, example: str) -> None:
        """Count `example` under `reason`."""
        count, first = self.reasons.get(reason, (0, example))
        self.reasons[reason] = (count + 1, first)

    def report(self) -> None:
        """Say it, a line a reason."""
        for reason, (count, first) in self.reasons.items():
            log.warning(f"{count} {reason}, the first: {first!r}")


# ------------------------------------------------------------------------------------------------ classes


def in_order(labels: Iterable[str]) -> list[str]:
    """The distinct labels, sorted: as numbers where all are whole numbers (2 before 10), else as text."""
    distinct = set(labels)
    if all(re.fullmatch(r"[0-9]+", label) for label in distinct):
        return sorted(distinct, key=lambda label: (int(label), label))
    return sorted(distinct)


def read_classes(path: Path) -> list[str]:
    """The names of a classes.txt, which decides the numbering: line k, counted from 0, is class k.

    Raises:
        UserError: no such file, a name that stands twice or is blank, bytes that are not UTF-8.
    """
    try:
        names = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}. Save it as UTF-8, one class name a line.") from error
    except OSError as error:
        raise UserError(f"The class list {path} cannot be read: {error.strerror}. Expected: one class name a line.") from error
    while names and not names[-1].strip():
        names.pop()
    lines: dict[str, int] = {}
    for line, name in enumerate(names, 1):
        if not name.strip() or name in lines:
            wrong = f"names {name!r} again, after line {lines[name]}" if name in lines else "is blank"
            raise UserError(f"{path}, line {line} {wrong}; expected one class name a line, each once.")
        lines[name] = line
    if not names:
        raise UserError(f"{path} names no class; expected one class name a line.")
    return names


def check_names(names: Sequence[str]) -> None:
    """Raise UserError for a class name that cannot stand as a line of classes.txt."""
    for name in names:
        if len(name.splitlines()) != 1 or not name.strip():
            raise UserError(f"The class name {name!r} is blank or holds a line break; classes.txt has a name a line. Rename the class.")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"The class name {name!r} is not UTF-8; classes.txt is. Rename the class.") from None


def number(labels: Sequence[str], names: Sequence[str], where: Callable[[int], str], origin: str) -> list[int]:
    """The number of each label in `names`; `where(k)` says where label k stands, `origin` where the names are from.

    Raises:
        UserError: a label that is no class; it is named, with its place and the nearest names.
    """
    numbers = {name: k for k, name in enumerate(names)}
    try:
        return [numbers[label] for label in labels]
    except KeyError:
        unknown = [k for k, label in enumerate(labels) if label not in numbers]
    message = unknown_name("class", labels[unknown[0]], names)
    raise UserError(
        f"{where(unknown[0])}: {message}\nThe classes are those of {origin}; {len(unknown)} label(s) are of none of them. "
        "Mend the labels, leave these images out, or name other classes with --classes FILE."
    )


# ------------------------------------------------------------------------------------------------ tidying


def tidy(part: Part, list_name: str) -> Part:
    """`part` sorted by path (so that a split does not depend on the input's order), without what cannot be listed.

    A list without labels stays in its order, which is that of the submission. Left out, counted and named: repetitions,
    images with two different labels, paths that a list cannot hold.
    """
    tally, kept = Tally(), []
    order = sorted(range(len(part.paths)), key=lambda k: (part.paths[k], part.groups[k] if part.groups else ""))
    first = 0
    while first < len(order):
        path, end = part.paths[order[first]], first + 1
        while end < len(order) and part.paths[order[end]] == path:
            end += 1
        labels = {part.labels[k] for k in order[first:end]} if part.labels is not None else set()
        if "\n" in path or path != path.rstrip():
            tally.add("path(s) left out, which hold a line break or end in a space", path)
        elif len(labels) > 1:
            tally.add("image(s) left out, which have two different labels", path)
        else:
            kept.append(order[first])
            for _ in range(first + 1, end):
                tally.add("repetition(s) of an image left out", path)
        first = end
    if tally.reasons:
        log.warning(f"For {list_name}.txt:")
        tally.report()
    return part.select(kept if part.labels is not None else sorted(kept))


def check_apart(train: Part, val: Part) -> None:
    """Raise UserError where an image is in both lists: a score on what was trained on says nothing."""
    both = sorted(set(train.paths) & set(val.paths))
    if both:
        raise UserError(
            f"{len(both)} image(s) are in training and in validation, the first: {both[0]!r}.\n"
            "Validate on other images: take them out of one of the two, or let --val 0.1 split the training images."
        )


# ------------------------------------------------------------------------------------------------ files


def write_all(found: Found, out: Path, check: bool = False) -> None:
    """Write a list for each part, and classes.txt where a part has labels; say what stands in them.

    `check`: look whether the images are there.
    """
    for name, part in found.parts.items():
        write_list(out / f"{name}.txt", part.paths, part.labels)
        log.info(f"{out / name}.txt: {_summary(part, found.names)}")
    if any(part.labels is not None for part in found.parts.values()):
        write_classes(out / "classes.txt", found.names)
    if "train" in found.parts and "val" not in found.parts:
        log.info(f"No {out / 'val.txt'} was written: there are no validation images.")
        if (out / "val.txt").exists():
            log.warning(f"{out / 'val.txt'} is of an earlier run; its images may be in train.txt now. Delete it, or make it anew.")
    if check:
        for name, part in found.parts.items():
            check_files(out / f"{name}.txt", part.labels is not None)


def write_list(path: Path, images: Sequence[str | Path], labels: Sequence[int] | None) -> None:
    """Write a list file: a path a line and, with `labels`, a space and the label."""
    if labels is None:
        _write_lines(path, (str(image) for image in images))
    else:
        _write_lines(path, (f"{image} {label}" for image, label in zip(images, labels, strict=True)))


def write_classes(path: Path, names: Sequence[str]) -> None:
    """Write classes.txt; warn where it numbered the classes otherwise before."""
    try:
        before = path.read_text(encoding="utf-8-sig").splitlines() if path.exists() else list(names)
    except (OSError, UnicodeDecodeError):
        before = []
    if [name for name in before if name] != list(names):
        log.warning(f"{path} named {len(before)} other classes before: checkpoints and lists with the old numbers do not fit the new ones.")
    _write_lines(path, names)
    log.info(f"{path}: {len(names)} classes")


def check_files(path: Path, labelled: bool) -> int:
    """Count the listed files that are not there; warn, with the first ten. Returns the count."""
    files = read_list(path, labelled)
    gone = np.flatnonzero(missing_files(files))
    if len(gone):
        shown = "".join(f"\n  {files.path(k)!r}" for k in gone[:10].tolist())
        log.warning(f"{path}: {len(gone)} of {len(files)} files are not there{', the first ten' if len(gone) > 10 else ''}:{shown}")
    else:
        log.info(f"{path}: all {len(files)} files are there")
    return len(gone)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with atomic_write(path, "w") as file:
        file.writelines(f"{line}\n" for line in lines)


def _summary(part: Part, names: Sequence[str]) -> str:
    """ "90 images of 3 classes, a class has from 10 ('cap') to 50 ('shoe')"."""
    if part.labels is None:
        return f"{len(part.paths):,} images, without labels"
    counts: NDArray[np.int64] = np.bincount(np.asarray(part.labels, np.int64), minlength=len(names))
    present = np.flatnonzero(counts)
    small, large = (int(present[pick(counts[present])]) for pick in (np.argmin, np.argmax))
    text = f"{len(part.paths):,} images of {len(present):,} classes"
    if counts[small] == counts[large]:
        text += f", {counts[small]:,} of each"
    else:
        text += f", a class has from {counts[small]:,} ({names[small]!r}) to {counts[large]:,} ({names[large]!r})"
    missing = len(names) - len(present)
    return text + (f"; {missing:,} of {len(names):,} classes have none here" if missing else "")


def absolute(path: str, root: str) -> str:
    """`path`, from `root` where it is relative, without `.` and `..`; links are left as they are."""
    return os.path.normpath(os.path.join(root, path))
