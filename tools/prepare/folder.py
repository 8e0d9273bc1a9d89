"""Images in folders: a folder a class, as ImageNet has them; or unlabelled, for submission."""

import argparse
import os
from pathlib import Path

from dataloader.decode import image_suffixes
from dataloader.list_advice import SPLIT_NAMES, prepare_command
from tools.prepare.lists import Found, Part, Tally, in_order, number
from utils.errors import UserError, path_hint
from utils.logger import log, progress

LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"}  # what desktops leave behind, beside names with a dot
SHOWN = ".jpg, .png, .webp or .tif (whatever Pillow decodes)"


def read_folder(opt: argparse.Namespace, given: list[str] | None) -> Found:
    """The images of opt.root and, if given, of opt.val_root; the training root's folders are the classes, or `given`."""
    root, tally = _folder(opt.root, "one folder of images a class"), Tally()
    names = _class_folders(root, tally)
    _not_one_too_high(root, names, opt.out)
    parts = {"train": _read(root, names, given or names, "--classes", tally)}
    if not parts["train"].paths:
        loose = "There are images in it, but not in class folders. " if images_under(root, Tally()) else ""
        raise UserError(
            f"{root} holds no image in a class folder. {loose}Expected: {root}/<class>/<image>, with an ending such as {SHOWN}."
        )
    if opt.val_root is not None:
        val = _folder(opt.val_root, "one folder of images a class")
        origin = "--classes" if given else f"the training root {root}"
        parts["val"] = _read(val, _class_folders(val, tally), given or names, origin, tally)
        if not parts["val"].paths:
            raise UserError(f"--val_root {val} holds no image in a class folder; expected {val}/<class>/<image>.")
    tally.report()
    return Found(given or names, parts)


def read_unlabelled(folder: str) -> Part:
    """All images under `folder`, sorted, without labels."""
    tally = Tally()
    root = _folder(folder, "images to predict")
    paths = images_under(root, tally)
    tally.report()
    if not paths:
        raise UserError(f"{root} holds no image; expected files with an ending such as {SHOWN}.")
    return Part(paths, None)


def images_under(folder: str, tally: Tally) -> list[str]:
    """The paths of all images under `folder`, sorted; links are followed, each folder once; the rest is tallied."""
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    stack = [folder]
    while stack:
        here = stack.pop()
        state = os.stat(here)
        if (state.st_dev, state.st_ino) in seen:  # a link to a folder above would go round for ever
            tally.add("folder(s) passed over, which a link leads to a second time", here)
            continue
        seen.add((state.st_dev, state.st_ino))
        with os.scandir(here) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
                if _hidden(entry.name):
                    tally.add("hidden file(s) or folder(s) passed over", entry.path)
                elif os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                    stack.append(entry.path)
                elif not entry.name.lower().endswith(image_suffixes()):
                    tally.add("file(s) passed over, which are no images by their suffix", entry.path)
                elif not os.path.isfile(entry.path) if entry.is_symlink() else not entry.is_file():
                    tally.add("link(s) passed over, which lead nowhere", entry.path)
                else:
                    found.append(entry.path)
    return sorted(found)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in LITTER


def _folder(path: str, holds: str) -> str:
    if not Path(path).is_dir():
        what = "is a file, not a folder" if Path(path).exists() else "is not there"
        raise UserError(f"{path} {what}; expected a folder that holds {holds}.{path_hint(Path(path))}")
    return str(Path(path).resolve())


def _class_folders(root: str, tally: Tally) -> list[str]:
    """The names of the class folders, in the order of `in_order`; what lies beside them is tallied."""
    names = []
    for name in sorted(os.listdir(root)):
        path = os.path.join(root, name)
        if _hidden(name):
            tally.add("hidden file(s) or folder(s) passed over", path)
        elif os.path.isdir(path):
            names.append(name)
        else:
            tally.add("file(s) passed over, which lie in no class folder", path)
    return in_order(names)


def _read(root: str, folders: list[str], names: list[str], origin: str, tally: Tally) -> Part:
    """The images of the class folders `folders` of `root`, numbered by `names`, which are those of `origin`."""
    labels = number(folders, names, lambda k: os.path.join(root, folders[k]), origin)
    paths: list[str] = []
    numbers: list[int] = []
    for name, label in zip(progress(folders, "reading folders"), labels, strict=True):
        images = images_under(os.path.join(root, name), tally)
        if not images:
            log.warning(f"The class folder {os.path.join(root, name)!r} holds no image.")
        paths += images
        numbers += [label] * len(images)
    return Part(paths, numbers)


def _not_one_too_high(root: str, names: list[str], out: str) -> None:
    """Raise UserError where the "classes" are train/, val/ and the like, whose folders are the classes."""
    if len(names) < 2 or not {name.lower() for name in names} <= SPLIT_NAMES:
        return
    if any(
        entry.is_file() and entry.name.lower().endswith(image_suffixes())
        for name in names
        for entry in os.scandir(os.path.join(root, name))
    ):
        return
    train = next((name for name in names if name.lower().startswith("train")), names[0])
    val = next((name for name in names if name.lower().startswith("val")), None)
    command = prepare_command(
        "folder", f"{root}/{train}", *(["--val_root", f"{root}/{val}"] if val else []), "--out", out
    )
    raise UserError(
        f"{root} holds the folders {', '.join(names)}; these are no classes, it seems: the images lie deeper.\n"
        f"Name the training folder itself: `{command}`."
    )
