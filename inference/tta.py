"""Test-time augmentation: the views of an image that a network sees. Its probabilities are averaged over them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from options.choices import TRANSFORM_FLAGS
from utils.errors import look_up
from utils.logger import log
from utils.preprocess import CROP_FRACTION, Preprocess

MULTISCALE_STEPS_PIXELS = (8, 4, 2, 1)  # convolutions like multiples of 8


@dataclass(frozen=True)
class View:
    """How the loader prepares an image (`preprocess`), and what the device does to uint8 (B, 3, S, S) (`transform`)."""

    preprocess: Preprocess
    transform: Callable[[Tensor], Tensor]

    @property
    def side(self) -> int:
        """Return the side, in pixels, of the square that the network sees."""
        shown = torch.empty(1, 3, self.preprocess.scale, self.preprocess.scale, device="meta")  # no memory, no work
        return int(self.transform(shown).shape[-1])


def _dihedral(k: int) -> Callable[[Tensor], Tensor]:
    """Return view k: bit 0 mirrors left and right, bit 1 top and bottom, bit 2 swaps rows and columns first."""
    axes = [axis for bit, axis in ((1, -1), (2, -2)) if k & bit]

    def transform(images: Tensor) -> Tensor:
        images = images.transpose(-1, -2) if k & 4 else images
        return images.flip(axes) if axes else images

    return transform


def _corner(down: float, right: float, side: int) -> Callable[[Tensor], Tensor]:
    """Return a crop of `side` px whose top-left corner is at the shares `down` and `right` of the free room."""

    def transform(images: Tensor) -> Tensor:
        top, left = (round(share * (images.shape[-1] - side)) for share in (down, right))
        return images[..., top : top + side, left : left + side]

    return transform


def _none(preprocess: Preprocess) -> list[View]:
    return [View(preprocess, _dihedral(0))]


def _flip(preprocess: Preprocess) -> list[View]:
    return [View(preprocess, _dihedral(0)), View(preprocess, _dihedral(1))]


def _x8(preprocess: Preprocess) -> list[View]:
    """Return the eight flips and transposes of a square."""
    return [View(preprocess, _dihedral(k)) for k in range(8)]


def _fivecrop(preprocess: Preprocess) -> list[View]:
    """Return the four corners and the centre of an image that is larger by 1 / 0.875 (Krizhevsky et al., 2012)."""
    larger = replace(preprocess, scale=round(preprocess.scale / CROP_FRACTION))
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)]
    return [View(larger, _corner(down, right, preprocess.scale)) for down, right in places]


def _multiscale(preprocess: Preprocess) -> list[View]:
    """Return 1, 1.15 and 1.3 times the size of training: networks gain from testing larger (Touvron et al., 2019).

    The larger sizes are multiples of 8 px; of a small image, of the largest of 4, 2 and 1 px that makes three sizes.
    """
    own = preprocess.scale
    for step in MULTISCALE_STEPS_PIXELS:
        sizes = [own, *(round(own * factor / step) * step for factor in (1.15, 1.3))]
        if sizes[0] < sizes[1] < sizes[2]:
            break
    return [View(replace(preprocess, scale=size), _dihedral(0)) for size in sizes]


TTA: dict[str, Callable[[Preprocess], list[View]]] = {
    "none": _none,
    "flip": _flip,
    "x8": _x8,
    "fivecrop": _fivecrop,
    "multiscale": _multiscale,
}


def get_views(name: str, preprocess: Preprocess) -> list[View]:
    """Return the views of --tta `name` for a network that was trained with `preprocess`.

    Raises:
        UserError: there is no TTA of that name.
    """
    return look_up("TTA", name, TTA, "--tta ")(preprocess)


def warn_of_unknown_views(name: str, trained: Mapping[str, Any], path: str) -> None:
    """Warn where --tta `name` shows the network of the checkpoint `path` images as its training never did.

    Upside-down and turned views cost Airbench, trained upright on Fashion-MNIST, 57 points; mirror images cost
    EfficientNet-Lite0, trained without them, 1.1 (docs/benchmarks.md).

    Args:
        trained: the options of its training; where they lack the transform or its flips, nothing is judged.
    """
    used = TRANSFORM_FLAGS.get(trained.get("transform", ""))
    if used is None:
        return
    flips = {"hflip", "vflip", "transpose", "rotate"} & set(used)
    if not trained.keys() >= flips:  # earlier versions flipped without these flags
        return
    given = {flag: trained[flag] for flag in flips}
    mirrored = given.get("hflip")
    turned = given.get("vflip") or given.get("transpose") or given.get("rotate", 0) >= 90
    if name == "x8" and not turned:
        log.warning(
            f"--tta x8 shows {path} images upside down and turned, which it never saw in training "
            f"(--transform {trained['transform']}). Its score may fall far. Try: --tta {'flip' if mirrored else 'none'}"
        )
    elif name in ("flip", "x8") and not mirrored:
        why = "--hflip 0" if "hflip" in flips else f"--transform {trained['transform']}"
        log.warning(
            f"--tta {name} shows {path} mirror images, which it never saw in training ({why}). "
            "Its score may fall. Try: --tta none"
        )


def mean_over_views(probabilities: list[Tensor]) -> Tensor:
    """Average the (B, C) probabilities of several views.

    They do not depend on the orientation of the image, so no inverse transform is needed.
    """
    return torch.stack(probabilities).mean(dim=0)
