"""From indices to batches, in a worker: read, crop, augment, stack."""

from functools import partial

import numpy as np
import torch
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
        images, indices, bad = [], [], []
        pipeline = self.pipeline(key.epoch)
        for index, copy in zip(key.indices.tolist(), key.copies.tolist(), strict=True):
            image, used, failures = self._readable(pipeline, key.epoch, index, copy)
            images.append(image)
            indices.append(used)
            bad += failures
        index = np.array(indices)
        label = torch.from_numpy(self.files.label[index].astype(np.int64))
        return Batch(stack(images), label, torch.from_numpy(index), key.epoch, key.step, tuple(bad))

    def _readable(self, pipeline: Pipeline, epoch: int, index: int, copy: int) -> tuple[Image, int, list[tuple[int, str]]]:
        """The image of `index` or, where it cannot be read, of the next that can: (image, its index, the failures)."""
        failures: list[tuple[int, str]] = []
        for ahead in range(min(STAND_INS, len(self.files))):
            used = (index + ahead) % len(self.files)
            try:
                read = partial(self.reader.read, used)
                return pipeline(read, sample_rng(self.seed, epoch, used, copy)), used, failures
            except ImageError as error:
                failures.append((used, f"{error} ({self.files.where(used)})"))
        raise ImageError(f"{len(failures)} images in a row cannot be read; the first: {failures[0][1]}")


class EvalDataset(Dataset):
    """Images to predict: each decoded once, prepared in every way that some network asks for; without chance."""

    def __init__(self, files: FileList, reader: Reader | None, ways: tuple[Preprocess, ...]) -> None:
        self.files, self.reader, self.fits = files, reader, tuple(Fit(way) for way in ways)

    def __len__(self) -> int:
        return len(self.files)

    def batch_bytes(self, batch_size: int) -> int:
        """The size of a batch."""
        return batch_size * sum(fit.preprocess.scale**2 for fit in self.fits) * 3

    def __getitems__(self, key: BatchKey) -> EvalBatch:
        """The batch of `key`; an unreadable image is black, marked, and named in `bad`."""
        rows: list[list[Image]] = []
        bad: dict[int, str] = {}
        for index in key.indices.tolist():
            try:
                rows.append(self._views(index))
            except ImageError as error:
                bad[index] = f"{error} ({self.files.where(index)})"
                rows.append([np.zeros((fit.preprocess.scale, fit.preprocess.scale, 3), np.uint8) for fit in self.fits])
        readable = torch.tensor([index not in bad for index in key.indices.tolist()])
        label = torch.from_numpy(self.files.label[key.indices].astype(np.int64))
        images = tuple(stack([row[k] for row in rows]) for k in range(len(self.fits)))
        return EvalBatch(images, label, torch.from_numpy(key.indices), readable, tuple(bad.items()))

    def _views(self, index: int) -> list[Image]:
        if self.reader is None:
            return []

        def need(height: int, width: int) -> float:
            return max(fit.place(height, width).factor() for fit in self.fits)

        image, full = self.reader.read(index, need)
        return [fit.show(image, full, fit.place(*full)) for fit in self.fits]


def stack(images: list[Image]) -> Tensor:
    """uint8 (S, S, 3) each -> uint8 (B, 3, S, S), channels_last in memory: no value is moved twice."""
    out = np.empty((len(images), *images[0].shape), np.uint8)
    for row, image in zip(out, images, strict=True):
        row[...] = image
    return torch.from_numpy(out).permute(0, 3, 1, 2)
