"""Checkpoints: tensors and plain data in one file, written whole, read without running any of it.

Keys of a checkpoint: `format`, `model` (name), `epoch`, `weights`, `ema` and `swa` (their averages, or None), `showing`
(which of them to predict with: "raw", "ema" or "swa"), `opt` (the resolved options; what --precision auto came to, and
why), `data` (class count and names, images a class, preprocessing, the training list's fingerprint, the paths of the
lists), `history` (a dict of scores an epoch), `best`, `calibration` (a temperature, by eval.py --calibrate); and for
--resume `within` (how far the epoch is) and `training` (optimizer, scaler, step, how far --swa is). A file without
`format` is taken as somebody's plain state dict.
"""

import hashlib
import os
import pickle
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError, near
from utils.files import atomic_write, link_over

FORMAT = 1
WRAPPERS = ("state_dict", "model", "model_state", "state_dict_ema")  # where others keep the weights


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
        raise UserError(f"{path} is a plain state dict, which has no place for `{key}`. Give --temperature T each time instead.")
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
        UserError: no such file, damaged, of a newer version, or a pickle that holds more than tensors and plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}.{_neighbours(path)}")
    try:
        content = _read(path)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it is damaged, or holds code besides tensors and plain data, which loading would run "
            f"({_unpickler_reason(error)}).\nLoad it where you trust it, save its state_dict alone, and give that."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, AssertionError, TypeError, IndexError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"The checkpoint {path} is damaged or cut short ({lines[0][:200]}).{_neighbours(path)}") from error
    if isinstance(content, dict) and "format" in content:
        if content["format"] > FORMAT:
            raise UserError(f"{path} has format {content['format']}; this version reads up to {FORMAT}. Update the code.")
        return content
    return {"weights": _plain_weights(content, path)}


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the pickle's protocol: who reads the message cannot change it
        return torch.load(path, map_location="cpu", weights_only=True)


def _unpickler_reason(error: Exception) -> str:
    """What torch's long message found; around it, it advises to load the file unsafely."""
    text = " ".join(str(error).split())
    text = re.split(r"trusted source\.|WeightsUnpickler error:", text)[-1]
    return re.split(r"Please use|Check the documentation", text)[0].strip(" .")[:200]


def _plain_weights(content: Any, path: Path) -> dict[str, torch.Tensor]:
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(value, torch.Tensor) for value in content.values()):
        kind = type(content).__name__
        raise UserError(f"{path} holds no checkpoint and no state dict (got a {kind}); allowed: {{name: tensor}}.")
    return {name.removeprefix("module."): value for name, value in content.items()}


def _neighbours(path: Path) -> str:
    """The checkpoints that do lie in the folder, for an error's second line."""
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        return near(path)
    present = sorted((p for p in folder.glob("*.pt") if p != path), key=lambda p: -p.stat().st_mtime)
    if present:
        return "\nThere are: " + ", ".join(str(p) for p in present[:8])
    return f"\nThe folder {folder} holds no checkpoint."
