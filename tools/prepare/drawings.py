"""Drawings in folders: clip art of Debian's openclipart-png, and the stamps of its tuxpaint-stamps-default."""

import argparse
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from dataloader.decode import read_image, shrink
from dataloader.listing.class_names import check_names
from dataloader.listing.lists import ImageList, Listing, SkippedItems, normalise_list, write_all
from dataloader.listing.splits import split_and_log
from options.wording import count_of
from tools.doctor.inspection import MAX_FLAT_LEVELS
from tools.prepare.alike import alike_groups, sketch
from tools.prepare.flags import split_plan
from tools.prepare.packages import Package, debian_files
from utils import tables
from utils.cores import usable_cores
from utils.errors import ImageError, UserError
from utils.files import atomic_write, write_replaced
from utils.logger import log, progress

LEVELS = ("top", "leaf")
MAX_WORKERS = 4  # a drawing may have 169 million pixels, which take 1 GB each while they are decoded


@dataclass(frozen=True)
class Collection:
    """A package of drawings: where Debian puts it, and the fewest drawings of a class at each of LEVELS."""

    package: Package
    folder: Path
    min_images: dict[str, int]


COLLECTIONS = {
    "openclipart": Collection(
        Package(
            name="openclipart-png",
            version="1:0.18+dfsg-19",
            patterns=("**/*.png",),
            files=8121,
            sha256="cc42b77fde80445e2b07a80522cf3ee45ca59cffbf0145ad1c9f1e76c4c8343a",
            licence="public domain (Creative Commons Public Domain Dedication).",
        ),
        Path("/usr/share/openclipart/png"),
        {"top": 1, "leaf": 10},
    ),
    "stamps": Collection(
        Package(
            name="tuxpaint-stamps-default",
            version="2022.06.04-1",
            patterns=("**/*.png",),
            files=796,
            sha256="217aa4eaabae43a31d18ca1c0baf2a7e16d5563afc5c0e96ebdcfac241136e81",
            licence="GPL-2 (Bill Kendrick and the contributors of Tux Paint).",
        ),
        Path("/usr/share/tuxpaint/stamps"),
        {"top": 1, "leaf": 5},
    ),
}


class Drawing(NamedTuple):
    """One drawing over white.

    Attributes:
        names: of its files, below the package's folder, sorted.
        png: the encoded image, its longer side at most --side.
        pixels: a hash of the pixels.
        sketch: as `alike.sketch` returns it.
        aspect: height over width.
    """

    names: list[str]
    png: bytes
    pixels: bytes
    sketch: NDArray[np.float32]
    aspect: float


