"""From list files to batches. `train_loader` and `eval_loader` are the two doors."""

import argparse
from collections.abc import Iterator

from dataloader.cache import open_reader
from dataloader.classes import check_labels, check_numbering, find_classes, number_as
from dataloader.dataset import EvalDataset, TrainDataset
from dataloader.file_list import FileList, read_class_names
from dataloader.geometry import Fit
from dataloader.list_paths import known_list, list_path, lists_of
from dataloader.lists import open_list, warn_shared
from dataloader.prefetch import Batches
from dataloader.sampler import Draw, EvalSampler, TrainSampler
from dataloader.transforms import get_stages
from utils.batch import Batch
from utils.classes import Classes
from utils.errors import UserError
from utils.logger import log
from utils.preprocess import Preprocess
from utils.run import DEBUG_BATCHES

__all__ = [
    "Classes",
    "TrainLoader",
    "check_labels",
    "check_numbering",
    "eval_loader",
    "find_classes",
    "known_list",
    "list_path",
    "lists_of",
    "number_as",
    "open_list",
    "read_class_names",
    "train_loader",
    "warn_shared",
]


class TrainLoader:
    """All batches of a run, from any point of it; workers live as long as the run does."""

    def __init__(self, files: FileList, opt: argparse.Namespace, preprocess: Preprocess) -> None:
        self.files = files
        draw = Draw(opt.seed, opt.balance, opt.repeat_aug)
        self.sampler = TrainSampler(files.label, opt.batch_size, opt.epochs, draw, DEBUG_BATCHES if opt.debug else None)
        stages = get_stages(opt, preprocess)
        side = max(pipeline.geometry.side() for _, pipeline in stages)
        self.dataset = TrainDataset(files, open_reader(files, opt, side), stages, opt.seed)
        self._batches = Batches(self.dataset, self.sampler, opt)

    def __len__(self) -> int:
        """Batches an epoch."""
        return self.sampler.batches

    def batches(self, epoch: int, step: int = 0) -> Iterator[Batch]:
        """Return the batches from epoch `epoch` (from 1), batch `step` of it (from 0), to the end of the run.

        Each call gives an iterator of its own.
        """
        return self._batches.iterate(self.sampler.iterate(epoch, step))


def train_loader(opt: argparse.Namespace, files: FileList, preprocess: Preprocess) -> TrainLoader:
    """The loader of training batches.

    Raises:
        UserError: fewer than two images, or an unknown --transform.
    """
    count = len(files)
    if count < 2:
        raise UserError(f"{files.source} has {count} image; batch normalisation needs 2 or more in a batch.")
    if count < opt.batch_size:
        log.warning(f"{files.source} has {count} images, fewer than a batch of {opt.batch_size}: the batch is {count}.")
    elif count % opt.batch_size:
        log.info(
            f"An epoch leaves out {count % opt.batch_size} of {count} images, others each time (the last, ragged batch)."
        )
    return TrainLoader(files, opt, preprocess)


def eval_loader(opt: argparse.Namespace, files: FileList, ways: tuple[Preprocess, ...]) -> Batches:
    """Batches (EvalBatch) of every listed image, in order, each image prepared in all of `ways`; with none, no file is read."""
    sampler = EvalSampler(len(files), opt.batch_size, DEBUG_BATCHES if opt.debug else None)
    reader = open_reader(files, opt, max(Fit(way).side() for way in ways)) if ways else None
    return Batches(EvalDataset(files, reader, ways), sampler, opt)
