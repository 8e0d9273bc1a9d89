"""The training list that is divided."""

from pathlib import Path

import dataloader
from dataloader.file_list import FileList
from options import Options
from utils.classes import Classes
from utils.logger import log


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
