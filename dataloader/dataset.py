"""From indices to batches, in a worker: read, crop, augment, stack."""

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dataloader.decode import Image
from dataloader.file_list import FileList
from dataloader.geometry import Fit
from dataloader.reader import Reader
from dataloader.sampler import BatchKey
from dataloader.transforms import Pipeline
from utils.batch import Batch, EvalBatch
from utils.errors import ImageError
from utils.preprocess import Preprocess
from utils.rng import sample_rng

Stages = list[tuple[int, Pipeline]]
STAND_INS = 100  # so many unreadable images in a row, and the list is not worth reading on


class TrainDataset(Dataset):
    """Augmented training batches; what a batch holds depends on (seed, epoch, indices) alone."""

    def __init__(self, files: FileList, reader: Reader, stages: Stages, seed: int) -> None:
        """`stages`: (first epoch, pipeline) each, ascending: what --scale_schedule changes on the way."""
        self.files, self.reader, self.stages, self.seed = files, reader, stages, seed
        self.pinned = False  # whether batches are made in page-locked memory

    def __len__(self) -> int:
        return len(self.files)

    def batch_bytes(self, batch_size: int) -> int:
        """The size of the largest batch."""
        return batch_size * max(pipeline.scale for _, pipeline in self.stages) ** 2 * 3

    def pipeline(self, epoch: int) -> Pipeline:
        """The pipeline of that epoch."""
        return [pipeline for first, pipeline in self.stages if first <= max(epoch, 1)][-1]

    def __getitems__(self, key: BatchKey) -> Batch:
        """The batch of `key`; torch's DataLoader calls this once a batch."""
        pipeline = self.pipeline(key.epoch)
        room = empty_images(len(key.indices), pipeline.scale, self.pinned)
        images = room.numpy()
        used, bad = np.empty(len(images), np.int64), []
        for row, (index, copy) in enumerate(zip(key.indices.tolist(), key.copies.tolist(), strict=True)):
            used[row], failures = self._show(pipeline, key.epoch, index, copy, images[row])
            bad += failures
        label = as_label(self.files.label[used], self.pinned)
        return Batch(as_images(room), label, torch.from_numpy(used), key.epoch, key.step, tuple(bad))

    def _show(
        self, pipeline: Pipeline, epoch: int, index: int, copy: int, out: Image
    ) -> tuple[int, list[tuple[int, str]]]:
        """Write to `out` image `index` or, where it cannot be read, the next that can: (its index, the failures)."""
        failures: list[tuple[int, str]] = []
        for ahead in range(min(STAND_INS, len(self.files))):
            used = (index + ahead) % len(self.files)
            try:
                read = partial(self.reader.read, used)
                pipeline(read, sample_rng(self.seed, epoch, used, copy), out)
                return used, failures
            except ImageError as error:
                failures.append((used, f"{error} ({self.files.where(used)})"))
        raise ImageError(f"{len(failures)} images in a row cannot be read; the first: {failures[0][1]}")


class EvalDataset(Dataset):
    """Images to predict: each decoded once, prepared in every way that some network asks for; without chance."""

    def __init__(self, files: FileList, reader: Reader | None, ways: tuple[Preprocess, ...]) -> None:
        self.files, self.reader, self.fits = files, reader, tuple(Fit(way) for way in ways)
        self.pinned = False  # whether batches are made in page-locked memory

    def __len__(self) -> int:
        return len(self.files)

    def batch_bytes(self, batch_size: int) -> int:
        """The size of a batch."""
        return batch_size * sum(fit.preprocess.scale**2 for fit in self.fits) * 3

    def __getitems__(self, key: BatchKey) -> EvalBatch:
        """The batch of `key`; an unreadable image is black, marked, and named in `bad`."""
        rooms = [empty_images(len(key.indices), fit.preprocess.scale, self.pinned) for fit in self.fits]
        images = [room.numpy() for room in rooms]
        bad: dict[int, str] = {}
        for row, index in enumerate(key.indices.tolist()):
            try:
                self._show(index, [squares[row] for squares in images])
            except ImageError as error:
                bad[index] = f"{error} ({self.files.where(index)})"
                for squares in images:
                    squares[row] = 0
        readable = torch.tensor([index not in bad for index in key.indices.tolist()])
        label = as_label(self.files.label[key.indices], self.pinned)
        return EvalBatch(
            tuple(map(as_images, rooms)), label, torch.from_numpy(key.indices), readable, tuple(bad.items())
        )

    def _show(self, index: int, views: list[Image]) -> None:
        """Write image `index` to `views`, prepared in each way."""
        if self.reader is None:
            return

        def need(height: int, width: int) -> float:
            return max(fit.place(height, width).factor() for fit in self.fits)

        image, full = self.reader.read(index, need)
        for fit, out in zip(self.fits, views, strict=True):
            fit.show(image, full, fit.place(*full), out)


def empty_images(count: int, scale: int, pinned: bool) -> Tensor:
    """Return room for a batch, uint8 (B, S, S, 3), whose rows the images are written to: no value is moved twice.

    `pinned`: page-locked memory, from which a GPU copies while it computes.
    """
    shape = (count, scale, scale, 3)
    # NumPy's, since torch's own would be filled first under --deterministic
    return (
        torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        if pinned
        else torch.from_numpy(np.empty(shape, np.uint8))
    )


def as_images(room: Tensor) -> Tensor:
    """Return the same memory as uint8 (B, 3, S, S), channels_last."""
    return room.permute(0, 3, 1, 2)


def as_label(labels: NDArray[Any], pinned: bool) -> Tensor:
    """Return labels (B,) as int64; `pinned`: in page-locked memory."""
    label = torch.from_numpy(labels.astype(np.int64))
    return label.pin_memory() if pinned else label
