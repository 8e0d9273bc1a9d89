"""Measure the time of the transforms per image, ours and torchvision's alternately: the tables of docs/transforms.md.

    python -m benchmarks.transforms
    python -m benchmarks.transforms --scale 128 --rounds 5 --out results/small

One thread; images are in memory, after the crop. A round measures every row once, ours and then torchvision's, so that
a machine whose speed drifts is fair to both. Prints the median and the range over the rounds; writes transforms.json.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.harness import processor_name
from dataloader.decode import Image
from dataloader.transforms import get_transform, ops, policies, transforms
from options import parse_train
from options.parser import ToolParser, expanded
from utils.cores import usable_cores
from utils.errors import UserError
from utils.files import write_json
from utils.logger import log, progress
from utils.preprocess import Preprocess
from utils.run import run_tool

LEVEL = 15  # of 30, for single operations
KIND = {
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "color": "Color",
    "autocontrast": "AutoContrast",
}
Run = Callable[[int], object]  # number of an image -> result


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and measure; return the exit code."""
    parser = ToolParser("-m benchmarks.transforms", __doc__)
    parser.add_argument("--scale", type=int, default=224, help="side of the images, in pixels")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--count", type=int, default=100, help="images per row and round")
    parser.add_argument("--out", type=expanded, default="results/benchmarks", help="folder for the JSON")
    return run_tool(lambda: parser.parse_args(argv), compare)


def compare(opt: argparse.Namespace) -> None:
    """Measure all rows alternately, print the table, write the JSON.

    Raises:
        UserError: --rounds or --count is below 1, or --scale below 8.
    """
    if min(opt.rounds, opt.count) < 1 or opt.scale < 8:
        raise UserError("--rounds and --count are at least 1, --scale at least 8.")
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    images = pictures(opt.scale)
    rows = {**chains(images), **operations(images), **whole_policies(images)}
    times: dict[str, dict[str, list[float]]] = {name: {} for name in rows}
    for turn in progress(range(-1, opt.rounds), "measuring"):  # the first warms up
        for name, sides in rows.items():
            for side, run in sides.items():
                spent = _microseconds(run, opt.count)
                times[name].setdefault(side, []).extend([spent] if turn >= 0 else [])
        content = {"settings": vars(opt), "cores": usable_cores(), "rounds": turn + 1, "microseconds": times}
        write_json(Path(opt.out) / "transforms.json", content)  # after each round, so that an interruption loses none
    machine = f"{processor_name()} x {usable_cores()}"
    log.info(f"\n{opt.scale} px, {opt.rounds} rounds of {opt.count} images, {machine}; µs per image\n")
    for name, spent_by in times.items():
        shown = {
            side: f"{np.median(spent):.0f} ({min(spent):.0f}–{max(spent):.0f})" for side, spent in spent_by.items()
        }
        ratio = (
            f"{np.median(spent_by['torchvision']) / np.median(spent_by['ours']):.1f}"
            if "torchvision" in spent_by
            else ""
        )
        log.info(f"| {name} | {shown['ours']} | {shown.get('torchvision', '')} | {ratio} |")
    log.info(f"\nWritten: {opt.out}/transforms.json")


def pictures(side: int) -> np.ndarray:
    """Return eight cuts of scikit-learn's two photographs, uint8 RGB (8, side, side, 3)."""
    import sklearn.datasets

    photos = sklearn.datasets.load_sample_images().images
    cuts = [photos[k % 2][10 * k : 10 * k + 320, 40 * k : 40 * k + 320] for k in range(8)]
    return np.stack([cv2.resize(cut, (side, side), interpolation=cv2.INTER_AREA) for cut in cuts])


def chains(images: np.ndarray) -> dict[str, dict[str, Run]]:
    """Return a row per --transform without its crop, and one for --erase."""
    side = images.shape[1]
    preprocess = Preprocess(side, "squash", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def chain(*words: str) -> Run:
        work = get_transform(parse_train(["--scale", str(side), *words]), preprocess).operations
        return _ours(images, lambda image, rng: _all(work, image, rng))

    rows = {f"--transform {name}": {"ours": chain("--transform", name)} for name in transforms}
    return {**rows, "--transform resize --erase 1": {"ours": chain("--transform", "resize", "--erase", "1")}}


def operations(images: np.ndarray) -> dict[str, dict[str, Run]]:
    """Return a row per operation of RandAugment at LEVEL, without identity."""
    from torchvision.transforms import InterpolationMode, v2

    theirs = v2.RandAugment(interpolation=InterpolationMode.BILINEAR, fill=[128, 128, 128])

    def pair(entry: policies.PolicyOp) -> dict[str, Run]:
        kind = KIND.get(entry.op.__name__, entry.op.__name__.capitalize())

        def apply(image: torch.Tensor) -> object:
            magnitude, how = entry.magnitudes[LEVEL], theirs.interpolation
            return theirs._apply_image_or_video_transform(image, kind, magnitude, interpolation=how, fill=theirs._fill)

        return {
            "ours": _ours(images, lambda image, rng: entry(image, LEVEL, rng)),
            "torchvision": _torchvision(images, apply),
        }

    return {entry.op.__name__: pair(entry) for entry in policies.randaugment_ops(images.shape[1])[1:]}


def whole_policies(images: np.ndarray) -> dict[str, dict[str, Run]]:
    """Return a row per policy, and one for erasing, with random draws."""
    from torchvision.transforms import InterpolationMode, v2

    side, how = images.shape[1], {"interpolation": InterpolationMode.BILINEAR, "fill": [128, 128, 128]}
    pairs = {
        "randaugment": (policies.randaugment(2, 9, side), v2.RandAugment(2, 9, **how)),
        "trivialaugment": (policies.trivialaugment(side), v2.TrivialAugmentWide(**how)),
        "augmix": (policies.augmix(side), v2.AugMix(**how)),
        "erase": (ops.erase(1.0, 0.33), v2.RandomErasing(1.0)),
    }
    return {
        name: {"ours": _ours(images, ours), "torchvision": _torchvision(images, theirs)}
        for name, (ours, theirs) in pairs.items()
    }


def _all(work: Sequence[ops.Op], image: Image, rng: np.random.Generator) -> Image:
    for operation in work:
        image = operation(image, rng)
    return image


def _ours(images: np.ndarray, work: Callable[[np.ndarray, np.random.Generator], object]) -> Run:
    from utils.rng import sample_rng

    return lambda k: work(images[k % len(images)], sample_rng(0, 1, k))


def _torchvision(images: np.ndarray, work: Callable[[torch.Tensor], object]) -> Run:
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return lambda k: work(tensors[k % len(tensors)])


def _microseconds(run: Run, count: int) -> float:
    began = time.perf_counter()
    for k in range(count):
        run(k)
    return (time.perf_counter() - began) / count * 1e6


if __name__ == "__main__":
    sys.exit(main())
