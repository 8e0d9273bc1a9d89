"""From indices to batches, in a worker: read, crop, augment, stack."""

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dataloader.decode import Image
from dataloader.file_list import FileList
from dataloader.geometry import EvalGeometry
from dataloader.reader import Reader
from dataloader.sampler import BatchIndices
from dataloader.transforms import Pipeline, ResolutionStages
from utils.batch import Batch, EvalBatch
from utils.errors import ImageError
from utils.preprocess import Preprocess
from utils.rng import sample_rng

MAX_REPLACEMENTS = 100  # after this many unreadable images in a row, the rest of the list is hopeless too


class TrainDataset(Dataset):
    """Makes augmented training batches; the content of a batch depends on (seed, epoch, indices) alone."""

    pinned = False  # see `empty_images`; the loader decides

    def __init__(self, files: FileList, reader: Reader, stages: ResolutionStages, seed: int) -> None:
        """`stages`: what --scale_schedule changes during the run."""
        self.files, self.reader, self.stages, self.seed = files, reader, stages, seed

    def __len__(self) -> int:
        """Return the number of listed images."""
        return len(self.files)

    def batch_bytes(self, batch_size: int) -> int:
        """Return the size in bytes of the images of the largest batch."""
        return batch_size * max(pipeline.size for _, pipeline in self.stages) ** 2 * 3

    def pipeline(self, epoch: int) -> Pipeline:
        """Return the pipeline of epoch `epoch`."""
        return [pipeline for first, pipeline in self.stages if first <= max(epoch, 1)][-1]

    def __getitems__(self, batch: BatchIndices) -> Batch:
        """Return the batch of these indices; torch's DataLoader calls this once per batch."""
        pipeline = self.pipeline(batch.epoch)
        buffer = empty_images(len(batch.indices), pipeline.size, self.pinned)
        images = buffer.numpy()
        used, bad = np.empty(len(images), np.int64), []
        for row, (index, repeat) in enumerate(zip(batch.indices.tolist(), batch.repeat_index.tolist(), strict=True)):
            used[row], failures = self._load(pipeline, batch.epoch, index, repeat, images[row])
            bad += failures
        label = as_label(self.files.batch_targets(used), self.pinned)
        return Batch(as_images(buffer), label, torch.from_numpy(used), batch.epoch, batch.number, tuple(bad))

    def _load(
        self, pipeline: Pipeline, epoch: int, index: int, repeat: int, out: Image
    ) -> tuple[int, list[tuple[int, str]]]:
        """Write image `index` to `out`, or the next readable one; return the index used, and the failures before it."""
        failures: list[tuple[int, str]] = []
        for ahead in range(min(MAX_REPLACEMENTS, len(self.files))):
            used = (index + ahead) % len(self.files)
            try:
                pipeline(partial(self.reader.read, used), sample_rng(self.seed, epoch, used, repeat), out)
                return used, failures
            except ImageError as error:
                failures.append((used, f"{error} ({self.files.location(used)})"))
        raise ImageError(f"{len(failures)} images in a row cannot be read; the first: {failures[0][1]}")


class EvalDataset(Dataset):
    """Makes batches to predict: each image is decoded once and prepared in every requested way, without randomness."""

    pinned = False  # see `empty_images`; the loader decides

    def __init__(self, files: FileList, reader: Reader | None, preprocesses: tuple[Preprocess, ...]) -> None:
        """`reader`: None where `preprocesses` is empty, so that no image is read."""
        self.files, self.reader = files, reader
        self.geometries = tuple(EvalGeometry(preprocess) for preprocess in preprocesses)

    def __len__(self) -> int:
        """Return the number of listed images."""
        return len(self.files)

    def batch_bytes(self, batch_size: int) -> int:
        """Return the size in bytes of the images of a batch."""
        return batch_size * sum(geometry.size**2 for geometry in self.geometries) * 3

    def __getitems__(self, batch: BatchIndices) -> EvalBatch:
        """Return the batch of these indices; an unreadable image is black, not `readable`, and named in `bad`."""
        indices = batch.indices.tolist()
        buffers = [empty_images(len(indices), geometry.size, self.pinned) for geometry in self.geometries]
        images = [buffer.numpy() for buffer in buffers]
        bad: dict[int, str] = {}
        for row, index in enumerate(indices):
            try:
                self._load(index, [squares[row] for squares in images])
            except ImageError as error:
                bad[index] = f"{error} ({self.files.location(index)})"
                for squares in images:
                    squares[row] = 0
        readable = torch.tensor([index not in bad for index in indices])
        label = as_label(self.files.label[batch.indices].astype(np.int64), self.pinned)
        views = tuple(as_images(buffer) for buffer in buffers)
        return EvalBatch(views, label, torch.from_numpy(batch.indices), readable, tuple(bad.items()))

    def _load(self, index: int, views: list[Image]) -> None:
        """Write image `index` to `views`, one for each geometry."""
        if self.reader is None:
            return

        def scale_fn(height: int, width: int) -> float:
            return max(geometry.choose_region(height, width).decode_scale() for geometry in self.geometries)

        image, full = self.reader.read(index, scale_fn)
        for geometry, out in zip(self.geometries, views, strict=True):
            geometry.render(image, full, geometry.choose_region(*full), out)


class ViewDataset(EvalDataset):
    """Makes batches of one augmented view of each image, in list order; it depends on (seed, view, index) alone."""

    def __init__(
        self, files: FileList, reader: Reader, preprocess: Preprocess, pipeline: Pipeline, seed: int, view: int
    ) -> None:
        """`pipeline`: what augments the images to the size of `preprocess`. `view`: its number, from 1."""
        super().__init__(files, reader, (preprocess,))
        self.pipeline, self.seed, self.view = pipeline, seed, view

    def _load(self, index: int, views: list[Image]) -> None:
        assert self.reader is not None
        self.pipeline(partial(self.reader.read, index), sample_rng(self.seed, self.view, index), views[0])


def empty_images(count: int, size: int, pinned: bool) -> Tensor:
    """Return an uninitialised batch, uint8 (B, S, S, 3), into whose rows the images are written without a further copy.

    `pinned`: in page-locked memory, from which a GPU copies while it computes.
    """
    shape = (count, size, size, 3)
    if pinned:
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
    return torch.from_numpy(np.empty(shape, np.uint8))  # torch.empty would fill it first under --deterministic


def as_images(batch: Tensor) -> Tensor:
    """Return the memory of uint8 (B, S, S, 3) as (B, 3, S, S), channels_last."""
    return batch.permute(0, 3, 1, 2)


def as_label(labels: NDArray[np.generic], pinned: bool) -> Tensor:
    """Return labels or targets (B, …) as a tensor of the same type; `pinned`: in page-locked memory."""
    label = torch.from_numpy(labels)
    return label.pin_memory() if pinned else label
