"""What every source of lists shares: images with labels, classes and their numbers, tidying, writing, the summary."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataloader.file_finder import BACKSLASH, ENDING, FORM, FileFinder
from dataloader.file_list import check_class_names, missing_files, read_lines, read_list
from utils.errors import UserError, unknown_name
from utils.files import atomic_write_all
from utils.logger import log

CHANGES = {
    ENDING: "path(s) got the ending that the file there has",
    FORM: "path(s) are written in the Unicode form (NFC, NFD) of the file there",
    BACKSLASH: "path(s) had backslashes, which are slashes now",
}


@dataclass
class Part:
    """N images of one list: absolute paths, class numbers (None: a list without labels), and a group each, if asked for."""

    paths: list[str]
    labels: list[int] | None
    groups: list[str] | None = None

    def select(self, keep: Iterable[int]) -> "Part":
        """The images with these indices, in this order."""
        keep = list(keep)
        labels, groups = (
            [column[k] for k in keep] if column is not None else None for column in (self.labels, self.groups)
        )
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
    if all(label.isascii() and label.isdigit() for label in distinct):  # not by int(), which refuses over 4,300 digits
        return sorted(distinct, key=lambda label: (len(label.lstrip("0")), label.lstrip("0"), label))
    return sorted(distinct)


def read_classes(path: Path) -> list[str]:
    """The names of a classes.txt, which decides the numbering: line k, counted from 0, is class k.

    Raises:
        UserError: no such file, no name, a name that occurs twice or is blank, bytes that are not UTF-8.
    """
    names = read_lines(path)
    check_class_names(path, names)
    if not names:
        raise UserError(f"{path} names no class; expected one class name per line.")
    return names


def check_names(names: Sequence[str]) -> None:
    """Raise UserError for a class name that cannot be a line of classes.txt, or that two classes have."""
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{count} classes are called {name!r}; classes.txt has each name once. Rename all but one.")
        if name.splitlines() != [name] or not name.strip():
            raise UserError(
                f"The class name {name!r} is blank or holds a line break; classes.txt has a name a line. Rename the class."
            )
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


# ------------------------------------------------------------------------------------------------ paths


def absolute(path: str, root: str) -> str:
    """`path`, from `root` where it is relative, without `.` and `..`; links are left as they are."""
    return os.path.normpath(os.path.join(root, path))


def as_on_disk(paths: Sequence[str], suffix: str | None) -> list[str]:
    """`paths` as the files there are called: with their endings, in their Unicode form, with slashes; each change is counted.

    `suffix`: is appended to what does not end in it. Looked for are names without an image's ending, beyond ASCII, or with a
    backslash; what is found under no name stays as it is.

    Raises:
        UserError: a name without ending is there with several.
    """
    finder, tally, found = FileFinder(), Tally(), []
    for path in paths:
        if suffix is not None and not path.lower().endswith(suffix.lower()):
            path += suffix
        bare = not finder.has_ending(path)
        if (bare or not path.isascii() or "\\" in path) and not os.path.lexists(path):
            meant, kind = finder.find(path) or (path, "")
            if kind in CHANGES:
                tally.add(CHANGES[kind], path)
                path = meant
            elif bare and len(longer := finder.with_ending(path)) > 1:
                raise UserError(
                    f"{path!r} has no ending, and is there as {', '.join(map(os.path.basename, longer))}. Say which: --suffix .jpg"
                )
            elif bare:
                tally.add(
                    "path(s) have no image's ending and name no file; they are listed as they are (--suffix .jpg adds one)",
                    path,
                )
        found.append(path)
    tally.report()
    return found


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
        if "\n" in path or path != path.rstrip(" \t\r"):
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
    """Write a list for each part, and classes.txt where a part has labels; say what they hold.

    All of them are complete on the disk before the first takes its name: where the command is killed, the old ones stay.
    `check`: look whether the images are there.
    """
    lines = {out / f"{name}.txt": _lines(part) for name, part in found.parts.items()}
    labelled = any(part.labels is not None for part in found.parts.values())
    named = labelled and bool(found.names)  # a list that was ready may have numbers alone
    if labelled and not named and (out / "classes.txt").exists():
        log.warning(
            f"The labels have no names, and {out / 'classes.txt'} is of an earlier run: delete it where it does not name them."
        )
    if named and not _numbered(
        out / "classes.txt", found.names
    ):  # one that says the same may be what --classes reads: it stays
        lines[out / "classes.txt"] = iter(found.names)
    with atomic_write_all(list(lines), "w") as files:
        for file, content in zip(files, lines.values(), strict=True):
            file.writelines(f"{line}\n" for line in content)
    for name, part in found.parts.items():
        log.info(f"{out / name}.txt: {_summary(part, found.names)}")
    if named:
        log.info(f"{out / 'classes.txt'}: {len(found.names)} classes")
    if "train" in found.parts and "val" not in found.parts:
        log.info(f"No {out / 'val.txt'} was written: there are no validation images.")
        if (out / "val.txt").exists():
            log.warning(
                f"{out / 'val.txt'} is of an earlier run; its images may be in train.txt now. Delete it, or make it again."
            )
    if check:
        for name, part in found.parts.items():
            check_files(out / f"{name}.txt", part.labels is not None)


def _lines(part: Part) -> Iterator[str]:
    """The lines of a list: a path and, with labels, a space and the label."""
    if part.labels is None:
        return iter(part.paths)
    return (f"{path} {label}" for path, label in zip(part.paths, part.labels, strict=True))


def _numbered(path: Path, names: Sequence[str]) -> bool:
    """Whether classes.txt numbers the classes as `names`; warn where it numbers them otherwise."""
    if not path.exists():
        return False
    try:
        before = read_lines(path)
    except UserError:
        before = []
    if before != list(names):
        log.warning(
            f"{path} named {len(before)} other classes before: checkpoints and lists with the old numbers do not fit the new ones."
        )
    return before == list(names)


def check_files(path: Path, labelled: bool) -> int:
    """Count the listed files that are not there; warn, with the first ten. Returns the count."""
    files = read_list(path, labelled)
    gone = np.flatnonzero(missing_files(files))
    if len(gone):
        shown = "".join(f"\n  {files.path(k)!r}" for k in gone[:10].tolist())
        log.warning(
            f"{path}: {len(gone)} of {len(files)} files are not there{', the first ten' if len(gone) > 10 else ''}:{shown}"
        )
    else:
        log.info(f"{path}: all {len(files)} files are there")
    return len(gone)


def _summary(part: Part, names: Sequence[str]) -> str:
    """ "90 images of 3 classes, a class has from 10 ('cap') to 50 ('shoe')"."""
    if part.labels is None:
        return f"{len(part.paths):,} images, without labels"
    counts: NDArray[np.int64] = np.bincount(np.asarray(part.labels, np.int64), minlength=len(names))
    present = np.flatnonzero(counts)
    small, large = (int(present[pick(counts[present])]) for pick in (np.argmin, np.argmax))
    names = names or [str(k) for k in range(len(counts))]
    text = f"{len(part.paths):,} images of {len(present):,} classes"
    if counts[small] == counts[large]:
        text += f", {counts[small]:,} of each"
    else:
        text += f", a class has from {counts[small]:,} ({names[small]!r}) to {counts[large]:,} ({names[large]!r})"
    missing = len(names) - len(present)
    return text + (f"; {missing:,} of {len(names):,} classes have none here" if missing else "")
