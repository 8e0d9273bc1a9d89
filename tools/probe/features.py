"""Features on the disk: computed once per weights, images and preprocessing, and continued where a kill left off.

A file of features is an .npy of float32 (N, D), read through a memory map. While it grows it is called <name>.part, and
<name>.part.json counts the rows that are on the disk for certain; it gets its own name when all rows are there.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import dataloader
from dataloader.cache import Encoding, entry_keys
from dataloader.file_list import FileList
from dataloader.sampler import BatchIndices
from tools.probe.backbone import Backbone
from training.checkpoint_writer import safe_model_name
from utils.batch import EvalBatch
from utils.errors import NotFinite, UserError
from utils.files import sync_folder, write_json
from utils.logger import log, progress
from utils.preprocess import Preprocess

FORMAT = 1  # raise it when other code would compute other features
SAVE_SECONDS = 10.0  # between two counts of what is on the disk
VIEW_OPTIONS = ("seed", "zoom", "crop_ratio", "hflip")  # what an augmented view depends on
CACHE_OPTIONS = ("cache_size", "cache_format", "cache_quality")  # what --cache changes in an image


class Features(NamedTuple):
    """Features of every image, read from the disk on demand.

    Attributes:
        rows: float32 (N, D), memory-mapped.
        readable: bool (N,).
        seconds: that computing them took.
        peak_bytes: of memory.
    """

    rows: NDArray[np.float32]
    readable: NDArray[np.bool_]
    seconds: float
    peak_bytes: int


@dataclass
class _Progress:
    """What is on the disk of an unfinished file: whole rows, which of them are unreadable, and what they took."""

    rows: int = 0
    unreadable: tuple[int, ...] = ()
    seconds: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True)
class _View:
    """One view of each image of a list, as a backbone sees it.

    Attributes:
        opt: the options of this tool, as those of training.
        number: 0 is what evaluation sees, others are augmented.
    """

    backbone: Backbone
    files: FileList
    opt: Any
    number: int

    def preprocess(self) -> Preprocess:
        """Return how an image becomes a square."""
        return replace(self.backbone.preprocess(), scale=self.opt.scale, fit=self.opt.fit)

    def batches(self, first: int) -> tuple[Iterator[EvalBatch], int]:
        """Return the batches from image `first` on, and how many there are."""
        size, count = self.opt.batch_size, len(self.files)
        loader = (
            dataloader.view_loader(self.opt, self.files, self.preprocess(), self.number)
            if self.number
            else dataloader.eval_loader(self.opt, self.files, (self.preprocess(),))
        )
        starts = range(first, count, size)

        def indices() -> Iterator[BatchIndices]:
            for start in starts:
                own = np.arange(start, min(start + size, count))
                yield BatchIndices(0, 0, own, np.zeros_like(own))

        return loader.iterate(indices()), len(starts)

    def settings(self, images: str) -> dict[str, Any]:
        """Return all that the features depend on; `images` is the `image_key` of the list."""
        cached = self.opt.cache != "none"
        options = ("max_pixels", *(CACHE_OPTIONS if cached else ()), *(VIEW_OPTIONS if self.number else ()))
        return {
            "format": FORMAT,
            "model": self.backbone.model.name,
            "weights": self.backbone.identity,
            "images": images,
            "preprocess": self.preprocess().as_dict(),
            "view": self.number,
            "cached": cached,
            "device": self.backbone.model.device.type,
            **{name: getattr(self.opt, name) for name in options},
        }


def image_key(files: FileList) -> str:
    """Return the sha256, as hex, of the absolute path, size and modification time of each image, in order."""
    return hashlib.sha256(entry_keys(files, Encoding(0, "", 0)).tobytes()).hexdigest()


def compute(backbone: Backbone, files: FileList, opt: Any, view: int, folder: Path, images: str) -> Features:
    """Return the features of one view of each image: from `folder`, where they are kept, or computed now.

    Args:
        opt: the options of this tool, as those of training. view: 0 is what evaluation sees, others are augmented.
        images: the `image_key` of `files`.

    Raises:
        UserError: the disk has too little space.
        NotFinite: a feature is infinite or NaN.
    """
    shown = _View(backbone, files, opt, view)
    settings = shown.settings(images)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    path = folder / f"{safe_model_name(backbone.model.name)}-{digest[:16]}.npy"
    found = _read(path, len(files), backbone.dim)
    if found is not None:
        log.info(f"{backbone.title}, view {view}: the features are in {path}.")
        return found
    part = path.with_suffix(".part")
    row_bytes = 4 * backbone.dim
    done = _resume(part, row_bytes)
    _check_space(folder, (len(files) - done.rows) * row_bytes)
    if done.rows:
        log.info(f"{backbone.title}, view {view}: {done.rows} of {len(files)} images are in {part}; the rest follows.")
    with open(part, "r+b" if done.rows else "wb") as file:
        if done.rows:
            file.seek(_header_bytes(part) + done.rows * row_bytes)
        else:
            np.lib.format.write_array_header_1_0(file, _header(len(files), backbone.dim))
        file.truncate()
        done = _fill(file, part, shown, done)
    write_json(path.with_suffix(".json"), {**settings, **vars(done)})
    os.replace(part, path)
    _journal(part).unlink(missing_ok=True)
    sync_folder(folder)
    complete = _read(path, len(files), backbone.dim)
    assert complete is not None, f"{path} was just written"
    return complete


def _fill(file: BinaryIO, part: Path, view: _View, done: _Progress) -> _Progress:
    """Append the features of the remaining images; return the progress at the end, when all rows are on the disk."""
    backbone, unreadable = view.backbone, list(done.unreadable)
    memory = PeakMemory(backbone)
    began = saved = time.monotonic()
    rows = done.rows

    def save() -> _Progress:
        file.flush()
        os.fsync(file.fileno())
        peak = max(done.peak_bytes, memory.bytes())
        now = _Progress(rows, tuple(unreadable), done.seconds + time.monotonic() - began, peak)
        write_json(_journal(part), vars(now))
        return now

    batches, steps = view.batches(rows)
    for batch in progress(batches, f"features of {backbone.title}", steps):
        features = backbone.features(batch.images[0])
        if not features[batch.readable].isfinite().all():
            raise NotFinite(f"{backbone.title} gives infinite or NaN features. Give other weights.")
        file.write(features.numpy().tobytes())
        rows += len(features)
        for index, reason in batch.bad:
            unreadable.append(index)
            if view.number == 0:
                log.warning(f"Unreadable, so in no score: {reason}")
        if time.monotonic() - saved > SAVE_SECONDS:
            save()
            saved = time.monotonic()
    return save()


# ------------------------------------------------------------------------------------------------ files


def _journal(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _header(count: int, dim: int) -> dict[str, Any]:
    return {"descr": "<f4", "fortran_order": False, "shape": (count, dim)}


def _header_bytes(path: Path) -> int:
    """Return where the rows of an .npy begin."""
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        return file.tell()


def _resume(part: Path, row_bytes: int) -> _Progress:
    """Return what an interrupted run has left in `part`; nothing where the two files do not fit each other."""
    try:
        noted = json.loads(_journal(part).read_text(encoding="utf-8"))
        done = _Progress(noted["rows"], tuple(noted["unreadable"]), noted["seconds"], noted["peak_bytes"])
        fits = part.stat().st_size >= _header_bytes(part) + done.rows * row_bytes
    except (OSError, ValueError, KeyError, TypeError):
        return _Progress()
    return done if fits else _Progress()


def _read(path: Path, count: int, dim: int) -> Features | None:
    """Return the features of a finished file; None if there is none, or its size is wrong."""
    try:
        noted = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
        done = _Progress(noted["rows"], tuple(noted["unreadable"]), noted["seconds"], noted["peak_bytes"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning(f"{path} is damaged ({str(error)[:200]}): its features are computed again.")
        return None
    if rows.shape != (count, dim) or rows.dtype != np.float32 or done.rows != count:
        log.warning(f"{path} holds {rows.dtype} {rows.shape}, not float32 {(count, dim)}: it is computed again.")
        return None
    readable = np.ones(count, bool)
    readable[list(done.unreadable)] = False
    return Features(rows, readable, done.seconds, done.peak_bytes)


def _check_space(folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"The features need {needed / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free.\n"
            "Try: --images N for a sample of the list, fewer --views, or --features DIR on another disk"
        )


# ------------------------------------------------------------------------------------------------ memory


class PeakMemory:
    """Measures what a network and its batches need: its weights, and the most that was allocated beside them."""

    def __init__(self, backbone: Backbone) -> None:
        """Begin to measure; the weights are on their device already."""
        self.device = backbone.model.device
        self.weight_bytes = sum(value.nbytes for value in backbone.weights().values())
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM; Linux alone
        self.before = self._used("VmRSS:")

    def bytes(self) -> int:
        """Return the peak since the beginning."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        return max(0, self._used("VmHWM:") - self.before) + self.weight_bytes

    @staticmethod
    def _used(name: str) -> int:
        """Return a number of this process in bytes, as Linux reports it; 0 elsewhere."""
        with contextlib.suppress(OSError, StopIteration):
            status = Path("/proc/self/status").read_text()
            return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name))
        return 0
