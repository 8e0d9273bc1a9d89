"""Lists for a folder of class folders that has none: train.py draws a split and writes it beside the run's log."""

import shlex
from pathlib import Path

from dataloader.folder_layout import find_class_folders, find_parts, unused_folders
from dataloader.list_advice import prepare_command
from dataloader.listing.class_names import check_names
from dataloader.listing.folder import images_under, read_folder
from dataloader.listing.lists import Listing, SkippedItems, check_apart, normalise_list, write_all
from dataloader.listing.splits import DEFAULT_VAL, SplitPlan, split_and_log
from options.wording import count_of
from utils.errors import UserError
from utils.logger import log


def has_class_folders(root: Path) -> bool:
    """Return whether `root` holds class folders and neither train.txt nor val.txt."""
    if not root.is_dir() or any((root / f"{name}.txt").exists() for name in ("train", "val")):
        return False
    return find_class_folders(root) is not None


def write_lists(root: Path, out: Path, seed: int, hold_out: bool) -> None:
    """Write train.txt, val.txt and classes.txt of the class folders in `root` into the folder `out`, and log it.

    If `root` holds train/ and val/, these are the two lists. Else DEFAULT_VAL of each class is held out. Images of
    other folders beside train/ are in no list, with a warning.

    Args:
        seed: of the split.
        hold_out: False: list all images of the class folders, or those of train/, and write no val.txt.

    Raises:
        UserError: there are too few images to hold one out, or a class has a name that no list can hold.
    """
    found = find_class_folders(root)
    assert found is not None, "has_class_folders(root) is true"
    train, val = found
    listing = read_folder(str(train), str(val) if val and hold_out else None, None, str(out))
    check_names(listing.names)
    parts = {name: normalise_list(images, name) for name, images in listing.lists.items()}
    log.info(f"{root} holds class folders and no train.txt: the lists are made here.")
    if train != root:
        _log_parts(root, train, val, hold_out)
    if "val" in parts:
        check_apart(parts["train"], parts["val"])
    elif hold_out:
        parts = split_and_log(parts["train"], SplitPlan(DEFAULT_VAL, None, None, seed))
        if "val" not in parts:
            raise UserError(
                f"{root} holds too few images to hold out {DEFAULT_VAL:.0%} of them for validation.\n"
                "Train without validation: --val_freq 0."
            )
    write_all(Listing(listing.names, parts), out)
    again = prepare_command("folder", train, "--out", "datasets", "--val", 0.2)
    log.info(f"Train with another split: {again}, then {shlex.join(['--data_root', 'datasets'])}")


def _log_parts(root: Path, train: Path, val: Path | None, hold_out: bool) -> None:
    """Log which folders in `root` the training and validation images are from, and warn of images in no list."""
    from_val = f", the validation images from {val}" if val and hold_out else ""
    log.info(f"The training images are from {train}{from_val}.")
    if val and not hold_out:
        count = len(images_under(str(val), SkippedItems()))
        log.warning(
            f"{val} is not used: no list holds its {count_of(count, 'image')}. To train on them too, join the "
            "train.txt and val.txt of a run with validation, and give --train_list."
        )
    parts = find_parts(root)
    others = unused_folders(root, {part: parts[part] for part in parts if part != "val" or val})
    if others:
        log.warning(f"The images in these folders of {root} are in no list: {', '.join(others)}")
