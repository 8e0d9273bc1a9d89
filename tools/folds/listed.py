"""The training list that is divided, and checks that nothing has seen it before."""

import os
from pathlib import Path
from typing import Any

import dataloader
from dataloader.file_list import FileList
from options import Options
from utils import checkpoint
from utils.classes import Classes
from utils.errors import UserError
from utils.logger import log

STARTS = ("load", "probe_init", "teacher")


def open_training_list(train: Options, drawn: Path) -> tuple[FileList, Classes]:
    """Return the training list of train.py's options and its classes.

    Args:
        train: where --data_root holds class folders and no lists, all their images are listed.
        drawn: the folder for that list.

    Raises:
        UserError: the list or its labels are unusable; or images are missing, under --on_bad_image error.
    """
    lists = dataloader.draw_lists(train.replace(val_freq=0), drawn)
    files = dataloader.open_list(lists, "train", task=train.task)
    classes = dataloader.find_classes(files, train.num_classes, train.task)
    val = dataloader.list_path(train, "val")
    if val.is_file():
        log.info(f"{val} is not used: each fold validates on the part of {files.source} that it holds out.")
    return files.with_count(classes.count), classes


def check_start(train: Options, files: FileList) -> None:
    """Refuse to start from, or to learn from, a network that was trained on the list that is divided.

    It has seen every held-out image, so no prediction would be out of fold.

    Raises:
        UserError: --load, --probe_init or --teacher is such a network.
    """
    for name in STARTS:
        path = vars(train)[name]
        if path and _has_seen(checkpoint.load(path), files):
            raise UserError(
                f"--{name} {path} was trained on {files.source}, so it has seen the images that each fold holds out: "
                "no score would be out of fold.\nGive a checkpoint of other images, or leave it out."
            )


def _has_seen(content: dict[str, Any], files: FileList) -> bool:
    """Return whether a checkpoint was trained on this list, as far as it records its own."""
    data, opt = content.get("data") or {}, content.get("opt") or {}
    if "train_list" in data:
        return bool(data["train_list"] == files.fingerprint())
    listed = opt.get("train_list") or (Path(opt["data_root"]) / "train.txt" if opt.get("data_root") else None)
    return listed is not None and os.path.realpath(listed) == os.path.realpath(files.source)
