"""Checkpoints: tensors and plain data in one file, written atomically, and loaded without running code from it.

Keys of a checkpoint:

    format       version of this layout
    model        name of the network
    epoch        epochs completed
    weights      {name: tensor}
    ema, swa     averages of the weights, or None
    showing      the weights to predict with: "raw", "ema" or "swa"
    opt          the resolved options, and the precision in use with its reason
    data         class count, names and image counts; preprocessing; hashes and paths of the lists, also of those that
                 the networks before it have seen
    history      one dict of scores per epoch
    scored_from  the first epoch scored on the present validation list, if an earlier part was resumed with another
    bad          the training images that could not be read: {number in the list, as text: what is wrong}
    calibration  a temperature, from eval.py --calibrate
    thresholds   of several labels per image, from eval.py --fit_thresholds
    probe        how tools.probe fitted the classifier
    average      what tools.average made it of, with the scores
    long_tail    how tools.long_tail changed the classifier
    curves       sums over stretches of steps: the points of steps.csv
    within       for --resume: the position within the epoch
    training     for --resume: optimizer, scaler, step, progress of --swa, identity of the teacher

utils.checkpoint_schema declares the types, and every file is checked against it. A file without `format` counts as the
plain state dict of another program.
"""

import contextlib
import hashlib
import os
import pickle
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from utils import faults, weight_files, weight_sources
from utils.errors import UserError, path_hint
from utils.files import atomic_write, link_over
from utils.foreign_weights import declared_architecture, plain_weights
from utils.whole_folder import held

FORMAT = 1
MAX_PROBLEMS = 8  # listed in a message


class SaveError(UserError):
    """A checkpoint could not be written. Earlier checkpoints are intact."""


def save(path: Path, content: Mapping[str, object], also: Iterable[Path] = ()) -> None:
    """Write `content` to `path`, and replace each path of `also` by a hard link to it.

    Raises:
        SaveError: the disk is full, or the folder cannot be written. Earlier files are intact.
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
            f"Earlier checkpoints are intact. Free some space (`df -h {path.parent}`), then continue with --resume."
        ) from error


def save_published(path: Path, content: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write a checkpoint as safetensors, for other programs too; `load` returns it as it was.

    Args:
        content: plain data as JSON has it, besides "weights", {name: tensor}.
        metadata: text for other programs, by name.

    Raises:
        SaveError: the disk is full, or the folder cannot be written. An earlier file is intact.
    """
    rest = {"format": FORMAT, **{name: value for name, value in content.items() if name != "weights"}}
    try:
        weight_files.save_safetensors(path, content["weights"], metadata, rest)
    except OSError as error:
        raise SaveError(f"The weights {path} could not be written: {error}.") from error


def amend(path: Path, key: str, value: object, known: str) -> list[Path]:
    """Set one key of a checkpoint atomically; everything else stays the same to the bit.

    If `path` is a link, its target is changed and the link stays. The file keeps its owner and permissions.

    Args:
        path: the checkpoint.
        key: the key to set.
        value: its new value.
        known: the `identity` of the checkpoint that `value` was computed from.

    Returns:
        Other names of the same file in its folder (3_ResNet50.pt beside best.pt), which keep the old content.

    Raises:
        UserError: another checkpoint has replaced it, it is a plain state dict, or the disk is full.
    """
    path = path.resolve()
    lock = held(path.parent) if path.parent.is_dir() else contextlib.nullcontext()
    with lock:  # two commands at once would each write back what the other has changed
        return _amend(path, key, value, known)


def _amend(path: Path, key: str, value: object, known: str) -> list[Path]:
    """Do what `amend` says; `path` is no link."""
    content = load(path)
    if "format" not in content:
        raise UserError(
            f"{path} is a plain state dict, which cannot hold `{key}`. Give --temperature T each time instead."
        )
    if identity(content) != known:
        raise UserError(
            f"{path} is no longer the checkpoint that was loaded (a run may have replaced it), "
            f"so `{key}` is not written.\nScore it again, or give a copy of it."
        )
    others = [other for other in sorted(path.parent.glob("*.pt")) if other != path and other.samefile(path)]
    save(path, {**content, key: value})
    return others


