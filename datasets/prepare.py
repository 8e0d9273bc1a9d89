"""Make list files (train.txt, val.txt, test.txt, classes.txt) and, for a built-in set, the images.

    python datasets/prepare.py fashion-mnist --out datasets/fashion-mnist --train 12000
    python datasets/prepare.py folder photos/ --out datasets --val 0.1

fashion-mnist: real product images (Zalando), 60,000 + 10,000, from Debian's package dataset-fashion-mnist or through
torchvision; where neither can be had, scikit-learn's digits take their place, and it says so.
folder: one folder a class, as ImageNet has them; a stratified split of each class goes to val.txt.
"""

import argparse
import gzip
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError
from utils.files import atomic_write
from utils.logger import log, progress, start_logging

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FASHION = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # images (N, H, W), labels (N,)


class Source(NamedTuple):
    """A set of small grey images, in two parts."""

    name: str
    train: Arrays
    val: Arrays
    classes: list[str]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="datasets/prepare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    fashion = kinds.add_parser("fashion-mnist", help="real product images, 28 pixels, 10 classes")
    fashion.add_argument("--out", default="datasets/fashion-mnist", help="folder for lists and images")
    fashion.add_argument("--train", type=int, default=12000, help="training images")
    fashion.add_argument("--val", type=int, default=10000, help="validation images, of the set's own test part")
    fashion.add_argument("--test", type=int, default=2000, help="images for submission, of the training part, apart from --train")
    folder = kinds.add_parser("folder", help="one folder of images a class")
    folder.add_argument("root", help="the folder that holds the class folders")
    folder.add_argument("--out", default="datasets", help="folder for the lists")
    folder.add_argument("--val", type=float, default=0.1, help="the share of each class that goes to val.txt")
    for kind in (fashion, folder):
        kind.add_argument("--seed", type=int, default=42)
    opt = parser.parse_args(argv)
    start_logging()
    try:
        prepare_fashion(opt) if opt.kind == "fashion-mnist" else prepare_folder(opt)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


# ------------------------------------------------------------------------------------------------ small built-in sets


def prepare_fashion(opt: argparse.Namespace) -> None:
    """Write the images as PNG and their lists; what lies there already is written anew."""
    source = _from_debian() or _from_torchvision() or _digits()
    log.info(f"Source: {source.name}.")
    out = Path(opt.out).resolve()
    order = np.random.default_rng(opt.seed).permutation(len(source.train[0]))
    wanted = opt.train + opt.test
    if wanted > len(order):
        opt.test = max(1, len(order) * opt.test // wanted)
        opt.train = len(order) - opt.test
        log.warning(f"{source.name} has {len(order)} training images: {opt.train} for training, {opt.test} for submission.")
    parts = {
        "train": (source.train, order[: opt.train]),
        "val": (source.val, np.arange(min(opt.val, len(source.val[0])))),
        "test": (source.train, order[opt.train : opt.train + opt.test]),
    }
    for name, ((images, labels), chosen) in parts.items():
        paths = [
            _write_image(out / name / f"{name}_{index:05d}.png", images[index]) for index in progress(chosen.tolist(), f"writing {name}")
        ]
        write_list(out / f"{name}.txt", paths, None if name == "test" else labels[chosen].tolist())
    _write_lines(out / "classes.txt", source.classes)


def _write_image(path: Path, image: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image):
        raise UserError(f"{path} could not be written; is the disk full? (`df -h {path.parent}`)")
    return path


def _from_debian() -> Source | None:
    apt = shutil.which("apt-get")
    if not DEBIAN.is_dir() and apt and os.geteuid() == 0:
        log.info("Installing Debian's dataset-fashion-mnist …")
        install = [apt, "install", "-y", "--no-install-recommends", "dataset-fashion-mnist"]
        if not _quietly(install):  # a fresh machine has no package lists yet
            _quietly([apt, "update"])
            _quietly(install)
    if not DEBIAN.is_dir():
        return None
    return Source("Fashion-MNIST (Debian's dataset-fashion-mnist)", _read_idx("train"), _read_idx("t10k"), FASHION)


def _quietly(command: list[str]) -> bool:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0


def _read_idx(part: str) -> Arrays:
    """A part of the set in Yann LeCun's IDX format: 16 or 8 bytes of header, then uint8 values."""
    with gzip.open(DEBIAN / f"{part}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(DEBIAN / f"{part}-labels-idx1-ubyte.gz") as file:
        return images, np.frombuffer(file.read(), np.uint8, offset=8)


def _from_torchvision() -> Source | None:
    from torchvision.datasets import FashionMNIST

    folder = Path.home() / ".cache" / "fashion-mnist"
    log.info("Fetching Fashion-MNIST through torchvision …")
    try:
        train, val = (FashionMNIST(folder, train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as error:
        log.warning(f"Fashion-MNIST cannot be fetched: {error}")
        return None
    arrays = [(part.data.numpy(), part.targets.numpy().astype(np.uint8)) for part in (train, val)]
    return Source("Fashion-MNIST (torchvision)", arrays[0], arrays[1], FASHION)


def _digits() -> Source:
    from sklearn.datasets import load_digits

    log.warning("Fashion-MNIST cannot be had here: scikit-learn's 1,797 handwritten digits of 8 pixels take its place.")
    data = load_digits()
    images, labels = (data.images * 15.9).astype(np.uint8), data.target.astype(np.uint8)
    return Source("digits (scikit-learn)", (images[:1400], labels[:1400]), (images[1400:], labels[1400:]), [str(k) for k in range(10)])


# ------------------------------------------------------------------------------------------------ class folders


def prepare_folder(opt: argparse.Namespace) -> None:
    """Write lists of the images under a folder of class folders."""
    root, out = Path(opt.root).resolve(), Path(opt.out)
    if not root.is_dir():
        raise UserError(f"There is no folder {root}; expected a folder that holds one folder of images a class.")
    if not 0 <= opt.val < 1:
        raise UserError(f"--val is {opt.val}; allowed: from 0 to below 1, a share of each class.")
    names = sorted(path.name for path in root.iterdir() if path.is_dir())
    parts: dict[str, list[tuple[Path, int]]] = {"train": [], "val": []}
    rng = np.random.default_rng(opt.seed)
    for label, name in enumerate(progress(names, "reading folders")):
        images = sorted(path for path in (root / name).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        count = min(round(len(images) * opt.val), max(0, len(images) - 1))  # a class keeps a training image
        held = set(rng.permutation(len(images))[:count].tolist())
        for index, path in enumerate(images):
            parts["val" if index in held else "train"].append((path, label))
    if not parts["train"]:
        raise UserError(f"{root} holds no image in a class folder; suffixes looked for: {', '.join(sorted(IMAGE_SUFFIXES))}.")
    for part, rows in parts.items():
        write_list(out / f"{part}.txt", [path for path, _ in rows], [label for _, label in rows])
    _write_lines(out / "classes.txt", names)


# ------------------------------------------------------------------------------------------------ files


def write_list(path: Path, images: list[Path], labels: list[int] | None) -> None:
    """Write a list file: a path a line and, with `labels`, a space and the label."""
    lines = [str(image) if labels is None else f"{image} {label}" for image, label in zip(images, labels or [0] * len(images), strict=True)]
    _write_lines(path, lines)


def _write_lines(path: Path, lines: list[str]) -> None:
    with atomic_write(path, "w") as file:
        file.write("".join(f"{line}\n" for line in lines))
    log.info(f"{path}: {len(lines)} lines")


if __name__ == "__main__":
    sys.exit(main())
