"""The model of a checkpoint: the same images, and the same probabilities, as those of eval.py."""

import argparse
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dataloader.dataset import as_images
from dataloader.decode import decode
from dataloader.geometry import EvalGeometry
from evaluation.multilabel import thresholds_of
from evaluation.report.pictures import blend_heat
from inference.gradcam import gradcam
from inference.loading import LoadedPredictor, load_predictor
from tools.serve.shipped.errors import BadImageError
from tools.serve.shipped.served import Inputs
from utils.errors import ImageError
from utils.run import get_device
from utils.task import CORN, POSITION
from utils.text import visible

MIN_SHOWN_SIDE = 224  # pixels of a Grad-CAM picture


class CheckpointModel:
    """A network, prepared for inference; a tools.serve.shipped.served.Model."""

    def __init__(self, opt: argparse.Namespace, name: str, max_pixels: int) -> None:
        """Load the checkpoint of `opt`, flags of eval.py, and predict one black image.

        Raises:
            UserError: the checkpoint is missing or damaged.
        """
        device = get_device(opt.gpu)
        loaded: LoadedPredictor = load_predictor(opt, device)
        known = loaded.classes
        self.name, self.task, self.about = name, known.task, loaded.title
        self.classes = [visible(known.name(label)) for label in range(known.count)]
        self.thresholds = thresholds_of(known).tolist() if known.task == "multilabel" else None
        self.predictor, self.max_pixels = loaded.predictor, max_pixels
        self.geometries = [EvalGeometry(way) for way in self.predictor.preprocesses]
        black: Inputs = tuple(np.zeros((one.size, one.size, 3), np.uint8) for one in self.geometries)
        self.run([black])
        self.has_gradcam = self._heat(black, 0) is not None

    def prepare(self, data: bytes) -> Inputs:
        """Return the inputs, as Model says."""

        def scale_fn(height: int, width: int) -> float:
            return max(one.choose_region(height, width).decode_scale() for one in self.geometries)

        try:
            image, full = decode(data, scale_fn, self.max_pixels)
        except ImageError as error:
            raise BadImageError(str(error)) from error
        made = []
        for one in self.geometries:
            made.append(np.empty((one.size, one.size, 3), np.uint8))
            one.render(image, full, one.choose_region(*full), made[-1])
        return tuple(made)

    def run(self, batch: Sequence[Inputs]) -> NDArray[np.float32]:
        """Return the predictions, float32 (B, C), as Model says; NaN where the network gives no finite number."""
        with self.predictor.evaluating():
            return self.predictor(_tensors(batch)).cpu().numpy()

    def explain(self, inputs: Inputs, label: int) -> bytes:
        """Return the PNG, as Model says."""
        heat = self._heat(inputs, label)
        assert heat is not None, "only a model that has_gradcam is asked"
        view = self.predictor.views[0][0]
        seen = inputs[self.predictor.preprocesses.index(view.preprocess)]
        shown = blend_heat(seen, heat, max(MIN_SHOWN_SIDE, len(seen)))
        return cv2.imencode(".png", cv2.cvtColor(shown, cv2.COLOR_RGB2BGR))[1].tobytes()

    def _heat(self, inputs: Inputs, label: int) -> NDArray[np.float32] | None:
        """Return the Grad-CAM map of class `label`, float32 (h, w); None where the network gives none."""
        model, view = self.predictor.members[0].model, self.predictor.views[0][0]
        if model.settings.activation in (CORN, POSITION):  # whose logits are no classes
            return None
        images = view.transform(_tensors([inputs])[self.predictor.preprocesses.index(view.preprocess)])
        with model.autocast():  # the weights may be cast already
            found = gradcam(model, images.to(model.device), torch.tensor([label], device=model.device))
        return None if found is None else found[0].cpu().numpy()


def _tensors(batch: Sequence[Inputs]) -> tuple[torch.Tensor, ...]:
    """Return images as the loader of eval.py gives them: uint8 (B, 3, S, S), channels_last, for each preprocessing."""
    return tuple(as_images(torch.from_numpy(np.stack(images))) for images in zip(*batch, strict=True))
