"""The pictures and histograms of a run in TensorBoard: the first batch, confusions, weights and gradients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from evaluation.metrics import Predictions
from evaluation.report import plots
from training.plotter import Artist
from utils.batch import Batch
from utils.logger import MetricsWriter

SHOWN = 16  # images of the first batch
TRAIN_NAMES = {"train_loss": "loss", "train_top1": "top1"}


class Records:
    """What one run sends to TensorBoard in logs/<tag>/; by the first process alone. Steps are epochs, from 1; 0 is the start.

    train/loss, top1, lr, grad_norm, images_per_second, data_wait (and skipped_steps); val/…: each score of the validation;
    input/first_batch; val/confusion; with --histograms weights/<name> and gradients/<name>.
    """

    def __init__(self, scores: MetricsWriter, classes: Any, histograms: bool) -> None:
        self.scores, self.classes, self.histograms = scores, classes, histograms
        self.artist = Artist()
        self.found: dict[str, Predictions] = {}
        self.gradients: dict[str, Tensor] = {}

    def first_batch(self, batch: Batch) -> None:
        """Show the augmented images (uint8 (B, 3, S, S)) that the network sees first, with their labels; first_batch.png too."""
        images = [image.permute(1, 2, 0).numpy() for image in batch.image[:SHOWN]]
        labels = batch.label[:SHOWN].tolist()
        path = self.scores.folder / "first_batch.png"

        def draw() -> None:
            names = plots.class_names(self.classes, labels)
            plots.gallery(path, images, [names[label] for label in labels], "The first training batch")

        self._picture("input/first_batch", path, draw, 0)

    def predicted(self, which: str, predictions: Predictions) -> None:
        """Keep what the weights `which` ("raw", "ema" or "swa") predicted, for this epoch's confusion matrix."""
        self.found[which] = predictions

    def watch_gradients(self, model: Any) -> Callable[[], None]:
        """Keep a copy of the gradients of the steps taken from now on, before clipping; returns what ends that.

        Of fp16's scaled gradients the scale is taken out. Call it before an epoch's last step.
        """
        if not self.histograms:
            return lambda: None

        def keep(name: str) -> Callable[[Tensor], None]:
            def hook(parameter: Tensor) -> None:
                assert parameter.grad is not None
                self.gradients[name] = parameter.grad.detach() / model.scaler.get_scale()

            return hook

        learning = [(name, p) for name, p in model.net.named_parameters() if p.requires_grad]
        hooks = [p.register_post_accumulate_grad_hook(keep(name)) for name, p in learning]

        def stop() -> None:
            for hook in hooks:
                hook.remove()

        return stop

    def end_epoch(self, epoch: int, scores: dict[str, Any], model: Any) -> None:
        """Add the epoch's points. A full disk is said, not raised."""
        train = {TRAIN_NAMES.get(name, name): value for name, value in scores.items() if not name.startswith("val_")}
        self.scores.scalars("train", train, epoch)
        self.scores.scalars(
            "val", {name[4:]: value for name, value in scores.items() if name.startswith("val_")}, epoch
        )
        shown = self.found.get(model.showing)
        if shown is not None:
            path, scored = self.scores.folder / "confusion.png", (shown, None, self.classes)
            self._picture("val/confusion", path, lambda: plots.confusion(path, scored), epoch)
        if self.histograms:
            for name, weight in model.net.named_parameters():
                self._histogram(f"weights/{name}", weight.detach(), epoch)
            for name, gradient in self.gradients.items():
                self._histogram(f"gradients/{name}", gradient, epoch)
        self.found, self.gradients = {}, {}

    def _histogram(self, name: str, values: Tensor, epoch: int) -> None:
        fine = values[values.isfinite()].to(torch.float32).cpu().numpy()
        if fine.size:
            self.scores.writer.add_histogram(name, fine, epoch)

    def curves(self, history: list[dict[str, Any]]) -> None:
        """Draw curves.png anew."""
        path, rows = self.scores.folder / "curves.png", list(history)
        self.artist.draw(path, lambda: plots.curves(path, rows))

    def settle(self) -> None:
        """Until what was recorded is drawn and on the disk: before a checkpoint is, a run that is killed and goes on leaves no gap."""
        self.artist.wait()
        self.scores.flush()

    def close(self) -> None:
        """When all pictures are drawn."""
        self.artist.wait()
        self.scores.close()

    def _picture(self, name: str, path: Path, draw: Callable[[], None], step: int) -> None:
        def shown() -> None:
            draw()
            with PIL.Image.open(path) as image:
                self.scores.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

        self.artist.draw(path, shown)
