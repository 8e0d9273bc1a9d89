"""Writes the folder of a published checkpoint, and loads it again before it takes its name."""

import argparse
import json
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from network.base_model import BaseModel
from network.loading import build_from_checkpoint, warn_without_cut_points
from tools.predicting import read_whole
from tools.publish import timm_config
from tools.publish.card import CardFacts, card_text
from utils import checkpoint, run_lock
from utils.classes import Classes
from utils.errors import UserError
from utils.files import json_text
from utils.logger import log
from utils.preprocess import Preprocess
from utils.task import POSITION, position_units
from utils.weight_files import WRITER, WRITER_NAME
from utils.whole_folder import whole_folder

WEIGHTS = "model.safetensors"
FITTED = ("calibration", "thresholds")  # what eval.py stored
MADE_BY = ("average", "long_tail", "probe")  # how a tool made the checkpoint
KEPT = ("model", "epoch", *FITTED, *MADE_BY)  # of the checkpoint, beside options, data and weights
SCORE_NAMES = ("intervals",)  # of metrics.json, beside its numbers
PACKAGES = ("torch", "timm", "numpy", "safetensors")


class Source(NamedTuple):
    """The checkpoint: its content, network, classes, and the sha256 of its file ("": it is no single file)."""

    path: str
    content: dict[str, Any]
    model: BaseModel
    classes: Classes
    sha256: str


