"""What all sources of lists share: images and labels, normalising, writing, the summary."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataloader.file_finder import BACKSLASH, ENDING, FORM, FileFinder
from dataloader.file_list import missing_files, read_lines, read_list
from options.wording import count_of
from utils.errors import UserError
from utils.files import atomic_write_all
from utils.logger import log

PARTS = ("train", "val", "test")
LABEL = re.compile(r"[ \t]+[^ \t]+\Z")  # at the end of a line
MAX_NAMES = 10  # of missing images in a message
CHANGES = {
    ENDING: "path(s) got the ending of the existing file",
    FORM: "path(s) got the Unicode form (NFC, NFD) of the existing file",
    BACKSLASH: "path(s) had backslashes, which are slashes now",
}


@dataclass
class ImageList:
    """The N images of one list.

    Attributes:
        paths: absolute.
        labels: class numbers; None: a list without labels, or with other targets.
        groups: which images belong together, or None.
        sets: the labels of each image, for --task multilabel, or None.
        values: the numbers of each image, for --task regression, or None.
    """

    paths: list[str]
    labels: list[int] | None
    groups: list[str] | None = None
    sets: list[list[int]] | None = None
    values: list[list[float]] | None = None

    @property
    def targets(self) -> list[str] | None:
        """Return what a line holds behind its path; None for a list without labels."""
        if self.sets is not None:
            return [",".join(map(str, labels)) or "-" for labels in self.sets]
        if self.values is not None:
            return [",".join(map(repr, row)) for row in self.values]
        return None if self.labels is None else list(map(str, self.labels))

    def select(self, keep: Iterable[int]) -> "ImageList":
        """Return the images with these indices, in this order."""
        keep = list(keep)
        paths, *others = (
            None if column is None else [column[k] for k in keep]
            for column in (self.paths, self.labels, self.groups, self.sets, self.values)
        )
        return ImageList(paths, *others)  # type: ignore[arg-type]

    def with_others(self, others: "ImageList") -> "ImageList":
        """Return these images and then the `others`; both lists have labels, or groups, or neither has."""
        names = ("labels", "groups", "sets", "values")
        pairs = {name: (getattr(self, name), getattr(others, name)) for name in names}
        columns = {name: None if None in (one, two) else one + two for name, (one, two) in pairs.items()}
        return ImageList(self.paths + others.paths, **columns)


@dataclass
class Listing:
    """What a source holds: class names in the order of their numbers, and lists by "train", "val" and "test"."""

    names: list[str]
    lists: dict[str, ImageList]


@dataclass
class SkippedItems:
    """What a source leaves out or changes: the count of each reason, and its first example."""

    reasons: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, reason: str, example: str) -> None:
        """Count `example` under `reason`."""
        count, first = self.reasons.get(reason, (0, example))
        self.reasons[reason] = (count + 1, first)

    def report(self) -> None:
        """Log one warning per reason."""
        for reason, (count, first) in self.reasons.items():
            log.warning(f"{count} {reason}, the first: {first!r}")


# ------------------------------------------------------------------------------------------------ paths


def absolute(path: str, root: str) -> str:
    """Return `path` as absolute, from `root` if it is relative, without `.` and `..`; links are not resolved."""
    return os.path.normpath(os.path.join(root, path))


def as_on_disk(paths: Sequence[str], suffix: str | None) -> list[str]:
    """Return `paths` as the existing files are called, with their endings, Unicode form and slashes; log each change.

    Only names that do not exist and have no image suffix, non-ASCII characters or a backslash are looked up. A name
    without a match stays as it is.

    Args:
        suffix: appended to each path that does not end in it.

    Raises:
        UserError: a name without ending exists with several.
    """
    finder, changes, found = FileFinder(), SkippedItems(), []
    for path in paths:
        if suffix is not None and not path.lower().endswith(suffix.lower()):
            path += suffix
        bare = not finder.has_ending(path)
        if (bare or not path.isascii() or "\\" in path) and not os.path.lexists(path):
            meant, kind = finder.find(path) or (path, "")
            if kind in CHANGES:
                changes.add(CHANGES[kind], path)
                path = meant
            elif bare and len(longer := finder.with_ending(path)) > 1:
                present = ", ".join(os.path.basename(other) for other in longer)
                raise UserError(f"{path!r} has no ending, and is there as {present}. Say which: --suffix .jpg")
            elif bare:
                changes.add(
                    "path(s) have no image suffix and name no file; they are listed as they are "
                    "(--suffix .jpg adds a suffix)",
                    path,
                )
        found.append(path)
    changes.report()
    return found


# ------------------------------------------------------------------------------------------------ normalising


def normalise_list(images: ImageList, list_name: str) -> ImageList:
    """Return the images sorted by path, so that a split does not depend on their order, without what cannot be listed.

    A list without labels keeps its order, which is that of the submission. Repetitions, images with two different
    labels and paths that a list cannot hold are left out, with a warning.
    """
    skipped, kept = SkippedItems(), []
    paths, groups, targets = images.paths, images.groups, images.targets
    order = sorted(range(len(paths)), key=lambda k: (paths[k], groups[k] if groups else ""))
    first = 0
    while first < len(order):
        path, end = paths[order[first]], first + 1
        while end < len(order) and paths[order[end]] == path:
            end += 1
        labels = {targets[k] for k in order[first:end]} if targets is not None else set()
        if "\n" in path or path != path.rstrip(" \t\r"):
            skipped.add("path(s) left out, which hold a line break or end in a space", path)
        elif len(labels) > 1:
            skipped.add("image(s) left out, which have two different labels", path)
        else:
            kept.append(order[first])
            for _ in range(first + 1, end):
                skipped.add("repetition(s) of an image left out", path)
        first = end
    if skipped.reasons:
        log.warning(f"For {list_name}.txt:")
        skipped.report()
    return images.select(kept if targets is not None else sorted(kept))


def check_apart(train: ImageList, val: ImageList) -> None:
    """Raise UserError where an image is in both lists: a score on training images says nothing."""
    both = sorted(set(train.paths) & set(val.paths))
    if both:
        raise UserError(
            f"{len(both)} image(s) are in training and in validation, the first: {both[0]!r}.\n"
            "Validate on other images: take them out of one list, or let --val 0.1 split the training images."
        )


# ------------------------------------------------------------------------------------------------ files


def write_all(listing: Listing, out: Path, check: bool = False) -> None:
    """Write the lists, and classes.txt if one of them has labels; log what they hold.

    All files are complete on the disk before the first one takes its name; if the command is killed, the old ones stay.
    `check`: also report which listed images do not exist.
    """
    lines = {out / f"{name}.txt": _lines(images) for name, images in listing.lists.items()}
    labelled = any(images.targets is not None for images in listing.lists.values())
    named = labelled and bool(listing.names)  # an existing list may have numbers alone
    if labelled and not named and (out / "classes.txt").exists():
        log.warning(
            f"The labels have no names, and {out / 'classes.txt'} is of an earlier run: "
            "delete it unless it names these labels."
        )
    # a classes.txt with the same names may be what --classes reads: it stays
    if named and not _has_names(out / "classes.txt", listing.names):
        lines[out / "classes.txt"] = iter(listing.names)
    with atomic_write_all(list(lines), "w") as files:
        for file, content in zip(files, lines.values(), strict=True):
            file.writelines(f"{line}\n" for line in content)
    for name, images in listing.lists.items():
        log.info(f"{out / name}.txt: {_summary(images, listing.names)}")
    if named:
        log.info(f"{out / 'classes.txt'}: {len(listing.names)} {'targets' if _has_values(listing) else 'classes'}")
    if "train" in listing.lists and "val" not in listing.lists:
        log.info(f"No {out / 'val.txt'} was written: there are no validation images.")
    _report_old_lists(listing, out)
    if check:
        for name, images in listing.lists.items():
            check_files(out / f"{name}.txt", images)


def _report_old_lists(listing: Listing, out: Path) -> None:
    """Log which lists in the folder are of an earlier run; warn where they share images with the new ones."""
    for name in PARTS:
        path = out / f"{name}.txt"
        if name in listing.lists or not path.exists():
            continue
        old = _paths_of(path, labelled=name != "test")
        shared = len(old & {path for images in listing.lists.values() for path in images.paths})
        if shared:
            log.warning(
                f"{path} is of an earlier run, and {shared} of its {len(old)} images are in the new lists too. "
                "Delete it, or make it again."
            )
        elif "train" in listing.lists:
            log.info(f"{path} is of an earlier run. Delete it if it does not go with the new lists.")


def _paths_of(path: Path, labelled: bool) -> set[str]:
    """Return the absolute paths of a list of any task; none if it cannot be read."""
    try:
        files = read_list(path, labelled=False)
    except UserError:
        return set()
    lines = map(files.path, range(len(files)))
    return {os.path.abspath(LABEL.sub("", line) if labelled else line) for line in lines}


def _has_values(listing: Listing) -> bool:
    return any(images.values is not None for images in listing.lists.values())


def _lines(images: ImageList) -> Iterator[str]:
    """Return the lines of a list: a path and, with labels, a space and the label."""
    targets = images.targets
    if targets is None:
        return iter(images.paths)
    return (f"{path} {target}" for path, target in zip(images.paths, targets, strict=True))


def _has_names(path: Path, names: Sequence[str]) -> bool:
    """Return whether a classes.txt has exactly these names; warn where it has others."""
    if not path.exists():
        return False
    try:
        before = read_lines(path)
    except UserError:
        before = []
    if before != list(names):
        log.warning(
            f"{path} held {len(before)} other names before: "
            "checkpoints and lists with the old numbers do not fit the new ones."
        )
    return before == list(names)


def check_files(path: Path, images: ImageList) -> int:
    """Return how many files of the list `path` of `images` do not exist; warn of them with the first MAX_NAMES."""
    task = "multilabel" if images.sets is not None else "regression" if images.values is not None else "single"
    files = read_list(path, images.targets is not None, task)
    missing = np.flatnonzero(missing_files(files))
    if len(missing):
        shown = "".join(f"\n  {files.path(k)!r}" for k in missing[:MAX_NAMES].tolist())
        first = ", the first ten" if len(missing) > MAX_NAMES else ""
        log.warning(f"{path}: {len(missing)} of {len(files)} files are not there{first}:{shown}")
    else:
        log.info(f"{path}: all {len(files)} files are there")
    return len(missing)


def _summary(images: ImageList, names: Sequence[str]) -> str:
    """Return what a list holds, such as "90 images of 3 classes, from 10 ('cap') to 50 ('shoe') per class"."""
    listed = count_of(f"{len(images.paths):,}", "image")
    if images.sets is not None:
        total = sum(map(len, images.sets))
        used = len({label for labels in images.sets for label in labels})
        return f"{listed} with {count_of(f'{total:,}', 'label')}, of {count_of(f'{used:,}', 'kind')}"
    if images.values is not None:
        return f"{listed} with {count_of(len(images.values[0]), 'number')} each"
    if images.labels is None:
        return f"{listed}, without labels"
    counts: NDArray[np.int64] = np.bincount(np.asarray(images.labels, np.int64), minlength=len(names))
    present = np.flatnonzero(counts)
    small, large = (int(present[pick(counts[present])]) for pick in (np.argmin, np.argmax))
    names = names or [str(k) for k in range(len(counts))]
    text = f"{listed} of {count_of(f'{len(present):,}', 'class', 'classes')}"
    if counts[small] == counts[large]:
        text += f", {counts[small]:,} of each"
    else:
        text += f", from {counts[small]:,} ({names[small]!r}) to {counts[large]:,} ({names[large]!r}) per class"
    missing = len(names) - len(present)
    return text + (f"; {missing:,} of {len(names):,} classes have no image here" if missing else "")
