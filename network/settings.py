"""What a network is built from: the values that the network room takes from the options."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NetworkSettings:
    """The flags of these names, which `BaseModel` reads from the options.

    Attributes:
        num_classes: of the logits; None is ImageNet's 1000.
        activation: what turns logits into predictions, one of utils.task's.
        scale: side of the images, pixels.
        weights_dir_given: whether the user named the folder, which must exist then.
        rebuilt: the network was trained at `scale`, so its size needs no trial.
    """

    model: str
    num_classes: int | None
    activation: str
    scale: int
    fit: str
    pretrained: bool
    weights_dir: str
    weights_dir_given: bool
    drop: float
    drop_path: float
    head: str
    head_scale: float
    pool: str
    rebuilt: bool
