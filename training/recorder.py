"""The records of a run in logs/<tag>/: metrics.csv, steps.csv, the pictures, and TensorBoard's files."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from evaluation import step_points
from evaluation.metrics import Predictions
from evaluation.report import plots
from evaluation.report.curves import draw_curves
from evaluation.report.figures import captions_of
from evaluation.step_points import Row
from training.engine import Engine
from training.plotter import BackgroundPlotter
from training.state import Scores
from utils.batch import Batch
from utils.classes import Classes
from utils.logger import MetricsWriter, log

SHOWN = 16  # images of the first batch
TRAIN_NAMES = {"train_loss": "loss", "train_top1": "top1"}


class RunRecorder:
    """Records one run in logs/<tag>/. Only the first process has one.

    It writes metrics.csv, steps.csv, curves.png, first_batch.png and confusion.png, and TensorBoard's files. The steps
    of the latter are epochs, from 1; 0 is the start. Scalars are train/loss, top1, lr, grad_norm, images_per_second,
    data_wait and skipped_steps, and each score of the validation as val/…. Pictures are input/first_batch and
    val/confusion. With --histograms there are weights/<name> and gradients/<name>.
    """

    def __init__(self, logs: Path, classes: Classes, histograms: bool, first_epoch: int, metric: str) -> None:
        """`first_epoch`: later points in TensorBoard's file, left by a run that was cut, are written again.

        `metric`: by which an epoch is the best.
        """
        self.metrics_writer, self.classes, self.histograms = (
            MetricsWriter(logs, first_step=first_epoch),
            classes,
            histograms,
        )
        self.plotter, self.metric = BackgroundPlotter(), metric
        self.found: dict[str, Predictions] = {}
        self.gradients: dict[str, Tensor] = {}

    def first_batch(self, batch: Batch) -> None:
        """Draw the first augmented images (uint8 (B, 3, S, S)), with their labels; also as first_batch.png."""
        images = [image.permute(1, 2, 0).numpy() for image in batch.image[:SHOWN]]
        targets = batch.label[:SHOWN].numpy()
        path = self.metrics_writer.folder / "first_batch.png"

        def draw() -> None:
            plots.gallery(path, images, captions_of(self.classes, targets), "The first training batch")

        self._picture("input/first_batch", path, draw, 0)

    def record_predictions(self, weights: str, predictions: Predictions) -> None:
        """Keep what the weights "raw", "ema" or "swa" predicted, for this epoch's confusion matrix."""
        self.found[weights] = predictions

    def watch_gradients(self, engine: Engine) -> Callable[[], None]:
        """Keep a copy of the gradients of the next step, before clipping; return a function that ends that.

        Call it before the last batch of an epoch.
        """
        if not self.histograms:
            return lambda: None

        def keep() -> None:
            for name, parameter in engine.model.net.named_parameters():
                if parameter.grad is not None:
                    self.gradients[name] = parameter.grad.detach().clone()

        def stop() -> None:
            engine.on_gradients = None

        engine.on_gradients = keep
        return stop

    def end_epoch(self, epoch: int, scores: Scores, engine: Engine) -> None:
        """Add the epoch's points. A full disk is logged, not raised."""
        train = {TRAIN_NAMES.get(name, name): value for name, value in scores.items() if not name.startswith("val_")}
        self.metrics_writer.scalars("train", train, epoch)
        self.metrics_writer.scalars(
            "val", {name[4:]: value for name, value in scores.items() if name.startswith("val_")}, epoch
        )
        shown = self.found.get(engine.active_weights)
        if shown is not None:
            path = self.metrics_writer.folder / "confusion.png"
            self._picture("val/confusion", path, partial(plots.confusion, path, shown, self.classes), epoch)
        if self.histograms:
            for name, weight in engine.model.net.named_parameters():
                self._histogram(f"weights/{name}", weight.detach(), epoch)
            for name, gradient in self.gradients.items():
                self._histogram(f"gradients/{name}", gradient, epoch)
        self.found, self.gradients = {}, {}

    def _histogram(self, name: str, values: Tensor, epoch: int) -> None:
        fine = values[values.isfinite()].to(torch.float32).cpu().numpy()
        if fine.size:
            self.metrics_writer.writer.add_histogram(name, fine, epoch)

    def write_history(self, history: list[dict[str, Any]], curves: dict[str, Any]) -> None:
        """Write metrics.csv and steps.csv, and draw curves.png.

        What cannot be written is logged, and tried again next time.

        Args:
            history: the scores of each epoch.
            curves: StepCurves.state_dict.
        """
        path, rows = self.metrics_writer.folder / "curves.png", list(history)
        try:
            self.metrics_writer.table(history)
        except OSError as error:
            log.warning(f"The records in {self.metrics_writer.folder}/ could not be written: {error}")
        points = self.write_steps(history, curves)
        self.plotter.draw(path, lambda: draw_curves(path, rows, points(), self.metric))

    def write_steps(self, history: list[dict[str, Any]], curves: dict[str, Any]) -> Callable[[], list[Row]]:
        """Write steps.csv in the plotter's thread. Returns what gives its rows, once, in that thread."""
        path, rows = self.metrics_writer.folder / "steps.csv", list(history)
        found = cache(lambda: step_points.rows_of(curves, rows))
        self.plotter.draw(path, lambda: step_points.write(path, found()))
        return found

    def flush(self) -> None:
        """Wait until all records are drawn and on the disk.

        Call it before a checkpoint is written: then a run that is killed and resumed has no gap in its records.
        """
        self.plotter.wait()
        self.metrics_writer.flush()

    def close(self) -> None:
        """Close the files, after all pictures are drawn."""
        self.plotter.wait()
        self.metrics_writer.close()

    def _picture(self, name: str, path: Path, draw: Callable[[], None], step: int) -> None:
        def shown() -> None:
            draw()
            with PIL.Image.open(path) as image:
                self.metrics_writer.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

        self.plotter.draw(path, shown)
