"""Checkpoints: tensors and plain data in one file, written whole, read without running any of it.

Keys of a checkpoint: `format`, `model` (name), `epoch`, `weights`, `ema` and `swa` (their averages, or None), `showing`
(which of them to predict with: "raw", "ema" or "swa"), `opt` (the resolved options; what --precision auto came to, and
why), `data` (class count and names, images a class, preprocessing, the training list's fingerprint, the paths of the
lists), `history` (a dict of scores an epoch), `best`, `calibration` (a temperature, by eval.py --calibrate); and for
--resume `within` (how far the epoch is) and `training` (optimizer, scaler, step, how far --swa is). utils.checkpoint_schema
declares their types, and is held against each file that is read. A file without `format` is taken as somebody's plain state dict.
"""

import hashlib
import os
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from utils import faults
from utils.errors import UserError, path_hint
from utils.files import atomic_write, link_over
from utils.foreign_weights import plain_weights
from utils.logger import log

FORMAT = 1
MAX_PROBLEMS = 8  # named in a message
BLOCK_BYTES = 1 << 20


class SaveError(UserError):
    """A checkpoint could not be written; what was there before is whole."""


def save(path: Path, content: dict[str, Any], also: Iterable[Path] = ()) -> None:
    """Write `content` to `path`, and give it the names in `also` without writing it again.

    Raises:
        SaveError: the disk is full, or the folder cannot be written; earlier files are untouched.
    """
    try:
        with atomic_write(path) as file:
            torch.save({"format": FORMAT, **content}, file)
        for other in also:
            link_over(path, other)
    except (OSError, RuntimeError) as error:  # torch's zip writer wraps a full disk into a RuntimeError
        reason = error if isinstance(error, OSError) else error.__context__ or error
        raise SaveError(
            f"The checkpoint {path} could not be written: {reason}.\n"
            f"Earlier checkpoints are whole. Free some space (`df -h {path.parent}`), then go on with --resume."
        ) from error


def amend(path: Path, key: str, value: Any, known: str) -> list[Path]:
    """Set one key of a checkpoint, and leave everything else as it is, to the bit; written whole, or not at all.

    Where `path` is a link, its target is changed and the link stays. The file keeps its owner and permissions.

    Args:
        known: the `identity` of the checkpoint that `value` is of.

    Returns:
        Other names of the same file in its folder (3_ResNet50.pt beside best.pt): they keep the old content.

    Raises:
        UserError: another checkpoint is in its place by now; it is none of ours (a plain state dict has no place for it); or
            the disk is full.
    """
    path = path.resolve()
    content = load(path)
    if "format" not in content:
        raise UserError(
            f"{path} is a plain state dict, which has no place for `{key}`. Give --temperature T each time instead."
        )
    if identity(content) != known:
        raise UserError(
            f"{path} is not the checkpoint any more that was loaded (a run may have replaced it), so `{key}` is not written into it.\n"
            "Score it again, or give a copy of it."
        )
    others = [other for other in sorted(path.parent.glob("*.pt")) if other != path and other.samefile(path)]
    save(path, {**content, key: value})
    return others


def identity(content: dict[str, Any]) -> str:
    """sha256, as hex, of what in a checkpoint decides its predictions: the network, all of its weights, classes, preprocessing.

    What `amend` or going on with training adds (a temperature, the optimizer's state) is no part of it.
    """
    digest = hashlib.sha256()
    for key in ("model", "weights", "ema", "swa", "showing", "opt", "data"):
        _feed(digest, key)
        _feed(digest, content.get(key))
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    """Add a value to the digest; of a dict, its items in the order of their names."""
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    elif isinstance(value, dict):
        digest.update(f"{{{len(value)}".encode())
        for key in sorted(value, key=str):
            _feed(digest, str(key))
            _feed(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}".encode())
        for one in value:
            _feed(digest, one)
    else:
        digest.update(f"{type(value).__name__} {value!r};".encode(errors="surrogateescape"))


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; a plain state dict comes back as {"weights": ...} without `format`.

    Raises:
        MachineFault: the machine failed, again and again; see utils.faults.
        UserError: no such file, one that may not be read, damaged, of a newer version, or a pickle that holds more than tensors
            and plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}.{_neighbours(path)}")
    try:
        content = faults.with_retries(lambda: _read(path), path)
    except PermissionError as error:
        raise UserError(f"The checkpoint {path} may not be read: {error.strerror}.") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it is damaged, or holds code besides tensors and plain data, which loading would run "
            f"({_unpickler_reason(error)}).\nLoad it where you trust it, save its state_dict alone, and give that."
        ) from error
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        AssertionError,
        TypeError,
        IndexError,
    ) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(
            f"The checkpoint {path} is damaged or cut short ({lines[0][:200]}).{_neighbours(path)}"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("format"), int) and "weights" in content:
        if content["format"] > FORMAT:
            raise UserError(
                f"{path} has format {content['format']}; this version reads up to {FORMAT}. Update the code."
            )
        _check(content, path)
        return content
    return {"weights": plain_weights(content, path)}


def _check(content: dict[str, Any], path: Path) -> None:
    """Raise UserError where a checkpoint is not what train.py writes."""
    from utils.checkpoint_schema import problems

    found = problems(content)
    if found:
        more = f"\n  … and {len(found) - MAX_PROBLEMS} more" if len(found) > MAX_PROBLEMS else ""
        shown = "".join(f"\n  {line}" for line in found[:MAX_PROBLEMS])
        raise UserError(f"The checkpoint {path} is damaged, or no file of train.py:{shown}{more}{_neighbours(path)}")


def _verify(path: Path) -> None:
    """Read the file once against its own checksums, which torch.load leaves alone: flipped bits would become weights.

    Only the zip format of torch.save has them. Raises ValueError where one is wrong.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(4) == b"PK\3\4":
                raise ValueError("the end of the file is missing")
        log.info(f"{path} is of a format without checksums: damage inside its tensors cannot be seen.")
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if not any(entry.CRC for entry in entries):  # torch.serialization.set_crc32_options(False)
                log.info(f"{path} was saved without checksums: damage inside its tensors cannot be seen.")
                return
            for entry in entries:
                with archive.open(entry) as part:
                    while part.read(BLOCK_BYTES):
                        pass
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, struct.error) as error:
        raise ValueError(str(error)) from error


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        log.info(f"{path} is of a format without checksums: damage inside its tensors cannot be seen.")
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
    _verify(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the pickle's protocol: who reads the message cannot change it
        return torch.load(path, map_location="cpu", weights_only=True)


def _unpickler_reason(error: Exception) -> str:
    """What torch's long message found; around it, it advises to load the file unsafely."""
    text = " ".join(str(error).split())
    text = re.split(r"trusted source\.|WeightsUnpickler error:", text)[-1]
    return re.split(r"Please use|Check the documentation", text)[0].strip(" .")[:200]


def _neighbours(path: Path) -> str:
    """The checkpoints that do lie in the folder, for an error's second line."""
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        return path_hint(path)
    present = sorted((p for p in folder.glob("*.pt") if p != path), key=lambda p: -p.stat().st_mtime)
    if present:
        return "\nThere are: " + ", ".join(str(p) for p in present[:8])
    return f"\nThe folder {folder} holds no checkpoint."
