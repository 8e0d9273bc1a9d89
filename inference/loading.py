"""From checkpoints, and files of probabilities, to a Predictor."""

import argparse
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inference import saved_probs
from inference.folding import quicken
from inference.predictor import Member, Predictor, SavedMember
from network.loading import build_from_checkpoint
from options import command
from utils import checkpoint, distributed
from utils.classes import Classes, describe_difference, names_agree
from utils.errors import UserError
from utils.files import file_hash
from utils.logger import log
from utils.preprocess import Preprocess

MAX_NAME, MAX_NAME_BYTES = (
    100,
    150,
)  # of a folder for results; a file system takes 255 bytes, of which a folder on its way needs more


@dataclass(frozen=True)
class Loaded:
    """What `load_predictor` found: the predictor, the checkpoints' `data` (classes), a name for the results, for a single
    checkpoint its `tag` and its `history` of training, the files of the members, in the order of `predictor.weights`, the
    sha256 of each file, and of what in it decides its predictions; `saved`, the files of probabilities among them; and `lists`,
    which lists each checkpoint remembers (dataloader.list_paths). title: the networks, for people.
    """

    predictor: Predictor
    data: dict
    name: str
    tag: str = ""
    history: list[dict] = field(default_factory=list)
    paths: tuple[str, ...] = ()
    hashes: tuple[str, ...] = ()
    identities: tuple[str, ...] = ()
    saved: tuple[saved_probs.SavedProbs, ...] = ()
    lists: dict[str, Any] = field(default_factory=dict)
    title: str = ""

    def check_list(self, files: Any) -> None:
        """Raise UserError where saved probabilities are of another list than `files`, a FileList in the checkpoint's numbering."""
        wanted = files.content_hash() if self.saved else ""
        for one in self.saved:
            saved_probs.check_list(one, files, wanted)

    @property
    def run(self) -> Path | None:
        """The folder of the one checkpoint where that is the folder of its tag, so that its run may be going on; or None."""
        folder = Path(self.paths[0]).resolve().parent
        return folder if len(self.paths) == 1 and folder.name == self.tag else None


def load_predictor(opt: argparse.Namespace, device: torch.device) -> Loaded:
    """Build the networks of all opt.load from their checkpoints alone, on `device`; read those that are .npz.

    Whoever predicts for a list calls `check_list` with it: probabilities in a file are of one list alone.

    --scale and --fit override the preprocessing that a checkpoint holds; --precision its precision.

    Raises:
        UserError: a checkpoint is missing, damaged, or of another model; or they disagree about the classes; or there are
            several processes.
    """
    distributed.require_single_process("Evaluation and submission")
    weights = opt.weights or [1.0] * len(opt.load)
    pairs = sorted(
        zip(opt.load, weights, strict=True), key=lambda pair: pair[0].endswith(".npz")
    )  # stable: networks first
    paths = tuple(path for path, _ in pairs)
    # before they are read, for a run may put others in their places meanwhile; one that is missing is named below
    hashes = tuple(file_hash(path) if Path(path).is_file() else "" for path in paths)
    members, datas, origins, contents, identities = [], [], [], [], []
    for path, weight in (pair for pair in pairs if not pair[0].endswith(".npz")):
        content = checkpoint.load(path)
        identities.append(checkpoint.identity(content))
        model, data = build_from_checkpoint(content, path, opt.model)
        precision = opt.precision if opt.precision != "auto" else content.get("opt", {}).get("precision_used", "auto")
        preprocess = Preprocess.from_dict(data["preprocess"]) if "preprocess" in data else model.preprocess()
        preprocess = replace(preprocess, scale=opt.scale or preprocess.scale, fit=opt.fit or preprocess.fit)
        chosen = quicken(model, preprocess, opt, _usable(precision, device), device)
        members.append(Member(model, preprocess, weight, path))
        datas.append(data)
        origins.append((content.get("opt", {}).get("tag") or Path(path).stem, str(content.get("epoch", "weights"))))
        log.info(
            f"{path}: {model.name}, epoch {origins[-1][1]}, {data['num_classes']} classes, "
            f"{preprocess.scale} px ({preprocess.fit}), {chosen}"
        )
        contents.append({key: content.get(key) for key in ("history", "calibration")})
    identities += hashes[len(members) :]
    _check_same(opt, paths, identities)
    lists = {path: data.get("lists") for path, data in zip(paths, datas, strict=False)}
    saved = _read_saved(pairs[len(members) :])
    datas += [one.data for one in saved]
    _check_agree(datas, list(paths))
    rows = [
        SavedMember(one.log_probability, weight, is_log=True, path=path)
        for one, (path, weight) in zip(saved, pairs[len(members) :], strict=True)
    ]
    predictor = Predictor(members, opt.tta, opt.blend, rows)
    predictor.temperature = _temperature(opt, [content["calibration"] for content in contents])
    if saved:
        predictor.saved_readable = torch.from_numpy(np.logical_and.reduce([one.readable for one in saved]))
    name = _folder_name(opt, origins, [Path(one.path).stem for one in saved])
    tag = origins[0][0] if len(origins) == 1 else ""
    networks = [
        f"{member.model.name}, epoch {epoch} of {tag}" for member, (tag, epoch) in zip(members, origins, strict=True)
    ]
    title = " + ".join(networks + [Path(one.path).name for one in saved])
    return Loaded(
        predictor, datas[0], name, tag, _history(contents), paths, hashes, tuple(identities), tuple(saved), lists, title
    )


