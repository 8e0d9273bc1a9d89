"""Images in folders: one folder per class, as in ImageNet; or unlabelled, for submission."""

import os
from collections import Counter
from pathlib import Path

from dataloader.decode import image_suffixes
from dataloader.folder_layout import (
    class_folders,
    find_only_folder,
    find_parts,
    is_hidden,
    unused_folders,
)
from dataloader.list_advice import parts_command, prepare_command
from dataloader.listing.class_names import natural_sort, to_class_ids
from dataloader.listing.lists import ImageList, Listing, SkippedItems
from utils.errors import UserError, path_hint
from utils.logger import log, progress

MIN_SHARED_FOLDERS = 2  # of several class folders: they may be the classes
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
    if given is None:
        _check_layout(Path(root), out)
    parts = {"train": _read(root, names, given or names, "--classes", skipped)}
    if not parts["train"].paths:
        loose = "There are images in it, but not in class folders. " if images_under(root, SkippedItems()) else ""
        raise UserError(
            f"{root} holds no image in a class folder. {loose}"
            f"Expected: {root}/<class>/<image>, with a suffix such as {SUFFIX_EXAMPLES}."
        )
    if given is None:
        _warn_deeper_classes(root, parts["train"].paths)
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
                if is_hidden(entry.name):
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
        if is_hidden(name):
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


def _check_layout(root: Path, out: str) -> None:
    """Raise UserError where the classes are deeper: `root` holds train/, val/ and the like, or one folder with them."""
    parts = find_parts(root)
    if parts:
        names = ", ".join(str(part.relative_to(root)) for part in parts.values())
        problem = f"{root} holds the folders {names}, which seem to be the parts of a data set, not classes"
        if "train" in parts and class_folders(parts["train"]):
            advice = f": the classes are deeper.\nTry: {parts_command(parts, out)}"
            others = unused_folders(root, parts)
            advice += f"\nThe images in these folders would be in no list: {', '.join(others)}" if others else ""
        else:
            advice = "; and no folders in them hold images by class.\nAre the labels in a table? Try: "
            advice += prepare_command("csv", "TABLE", "--root", root, "--out", out)
        raise UserError(f"{problem}{advice}\nIf they are classes, say so by their names: --classes FILE.")
    inner = find_only_folder(root)
    if inner is not None:
        command = prepare_command("folder", inner, "--out", out)
        raise UserError(
            f"{root} holds one folder, {inner.name}, and the classes seem to be in it.\nTry: {command}\n"
            "If it is a class, say so by its name: --classes FILE."
        )


def _warn_deeper_classes(root: str, paths: list[str]) -> None:
    """Warn where the folders in class folders may be the classes: several have the same ones, or one alone has any."""
    below: dict[str, set[str]] = {}
    for path in paths:
        name, *folders, _ = path[len(root) :].strip("/").split("/")
        below.setdefault(name, set()).add(folders[0] if folders else "")
    deeper = {name: folders for name, folders in below.items() if "" not in folders}
    shared = Counter(folder for folders in deeper.values() for folder in folders)
    several = sorted(folder for folder, count in shared.items() if count > 1)
    if len(several) >= MIN_SHARED_FOLDERS:
        first = next(name for name, folders in deeper.items() if several[0] in folders)
        log.warning(
            f"The images of several classes lie in folders of the same names, such as {several[0]} and {several[1]} in "
            f"{first}. They count as images of {first}. If they are the classes, give the folder that holds them."
        )
    elif len(deeper) == 1 and len(below) > 1:
        name, inner = deeper.popitem()
        if len(inner) > 1:
            log.warning(
                f"The images of {name} alone lie in folders, such as {min(inner)}, and count as images of {name}. "
                f"If these folders are the classes, give the one that holds them: {os.path.join(root, name)}"
            )
