"""The checkpoints that are averaged: reading them, and refusing those that do not fit together."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from network.base_model import network_settings
from network.loading import options_from_checkpoint
from options.wording import count_of
from tools.predicting import read_whole
from training.earlier import DERIVED
from utils.classes import Classes, describe_difference, names_agree, noun
from utils.errors import UserError

EPOCH_FILE = re.compile(r"(\d+)_.+\.pt")  # as training.run names the ends of epochs
LEFT_OUT = ("training", "within", "curves", "ema", "swa")  # of a checkpoint: the averages do not need it
FITTED = ("thresholds", "calibration")  # by eval.py, to the weights that the checkpoint shows
HEAD = ("head", "head_scale", "pool", "activation")
MAX_TAG_LETTERS = 60


@dataclass(frozen=True)
class Ingredient:
    """A checkpoint, and those of its weights that are averaged.

    Attributes:
        content: as utils.checkpoint.load gives it, without what only --resume needs; `weights` are those that count,
            and what eval.py has fitted is there if it was fitted to these.
        shown: "raw", "ema" or "swa", which of the file's weights they are.
        sha256: of the file.
    """

    path: str
    content: dict[str, Any]
    shown: str
    sha256: str

    @property
    def thresholds(self) -> list[float] | None:
        """Return the probability of each label from which it counts as predicted, if eval.py has fitted some."""
        stored = self.content.get("thresholds")
        return stored["values"] if stored else None

    @property
    def weights(self) -> dict[str, Tensor]:
        """Return the weights, {name: tensor}."""
        weights: dict[str, Tensor] = self.content["weights"]
        return weights

    def about(self) -> dict[str, Any]:
        """Return where it comes from, as plain data."""
        return {
            "path": self.path,
            "sha256": self.sha256,
            "weights": self.shown,
            "tag": self.content["opt"].get("tag"),
            "epoch": self.content.get("epoch"),
        }


def epoch_files(opt: argparse.Namespace) -> list[str]:
    """Return the checkpoints of the epochs of the run opt.tag, in their order; the last opt.last of them.

    Raises:
        UserError: there are fewer than two, or than opt.last.
    """
    folder = Path(opt.checkpoint_dir) / opt.tag
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. Give --tag of a run, and --checkpoint_dir where it is.")
    files = (path for path in folder.iterdir() if not path.name.endswith(DERIVED))
    matches = ((EPOCH_FILE.fullmatch(path.name), path) for path in files)
    found = sorted((int(match[1]), str(path)) for match, path in matches if match)
    wanted = opt.last or 2
    if len(found) < wanted:
        raise UserError(
            f"{folder} holds {count_of(len(found), 'checkpoint')} of epochs (<epoch>_<model>.pt); needed: {wanted} "
            "or more.\n"
            "train.py --keep N keeps the last N, --save_freq N every N-th."
        )
    return [path for _, path in found[-(opt.last or len(found)) :]]


def read_all(paths: Sequence[str], how: str) -> list[Ingredient]:
    """Read the checkpoints, and take the weights that `how` averages: raw ones of swa, the EMA, else those they show.

    Raises:
        UserError: a checkpoint holds weights alone, or no EMA, or two of them do not fit together or are the same.
    """
    parts: list[Ingredient] = []
    for path in paths:
        parts.append(_read(path, how))
        if len(parts) > 1:
            check_fit(parts[0], parts[-1])
        twin = next((one for one in parts[:-1] if _same_weights(one, parts[-1])), None)
        if twin is not None:
            raise UserError(f"{twin.path} and {path} hold the same weights, which would count twice. Leave one out.")
    return parts


def _read(path: str, how: str) -> Ingredient:
    content, sha256 = read_whole(path, "checkpoints")
    if content["data"].get("cut_points") is not None:
        raise UserError(
            f"{path} predicts a number, and its cut points between classes are fitted to its own weights: they would "
            "be wrong for an average. To blend the predictions: eval.py --load A B"
        )
    if how == "ema" and content.get("ema") is None:
        raise UserError(
            f"{path} holds no moving average of its weights: its run had no --ema. Try: train.py --ema 0.999"
        )
    own = content.get("showing", "ema")  # as network.loading takes them
    shown, own = (
        name if content.get(name) is not None else "raw" for name in ({"swa": "raw", "ema": "ema"}.get(how, own), own)
    )
    weights = content["weights"] if shown == "raw" else content[shown]
    left_out = LEFT_OUT if shown == own else (*LEFT_OUT, *FITTED)
    kept = {name: value for name, value in content.items() if name not in left_out}
    return Ingredient(path, {**kept, "weights": weights, "showing": "raw"}, shown, sha256)


def _same_weights(one: Ingredient, other: Ingredient) -> bool:
    return all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())


def check_fit(first: Ingredient, other: Ingredient) -> None:
    """Raise UserError where two checkpoints differ in network, classes, preprocessing or tensors; it names what."""
    difference = (
        _of_network(first, other) or _of_classes(first, other) or _of_preprocessing(first, other)
    ) or _of_tensors(first, other)
    if difference:
        raise UserError(
            f"{first.path} and {other.path} cannot be averaged: they differ in {difference}.\n"
            f"Give checkpoints of one network, with the same {noun(first.content['data'].get('task', 'single'))} and "
            "preprocessing. "
            "To blend the predictions of different networks: eval.py --load A B"
        )


def _of_network(first: Ingredient, other: Ingredient) -> str:
    if first.content["model"] != other.content["model"]:
        return f"the network ({first.content['model']} and {other.content['model']})"
    one, two = (_settings(part) for part in (first, other))
    names = [name for name in HEAD if getattr(one, name) != getattr(two, name)]
    names = [name for name in names if name != "head_scale" or one.head != "linear"]
    return _named(names and (names[0], getattr(one, names[0]), getattr(two, names[0])))


def _settings(part: Ingredient) -> Any:
    content = part.content
    opt = options_from_checkpoint(content, content["data"]["num_classes"], content["model"])
    return network_settings(opt, content["model"])


def _of_classes(first: Ingredient, other: Ingredient) -> str:
    one, two = (Classes.from_dict(part.content["data"]) for part in (first, other))
    for what, values in (
        ("task", (one.task, two.task)),
        (f"number of {noun(one.task)}", (one.count, two.count)),
        ("mean of the targets", (one.mean, two.mean)),
        ("standard deviation of the targets", (one.std, two.std)),
    ):
        if values[0] != values[1]:
            return _named((f"the {what}", *values))
    if one.names and two.names and not names_agree(one.names, two.names):
        return f"the {noun(one.task, 1)} names ({describe_difference(one.names, two.names, other.path, one.task)})"
    return ""


def _of_preprocessing(first: Ingredient, other: Ingredient) -> str:
    one, two = (part.content["data"]["preprocess"] for part in (first, other))
    names = [name for name in ("scale", "fit", "mean", "std") if one[name] != two[name]]
    return _named(names and (f"the preprocessing's {names[0]}", one[names[0]], two[names[0]]))


def _of_tensors(first: Ingredient, other: Ingredient) -> str:
    one, two = _forms(first), _forms(other)
    for name in sorted(one.keys() | two.keys()):
        if one.get(name) != two.get(name):
            return _named((f"the tensor {name}", one.get(name, "missing"), two.get(name, "missing")))
    return ""


def _forms(part: Ingredient) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (value.dtype, tuple(value.shape)) for name, value in part.weights.items()}


def _named(found: Any) -> str:
    """Return "what (one and other)" of a tuple of the three; "" of an empty one."""
    return f"{found[0]} ({found[1]} and {found[2]})" if found else ""


def mean_weights(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of state dicts, computed in float64 and rounded once; whole numbers are those of the first."""
    found = {}
    for name, first in parts[0].items():
        if not first.is_floating_point():
            found[name] = first.clone()
            continue
        total = first.double()
        for other in parts[1:]:
            total = total + other[name].double()
        found[name] = (total / len(parts)).to(first.dtype)
    return found


def tag_of(out: Path) -> str:
    """Return the tag of the checkpoint `out`: the stem of its file, as far as a tag can hold it."""
    return re.sub(r"[^\w+-]", "_", out.stem)[:MAX_TAG_LETTERS].lstrip("_-") or "average"
