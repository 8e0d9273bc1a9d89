"""Images in folders: one folder per class, as in ImageNet; or unlabelled, for submission."""

import os
from pathlib import Path

from dataloader.decode import image_suffixes
from dataloader.list_advice import SPLIT_NAMES, prepare_command
from dataloader.listing.lists import ImageList, Listing, SkippedItems, natural_sort, to_class_ids
from utils.errors import UserError, path_hint
from utils.logger import log, progress

DESKTOP_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"}  # desktops create these, besides dot files
SUFFIX_EXAMPLES = ".jpg, .png, .webp or .tif (whatever Pillow decodes)"


def read_folder(folder: str, val_folder: str | None, given: list[str] | None, out: str) -> Listing:
    """Return the images of `folder` and, if given, of `val_folder`.

    Args:
        given: the classes; None: they are the folders of `folder`.
        out: where the lists will be written, for messages.

    Raises:
        UserError: a folder does not exist, holds no image, or is of an unknown class.
    """
    root, skipped = _folder(folder, "one folder of images per class"), SkippedItems()
    names = _class_folders(root, skipped)
    _check_not_split_folders(root, names, out)
    parts = {"train": _read(root, names, given or names, "--classes", skipped)}
    if not parts["train"].paths:
        loose = "There are images in it, but not in class folders. " if images_under(root, SkippedItems()) else ""
        raise UserError(
            f"{root} holds no image in a class folder. {loose}"
            f"Expected: {root}/<class>/<image>, with a suffix such as {SUFFIX_EXAMPLES}."
        )
    if val_folder is not None:
        val = _folder(val_folder, "one folder of images per class")
        origin = "--classes" if given else f"the training root {root}"
        parts["val"] = _read(val, _class_folders(val, skipped), given or names, origin, skipped)
        if not parts["val"].paths:
            raise UserError(f"--val_root {val} holds no image in a class folder; expected {val}/<class>/<image>.")
    skipped.report()
    return Listing(given or names, parts)


def read_unlabelled(folder: str) -> ImageList:
    """Return all images under `folder`, sorted, without labels. Raises UserError if there is none."""
    skipped = SkippedItems()
    root = _folder(folder, "images to predict")
    paths = images_under(root, skipped)
    skipped.report()
    if not paths:
        raise UserError(f"{root} holds no image; expected files with a suffix such as {SUFFIX_EXAMPLES}.")
    return ImageList(paths, None)


def images_under(folder: str, skipped: SkippedItems) -> list[str]:
    """Return the paths of all images under `folder`, sorted; count everything else in `skipped`.

    Links are followed, and each folder is read once.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    stack = [folder]
    while stack:
        here = stack.pop()
        state = os.stat(here)
        if (state.st_dev, state.st_ino) in seen:  # a link to a folder above would loop forever
            skipped.add("folder(s) skipped, which a link leads to a second time", here)
            continue
        seen.add((state.st_dev, state.st_ino))
        with os.scandir(here) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
                if _hidden(entry.name):
                    skipped.add("hidden file(s) or folder(s) skipped", entry.path)
                elif os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                    stack.append(entry.path)
                elif not entry.name.lower().endswith(image_suffixes()):
                    skipped.add("file(s) skipped, which are not images by their suffix", entry.path)
                elif not os.path.isfile(entry.path) if entry.is_symlink() else not entry.is_file():
                    skipped.add("link(s) skipped, which lead nowhere", entry.path)
                else:
                    found.append(entry.path)
    return sorted(found)


def _hidden(name: str) -> bool:
    """Return whether a file is hidden, or created by a desktop."""
    return name.startswith(".") or name.lower() in DESKTOP_FILES


def _folder(path: str, holds: str) -> str:
    """Return the absolute path of a folder. Raises UserError where it is not one; `holds` says what it should hold."""
    if not Path(path).is_dir():
        what = "is a file, not a folder" if Path(path).exists() else "is not there"
        raise UserError(f"{path} {what}; expected a folder that holds {holds}.{path_hint(Path(path))}")
    return str(Path(path).resolve())


def _class_folders(root: str, skipped: SkippedItems) -> list[str]:
    """Return the names of the class folders, in the order of `natural_sort`; count everything else in `skipped`."""
    names = []
    for name in sorted(os.listdir(root)):
        path = os.path.join(root, name)
        if _hidden(name):
            skipped.add("hidden file(s) or folder(s) skipped", path)
        elif os.path.isdir(path):
            names.append(name)
        else:
            skipped.add("file(s) skipped, which are in no class folder", path)
    return natural_sort(names)


def _read(root: str, folders: list[str], names: list[str], origin: str, skipped: SkippedItems) -> ImageList:
    """Return the images of the class folders `folders` in `root`, numbered by `names`, which come from `origin`."""
    labels = to_class_ids(folders, names, lambda k: os.path.join(root, folders[k]), origin)
    paths: list[str] = []
    numbers: list[int] = []
    for name, label in zip(progress(folders, "reading folders"), labels, strict=True):
        images = images_under(os.path.join(root, name), skipped)
        if not images:
            log.warning(f"The class folder {os.path.join(root, name)!r} holds no image.")
        paths += images
        numbers += [label] * len(images)
    return ImageList(paths, numbers)


def _check_not_split_folders(root: str, names: list[str], out: str) -> None:
    """Raise UserError where the class folders are train/, val/ and the like, whose own folders are the classes."""
    if len(names) < 2 or not {name.lower() for name in names} <= SPLIT_NAMES:
        return
    entries = (entry for name in names for entry in os.scandir(os.path.join(root, name)))
    if any(entry.is_file() and entry.name.lower().endswith(image_suffixes()) for entry in entries):
        return
    train = next((name for name in names if name.lower().startswith("train")), names[0])
    val = next((name for name in names if name.lower().startswith("val")), None)
    val_words = ["--val_root", f"{root}/{val}"] if val else []
    command = prepare_command("folder", f"{root}/{train}", *val_words, "--out", out)
    raise UserError(
        f"{root} holds the folders {', '.join(names)}, which seem to be splits, not classes: the images are deeper.\n"
        f"Give the training folder itself: `{command}`."
    )
