"""Named pipelines of augmentation: a name, a builder. `python -m tools.preview --transform <name>` shows one.

Add one of your own: write a builder that returns a Pipeline, add its name to `transforms`,
run `python train.py --transform <name>`.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dataloader.decode import Image, Need
from dataloader.geometry import Fit, RandomCrop, Region
from dataloader.transforms import ops, policies
from utils.errors import UserError, unknown_name
from utils.preprocess import Preprocess

Read = Callable[[Need], tuple[Image, tuple[int, int]]]


@dataclass(frozen=True)
class Pipeline:
    """A geometry, then operations on the square: what reads the image and a generator in, uint8 RGB (S, S, 3) out.

    `out`: where the result is written, such as a row of a batch; without it, a new array.
    """

    geometry: RandomCrop | Fit
    operations: Sequence[ops.Op] = ()

    @property
    def scale(self) -> int:
        """The side of the square, in pixels."""
        return self.geometry.preprocess.scale if isinstance(self.geometry, Fit) else self.geometry.scale

    def __call__(self, read: Read, rng: np.random.Generator, out: Image | None = None) -> Image:
        """Read, crop while decoding, augment; `read` is a Reader's for one index. Raises ImageError, which names the path."""
        placed: list[Region] = []

        def need(height: int, width: int) -> float:
            if not placed:  # asked again where the machine failed: drawn once
                placed.append(self.geometry.place(height, width, rng))
            return placed[0].factor()

        image, full = read(need)
        square = np.empty((self.scale, self.scale, 3), np.uint8) if out is None else out
        self.geometry.show(image, full, placed[0] if placed else self.geometry.place(*full, rng), square)
        image = square
        for operation in self.operations:
            image = operation(image, rng)
        if image is not square:
            square[...] = image
        return square


def _resize(opt: argparse.Namespace, preprocess: Preprocess) -> Pipeline:
    """The template's default: zoomed crop, flips and transpose, rotation, colour, blur, cutout; a flag turns each."""
    operations = [
        ops.orient(opt.hflip, opt.vflip, opt.transpose),
        *([ops.rotate(opt.rotate)] if opt.rotate else []),
        ops.colour(opt.jitter, opt.brightness, opt.contrast, opt.saturation, opt.hue),
        ops.blur(opt.blur),
        ops.cutout(opt.cutout, opt.cutout_size),
    ]
    return Pipeline(RandomCrop(preprocess.scale, opt.zoom, opt.crop_ratio), operations)


def _light(opt: argparse.Namespace, preprocess: Preprocess) -> Pipeline:
    """Crop and left-right flip."""
    return Pipeline(RandomCrop(preprocess.scale, opt.zoom, opt.crop_ratio), [ops.orient(opt.hflip, 0, 0)])


def _none(opt: argparse.Namespace, preprocess: Preprocess) -> Pipeline:
    """What evaluation sees."""
    return Pipeline(Fit(preprocess))


def _albumentations(opt: argparse.Namespace, preprocess: Preprocess) -> Pipeline:
    """The crop, then the chain of `albumentations_chain.py`, which is there to be edited."""
    from dataloader.transforms.albumentations_chain import chain

    return Pipeline(RandomCrop(preprocess.scale, opt.zoom, opt.crop_ratio), [chain(opt)])


def _policy(opt: argparse.Namespace, preprocess: Preprocess, policy: ops.Op) -> Pipeline:
    """The crop, a left-right flip, and a policy."""
    return Pipeline(RandomCrop(preprocess.scale, opt.zoom, opt.crop_ratio), [ops.orient(opt.hflip, 0, 0), policy])


def _randaugment(opt: argparse.Namespace, preprocess: Preprocess) -> Pipeline:
    """RandAugment: --ra_ops operations, each at --ra_magnitude."""
    return _policy(opt, preprocess, policies.randaugment(opt.ra_ops, opt.ra_magnitude, preprocess.scale))


def _trivialaugment(opt: argparse.Namespace, preprocess: Preprocess) -> Pipeline:
    """TrivialAugmentWide: one operation, of any strength."""
    return _policy(opt, preprocess, policies.trivialaugment(preprocess.scale))


def _augmix(opt: argparse.Namespace, preprocess: Preprocess) -> Pipeline:
    """AugMix: a blend of the image and three chains of operations."""
    return _policy(opt, preprocess, policies.augmix(preprocess.scale))


transforms: dict[str, Callable[[argparse.Namespace, Preprocess], Pipeline]] = {
    "resize": _resize,
    "light": _light,
    "none": _none,
    "albumentations": _albumentations,
    "randaugment": _randaugment,
    "trivialaugment": _trivialaugment,
    "augmix": _augmix,
}


def get_stages(opt: argparse.Namespace, preprocess: Preprocess) -> list[tuple[int, Pipeline]]:
    """(first epoch, pipeline) for each stage of --scale_schedule; one stage, of --scale, without it.

    Raises:
        UserError: the schedule cannot be read, or an unknown --transform.
    """
    if not opt.scale_schedule:
        return [(1, get_transform(opt, preprocess))]
    stages = []
    for part in opt.scale_schedule.split(","):
        first, _, scale = part.partition(":")
        if not (first.strip().isdigit() and scale.strip().isdigit() and int(first) > 0 and int(scale) >= 8):
            raise UserError(f"--scale_schedule has {part!r}; expected epoch:pixels, such as 1:128,11:192,16:224.")
        stages.append((int(first), get_transform(opt, replace(preprocess, scale=int(scale)))))
    if stages[0][0] != 1 or [first for first, _ in stages] != sorted({first for first, _ in stages}):
        raise UserError(f"--scale_schedule is {opt.scale_schedule!r}; its epochs must begin with 1 and ascend.")
    return stages


def get_transform(opt: argparse.Namespace, preprocess: Preprocess) -> Pipeline:
    """The pipeline that --transform names, ended by --erase. Raises UserError for an unknown name, with the list."""
    if opt.transform not in transforms:
        raise unknown_name("transform", opt.transform, transforms)
    pipeline = transforms[opt.transform](opt, preprocess)
    if opt.erase:
        return replace(pipeline, operations=[*pipeline.operations, ops.erase(opt.erase, opt.erase_area)])
    return pipeline
