"""Test-time augmentation: the views of an image that are shown to a network, whose probabilities are then averaged."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from utils.errors import unknown_name
from utils.preprocess import CROP_SHARE, Preprocess


@dataclass(frozen=True)
class View:
    """`way`: how the loader prepares the image; `change`: what the device then does to uint8 (B, 3, S, S)."""

    way: Preprocess
    change: Callable[[Tensor], Tensor]


def _dihedral(k: int) -> Callable[[Tensor], Tensor]:
    """View k of the eight: bit 0 mirrors left and right, bit 1 top and bottom, bit 2 swaps rows and columns first."""
    axes = [axis for bit, axis in ((1, -1), (2, -2)) if k & bit]

    def change(images: Tensor) -> Tensor:
        images = images.transpose(-1, -2) if k & 4 else images
        return images.flip(axes) if axes else images

    return change


def _corner(down: float, right: float, side: int) -> Callable[[Tensor], Tensor]:
    """A square of `side` at a share of the free room from the top and from the left."""

    def change(images: Tensor) -> Tensor:
        top, left = (round(share * (images.shape[-1] - side)) for share in (down, right))
        return images[..., top : top + side, left : left + side]

    return change


def _none(way: Preprocess) -> list[View]:
    return [View(way, _dihedral(0))]


def _flip(way: Preprocess) -> list[View]:
    return [View(way, _dihedral(0)), View(way, _dihedral(1))]


def _x8(way: Preprocess) -> list[View]:
    """The eight flips and transposes of a square."""
    return [View(way, _dihedral(k)) for k in range(8)]


def _fivecrop(way: Preprocess) -> list[View]:
    """Four corners and the centre of an image that is larger by 1 / 0.875 (Krizhevsky et al., 2012)."""
    larger = replace(way, scale=round(way.scale / CROP_SHARE))
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)]
    return [View(larger, _corner(down, right, way.scale)) for down, right in places]


def _multiscale(way: Preprocess) -> list[View]:
    """Three sizes: 1, 1.15 and 1.3 times that of training; networks gain from testing larger (Touvron et al., 2019)."""
    return [
        View(replace(way, scale=round(way.scale * factor / 8) * 8 if factor > 1 else way.scale), _dihedral(0))
        for factor in (1, 1.15, 1.3)
    ]


ttas: dict[str, Callable[[Preprocess], list[View]]] = {
    "none": _none,
    "flip": _flip,
    "x8": _x8,
    "fivecrop": _fivecrop,
    "multiscale": _multiscale,
}


def get_views(name: str, way: Preprocess) -> list[View]:
    """The views that --tta names, of a network that was trained with `way`. Raises UserError for an unknown name."""
    if name not in ttas:
        raise unknown_name("TTA", name, ttas)
    return ttas[name](way)


def pool(probabilities: list[Tensor]) -> Tensor:
    """The mean over views of (B, C) probabilities; a class does not turn with the image, so nothing is turned back."""
    return torch.stack(probabilities).mean(dim=0)
