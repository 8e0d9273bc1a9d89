"""How an image becomes what a network was trained to see; it travels in the checkpoint."""

from dataclasses import asdict, dataclass
from typing import Any

CROP_SHARE = 0.875  # fit="crop": the square's share of the short side, as in ImageNet's evaluation


@dataclass(frozen=True)
class Preprocess:
    """The geometry of evaluation and the normalisation.

    scale: side of the square, pixels. fit: "squash" (both sides to `scale`), "crop" (short side to
    scale / 0.875, then the centre), or "pad" (long side to `scale`, the rest in the colour of `mean`).
    mean, std: of RGB values in 0..1.
    """

    scale: int
    fit: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Preprocess":
        """The opposite of `as_dict`."""
        return cls(int(data["scale"]), str(data["fit"]), tuple(data["mean"]), tuple(data["std"]))
