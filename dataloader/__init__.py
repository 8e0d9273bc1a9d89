"""From list files to batches: `open_list` reads a list, `train_loader` and `eval_loader` give its batches.

The options enter here. Every function below this module takes the values that it needs, except the builders of
transforms/, which get all options: one may read a flag that you add.
"""

import argparse
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from dataloader.cache import CacheConfig, build_reader
from dataloader.classes import align_labels, check_labels, check_numbering, find_classes
from dataloader.dataset import EvalDataset, TrainDataset, ViewDataset
from dataloader.file_list import FileList, read_class_names, read_list
from dataloader.geometry import EvalGeometry
from dataloader.image_advice import check_readable
from dataloader.list_checks import check_images, warn_changed, warn_repeated, warn_shared
from dataloader.list_paths import KINDS, ListFlags
from dataloader.listing import class_folders
from dataloader.prefetch import BatchLoader, WorkerConfig
from dataloader.sampler import EvalSampler, SamplingConfig, TrainSampler
from dataloader.transforms import build_stages, get_transform
from options import Options
from utils import distributed
from utils.batch import Batch, EvalBatch
from utils.classes import Classes
from utils.errors import UserError
from utils.logger import log
from utils.preprocess import Preprocess
from utils.run import DEBUG_BATCHES

__all__ = [
    "Classes",
    "TrainLoader",
    "align_labels",
    "check_labels",
    "check_numbering",
    "check_readable",
    "draw_lists",
    "eval_loader",
    "find_classes",
    "known_list",
    "list_path",
    "lists_of",
    "open_list",
    "read_class_names",
    "train_loader",
    "view_loader",
    "warn_changed",
    "warn_shared",
]


# ------------------------------------------------------------------------------------------------ lists


def open_list(
    opt: argparse.Namespace,
    name: str,
    drop_missing: bool = False,
    known: Mapping[str, object] | None = None,
    task: str = "single",
) -> FileList:
    """Read the list "train", "val" or "test", look for its files, and decode a few of them.

    Missing files are counted and named; --on_bad_image says whether they are an error. With --no-check_files, and where
    only saved probabilities are blended, no file is looked at. Images that a labelled list names twice are counted.

    Args:
        drop_missing: leave missing files out of the list (training); else they stay, and count as unreadable.
        known: the lists that the checkpoints record, by the checkpoint's path; used where no flag names a list.
        task: what the list's lines hold; see read_list.

    Raises:
        UserError: the list is unusable, files are missing under --on_bad_image error, or no image can be read.
    """
    path = list_path(opt, name) if known is None else _list_flags(opt).choose(name, known)
    files = read_list(path, labelled=name != "test", task=task)
    if opt.check_files and not _reads_no_image(opt, name):
        files = check_images(files, drop_missing, opt.on_bad_image, opt.max_pixels)
    if name != "test":  # a submission has a row per line, and checks its ids
        warn_repeated(files)
    return files


def draw_lists(opt: Options, out: Path) -> Options:
    """Return `opt` with --train_list and --val_list of the class folders in --data_root, if it holds no lists.

    The main process writes the lists into the folder `out`; see dataloader.listing.class_folders. `opt` is returned as
    it is where --data_root is not given, a flag or the checkpoint of a resumed run names a list, or there are lists.

    Raises:
        UserError: the folders hold too few images.
    """
    root = Path(opt.data_root)
    if opt.resume and opt.train_list and class_folders.has_class_folders(root):
        log.info(f"The training list is {opt.train_list}, as before: images that are new in {root} are not in it.")
    if opt.train_list or opt.val_list or "data_root" not in opt.given or not class_folders.has_class_folders(root):
        return opt
    hold_out = bool(opt.val_freq)
    distributed.broadcast_from_main(lambda: class_folders.write_lists(root, out, opt.seed, hold_out))
    return opt.replace(train_list=str(out / "train.txt"), val_list=str(out / "val.txt") if hold_out else None)


def list_path(opt: argparse.Namespace, name: str) -> Path:
    """Return --train_list, --val_list or --test_list, or <name>.txt under --data_root."""
    return _list_flags(opt).path(name)


def lists_of(opt: argparse.Namespace) -> dict[str, str]:
    """Return what a checkpoint records of a run's lists: absolute paths by "data_root", "train", "val" and "test"."""
    return _list_flags(opt).to_record()


def known_list(opt: argparse.Namespace, name: str, known: Mapping[str, object]) -> tuple[Path | None, str]:
    """Return where the checkpoints had their list `name`, and which of them record it; see ListFlags.recorded."""
    return _list_flags(opt).recorded(name, known)


def _list_flags(opt: argparse.Namespace) -> ListFlags:
    """Return what the options say about the lists."""
    paths = {name: getattr(opt, f"{name}_list") for name in KINDS if hasattr(opt, f"{name}_list")}
    return ListFlags(opt.data_root, "data_root" in opt.given, paths)


def _reads_no_image(opt: argparse.Namespace, name: str) -> bool:
    """Return whether eval.py or submit.py blends nothing but files of probabilities, so that it reads no image."""
    return name != "train" and isinstance(opt.load, list) and all(path.endswith(".npz") for path in opt.load)


# ------------------------------------------------------------------------------------------------ batches


