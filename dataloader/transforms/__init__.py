"""Named pipelines of augmentation: a name, a builder. `python -m tools.preview --transform <name>` shows one.

Add one of your own: write a builder that returns a Pipeline, add its name to `transforms`,
run `python train.py --transform <name>`.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dataloader.decode import Image, read_image
from dataloader.geometry import Fit, RandomCrop, Region, cut
from dataloader.transforms import ops
from utils.errors import unknown_name
from utils.preprocess import Preprocess


@dataclass(frozen=True)
class Pipeline:
    """A geometry, then operations on the square: path and generator in, uint8 RGB (S, S, 3) out."""

    geometry: RandomCrop | Fit
    operations: Sequence[ops.Op] = ()

    def __call__(self, path: str, rng: np.random.Generator) -> Image:
        """Read, crop while decoding, augment. Raises ImageError, which names the path."""
        placed: list[Region] = []

        def need(height: int, width: int) -> float:
            placed.append(self.geometry.place(height, width, rng))
            return placed[0].factor()

        image, full = read_image(path, need)
        region = placed[0] if placed else self.geometry.place(*full, rng)
        image = cut(image, full, region)
        if isinstance(self.geometry, Fit):
            image = self.geometry.finish(image)
        for operation in self.operations:
            image = operation(image, rng)
        return image


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


transforms: dict[str, Callable[[argparse.Namespace, Preprocess], Pipeline]] = {
    "resize": _resize,
    "light": _light,
    "none": _none,
    "albumentations": _albumentations,
}


def get_transform(opt: argparse.Namespace, preprocess: Preprocess) -> Pipeline:
    """The pipeline that --transform names. Raises UserError for an unknown name, with the list."""
    if opt.transform not in transforms:
        raise unknown_name("transform", opt.transform, transforms)
    return transforms[opt.transform](opt, preprocess)
