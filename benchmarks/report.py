"""Measure the time and the size of a report of many classes, with made-up predictions of a few images.

python -m benchmarks.report --classes 50030 --images 150000 --out /tmp/report
"""

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from dataloader import Classes
from dataloader.decode import Image, thumbnail
from dataloader.file_list import FileList
from evaluation import results
from evaluation.metrics import Predictions
from evaluation.report import page
from evaluation.scored import Scored
from options.parser import ToolParser, expanded
from utils.run import run_tool

TOP, FILES = 5, 32


class NoiseList(FileList):
    """A list whose images have paths of their own, and the content of one of 32 files of noise."""

    def thumbnail(self, index: int, side: int) -> Image | None:
        """Return image `index`, its longer side at most `side` pixels, uint8 RGB."""
        return thumbnail(self.path(index % FILES), side)


def write_noise(folder: Path, images: int) -> NoiseList:
    """Write the files of noise into `folder`, and return a list of this number of images."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(folder / f"{k}.jpg") for k in range(images)]
    rng = np.random.default_rng(2)
    for k in range(FILES):
        cv2.imwrite(str(folder / f"{k}.jpg"), rng.integers(0, 256, (100 + 10 * k, 200, 3), dtype=np.uint8))
    return NoiseList.of_paths(paths, str(folder / "noise.txt"))


def made_up(images: int, classes: int) -> Predictions:
    """Return predictions that are correct for about 70 % of the images."""
    rng = np.random.default_rng(0)
    label = rng.permutation(np.arange(images) % classes)
    top = rng.integers(0, classes, (images, TOP))
    right = rng.random(images) < 0.7
    top[right, 0] = label[right]
    top[~right, 1] = label[~right]
    probability = -np.sort(-rng.dirichlet(np.full(TOP + 1, 0.4), images)[:, :TOP], axis=1).astype(np.float32)
    true = np.where(right, probability[:, 0], probability[:, 1])
    return Predictions(np.arange(images), label, top, probability, true, np.ones(images, dtype=bool))


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, score, write all files of eval.py, and print time, size, and peak memory; return the exit code."""
    parser = ToolParser("-m benchmarks.report", "Time report.html for many classes.")
    parser.add_argument("--classes", type=int, default=50_030)
    parser.add_argument("--images", type=int, default=150_000)
    parser.add_argument("--out", type=expanded, default="results/bench/0", help="the folder to write into")
    return run_tool(lambda: parser.parse_args(argv), time_page)


def time_page(opt: argparse.Namespace) -> None:
    """Score and write; print time, size, and peak memory."""
    rng = np.random.default_rng(1)
    predictions = made_up(opt.images, opt.classes)
    names = [f"product {label}" for label in range(opt.classes)]
    scored = Scored(
        predictions,
        write_noise(Path(opt.out) / "images", opt.images),
        Classes(opt.classes, names, rng.integers(1, 200, opt.classes).tolist()),
    )
    options = dict.fromkeys(results.SETTINGS) | {"load": [], "tta": "none", "temperature": "none", "resamples": 1000}
    began = time.monotonic()
    found = results.write(Path(opt.out), scored, argparse.Namespace(**options, compare=None, seed=0), [])
    scored_at = time.monotonic()
    results.write_page(Path(opt.out), scored, found, page.Extra(found.issues, title="made-up predictions"))
    ended = time.monotonic()
    size = (Path(opt.out) / "report.html").stat().st_size / 1e6
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"scores and tables {scored_at - began:.1f} s, page {ended - scored_at:.1f} s, {size:.1f} MB, "
        f"peak memory {memory:.2f} GB"
    )


if __name__ == "__main__":
    sys.exit(main())
