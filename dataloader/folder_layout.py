"""What the folders in a folder are: classes, or the parts of a data set (train/, val/, test/) that hold the classes."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from dataloader.decode import image_suffixes

MAX_FOLDERS_READ = 32  # to see whether a folder's folders hold images
DESKTOP_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"}  # desktops create these, besides dot files
PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "eval", "evaluation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_IMAGES = "(?:images?|imgs?|photos?|pictures?)"
_PART_NAME = re.compile(  # train, train2017, test1, train_images, images-val, test_set; seg_train
    rf"(?:{_IMAGES}[ _-]?|(?P<set>.+)[ _-])?(?P<part>{'|'.join(sorted(PARTS, key=len, reverse=True))})"
    rf"(?:[ _-]?(?:{_IMAGES}|set|data|\d+))?"
)


def find_parts(folder: Path) -> dict[str, Path]:
    """Return the folders of the parts of a data set, {"train": folder, "val": folder, "test": folder}, in this order.

    They are recognised by their names. Of a folder named like a part beside others with images, such as test/ beside
    car/ and bus/, it is {}: that may be a class. Training images and another part are no classes, whatever is beside
    them. A single folder is a part where its own folders hold the images. Where the class folders are in a part's only
    folder, that is returned.
    """
    kinds = part_names(folders_in(folder))
    parts: dict[str, Path] = {
        part: _class_root(folder / name)
        for part in ("train", "val", "test")
        for name in reversed(kinds)
        if kinds[name] == part
    }
    if "train" in parts and len(parts) > 1:
        return parts
    if parts and unused_folders(folder, parts, kinds):
        return {}
    if len(parts) == 1 and not class_folders(next(iter(parts.values()))):
        return {}
    return parts


def part_names(names: list[str]) -> dict[str, str]:
    """Return which part each of these folders seems to be, by its name: {"training": "train"}.

    Names that begin with that of the set (seg_train, seg_test) count where training and another part have the same.
    """
    found = {name: match for name in names if (match := _PART_NAME.fullmatch(name.lower()))}
    sets: dict[str | None, dict[str, str]] = {None: {}}
    for name, match in found.items():
        sets.setdefault(match["set"], {})[name] = PARTS[match["part"]]
    complete = [parts for parts in sets.values() if "train" in parts.values() and len(set(parts.values())) > 1]
    return sets[None] or next(iter(complete), {})


def unused_folders(folder: Path, parts: dict[str, Path], known: Iterable[str] = ()) -> list[str]:
    """Return the names of the folders in `folder` that hold an image, and are neither one of `parts` nor `known`."""
    used = {part.relative_to(folder).parts[0] for part in parts.values()}.union(known)
    return [name for name in folders_in(folder) if name not in used and holds_image(folder / name)]


def _class_root(part: Path) -> Path:
    """Return the folder of the class folders of a part: `part`, or the only folder in it (seg_train/seg_train)."""
    inner = None if class_folders(part) else find_only_folder(part)
    return part if inner is None else inner


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


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or created by a desktop."""
    return name.startswith(".") or name.lower() in DESKTOP_FILES


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in `folder`, sorted, without hidden ones."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_hidden(entry.name))


def class_folders(folder: Path) -> list[str]:
    """Return the names of the folders in `folder` that hold an image; none where the first few hold none."""
    names = folders_in(folder)
    first, rest = names[:MAX_FOLDERS_READ], names[MAX_FOLDERS_READ:]
    with_image = [name for name in first if _has_image(folder / name)]
    return with_image + rest if with_image else []


def holds_image(folder: Path) -> bool:
    """Return whether `folder`, or a folder below it, holds an image that is not hidden; links are not followed."""
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        if any(map(_is_image, files)):
            return True
    return False


def _has_image(folder: Path) -> bool:
    """Return whether `folder` itself holds an image that is not hidden."""
    return any(_is_image(entry.name) and not entry.is_dir() for entry in os.scandir(folder))


def _is_image(name: str) -> bool:
    """Return whether a file of this name is read as an image."""
    return name.lower().endswith(image_suffixes()) and not is_hidden(name)
