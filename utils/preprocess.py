"""How an image becomes the input that a network was trained on; it travels in the checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

CROP_FRACTION = 0.875  # fit="crop": side of the square over the short side, as in ImageNet's evaluation


@dataclass(frozen=True)
class Preprocess:
    """The geometry of evaluation, and the normalisation.

    Attributes:
        scale: side of the square, in pixels.
        fit: "squash" (both sides to `scale`), "crop" (short side to scale / CROP_FRACTION, then the centre), or "pad"
            (long side to `scale`, the rest in the colour of `mean`).
        mean: of the RGB values in 0..1.
        std: of the RGB values in 0..1.
    """

    scale: int
    fit: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def as_dict(self) -> dict[str, object]:
        """Return plain data for a checkpoint."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Preprocess":
        """Return the Preprocess of `as_dict`'s data."""
        return cls(int(data["scale"]), str(data["fit"]), tuple(data["mean"]), tuple(data["std"]))
