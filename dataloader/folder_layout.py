"""What the folders in a folder are: classes, or the parts of a data set (train/, val/, test/) that hold the classes."""

import os
import re
from pathlib import Path

from dataloader.decode import image_suffixes

MAX_FOLDERS_READ = 32  # to see whether a folder's folders hold images
PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "eval", "evaluation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_IMAGES = "(?:images?|imgs?|photos?|pictures?)"
_PART_NAME = re.compile(  # train, train2017, test1, train_images, images-val, test_set
    rf"(?:{_IMAGES}[ _-]?)?({'|'.join(sorted(PARTS, key=len, reverse=True))})(?:[ _-]?(?:{_IMAGES}|set|data|\d+))?"
)


def find_parts(folder: Path) -> dict[str, Path]:
    """Return the folders of the parts of a data set, {"train": folder, "val": folder, "test": folder}, in this order.

    They are recognised by their names. It is {} where another folder in `folder` holds an image: there, "test" may be
    a class. A single folder is a part where its own folders hold the images.
    """
    names = folders_in(folder)
    parts = {name: PARTS[found[1]] for name in names if (found := _PART_NAME.fullmatch(name.lower()))}
    if not parts or any(name not in parts and holds_image(folder / name) for name in names):
        return {}
    if len(parts) == 1 and not class_folders(folder / next(iter(parts))):
        return {}
    return {part: folder / name for part in ("train", "val", "test") for name in reversed(parts) if parts[name] == part}


def find_class_folders(folder: Path) -> tuple[Path, Path | None] | None:
    """Return the folder whose folders hold the training images by class, and that of the validation images or None.

    It is `folder` itself, or its train/ and val/. None: no folder holds images by class.
    """
    parts = find_parts(folder)
    if not parts:
        return (folder, None) if class_folders(folder) else None
    if "train" not in parts or not class_folders(parts["train"]):
        return None
    return parts["train"], parts["val"] if "val" in parts and class_folders(parts["val"]) else None


def find_only_folder(folder: Path) -> Path | None:
    """Return the one folder in `folder` that holds images, where its own folders hold them; else None."""
    holding = [folder / name for name in folders_in(folder)[:MAX_FOLDERS_READ] if holds_image(folder / name)]
    alone = len(holding) == 1 and not _has_image(folder) and not _has_image(holding[0])
    return holding[0] if alone and len(folders_in(holding[0])) > 1 else None


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in `folder`, sorted, without hidden ones."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def class_folders(folder: Path) -> list[str]:
    """Return the names of the folders in `folder` that hold an image; none where the first few hold none."""
    names = folders_in(folder)
    first, rest = names[:MAX_FOLDERS_READ], names[MAX_FOLDERS_READ:]
    with_image = [name for name in first if _has_image(folder / name)]
    return with_image + rest if with_image else []


def holds_image(folder: Path) -> bool:
    """Return whether `folder`, or a folder below it, holds an image; links are not followed."""
    suffixes = image_suffixes()
    return any(name.lower().endswith(suffixes) for _, _, files in os.walk(folder) for name in files)


def _has_image(folder: Path) -> bool:
    """Return whether `folder` itself holds an image."""
    suffixes = image_suffixes()
    return any(entry.name.lower().endswith(suffixes) and not entry.is_dir() for entry in os.scandir(folder))
