"""Predictions in a file, to be blended later without running a network: probs.npz.

Probabilities of classes, of which one is right, are kept as float16 logarithms. A float16 probability underflows below
6e-8, and geometric means and log losses depend on such values. Its logarithm is within 0.4 % there, and as exact as the
probability itself for likely classes. Probabilities of labels and predicted numbers are kept as float32, as they are:
the order of images by them decides the scores, and float16 would make ties.
"""

import contextlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.file_list import ABSOLUTE_HASH, LIST_HASH, FileList
from evaluation.metrics import MIN_PROBABILITY
from options.choices import TASKS
from utils.classes import Classes, counted
from utils.errors import UserError, path_hint
from utils.files import atomic_write
from utils.logger import log
from utils.seen_lists import Seen, entry
from utils.task import has_probabilities

WRITE_AGAIN = "Try: python eval.py --load CKPT --save_probs"
MAX_BYTES = 4 << 30  # of all files together, in memory: 50,030 classes of 42,000 images in float16


@dataclass(frozen=True)
class SavedProbs:
    """What a file holds: `values`, `readable` bool (N,), and their list and classes.

    Attributes:
        values: log probabilities of the classes, float16 (N, C), if `is_log`; else probabilities of labels, or numbers,
            float32 (N, K).
        data: num_classes, class_names, class_images and the task, as in a checkpoint.
        absolute_hash: that of the list by its absolute paths; "" in a file of an earlier version.
        thresholds: of labels, (K,), for these probabilities; None: the file holds none.
        seen: the lists that its networks have learned from, as utils.seen_lists keeps them.
        group: of each image, (N,), from tools.folds --group_by or --group_table.
    """

    path: str
    values: NDArray[np.float16] | NDArray[np.float32]
    readable: NDArray[np.bool_]
    list_hash: str
    data: dict[str, Any]
    thresholds: list[float] | None
    seen: Seen
    group: NDArray[np.int64] | None = None
    absolute_hash: str = ""

    @property
    def is_log(self) -> bool:
        """Return whether `values` are logarithms."""
        return has_probabilities(self.data.get("task", "single"))


def array_name(task: str) -> str:
    """Return the name of the array of predictions in a file."""
    return "log_probabilities" if has_probabilities(task) else "predictions"


def _called(task: str) -> str:
    """Return what the predictions in a file are called, in messages."""
    return "predictions" if task == "regression" else "probabilities"


def check_size(count: int, num_classes: int, what: str, task: str = "single") -> None:
    """Raise UserError where the predictions in a file, which `what` names, would take more than MAX_BYTES."""
    size = (2 if has_probabilities(task) else 4) * count * num_classes
    if size > MAX_BYTES:
        raise UserError(
            f"{what}: {count} images with {counted(num_classes, task)} each are {size / 1e9:.1f} GB of "
            f"{_called(task)}; allowed: {MAX_BYTES / 1e9:.1f} GB.\n"
            f"Give a shorter list, or checkpoints instead of {_called(task)}."
        )


