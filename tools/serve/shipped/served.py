"""What the server asks of a model, and the model of an exported folder."""

import dataclasses
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import BadImageError

Inputs = tuple[NDArray[np.uint8], ...]  # an image, prepared in each way that the model needs: (S, S, 3), RGB
Row = NDArray[np.float32]  # what a network predicts of one image, (C,)
TASKS = ("single", "ordinal", "multilabel", "regression")


class Model(Protocol):
    """A network that answers for images.

    Attributes:
        name: how a request chooses it.
        task: one of TASKS.
        classes: the names of its classes, of its labels, or of the numbers of a regression.
        thresholds: of several labels per image, the probability from which each one counts as predicted; else None.
        about: one line for people.
        has_gradcam: whether `explain` works.
    """

    name: str
    task: str
    classes: list[str]
    thresholds: list[float] | None
    about: str
    has_gradcam: bool

    def prepare(self, data: bytes) -> Inputs:
        """Return the bytes of an image file as inputs. Threads may call it. Raises BadImageError."""

    def run(self, batch: Sequence[Inputs]) -> NDArray[np.float32]:
        """Return what the network predicts, float32 (B, C): probabilities, or the numbers of a regression."""

    def explain(self, inputs: Inputs, label: int) -> bytes:
        """Return a PNG: what the network saw, under the Grad-CAM map of class `label`."""


class ExportedModel:
    """The model in a folder that tools.export wrote; it runs the folder's own predict.py."""

    has_gradcam = False

    def __init__(self, folder: Path, name: str, max_pixels: int, threads: int = 0) -> None:
        """Load the model. `threads`: of the runtime; 0: its own choice.

        Raises:
            ImportError: the runtime of the model's format is missing.
            ValueError: the folder holds no whole model.
        """
        self.name = name
        self.predictor: Any = _load(folder / "predict.py").Predictor(folder, threads=threads)
        self.task: str = self.predictor.config.get("task", "single")
        self.classes: list[str] = self.predictor.classes
        self.thresholds: list[float] | None = self.predictor.config.get("thresholds")
        self.ways = [
            dataclasses.replace(way, max_pixels=min(way.max_pixels, max_pixels)) for way in self.predictor.ways
        ]
        export = self.predictor.config["export"]
        self.about = f"{export['title']} ({export['format']}{', int8' if export.get('int8') else ''})"

    def prepare(self, data: bytes) -> Inputs:
        """Return the inputs, as Model says."""
        try:
            return tuple(self.predictor.preprocess.squares(data, self.ways))
        except self.predictor.preprocess.ImageError as error:
            raise BadImageError(str(error)) from error

    def run(self, batch: Sequence[Inputs]) -> NDArray[np.float32]:
        """Return the predictions, float32 (B, C), as Model says."""
        stacked = [np.stack(images).transpose(0, 3, 1, 2) for images in zip(*batch, strict=True)]
        return self.predictor.run([np.ascontiguousarray(images) for images in stacked])

    def explain(self, inputs: Inputs, label: int) -> bytes:
        """Raise NotImplementedError: an exported graph gives no gradients."""
        raise NotImplementedError(f"{self.name}: an exported graph gives no gradients")


def is_exported(folder: Path) -> bool:
    """Return whether tools.export wrote the folder."""
    try:
        return "export" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _load(path: Path) -> Any:
    """Return the module in the file `path`."""
    spec = importlib.util.spec_from_file_location("predict_of_export", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
