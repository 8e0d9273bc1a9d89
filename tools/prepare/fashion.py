"""Fashion-MNIST: real product images (Zalando), 60,000 + 10,000, as PNG files with their lists."""

import argparse
import gzip
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from dataloader.listing.lists import ImageList, Listing, write_all
from tools.prepare.packages import install_debian
from utils.files import write_replaced
from utils.logger import log, progress

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # images (N, H, W), labels (N,)


class Source(NamedTuple):
    """A set of small grey images in two parts."""

    name: str
    train: Arrays
    val: Arrays
    classes: list[str]


def prepare_fashion(opt: argparse.Namespace) -> None:
    """Write the images as PNG, and their lists; existing files are replaced."""
    source = _from_debian() or _from_torchvision() or _digits()
    log.info(f"Source: {source.name}.")
    out = Path(opt.out).resolve()
    order = np.random.default_rng(opt.seed).permutation(len(source.train[0]))
    train, test = opt.train, opt.test
    if train + test > len(order):
        test = max(1, len(order) * test // (train + test))
        train = len(order) - test
        log.warning(f"{source.name} has {len(order)} training images: {train} for training, {test} for submission.")
    kept = long_tail(source.train[1][order[:train]], opt.imbalance)
    if opt.imbalance > 1:
        log.info(f"Imbalance {opt.imbalance:g}: {len(kept):,} of {train:,} training images are kept.")
    chosen = {
        "train": (source.train, order[:train][kept]),
        "val": (source.val, np.arange(min(opt.val, len(source.val[0])))),
        "test": (source.train, order[train : train + test]),
    }
    lists = {}
    for name, ((images, labels), indices) in chosen.items():
        numbered = progress(indices.tolist(), f"writing {name}")
        paths = [_write_image(out / name / f"{name}_{index:05d}.png", images[index]) for index in numbered]
        if paths:
            lists[name] = ImageList(paths, None if name == "test" else labels[indices].tolist())
    write_all(Listing(source.classes, lists), out)


def long_tail(labels: NDArray[np.uint8], imbalance: float) -> NDArray[np.int64]:
    """Return which images to keep, int64 (M,), so that the sizes of the classes fall exponentially.

    Class 0 keeps as many as the largest class has, class C - 1 that number over `imbalance`, and each at least one
    (Cui et al., 2019, section 5.1). A class that has fewer keeps all. The first images of a class are kept.
    """
    counts = np.bincount(labels)
    wanted = counts.max() * imbalance ** (-np.arange(len(counts)) / max(1, len(counts) - 1))
    rank = np.empty(len(labels), np.int64)  # of an image in its class
    for number in range(len(counts)):
        rank[labels == number] = np.arange(counts[number])
    return np.flatnonzero(rank < np.maximum(1, np.round(wanted))[labels])


def _write_image(path: Path, image: NDArray[np.uint8]) -> str:
    """Write a PNG and return its path. Raises UserError where it cannot be written."""
    write_replaced(path, cv2.imencode(".png", image)[1].tobytes())
    return str(path)


def _from_debian() -> Source | None:
    """Return the set from Debian's package, which root installs if it is missing; None where it is unavailable."""
    if not install_debian("dataset-fashion-mnist", DEBIAN_FOLDER):
        return None
    return Source("Fashion-MNIST (Debian's dataset-fashion-mnist)", _read_idx("train"), _read_idx("t10k"), CLASSES)


def _read_idx(part: str) -> Arrays:
    """Return a part of the set from Yann LeCun's IDX format: a header of 16 or 8 bytes, then uint8 values."""
    with gzip.open(DEBIAN_FOLDER / f"{part}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(DEBIAN_FOLDER / f"{part}-labels-idx1-ubyte.gz") as file:
        return images, np.frombuffer(file.read(), np.uint8, offset=8)


def _from_torchvision() -> Source | None:
    """Return the set that torchvision downloads; None where it cannot."""
    from torchvision.datasets import FashionMNIST

    folder = Path.home() / ".cache" / "fashion-mnist"
    log.info("Downloading Fashion-MNIST through torchvision …")
    try:
        train, val = (FashionMNIST(folder, train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as error:
        log.warning(f"Fashion-MNIST cannot be downloaded: {error}")
        return None
    arrays = [(part.data.numpy(), part.targets.numpy().astype(np.uint8)) for part in (train, val)]
    return Source("Fashion-MNIST (torchvision)", arrays[0], arrays[1], CLASSES)


def _digits() -> Source:
    """Return scikit-learn's digits, with a warning."""
    from sklearn.datasets import load_digits

    log.warning("Fashion-MNIST is unavailable here: scikit-learn's 1,797 handwritten digits of 8 pixels replace it.")
    data = load_digits()
    images, labels = (data.images * 15.9).astype(np.uint8), data.target.astype(np.uint8)
    train, val = (images[:1400], labels[:1400]), (images[1400:], labels[1400:])
    return Source("digits (scikit-learn)", train, val, [str(k) for k in range(10)])
