"""Which fold holds out each image: stratified by class, by label or by quantiles of a number, groups kept whole."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataloader.file_list import FileList
from dataloader.list_checks import listed_images
from dataloader.listing.lists import as_on_disk
from dataloader.listing.splits import SplitPlan, draw_folds, draw_set_folds, group_by
from dataloader.listing.target_splits import quantile_bins
from dataloader.targets import LabelSets
from options.wording import count_of
from tools.prepare.table import read_csv
from utils.classes import Classes
from utils.errors import UserError
from utils.files import atomic_write_all
from utils.logger import log
from utils.text import visible

MAX_NAMED = 5  # classes or images in a message
RARE = "--allow_rare spreads these images anyway, and names what the networks have not seen"


def draw(opt: argparse.Namespace, files: FileList, classes: Classes) -> tuple[FileList, NDArray[np.int64]]:
    """Return the fold of each image, from 0, int64 (N,), by --folds, --seed and the flags for groups.

    Before it, the list, with the groups that these flags name.

    Raises:
        UserError: there are too few images or groups, in all or of a class; or a table of groups does not fit the list.
    """
    groups = find_groups(opt, files)
    label, image = labels_of(files)
    if not opt.allow_rare:
        _check_classes(opt.folds, label, None if groups is None else groups[image], classes)
    fold_of = _spread(opt, files, groups)
    empty = np.flatnonzero(np.bincount(fold_of, minlength=opt.folds) == 0)
    if len(empty):
        raise UserError(f"--folds is {opt.folds}, and fold {empty[0] + 1} would be empty. Try: fewer --folds")
    _check_untrained(opt, label, fold_of[image], classes)
    return (replace(files, group=groups) if opt.group_table or opt.group_by else files), fold_of


def labels_of(files: FileList) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each label that an image has, and that image: int64 (M,) both. Numbers are no labels: then M is 0."""
    if files.targets is None:
        return files.label.astype(np.int64), np.arange(len(files))
    if isinstance(files.targets, LabelSets):
        return files.targets.label.astype(np.int64), files.targets.image()
    return np.zeros(0, np.int64), np.zeros(0, np.int64)