def identity(content: Mapping[str, object]) -> str:
    """Return the sha256, as hex, of what decides a checkpoint's predictions: network, weights, classes, preprocessing.

    A temperature or the optimizer's state is not part of it.
    """
    digest = hashlib.sha256()
    for key in ("model", "weights", "ema", "swa", "showing", "opt", "data"):
        _feed(digest, key)
        _feed(digest, content.get(key))
    return digest.hexdigest()


def _feed(digest: Any, value: object) -> None:
    """Add a value to the digest; a dict in the order of its keys."""
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


def load(path: str | os.PathLike[str], verified: bool = False) -> dict[str, Any]:
    """Return the content of a checkpoint, on the CPU; a plain state dict as {"weights": ...} without `format`.

    A plain one that says of which network it is also has "about": "architecture", and "config", that of config.json.

    Args:
        path: a file, a folder of timm or transformers, or a repository of the hub; see utils.weight_sources.
        verified: whether the caller has compared the file with a checksum that is kept elsewhere.

    Raises:
        MachineFault: the machine keeps failing; see utils.faults.
        UserError: the file is missing, not readable, damaged, of a newer version, or a pickle that holds more than
            tensors and plain data.
    """
    path, about = weight_sources.locate(os.fspath(path))
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}.{beside(path)}")
    try:
        content = faults.with_retries(lambda: weight_files.read(path, verified), path)
    except PermissionError as error:
        raise UserError(f"The checkpoint {path} cannot be read: {error.strerror}.") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it is damaged, or holds code besides tensors and plain data, which loading would run "
            f"({_unpickler_reason(error)}).\nIf you trust it, load it, save its state_dict alone, and give that file."
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
        raise UserError(f"The checkpoint {path} is damaged or cut short ({lines[0][:200]}).{beside(path)}") from error
    if isinstance(content, dict) and isinstance(content.get("format"), int) and "weights" in content:
        if content["format"] > FORMAT:
            raise UserError(
                f"{path} has format {content['format']}; this version reads up to {FORMAT}. Update the code."
            )
        _check(content, path)
        return content
    architecture = about.get("architecture") or declared_architecture(content)
    about |= {"architecture": architecture} if architecture else {}
    return {
        "weights": plain_weights(content, path),
        **({"about": about} if about else {}),
    }


def _check(content: dict[str, Any], path: Path) -> None:
    """Raise UserError if a checkpoint does not have the form that train.py writes."""
    from utils.checkpoint_schema import problems

    found = problems(content)
    if found:
        more = f"\n  … and {len(found) - MAX_PROBLEMS} more" if len(found) > MAX_PROBLEMS else ""
        shown = "".join(f"\n  {line}" for line in found[:MAX_PROBLEMS])
        raise UserError(f"The checkpoint {path} is damaged, or not from train.py:{shown}{more}{beside(path)}")


def _unpickler_reason(error: Exception) -> str:
    """Return the reason in torch's long message, without its advice to load the file unsafely: what the file names."""
    text = " ".join(str(error).split())
    named = re.search(r"GLOBAL ([\w.]+)", text)
    if named:
        return f"it names {named[1]}"
    text = re.split(r"trusted source\.|WeightsUnpickler error:", text)[-1]
    return re.split(r"Please use|Check the documentation", text)[0].strip(" .")[:200]


def beside(path: Path) -> str:
    """Return, as the end of an error, which checkpoints are in the folder `path` or beside the file, and one to try."""
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        return path_hint(path)
    present = sorted((p for p in folder.glob("*.pt") if p != path), key=lambda p: -p.stat().st_mtime)
    if present:
        return f"\nThere are: {', '.join(str(p) for p in present[:8])}\nTry: {shlex.quote(str(present[0]))}"
    return f"\nThe folder {folder} holds no checkpoint.\nTry: find . -name '*.pt'"