def _folder_name(opt: argparse.Namespace, origins: list[tuple[str, str]], saved: list[str]) -> str:
    """The name of the folder for the results, below --tag: the epochs, and where a checkpoint is of another tag, tags and views too.

    Args:
        origins: the tag and the epoch of each checkpoint. saved: the names of the files of probabilities.
    """
    tags = [re.sub(r"[^\w.+-]", "_", tag).lstrip(".")[:60] or "_" for tag, _ in origins]
    epochs = [re.sub(r"[^\w-]", "_", epoch)[:20] for _, epoch in origins]
    if all(tag == opt.tag for tag, _ in origins):
        return _cut("+".join(epochs + saved), MAX_NAME)
    same = (
        [f"{tags[0]}_{'+'.join(epochs)}"]
        if len(set(tags)) == 1
        else [f"{tag}_{epoch}" for tag, epoch in zip(tags, epochs, strict=True)]
    )
    views = f"_{opt.tta}" if opt.tta != "none" else ""
    return _cut("+".join(same + saved), MAX_NAME - len(views)) + views


def _cut(name: str, letters: int) -> str:
    """The name with so many letters at most, and MAX_NAME_BYTES at most: a Chinese letter takes three."""
    return os.fsencode(name[:letters])[:MAX_NAME_BYTES].decode(errors="ignore")


def _check_same(opt: argparse.Namespace, paths: tuple[str, ...], identities: list[str]) -> None:
    """Raise UserError where a member of --ensemble is not what its weights were fitted to."""
    wanted = dict(zip(opt.load, vars(opt).get("identities") or (), strict=False))
    for path, found in zip(paths, identities, strict=True):
        if wanted.get(path, found) != found:
            raise UserError(
                f"--ensemble {opt.ensemble}: {path} has changed since the weights were fitted (another network, or other weights, "
                "classes or options). Put it back, or fit them anew with eval.py --blend."
            )


def _read_saved(pairs: list[tuple[str, float]]) -> list[saved_probs.SavedProbs]:
    """Return the files of probabilities."""
    saved_probs.check_total([path for path, _ in pairs])
    found = [saved_probs.read(path) for path, _ in pairs]
    for one in found:
        log.info(f"{one.path}: probabilities of {len(one.readable)} images, {one.data['num_classes']} classes")
    return found


def _history(contents: list[dict]) -> list[dict]:
    """The scores of each epoch, where there is one checkpoint."""
    history = contents[0]["history"] if len(contents) == 1 else None
    return list(history.values()) if isinstance(history, dict) else list(history or [])


def _temperature(opt: argparse.Namespace, stored: list[dict | None]) -> float:
    """--temperature: none, a number, or what `eval.py --calibrate` stored in the one checkpoint."""
    if opt.temperature == "none":
        return 1.0
    if opt.temperature != "ckpt":
        return float(opt.temperature)
    if len(opt.load) > 1:
        raise UserError(
            "--temperature ckpt is of one network, not of a mean. `eval.py --calibrate` prints the mean's; give it as a number."
        )
    if not stored or stored[0] is None:
        first = command("eval", {**vars(opt), "temperature": None, "save_probs": None, "calibrate": True})
        raise UserError(f"{opt.load[0]} holds no temperature. First run: {first}")
    if stored[0]["tta"] != opt.tta:
        log.warning(f"The temperature was fitted with --tta {stored[0]['tta']}; now it is {opt.tta}.")
    return float(stored[0]["temperature"])


def _usable(precision: str, device: torch.device) -> str:
    """fp16 is CUDA's; a checkpoint that was trained so is evaluated in fp32 on a CPU."""
    return "fp32" if precision == "fp16" and device.type == "cpu" else precision


def _check_agree(datas: list[dict], paths: list[str]) -> None:
    """Raise UserError where members do not number the same classes in the same way."""
    first = Classes.from_dict(datas[0])
    for one, path in zip(map(Classes.from_dict, datas[1:]), paths[1:], strict=True):
        what = "number of classes" if one.count != first.count else ""
        if (one.names is None) != (first.names is None):
            what = what or "class names"
        elif not names_agree(one.names, first.names) and one.names and first.names:
            what = what or f"class names ({describe_difference(first.names, one.names, path)})"
        if what:
            raise UserError(f"{paths[0]} and {path} differ in their {what}, so their predictions cannot be averaged.")