def write_folder(opt: argparse.Namespace, out: Path) -> None:
    """Write the folder `out` of the checkpoint opt.load, as the tool's flags `opt` say.

    Raises:
        UserError: the checkpoint cannot be loaded, or `out` must not be replaced, or the folder does not load equal.
    """
    _check_place(out, opt)
    run_lock.acquire(out)
    source = _read(opt.load)
    scores = _scores(source, opt.metrics)
    preprocess = Preprocess.from_dict(source.content["data"]["preprocess"])
    names = [source.classes.name(label) for label in range(source.classes.count)]
    architecture, reason = timm_config.architecture_of(source.model)
    with whole_folder(out) as staging:
        _write_weights(staging, source)
        of_logits = names if source.classes.names and len(names) == source.model.num_classes else None
        config = timm_config.config_of(source.model, preprocess, of_logits, opt.license)
        if source.classes.mean is not None:
            config |= {"target_mean": source.classes.mean, "target_std": source.classes.std}
        if source.model.settings.activation == POSITION:
            config |= _position_config(source.classes)
        if architecture:
            _write_json(staging / "config.json", {"architecture": architecture, **config, WRITER: WRITER_NAME})
            reason = _problem_in_timm(staging, source.model, preprocess.scale)
            architecture = "" if reason else architecture
        if not architecture:  # a name that timm refuses, rather than another network's
            _write_json(staging / "config.json", {"architecture": source.model.name, **config, WRITER: WRITER_NAME})
        (staging / "classes.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        _write_json(staging / "preprocess.json", preprocess.as_dict())
        _write_json(staging / "scores.json", scores)
        _write_json(staging / "provenance.json", _provenance(source))
        title = opt.title or opt.push or out.resolve().name
        text = card_text(opt, CardFacts(title, source.model, source.classes, preprocess, scores, reason))
        (staging / "README.md").write_text(text, encoding="utf-8")
        _check_again(staging, source)
    how = f"not by timm: {reason}" if reason else f'timm.create_model("local-dir:{out}", pretrained=True)'
    log.info(f"Written: {out}/\nIt loads with --load {out}; {how}")
    if opt.license is None:
        log.warning("No --license was given, so nobody may use the weights without asking. The model card says so.")


def _check_place(out: Path, opt: argparse.Namespace) -> None:
    """Raise UserError where `out` is no folder of this tool, or is one and --overwrite is not given, or is read."""
    for name in ("load", "metrics"):
        path = getattr(opt, name)
        if path and (resolved := Path(path).resolve()) and out.resolve() in (resolved, *resolved.parents):
            raise UserError(f"--{name} {path} is inside --out {out}, which would be replaced. Give another folder.")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        ours = json.loads((out / "config.json").read_text(encoding="utf-8")).get(WRITER) == WRITER_NAME
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise UserError(f"--out {out} exists already and is no published folder. Give the name of a new folder.")
    if not opt.overwrite:
        raise UserError(f"--out {out} exists already. Give another name, or --overwrite to replace it.")


def _read(path: str) -> Source:
    content, sha256 = read_whole(path)
    model, data = build_from_checkpoint(content, path)
    warn_without_cut_points(model, path)
    return Source(path, content, model, Classes.from_dict(data), sha256)


def _position_config(classes: Classes) -> dict[str, object]:
    """Return what turns the output of a network that learned ordered classes as numbers into classes."""
    mean, std = position_units(classes.count)
    cut_points = classes.cut_points or [k + 0.5 for k in range(classes.count - 1)]
    return {"target_mean": [mean], "target_std": [std], "cut_points": cut_points}


def _write_weights(staging: Path, source: Source) -> None:
    """Write the weights that the checkpoint predicts with, and with them all that --load needs."""
    content = source.content
    data = {name: value for name, value in content["data"].items() if name != "lists"}
    if "seen" in data:  # by their fingerprints alone: a path says where things are on this machine
        data["seen"] = [{**one, "path": None} for one in data["seen"]]
    published = {name: content[name] for name in KEPT if content.get(name) is not None}
    published |= {name: without_folders(content[name]) for name in MADE_BY if name in published}
    published |= {"opt": without_folders(content["opt"]), "data": data, "showing": "raw"}
    published["weights"] = source.model.net.state_dict()
    checkpoint.save_published(staging / WEIGHTS, published, {"model": source.model.name})


def _problem_in_timm(staging: Path, model: BaseModel, scale: int) -> str:
    """Return why timm does not give the same logits for the folder `staging`, "" if it does."""
    try:
        difference = timm_config.difference_in_timm(staging, model, scale)
    except Exception as error:  # a network whose own code differs may fail anywhere
        return f"timm's network does not take its weights or images ({' '.join(str(error).split())[:200]})"
    if not difference <= timm_config.MAX_LOGIT_DIFFERENCE:
        return f"timm's network with the same tensors gives other logits (by {difference:.1e}, relative)"
    log.info(f"timm loads the folder: its logits differ by {difference:.1e}, relative to the largest.")
    return ""


def _check_again(staging: Path, source: Source) -> None:
    """Raise UserError where --load of the folder would not predict to the bit as the checkpoint does."""
    found = checkpoint.load(staging)
    model, data = build_from_checkpoint(found, str(staging))
    weights, own = model.net.state_dict(), source.model.net.state_dict()
    same = weights.keys() == own.keys() and all(torch.equal(value, weights[name]) for name, value in own.items())
    same = same and all(found.get(name) == source.content.get(name) for name in FITTED)
    same = same and all(data.get(name) == source.content["data"].get(name) for name in ("preprocess", "cut_points"))
    if not same:
        raise UserError(f"The folder does not load as {source.path} does, so it is not written. Please report it.")


# ------------------------------------------------------------------------------------------------ what it says


def without_folders(value: Any) -> Any:
    """Return plain data in which a path is its last part: a published file does not say where things are here."""
    if isinstance(value, str):
        return value if "/" not in value or value.startswith("hf-hub:") else value.rstrip("/").rpartition("/")[2]
    if isinstance(value, Mapping):
        return {name: without_folders(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    return value


def _scores(source: Source, metrics: str | None) -> dict[str, Any]:
    """Return what is known of the scores: of its epoch, of the average, and of the evaluation `metrics`.

    Raises:
        UserError: the metrics.json cannot be read, or is of another checkpoint.
    """
    content = source.content
    found: dict[str, Any] = {}
    if not content.get("within"):  # within an epoch the weights are no longer those that the history scored
        rows = [row for row in content.get("history", []) if row["epoch"] == content.get("epoch")]
        found |= {"epoch": dict(rows[-1])} if rows else {}
    if content.get("average"):
        found["average"] = dict(content["average"]["scores"])
    if metrics:
        found["evaluation"] = _evaluation(source, metrics)
    return found


def _evaluation(source: Source, path: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        numbers = {name: value for name, value in content.items() if type(value) in (int, float)}
        members = list(content["checkpoints"])
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"--metrics {path} is no metrics.json of eval.py ({error}).") from error
    if members != [checkpoint.identity(source.content)]:
        raise UserError(
            f"--metrics {path} is not of {source.path}, or of an ensemble. Try: python eval.py --load {source.path}"
        )
    options = without_folders(content.get("options") or {})
    return {**numbers, **{name: content[name] for name in SCORE_NAMES if name in content}, "options": options}


def _provenance(source: Source) -> dict[str, Any]:
    """Return where the weights come from, as far as the checkpoint says it."""
    content = source.content
    shown = content.get("showing", "ema")
    versions = {"python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in PACKAGES}
    return {
        "checkpoint": {
            "file": Path(source.path).name,
            "sha256": source.sha256,
            "identity": checkpoint.identity(content),
            "epoch": content.get("epoch"),
            "weights": shown if content.get(shown) else "raw",
        },
        "options": without_folders(content["opt"]),
        "training_list": content["data"].get("train_list"),
        "training_images_per_class": content["data"].get("class_images"),
        **{name: content.get(name) for name in FITTED},
        **{name: without_folders(content.get(name)) for name in MADE_BY},
        "published": {"command": without_folders(["python", *sys.argv]), "versions": versions},
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json_text(content, indent=2) + "\n", encoding="utf-8")
