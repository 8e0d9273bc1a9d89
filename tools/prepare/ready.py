"""Images of an existing list, to be split, or to be rewritten with the paths of this machine."""

import argparse
import os
from pathlib import Path

from dataloader.file_list import FileList, read_class_names, read_list
from dataloader.listing.class_names import to_class_ids
from dataloader.listing.lists import ImageList, Listing, absolute
from utils.errors import UserError
from utils.logger import log

MAX_LINES_EXAMINED = 32  # to see whether the lines of a test list end in labels


def read_ready(opt: argparse.Namespace, given: list[str] | None) -> Listing:
    """Return the images of the list opt.file, with its labels.

    The classes.txt beside it, or `given`, names the classes, if either exists. If both exist and differ, the labels
    are renumbered by name.

    Raises:
        UserError: the list is unusable, or a label has no name.
    """
    file = Path(opt.file)
    root = str(Path(opt.root if opt.root is not None else file.parent).resolve())
    if opt.part == "test":
        files = _read_unlabelled(file, root)
        return Listing([], {"test": ImageList([absolute(files.as_written(k), root) for k in range(len(files))], None)})
    files = read_list(file)
    labels, names = files.label.tolist(), read_class_names(file.parent)
    names = names or given or []
    for k, label in enumerate(labels):
        if names and label >= len(names):
            raise UserError(
                f"{files.location(k)}: the label is {label}; "
                f"allowed: 0 to {len(names) - 1}, since {len(names)} classes have names."
            )
    if given and given != names:
        origin = f"--classes {opt.classes}" if opt.classes else f"{opt.out}/classes.txt"
        used = sorted(set(labels))
        numbers = to_class_ids(
            [names[label] for label in used],
            given,
            lambda k: f"{file.parent / 'classes.txt'}, line {used[k] + 1}",
            origin,
        )
        log.info(f"{file}: the labels are renumbered by name, from {file.parent / 'classes.txt'} to {origin}.")
        moved = dict(zip(used, numbers, strict=True))
        labels, names = [moved[label] for label in labels], given
    return Listing(
        names, {opt.part: ImageList([absolute(files.as_written(k), root) for k in range(len(files))], labels)}
    )


def _read_unlabelled(file: Path, root: str) -> FileList:
    """Return the list without labels; which files exist shows whether its lines end in labels."""
    whole = read_list(file, labelled=False)
    try:
        labelled = read_list(file)
    except UserError:
        return whole
    some = range(min(MAX_LINES_EXAMINED, len(whole)))
    with_label = sum(os.path.exists(absolute(whole.as_written(k), root)) for k in some)
    without = sum(os.path.exists(absolute(labelled.as_written(k), root)) for k in some)
    if without <= with_label:
        return whole
    log.info(f"{file}: the lines end in labels, which are left out.")
    return labelled
