"""Named pipelines of augmentation: a name, a builder. `python -m tools.preview --transform <name>` shows one.

To add your own, write a builder that returns a Pipeline, add its name to `transforms`, and run
`python train.py --transform <name>`. A builder gets all options, so that it can read a flag that you add.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dataloader.decode import Image, ScaleFn
from dataloader.geometry import EvalGeometry, RandomCrop, Region
from dataloader.transforms import ops, policies
from utils.errors import UserError, look_up
from utils.preprocess import Preprocess

ReadFn = Callable[[ScaleFn], tuple[Image, tuple[int, int]]]  # a Reader's `read` for one index
MIN_SIDE = 8  # pixels, in --scale_schedule


@dataclass(frozen=True)
class Pipeline:
    """A geometry, then operations on the square of `size` pixels."""

    geometry: RandomCrop | EvalGeometry
    operations: Sequence[ops.Op] = ()

    @property
    def size(self) -> int:
        """Return the side of the square in pixels."""
        return self.geometry.size

    def __call__(self, read: ReadFn, rng: np.random.Generator, out: Image | None = None) -> Image:
        """Read an image, crop it while decoding, and augment it.

        Args:
            out: uint8 (S, S, 3), where the result is written, such as a row of a batch; None: a new array.

        Returns:
            uint8 RGB (S, S, 3).

        Raises:
            ImageError: the image cannot be read; the message names the path.
        """
        regions: list[Region] = []

        def scale_fn(height: int, width: int) -> float:
            if not regions:  # a read that is retried must not draw again
                regions.append(self.geometry.choose_region(height, width, rng))
            return regions[0].decode_scale()

        image, full = read(scale_fn)
        region = regions[0] if regions else self.geometry.choose_region(*full, rng)
        square = np.empty((self.size, self.size, 3), np.uint8) if out is None else out
        self.geometry.render(image, full, region, square)
        image = square
        for operation in self.operations:
            image = operation(image, rng)
        if image is not square:
            square[...] = image
        return square


ResolutionStages = list[tuple[int, Pipeline]]  # (first epoch, pipeline), ascending
Builder = Callable[[argparse.Namespace, Preprocess], Pipeline]


def _resize(opt: argparse.Namespace, preprocess: Preprocess) -> Pipeline:
    """Build the default: zoomed crop, flips and transpose, rotation, colour, blur, cutout; a flag controls each."""
    operations = [
        ops.random_flip_transpose(opt.hflip, opt.vflip, opt.transpose),
        *([ops.rotate(opt.rotate)] if opt.rotate else []),
        ops.color_jitter(opt.jitter, opt.brightness, opt.contrast, opt.saturation, opt.hue),
        ops.blur(opt.blur),
        ops.cutout(opt.cutout, opt.cutout_size),
    ]
    return Pipeline(RandomCrop(preprocess.scale, opt.zoom, opt.crop_ratio), operations)


def _light(opt: argparse.Namespace, preprocess: Preprocess) -> Pipeline:
    """Build a crop and a horizontal flip."""
    return _crop_and_flip(opt, preprocess)


def _none(opt: argparse.Namespace, preprocess: Preprocess) -> Pipeline:
    """Build what evaluation uses."""
    return Pipeline(EvalGeometry(preprocess))


def _albumentations(opt: argparse.Namespace, preprocess: Preprocess) -> Pipeline:
    """Build the crop, then the chain of `albumentations_chain.py`, which users edit."""
    from dataloader.transforms.albumentations_chain import Strength, chain

    strength = Strength(
        hflip=opt.hflip,
        vflip=opt.vflip,
        transpose=opt.transpose,
        jitter=opt.jitter,
        brightness=opt.brightness,
        contrast=opt.contrast,
        saturation=opt.saturation,
        hue=opt.hue,
        blur=opt.blur,
        cutout=opt.cutout,
        cutout_size=opt.cutout_size,
    )
    return Pipeline(RandomCrop(preprocess.scale, opt.zoom, opt.crop_ratio), [chain(strength)])


def _crop_and_flip(opt: argparse.Namespace, preprocess: Preprocess, *policy: ops.Op) -> Pipeline:
    """Build a crop, a horizontal flip, and a policy if one is given."""
    flip = ops.random_flip_transpose(opt.hflip, 0, 0)
    return Pipeline(RandomCrop(preprocess.scale, opt.zoom, opt.crop_ratio), [flip, *policy])


def _randaugment(opt: argparse.Namespace, preprocess: Preprocess) -> Pipeline:
    """Build RandAugment: --ra_ops operations, each at --ra_magnitude."""
    policy = policies.randaugment(opt.ra_ops, opt.ra_magnitude, preprocess.scale)
    return _crop_and_flip(opt, preprocess, policy)


def _trivialaugment(opt: argparse.Namespace, preprocess: Preprocess) -> Pipeline:
    """Build TrivialAugmentWide: one operation of any strength."""
    return _crop_and_flip(opt, preprocess, policies.trivialaugment(preprocess.scale))


def _augmix(opt: argparse.Namespace, preprocess: Preprocess) -> Pipeline:
    """Build AugMix: a blend of the image and three chains of operations."""
    return _crop_and_flip(opt, preprocess, policies.augmix(preprocess.scale))


transforms: dict[str, Builder] = {
    "resize": _resize,
    "light": _light,
    "none": _none,
    "albumentations": _albumentations,
    "randaugment": _randaugment,
    "trivialaugment": _trivialaugment,
    "augmix": _augmix,
}


def build_stages(opt: argparse.Namespace, preprocess: Preprocess) -> ResolutionStages:
    """Return (first epoch, pipeline) for each stage of --scale_schedule; without it, one stage of --scale.

    Raises:
        UserError: the schedule is malformed, or --transform is unknown.
    """
    if not opt.scale_schedule:
        return [(1, get_transform(opt, preprocess))]
    return [
        (first, get_transform(opt, replace(preprocess, scale=size))) for first, size in scale_stages(opt.scale_schedule)
    ]


def scale_stages(schedule: str) -> list[tuple[int, int]]:
    """Return (first epoch, side in pixels) for each stage of --scale_schedule. Raises UserError if it is malformed."""
    stages = []
    for part in schedule.split(","):
        first, _, size = (word.strip() for word in part.partition(":"))
        if not (first.isdecimal() and size.isdecimal() and int(first) > 0 and int(size) >= MIN_SIDE):
            raise UserError(f"--scale_schedule has {part!r}; expected epoch:pixels, such as 1:128,11:192,16:224.")
        stages.append((int(first), int(size)))
    epochs = [first for first, _ in stages]
    if epochs[0] != 1 or epochs != sorted(set(epochs)):
        raise UserError(f"--scale_schedule is {schedule!r}; its epochs must begin with 1 and ascend.")
    return stages


def last_stage(schedule: str | None) -> int:
    """Return the first epoch of the last size of --scale_schedule, or 1. Raises UserError as `scale_stages`."""
    return scale_stages(schedule)[-1][0] if schedule else 1


def find_transform(name: str) -> Builder:
    """Return what builds the pipeline called `name`.

    Raises:
        UserError: the name is unknown; the message lists the known ones.
    """
    return look_up("transform", name, transforms, "--transform ")


def get_transform(opt: argparse.Namespace, preprocess: Preprocess) -> Pipeline:
    """Return the pipeline that --transform names, followed by --erase.

    Raises:
        UserError: the name is unknown; the message lists the known ones.
    """
    pipeline = find_transform(opt.transform)(opt, preprocess)
    if opt.erase:
        return replace(pipeline, operations=[*pipeline.operations, ops.erase(opt.erase, opt.erase_area)])
    return pipeline