def to_log_float16(probability: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return probabilities (N, C) as a file keeps them: logarithms, float16 (N, C), of MIN_PROBABILITY at least."""
    return np.log(np.maximum(probability, MIN_PROBABILITY)).astype(np.float16)


def write(
    path: Path,
    values: NDArray[np.float16] | NDArray[np.float32],
    readable: NDArray[np.bool_],
    files: FileList,
    classes: Classes,
    more: Mapping[str, NDArray[Any]] | None = None,
    seen: Seen | None = None,
) -> None:
    """Write an npz file without pickles.

    Its arrays: `log_probabilities` float16 (N, C), for labels or numbers `predictions` float32 (N, K), `readable` bool
    (N,), `files` (N,) paths, `classes` (C,) names, and the hashes of the list, `list_hash` by its paths as they were
    named and `list_hash_absolute` by the absolute ones; `thresholds` float64 (K,) where labels have some: those with
    which these probabilities are scored; `seen`, the lists that the networks have learned from, as JSON, None: they are
    not known; then those of `more`, of which `read` takes `group`.
    """
    names = np.array([classes.name(label) for label in range(classes.count)])
    paths = np.array(
        [os.fsencode(files.path(index)).decode(errors="backslashreplace") for index in range(len(readable))]
    )
    images = np.array(classes.train_counts or [], np.int64)
    part = files if len(readable) == len(files) else files.select(np.arange(len(files)) < len(readable))
    arrays: dict[str, Any] = {
        array_name(classes.task): values,
        "readable": readable,
        "files": paths,
        "classes": names,
        "class_images": images,
        "named": np.array(classes.names is not None),
        **{name: np.array(value) for name, value in part.hashes().items()},
        **(more or {}),
    }
    if classes.task != "single":
        arrays["task"] = np.array(classes.task)
    if classes.mean is not None:
        arrays |= {"target_mean": np.array(classes.mean), "target_std": np.array(classes.std)}
    if classes.thresholds is not None:
        arrays["thresholds"] = np.array(classes.thresholds, np.float64)
    if seen is not None:
        arrays["seen"] = np.array(json.dumps(seen))
    with atomic_write(path) as file:
        np.savez(file, **arrays)


def read(path: str) -> SavedProbs:
    """Read a file of `write`.

    Raises:
        UserError: the file is missing, damaged, or of another kind.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            task = str(content["task"]) if "task" in content.files else "single"
            if task not in TASKS:
                raise _damaged(path, f"its task is {task!r}; allowed: {', '.join(TASKS)}")
            needed = {array_name(task), "classes", LIST_HASH, "readable"}
            needed |= {"target_mean", "target_std"} if task == "regression" else set()
            missing = needed - set(content.files)
            if missing:
                raise UserError(f"{path} holds no {', '.join(sorted(missing))}.\n{WRITE_AGAIN}")
            found = content[array_name(task)]
            names, images = content["classes"].tolist(), content["class_images"].tolist()
            data = {
                "num_classes": len(names),
                "class_names": names if content["named"] else None,
                "class_images": images or None,
            }
            if task != "single":
                data["task"] = task
            data |= {name: content[name].tolist() for name in ("target_mean", "target_std") if name in content.files}
            edges = content["thresholds"].tolist() if "thresholds" in content.files else None
            seen = _read_seen(content, task)
            group = content["group"] if "group" in content.files else None
            absolute = str(content[ABSOLUTE_HASH]) if ABSOLUTE_HASH in content.files else ""
            listed = str(content[LIST_HASH])
            saved = SavedProbs(path, found, content["readable"], listed, data, edges, seen, group, absolute)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.{path_hint(Path(path))}\n{WRITE_AGAIN}") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        what = f"{path} is damaged, or no file of probabilities ({str(error)[:200]})."
        raise UserError(f"{what}\n{WRITE_AGAIN}") from error
    if found.ndim != 2 or found.shape != (len(saved.readable), len(names)):
        raise _damaged(path, f"{_called(task)} of shape {found.shape} for {counted(len(names), task)}")
    if not saved.is_log and found.dtype != np.float32:
        raise _damaged(path, f"its predictions are {found.dtype}; allowed: float32")
    if group is not None and (group.shape != saved.readable.shape or group.dtype.kind not in "iu"):
        raise _damaged(path, f"its groups are {group.dtype} {group.shape}; allowed: a number per image")
    if edges is not None and (np.shape(edges) != (len(names),) or not all(0 <= edge <= 1 for edge in edges)):
        raise _damaged(path, f"its thresholds are {str(edges)[:100]}; allowed: one per label, 0 to 1")
    return saved


def _damaged(path: str, what: str) -> UserError:
    return UserError(f"{path} is damaged: {what}.\n{WRITE_AGAIN}")


def _read_seen(content: Mapping[str, NDArray[Any]], task: str) -> Seen:
    """Return the lists that the networks of a file have learned from; of an oof.npz none, in any version.

    Raises:
        ValueError: they are damaged.
    """
    if "seen" not in content:  # earlier versions
        return [] if "fold" in content else [entry(None, None, task)]
    found = json.loads(str(content["seen"]))
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError("its `seen` holds no lists")
    return found


def check_total(paths: Sequence[str]) -> None:
    """Raise UserError where the files hold more than MAX_BYTES together. A file of another kind is left to `read`."""
    size = 0
    for path in paths:
        with contextlib.suppress(OSError, KeyError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            names = {f"{array_name(task)}.npy" for task in TASKS}
            size += sum(info.file_size for info in archive.infolist() if info.filename in names)
    if size > MAX_BYTES + 4096 * len(paths):
        raise UserError(
            f"{', '.join(paths)}: {size / 1e9:.1f} GB of probabilities; allowed: {MAX_BYTES / 1e9:.1f} GB together.\n"
            "Load fewer of them, or checkpoints instead of them."
        )


def check_same_list(files: FileList, *saved: SavedProbs) -> None:
    """Raise UserError where one of `saved` is of another list than `files`.

    A list that only bears the same name in another folder may be a copy of the first one, or hold other images: that is
    a warning.
    """
    if not saved:
        return
    named, absolute = files.content_hash(), files.absolute_hash()
    for one in saved:
        if len(one.readable) != len(files) or not {one.list_hash, one.absolute_hash} & {named, absolute}:
            raise UserError(
                f"{one.path} holds probabilities of another list than {files.source}: {len(one.readable)} images for "
                f"{len(files)}, hash {one.list_hash[:12]} for {named[:12]}.\n"
                "Blend files of one list, or give the list that they were made of."
            )
        if one.absolute_hash not in ("", absolute):
            log.warning(
                f"{one.path} was made of a list of the same name, paths and labels in another folder than "
                f"{files.source}. It is taken for a copy of that list: are the images the same?"
            )