@dataclass
class LeftOut:
    """The files that are in no list, each with the reason."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, name: str, reason: str, detail: str = "") -> None:
        """Add a file; `reason` is the same for all files that are counted together."""
        self.rows.append((name, reason, detail))

    def report(self, path: Path) -> None:
        """Warn once per reason, and write all files to the CSV `path`."""
        skipped = SkippedItems()
        for name, reason, detail in self.rows:
            skipped.add(f"file(s) left out: {reason}", f"{name} ({detail})" if detail else name)
        skipped.report()
        with atomic_write(path, "w") as file:
            rows = tables.writer(file)
            rows.writerow(("path", "reason", "detail"))
            rows.writerows(sorted(self.rows))
        log.info(f"{path}: {count_of(f'{len(self.rows):,}', 'file')} left out, each with its reason")


def _described(images: int, side: int) -> str:
    count = count_of(f"{images:,}", "image")
    return f"{count}: transparent parts became white, and sides over {side} pixels were shrunk."


def prepare_drawings(opt: argparse.Namespace) -> None:
    """Write the drawings over white as PNG, and their lists; existing files are replaced.

    Raises:
        UserError: the package is unavailable, its content is not as expected, or no class is left.
    """
    collection, out, left_out = COLLECTIONS[opt.kind], Path(opt.out).resolve(), LeftOut()
    folder, files = debian_files(collection.package, collection.folder, opt)
    drawings = merge_copies(read_drawings(files, folder, opt.side, left_out))
    if getattr(opt, "multilabel", False):
        _write_multilabel(
            drawings, collection.min_images["leaf"] if opt.min_images is None else opt.min_images, opt, out, left_out
        )
        return
    classed = one_class_each(drawings, opt.level, left_out)
    least = collection.min_images[opt.level] if opt.min_images is None else opt.min_images
    names, classed = large_classes(classed, least, left_out)
    if not names:
        raise UserError(f"No class of {folder} has {least} drawings; allowed with --min_images: a smaller number.")
    check_names(names)
    paths = [_write(out / "images" / one.names[0], one.png) for one, _ in progress(classed, "writing images")]
    log.info(_described(len(paths), opt.side))
    labels = [names.index(name) for _, name in classed]
    images = ImageList(paths, labels, _groups([drawing for drawing, _ in classed]))
    write_all(Listing(names, split_drawings(normalise_list(images, "train"), opt)), out)
    left_out.report(out / "left_out.csv")


def _write_multilabel(
    drawings: Sequence[Drawing], least: int, opt: argparse.Namespace, out: Path, left_out: LeftOut
) -> None:
    """Write the drawings with all of their labels, and their lists."""
    names, labelled = all_labels(drawings, least, left_out)
    if not names:
        raise UserError(f"No folder has {least} drawings; allowed with --min_images: a smaller number.")
    check_names(names)
    numbers = {name: k for k, name in enumerate(names)}
    paths = [_write(out / "images" / one.names[0], one.png) for one, _ in progress(labelled, "writing images")]
    log.info(_described(len(paths), opt.side))
    groups = _groups([drawing for drawing, _ in labelled])
    images = ImageList(paths, None, groups, sets=[sorted(numbers[name] for name in found) for _, found in labelled])
    write_all(Listing(names, split_and_log(normalise_list(images, "train"), split_plan(opt))), out)
    left_out.report(out / "left_out.csv")


def all_labels(
    drawings: Iterable[Drawing], least: int, left_out: LeftOut
) -> tuple[list[str], list[tuple[Drawing, set[str]]]]:
    """Return the labels that `least` drawings or more have, sorted, and each drawing with those that it has.

    A label is a folder that holds a file of the drawing, directly or below it. A drawing without any is left out.
    """
    found = []
    for drawing in drawings:
        folders = {parent.as_posix() for name in drawing.names for parent in PurePosixPath(name).parents}
        found.append((drawing, folders - {"."}))
    counts = Counter(name for _, folders in found for name in folders)
    names = sorted(name for name, count in counts.items() if count >= least)
    known, kept = set(names), []
    for drawing, folders in found:
        if folders & known:
            kept.append((drawing, folders & known))
        else:
            left_out.add(drawing.names[0], f"none of its folders has {least} drawings")
        for name in drawing.names[1:]:
            left_out.add(name, "it is a copy of a listed image", drawing.names[0])
    return names, kept


def read_drawings(files: Sequence[Path], folder: Path, side: int, left_out: LeftOut) -> list[Drawing]:
    """Decode each file once, whatever its links; one that is unreadable, or shows a single colour, is left out.

    Args:
        files: below `folder`; a link to another file is another name of it.
        side: the longer side of a larger image becomes this, in pixels.
    """
    names: dict[str, list[str]] = defaultdict(list)
    for file in files:
        names[os.path.realpath(file)].append(file.relative_to(folder).as_posix())
    workers = min(MAX_WORKERS, usable_cores())
    with ThreadPoolExecutor(workers) as pool:
        read = pool.map(lambda path: _read(path, names[path], side), names)
        found = list(progress(read, "reading drawings", len(names)))
    drawings = []
    for path, drawing in zip(names, found, strict=True):
        if isinstance(drawing, Drawing):
            drawings.append(drawing)
        for name in [] if isinstance(drawing, Drawing) else names[path]:
            left_out.add(name, *drawing)
    return drawings


def _read(path: str, names: list[str], side: int) -> Drawing | tuple[str, str]:
    """Return the drawing in the file `path`, or a reason and a detail why there is none."""
    try:
        image, _ = read_image(path)
    except ImageError as error:
        return "it cannot be read", str(error).removeprefix(f"{path}: ")
    if int((image.max(axis=(0, 1)).astype(int) - image.min(axis=(0, 1))).max()) <= MAX_FLAT_LEVELS:
        return "over white it is a single colour", ""
    image = shrink(image, side / max(image.shape[:2]))
    pixels = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
    png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
    return Drawing(sorted(names), png, pixels, sketch(image), image.shape[0] / image.shape[1])


def merge_copies(drawings: Iterable[Drawing]) -> list[Drawing]:
    """Return the drawings sorted by name, those of the same pixels as one with the names of all."""
    merged: dict[bytes, Drawing] = {}
    for drawing in drawings:
        names = merged[drawing.pixels].names if drawing.pixels in merged else []
        merged[drawing.pixels] = drawing._replace(names=sorted([*names, *drawing.names]))
    return sorted(merged.values(), key=lambda drawing: drawing.names)


def one_class_each(drawings: Iterable[Drawing], level: str, left_out: LeftOut) -> list[tuple[Drawing, str]]:
    """Return each drawing with its class, under one name; drawings in several classes or in none are left out.

    The class is the top folder, or at level "leaf" the folder of the file. There, a drawing in a folder and in one
    below it belongs to the lower one, which says more.
    """
    kept = []
    for drawing in drawings:
        classes = [class_of(name, level) for name in drawing.names]
        distinct = sorted({name for name in classes if name})
        deepest = [one for one in distinct if not any(other.startswith(f"{one}/") for other in distinct)]
        if len(deepest) != 1:
            reason = "the drawing is in several classes" if deepest else "it is in no folder"
            for name in drawing.names:
                left_out.add(name, reason, ", ".join(deepest))
            continue
        name = drawing.names[classes.index(deepest[0])]
        for other in drawing.names:
            if other != name:
                left_out.add(other, "it is a copy of a listed image", name)
        kept.append((drawing._replace(names=[name]), deepest[0]))
    return kept


def class_of(name: str, level: str) -> str:
    """Return the class of a file by its path below the package's folder; "" for a file in no folder."""
    folders = PurePosixPath(name).parts[:-1]
    return "/".join(folders if level == "leaf" else folders[:1])