class TrainLoader:
    """Loads the batches of a run, from any point of it."""

    def __init__(
        self, files: FileList, opt: argparse.Namespace, preprocess: Preprocess, repeats_as_before: bool = False
    ) -> None:
        """The arguments are those of `train_loader`."""
        self.files = files
        sampling = SamplingConfig(opt.seed, opt.balance, opt.repeat_aug)
        self.sampler = TrainSampler(files.label, opt.batch_size, opt.epochs, sampling, _max_batches(opt))
        _check_repeats(opt, self.sampler.batch_size, len(files), repeats_as_before)
        stages = build_stages(opt, preprocess)
        side = max(pipeline.geometry.min_source_side() for _, pipeline in stages)
        reader = build_reader(files, _cache_config(opt), side, opt.max_pixels)
        self.dataset = TrainDataset(files, reader, stages, opt.seed)
        self._batches = BatchLoader(self.dataset, self.sampler, opt.batch_size, _worker_config(opt), opt.epochs)

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return len(self.sampler)

    @property
    def kind(self) -> str:
        """Return what loads the images: "thread" or "process", also where --loader is auto."""
        return self._batches.config.kind

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Return the batches from epoch `epoch` (from 1), batch `first` of it (from 0), to the end of the run.

        Each call returns an iterator with its own position.
        """
        return self._batches.iterate(self.sampler.iterate(epoch, first))


def train_loader(
    opt: argparse.Namespace, files: FileList, preprocess: Preprocess, repeats_as_before: bool = False
) -> TrainLoader:
    """Return the loader of training batches.

    Args:
        repeats_as_before: a resumed run began with this batch and --repeat_aug, maybe in a version that did not ask
            whether one divides the other: then that is a warning.

    Raises:
        UserError: the list has fewer than two images, --transform is unknown, --repeat_aug does not divide the batch,
            or cache or shared memory are too small.
    """
    count = len(files)
    if count < 2:
        raise UserError(f"{files.source} has {count} image; batch normalisation needs 2 or more in a batch.")
    ragged = count % opt.batch_size
    if count < opt.batch_size:
        log.warning(f"{files.source} has {count} images, fewer than a batch of {opt.batch_size}: the batch is {count}.")
    elif ragged:
        log.info(
            f"Each epoch leaves out {ragged} of {count} images, different ones each time (the last, ragged batch)."
        )
    return TrainLoader(files, opt, preprocess, repeats_as_before)


def _check_repeats(opt: argparse.Namespace, batch: int, images: int, as_before: bool) -> None:
    """Raise UserError where a batch of `batch` images cannot hold each --repeat_aug times; warn if `as_before`."""
    if batch % opt.repeat_aug == 0:
        return
    problem = f"A batch of {batch} cannot hold each image --repeat_aug {opt.repeat_aug} times"
    if as_before:
        log.warning(f"{problem}: some images of a batch have fewer copies.")
        return
    step = math.lcm(opt.repeat_aug, distributed.world_size())
    sizes = sorted({batch // step * step, -(-batch // step) * step} & set(range(step, images + 1)))
    if not sizes:
        raise UserError(f"{problem}; the list has {images} images. Try: a smaller --repeat_aug")
    raise UserError(f"{problem}; allowed: a multiple of {step}. Try: {' or '.join(f'-b {size}' for size in sizes)}")


def eval_loader(
    opt: argparse.Namespace, files: FileList, preprocesses: tuple[Preprocess, ...], shared: bool = True
) -> BatchLoader[EvalBatch]:
    """Return a loader of every listed image, in order, each image prepared in all of `preprocesses`.

    Without any of them, no file is read. Several processes take turns; if not `shared`, or where no file is read, the
    main process has all batches.
    """
    reader = None
    if preprocesses:
        side = max(EvalGeometry(preprocess).min_source_side() for preprocess in preprocesses)
        reader = build_reader(files, _cache_config(opt), side, opt.max_pixels)
    sampler = EvalSampler(len(files), opt.batch_size, _max_batches(opt), shared and bool(preprocesses))
    dataset = EvalDataset(files, reader, preprocesses)
    return BatchLoader(dataset, sampler, opt.batch_size, _worker_config(opt))


def evaluated_images(opt: argparse.Namespace, files: FileList) -> int:
    """Return how many images, from the first of the list, `eval_loader` gives: all of them, under --debug a few."""
    return EvalSampler(len(files), opt.batch_size, _max_batches(opt)).samples()


def view_loader(opt: argparse.Namespace, files: FileList, preprocess: Preprocess, view: int) -> BatchLoader[EvalBatch]:
    """Return a loader of every listed image, in order, in one augmented view: a random crop and a flip.

    `opt`: options of training, with --transform light. `view`: from 1; each has its own draws.
    """
    pipeline = get_transform(opt, preprocess)
    reader = build_reader(files, _cache_config(opt), pipeline.geometry.min_source_side(), opt.max_pixels)
    dataset = ViewDataset(files, reader, preprocess, pipeline, opt.seed, view)
    return BatchLoader(dataset, EvalSampler(len(files), opt.batch_size), opt.batch_size, _worker_config(opt))


def _max_batches(opt: argparse.Namespace) -> int | None:
    """Return the most batches per epoch; None: no limit."""
    return DEBUG_BATCHES if opt.debug else None


def _cache_config(opt: argparse.Namespace) -> CacheConfig:
    """Return what the options say about the cache."""
    return CacheConfig(opt.cache, opt.cache_size, opt.cache_format, opt.cache_quality)


def _worker_config(opt: argparse.Namespace) -> WorkerConfig:
    """Return what the options say about workers; batches go to a GPU unless there is none, or --gpu -1 forbids it."""
    on_gpu = torch.cuda.is_available() and (opt.gpu is None or opt.gpu >= 0)
    return WorkerConfig(opt.loader, opt.workers, opt.worker_timeout, on_gpu)