def _spread(opt: argparse.Namespace, files: FileList, groups: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Return the fold of each image, int64 (N,): classes or labels are spread evenly, or bins of the first number."""
    targets = files.targets
    if isinstance(targets, LabelSets):
        sets = [targets.of(index).tolist() for index in range(len(files))]
        plan = SplitPlan(0, opt.folds, None, opt.seed)
        return draw_set_folds(sets, np.arange(len(files)) if groups is None else groups, plan)
    strata = files.label.astype(np.int64) if targets is None else quantile_bins(targets.tolist())
    return draw_folds(strata, groups, opt.folds, opt.seed)


# ------------------------------------------------------------------------------------------------ groups


def find_groups(opt: argparse.Namespace, files: FileList) -> NDArray[np.int64] | None:
    """Return the number of the group of each image, int64 (N,); None if every image is a group of its own.

    Groups come from --group_table or --group_by. An image that is listed twice is in one fold, whatever the flags are.
    """
    hashes = listed_images(files, "all lines of an image go to one fold")
    _, image = np.unique(hashes, return_inverse=True)
    repeated = len(image) - int(image.max()) - 1
    if opt.group_table is not None:
        groups = _numbered(_table_groups(opt, files))
    elif opt.group_by is not None:
        groups = _numbered(group_by([files.path(index) for index in range(len(files))], opt.group_by))
    else:
        return image.astype(np.int64) if repeated else None
    return _joined(groups, image) if repeated else groups


def _joined(groups: NDArray[np.int64], image: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the groups, int64 (N,), where those that share one of the images `image`, (N,), are one group."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = int(groups.max()) + 1
    links = (np.ones(len(groups), np.int8), (groups, count + image))
    side = count + int(image.max()) + 1
    _, part = connected_components(coo_array(links, shape=(side, side)), directed=False)
    _, joined = np.unique(part[groups], return_inverse=True)
    if (lost := count - int(joined.max()) - 1) > 0:
        log.warning(f"{lost} group(s) are joined with others, since an image is listed in both.")
    return joined.astype(np.int64)


def _numbered(groups: Sequence[str]) -> NDArray[np.int64]:
    """Return the number of each group, from 0 in the order of their names."""
    number_of = {group: number for number, group in enumerate(sorted(set(groups)))}
    log.info(f"{count_of(f'{len(number_of):,}', 'group')} of {len(groups):,} images; a group is in one fold.")
    return np.array([number_of[group] for group in groups], np.int64)


def _table_groups(opt: argparse.Namespace, files: FileList) -> list[str]:
    """Return the group that --group_table gives each image of the list.

    Raises:
        UserError: a column is missing, the table has no row for an image, or two rows with different groups.
    """
    table = Path(opt.group_table)
    columns = {"path_column": opt.path_column, "group_column": opt.group_column}
    others = dict.fromkeys(("label_column", "split_column", "delimiter", "label_separator", "target_columns"))
    asked = argparse.Namespace(
        file=opt.group_table, root=opt.group_root, part="test", keep_labels=False, **columns, **others
    )
    rows = read_csv(asked, None).lists["test"]
    assert rows.groups is not None  # as the group column is given
    group_of: dict[str, str] = {}
    for path, group in zip(as_on_disk(rows.paths, None), rows.groups, strict=True):
        if group_of.setdefault(_key(path), group) != group:
            raise UserError(f"{table} gives {visible(path)} two groups in column {opt.group_column!r}; give it one.")
    keys = [_key(files.path(index)) for index in range(len(files))]
    missing = [index for index, key in enumerate(keys) if key not in group_of]
    if missing:
        raise UserError(
            f"{table} has no row for {len(missing)} of {len(files)} images of {files.source}, the first: "
            f"{visible(files.path(missing[0]))} ({files.location(missing[0])}).\n"
            f"Relative paths of the table start at {opt.group_root or table.parent}/. "
            "Try: --group_root DIR for another folder, or add the rows."
        )
    return [group_of[key] for key in keys]


def _key(path: str) -> str:
    return os.path.abspath(path)


# ------------------------------------------------------------------------------------------------ checks


def _check_classes(folds: int, label: NDArray[np.int64], groups: NDArray[np.int64] | None, classes: Classes) -> None:
    """Raise UserError where a class has fewer images, or groups with images, than there are folds.

    Args:
        label: of each pair of an image and one of its labels, (M,). groups: the groups of these images, (M,).
    """
    units = label[:, None] if groups is None else np.unique(np.stack([label, groups], axis=1), axis=0)
    counts = np.bincount(units[:, 0])
    present = np.flatnonzero(counts)
    rare = present[counts[present] < folds]
    if not len(rare):
        return
    rare = rare[np.argsort(counts[rare], kind="stable")]
    what = "images" if groups is None else "groups"
    noun = "labels" if classes.task == "multilabel" else "classes"
    named = ", ".join(f"{visible(classes.name(int(one)))} ({counts[one]})" for one in rare[:MAX_NAMED])
    named += f" and {len(rare) - MAX_NAMED} more" if len(rare) > MAX_NAMED else ""
    fewest = int(counts[rare[0]])
    allowed = f" Allowed: 2 to {fewest}, the {what} of the rarest." if fewest >= 2 else ""
    fewer = f"--folds {fewest}, or " if fewest >= 2 else ""
    raise UserError(
        f"--folds is {folds}, and {len(rare)} of {len(present)} {noun} have fewer {what}: {named}.{allowed}\n"
        f"{RARE}. Try: {fewer}--allow_rare"
    )


def _check_untrained(
    opt: argparse.Namespace, label: NDArray[np.int64], fold_of: NDArray[np.int64], classes: Classes
) -> None:
    """Refuse folds whose network would see no image of a class that it has to predict; warn with --allow_rare.

    Args:
        label: of each pair of an image and one of its labels, (M,). fold_of: the folds of these images, (M,).
    """
    pairs = np.unique(np.stack([label, fold_of], axis=1), axis=0)
    counts = np.bincount(pairs[:, 0])
    alone = np.flatnonzero(counts == 1)  # classes with all their images in one fold
    if not len(alone):
        return
    named = ", ".join(visible(classes.name(int(one))) for one in alone[:MAX_NAMED])
    named += f" and {len(alone) - MAX_NAMED} more" if len(alone) > MAX_NAMED else ""
    noun, one = ("label(s)", "that label") if classes.task == "multilabel" else ("class(es)", "their class")
    images = int(np.isin(label, alone).sum())
    text = f"{len(alone)} {noun} have all their images in one fold: {named}."
    if not opt.allow_rare:
        raise UserError(f"{text} The network of that fold would never see them.\n{RARE}. Try: another --seed")
    log.warning(f"{text} {images} image(s) are predicted by a network that has seen no image of {one}.")


# ------------------------------------------------------------------------------------------------ lists


def list_paths(folder: Path, fold: int) -> tuple[Path, Path]:
    """Return the paths of the training and the validation list of fold `fold`, from 1."""
    return folder / f"fold{fold}_train.txt", folder / f"fold{fold}_val.txt"


def write_lists(folder: Path, files: FileList, fold_of: NDArray[np.int64], classes: Classes) -> None:
    """Write both lists of each fold, with absolute paths, and classes.txt if the classes have names.

    `fold_of` is the fold of each image, int64 (N,), from 0.
    """
    beside = folder / "classes.txt"
    folds = int(fold_of.max()) + 1
    pairs = [list_paths(folder, fold + 1) for fold in range(folds)]
    names = [beside] if classes.names else []
    root = Path.cwd()
    with atomic_write_all([*(path for pair in pairs for path in pair), *names], "w") as opened:
        for index in range(len(files)):
            line = f"{os.path.join(root, files.path(index))} {files.target_text(index)}\n"
            for fold in range(folds):
                opened[2 * fold + (fold == fold_of[index])].write(line)
        if names:
            opened[-1].writelines(f"{name}\n" for name in classes.names or ())
    if not names:
        beside.unlink(missing_ok=True)