def large_classes(
    classed: Sequence[tuple[Drawing, str]], least: int, left_out: LeftOut
) -> tuple[list[str], list[tuple[Drawing, str]]]:
    """Return the sorted names of the classes with `least` drawings or more, and their drawings."""
    counts = Counter(name for _, name in classed)
    for drawing, name in classed:
        if counts[name] < least:
            left_out.add(drawing.names[0], f"its class has fewer than {least} drawings", f"{name}: {counts[name]}")
    names = sorted(name for name, count in counts.items() if count >= least)
    return names, [(drawing, name) for drawing, name in classed if counts[name] >= least]


def split_drawings(images: ImageList, opt: argparse.Namespace) -> dict[str, ImageList]:
    """Divide the images into "train" and "val". With --val, a group of more than half a class stays in training.

    Of 1,373 star polygons in the clip art, 1,313 are by one script, each almost like the next. Held out together, they
    would be most of the validation images.
    """
    labels, groups = images.labels or [], images.groups or []
    of_class, of_group = Counter(labels), Counter(zip(groups, labels, strict=True))
    large = {group for (group, label), count in of_group.items() if 2 * count > of_class[label]}
    if opt.folds is not None or opt.val == 0 or not large:
        return split_and_log(images, split_plan(opt))
    stays = np.array([group in large for group in groups])
    kept = images.select(np.flatnonzero(stays).tolist())
    parts = split_and_log(images.select(np.flatnonzero(~stays).tolist()), split_plan(opt))
    parts["train"] = normalise_list(parts["train"].with_others(kept), "train")
    log.info(
        f"{len(kept.paths):,} more images stay in training: {len(large):,} group(s) that are more than half of their "
        f"class (the first image: {kept.paths[0]!r})."
    )
    return parts


def _groups(drawings: Sequence[Drawing]) -> list[str]:
    """Return a group for each drawing: those that look alike, or like each other's mirror image, are of one."""
    numbers = alike_groups(np.stack([one.sketch for one in drawings]), np.array([one.aspect for one in drawings]))
    sizes = Counter(numbers.tolist())
    several = [size for size in sizes.values() if size > 1]
    log.info(
        f"{sum(several):,} drawings look like another one, or like its mirror image; "
        f"they make {len(several):,} groups, which a split does not divide (the largest: {max(several, default=0):,})."
    )
    return [str(number) for number in numbers.tolist()]


def _write(path: Path, png: bytes) -> str:
    """Write the file, and return its path."""
    write_replaced(path, png)
    return str(path)
