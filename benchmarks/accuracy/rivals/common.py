"""What the rivals' scripts share: the task that they are given, and the result that they write.

Standard library alone: a rival's environment need not have the packages of this project.
"""

import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple


class Task(NamedTuple):
    """What to train, and where.

    Attributes:
        images: folder with train/<class>/ and val/<class>/.
        weights: ImageNet's, a state dict under timm's names.
        arch: timm's name of the network.
        size: side of the images, pixels.
        out: an empty folder for checkpoints.
        tuned: follow the project's advice for fine-tuning instead of its defaults.
    """

    images: str
    weights: str
    arch: str
    classes: int
    size: int
    epochs: int
    seed: int
    workers: int
    device: str
    out: str
    tuned: bool

    def class_folders(self) -> list[str]:
        """Return the names of the folders of all classes, in the order of their labels."""
        return [class_folder(label) for label in range(self.classes)]


def class_folder(label: int) -> str:
    """Return the name of the folder of a class; sorted by name, folders are in the order of their labels."""
    return f"{label:06d}"


def run(train: Callable[[Task], list[float]], packages: Sequence[str]) -> None:
    """Run `train` on the task of the file argv[1]; write its result to the file argv[2]. With --check, do not train.

    The result is JSON: top1, the share of correct validation images after each epoch, from 0 to 1, and the versions of
    `packages`. With --check it goes to stdout and holds the versions alone.
    """
    versions = {"python": sys.version.split()[0]} | {name: importlib.metadata.version(name) for name in packages}
    if sys.argv[1:] == ["--check"]:
        print(json.dumps({"versions": versions}))
        return
    task = Task(**json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps({"top1": train(task), "versions": versions}))
