"""Probabilities in a file, to be blended later without running a network: probs.npz."""

import hashlib
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError
from utils.files import atomic_write

MOST_BYTES = 4 << 30  # of probabilities held at a time; 50,030 classes of 42,000 images in float16


@dataclass(frozen=True)
class SavedProbs:
    """What a file holds: `probability` float16 (N, C), `readable` bool (N,), and which images and classes they speak of."""

    path: str
    probability: NDArray[np.float16]
    readable: NDArray[np.bool_]
    list_hash: str
    data: dict[str, Any]  # num_classes, class_names, class_images: as in a checkpoint


def list_hash(files: Any) -> str:
    """sha256 of a list's paths and labels, in their order, as hex; `files`: dataloader.file_list.FileList."""
    digest = hashlib.sha256()
    for index in range(len(files)):
        digest.update(f"{files.path(index)} {files.label[index]}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def check_size(count: int, num_classes: int, what: str) -> None:
    """Raise UserError where float16 probabilities of `count` images would take more than MOST_BYTES."""
    size = 2 * count * num_classes
    if size > MOST_BYTES:
        raise UserError(
            f"{what}: {count} images of {num_classes} classes are {size / 1e9:.1f} GB of probabilities; "
            f"allowed: {MOST_BYTES / 1e9:.1f} GB.\n"
            "Give a shorter list, or the checkpoints themselves in place of probabilities."
        )


def write(path: Path, probability: NDArray[np.float16], readable: NDArray[np.bool_], files: Any, classes: Any) -> None:
    """Write `probabilities` float16 (N, C), `readable`, `files` (N,) paths, `classes` (C,) names, `list_hash`; no pickles."""
    names = np.array([classes.name(label) for label in range(classes.count)])
    paths = np.array([os.fsencode(files.path(index)).decode(errors="backslashreplace") for index in range(len(probability))])
    images = np.array(classes.images or [], np.int64)
    part = files if len(probability) == len(files) else files.select(np.arange(len(files)) < len(probability))
    with atomic_write(path) as file:
        np.savez(
            file,
            probabilities=probability,
            readable=readable,
            files=paths,
            classes=names,
            class_images=images,
            named=np.array(classes.names is not None),
            list_hash=np.array(list_hash(part)),
        )


def read(path: str) -> SavedProbs:
    """Read a file of `write`.

    Raises:
        UserError: no such file, damaged, of another kind, or larger than MOST_BYTES.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            missing = {"probabilities", "classes", "list_hash", "readable"} - set(content.files)
            if missing:
                raise UserError(f"{path} holds no {', '.join(sorted(missing))}. Write it anew: python eval.py --load CKPT --save_probs")
            _check_member(path)
            probability = content["probabilities"]
            names, images = content["classes"].tolist(), content["class_images"].tolist()
            data = {"num_classes": len(names), "class_names": names if content["named"] else None, "class_images": images or None}
            saved = SavedProbs(path, probability, content["readable"], str(content["list_hash"]), data)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}. Write one: python eval.py --load CKPT --save_probs") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged, or no file of probabilities ({str(error)[:200]}).") from error
    if probability.ndim != 2 or probability.shape != (len(saved.readable), len(names)):
        raise UserError(f"{path} is damaged: probabilities of shape {probability.shape} for {len(names)} classes.")
    return saved


def _check_member(path: str) -> None:
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo("probabilities.npy").file_size
    if size > MOST_BYTES + 4096:
        raise UserError(
            f"{path} holds {size / 1e9:.1f} GB of probabilities; allowed: {MOST_BYTES / 1e9:.1f} GB. Load the checkpoint itself."
        )


def check_list(saved: SavedProbs, files: Any, wanted: str) -> None:
    """Raise UserError where `saved` is of another list than `files`, whose list_hash is `wanted`."""
    if len(saved.probability) != len(files) or saved.list_hash != wanted:
        raise UserError(
            f"{saved.path} holds probabilities of another list than {files.source}: {len(saved.probability)} images for {len(files)}, "
            f"hash {saved.list_hash[:12]} for {wanted[:12]}.\nBlend files of one list, or give the list that they were made of."
        )
