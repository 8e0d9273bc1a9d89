"""Builds a Predictor from checkpoints and files of probabilities."""

import argparse
import functools
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataloader.file_list import FileList
from evaluation.calibration import labels_at_temperature
from evaluation.multilabel import THRESHOLD, describe_thresholds
from evaluation.step_points import Row, rows_of
from inference import saved_probs
from inference.ensemble_file import EnsembleFile
from inference.folding import optimize_for_inference
from inference.predictor import Member, Predictor, SavedMember
from inference.task_flags import check_task
from inference.tta import get_views, warn_of_unknown_views
from network.base_model import BaseModel
from network.loading import build_from_checkpoint, warn_without_cut_points
from network.sizes import check_size, own_size
from options import command
from options.choices import TASK_METRICS
from options.wording import count_of
from utils import checkpoint, distributed, weight_sources
from utils.classes import Classes, counted, describe_difference, names_agree, noun
from utils.errors import UserError
from utils.files import read_hashed
from utils.logger import log
from utils.preprocess import Preprocess
from utils.seen_lists import Seen, joined, seen_lists

# of a folder for results; a file system takes 255 bytes, and a temporary folder has a longer name
MAX_NAME_LETTERS, MAX_NAME_BYTES = 100, 150
MAX_TAG_LETTERS, MAX_EPOCH_LETTERS = 60, 20  # in that name


@dataclass(frozen=True)
class LoadedPredictor:
    """What `load_predictor` found. `paths`, `hashes` and `identities` are in the order of `predictor.weights`."""

    predictor: Predictor
    data: dict[str, Any]  # the classes of all members, as a checkpoint holds them: see `_of_all`
    name: str  # names the folder of the results
    title: str  # the networks, for people
    paths: tuple[str, ...]  # the members' files, networks first
    hashes: tuple[str, ...]  # sha256 of each file
    identities: tuple[str, ...]  # sha256 of what decides each member's predictions
    saved: tuple[saved_probs.SavedProbs, ...]  # the files of probabilities among them
    datas: dict[str, dict[str, Any]]  # path of a checkpoint -> its `data`
    tag: str = ""  # the only checkpoint's run; "": there are several
    history: list[dict[str, Any]] = field(default_factory=list)  # its scores per epoch
    points: list[Row] = field(default_factory=list)  # its points by step, as in steps.csv
    metric: str = "top1"  # the one that chose the first member's best epoch
    thresholds: list[float] | None = None  # one per label, from --threshold or the only member; None: 0.5
    weights_alone: bool = False  # whether a member is a plain state dict, which holds nothing else
    seen: tuple[Seen, ...] = ()  # the lists that each member has learned from, in the order of `paths`
    caches: dict[str, str] = field(default_factory=dict)  # path of a checkpoint -> the --cache of its training

    @property
    def classes(self) -> Classes:
        """Return the classes, labels or numbers that are predicted, with the thresholds of labels."""
        return replace(Classes.from_dict(self.data), thresholds=self.thresholds)

    @property
    def lists(self) -> dict[str, Any]:
        """Return {path of a checkpoint: the lists that it remembers (dataloader.list_paths)}."""
        return {path: data.get("lists") for path, data in self.datas.items()}

    @property
    def all_seen(self) -> Seen:
        """Return the lists that any member has learned from."""
        return joined(*self.seen)

    def check_list(self, files: FileList) -> None:
        """Raise UserError where saved probabilities are of another list than `files`, numbered as the checkpoint."""
        saved_probs.check_same_list(files, *self.saved)

    def with_groups(self, files: FileList) -> FileList:
        """Return `files` with the groups of images that saved probabilities hold, where they hold some."""
        holder = next((one for one in self.saved if one.group is not None), None)
        if holder is None:
            return files
        log.info(f"Intervals and cross-fits keep the groups of {holder.path} together.")
        return replace(files, group=holder.group)

    def provenance(self) -> list[dict[str, object]]:
        """Return path, sha256 and weight of each member, as files beside predictions and exports name them."""
        members = zip(self.paths, self.hashes, self.predictor.weights, strict=True)
        return [{"path": path, "sha256": sha256, "weight": weight} for path, sha256, weight in members]

    @property
    def active_folder(self) -> Path | None:
        """Return the folder of the only checkpoint if it is that of its tag, where its run may be active; else None."""
        folder = Path(self.paths[0]).resolve().parent
        return folder if len(self.paths) == 1 and folder.name == self.tag else None


@dataclass(frozen=True)
class _Network:
    """A network, and what its checkpoint says beside the weights."""

    member: Member
    sha256: str
    identity: str
    data: dict[str, Any]
    tag: str
    epoch: str
    history: list[dict[str, Any]]
    points: list[Row]
    calibration: dict[str, Any] | None
    thresholds: dict[str, Any] | None
    metric: str
    weights_alone: bool
    seen: Seen
    cache: str


def load_predictor(
    opt: argparse.Namespace, device: torch.device, ensemble: EnsembleFile | None = None
) -> LoadedPredictor:
    """Build the networks of opt.load on `device` from their checkpoints alone, and read the .npz files.

    --scale and --fit override the preprocessing that a checkpoint holds, --precision its precision. To predict for a
    list, call `check_list` with it first: probabilities in a file belong to one list.

    Args:
        ensemble: the file from which opt.load comes, if it comes from one.

    Raises:
        UserError: a checkpoint is missing, damaged, or of another model; their classes differ; a flag does not fit
            their task; a member of the ensemble has changed; or torchrun started several processes that share no group.
    """
    distributed.require_single_process("This command and `inference.load`")
    pairs = list(zip(opt.load, opt.weights or [1.0] * len(opt.load), strict=True))
    network_pairs = [pair for pair in pairs if not pair[0].endswith(".npz")]
    saved_pairs = [pair for pair in pairs if pair[0].endswith(".npz")]
    paths = tuple(path for path, _ in network_pairs + saved_pairs)
    networks = [_load_network(path, weight, opt, device) for path, weight in network_pairs]
    read = _read_saved([path for path, _ in saved_pairs])
    saved = [one for one, _ in read]
    hashes = (*(network.sha256 for network in networks), *(sha256 for _, sha256 in read))
    identities = (*(network.identity for network in networks), *hashes[len(networks) :])
    if ensemble is not None:
        ensemble.check_members(paths, identities)
    _check_classes([network.data for network in networks] + [one.data for one in saved], paths)

    data = _of_all([*(network.data for network in networks), *(one.data for one in saved)])
    saved_members = [
        SavedMember(one.values, weight, is_log=one.is_log, path=path)
        for one, (path, weight) in zip(saved, saved_pairs, strict=True)
    ]
    task = data.get("task", "single")
    check_task(opt, task, paths[0])
    predictor = Predictor([network.member for network in networks], opt.tta, opt.blend, saved_members, task)
    predictor.temperature = _temperature(opt, networks)
    if saved:
        predictor.saved_readable = torch.from_numpy(np.logical_and.reduce([one.readable for one in saved]))
    only = networks[0] if len(networks) == 1 else None
    metrics = list(dict.fromkeys(network.metric for network in networks))
    if len(metrics) > 1 and opt.blend == "greedy" and not opt.metric:
        log.warning(
            f"The best epochs of these checkpoints were chosen by {' and '.join(metrics)}. --blend greedy improves "
            f"{metrics[0]}, as the first of them. Try: --metric {metrics[0]}, or another"
        )
    return LoadedPredictor(
        predictor,
        data=data,
        name=_folder_name(opt, networks, [Path(one.path).stem for one in saved]),
        title=_title(networks, saved),
        paths=paths,
        hashes=hashes,
        identities=identities,
        saved=tuple(saved),
        datas={path: network.data for (path, _), network in zip(network_pairs, networks, strict=True)},
        caches={path: network.cache for (path, _), network in zip(network_pairs, networks, strict=True)},
        tag=only.tag if only else "",
        history=only.history if only else [],
        points=only.points if only else [],
        metric=networks[0].metric if networks else TASK_METRICS[task][0],
        thresholds=_thresholds(opt, ensemble, networks, saved, Classes.from_dict(data), predictor.temperature),
        weights_alone=any(network.weights_alone for network in networks),
        seen=(*(network.seen for network in networks), *(one.seen for one in saved)),
    )


def _of_all(datas: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what members know of their classes: images per class, and units of numbers, are the mean of all members.

    These are of the training lists, which may differ. As a mean, the order of the members changes nothing. A member
    that does not record the images per class is left out.
    """
    found = dict(datas[0])
    for name in ("class_images", "target_mean", "target_std"):
        values = [one[name] for one in datas if one.get(name) is not None]
        if any(value != values[0] for value in values):
            mean = np.mean(values, axis=0)
            found[name] = (mean.round().astype(int) if name == "class_images" else mean).tolist()
        elif values:
            found[name] = values[0]
    return found


def _load_network(path: str, weight: float, opt: argparse.Namespace, device: torch.device) -> _Network:
    """Build the network of the checkpoint `path` on `device`, and log what it is."""
    content, sha256 = read_hashed(weight_sources.locate(path)[0], lambda: checkpoint.load(path))
    identity = checkpoint.identity(content)
    member, data, chosen = build_member(content, path, opt, device, weight)
    trained = content.get("opt", {})
    history, curves = _history(content.get("history")), content.get("curves")
    network = _Network(
        member,
        sha256,
        identity,
        data,
        tag=trained.get("tag") or Path(path).stem,
        epoch=str(content.get("epoch", "weights")),
        history=history,
        points=rows_of(curves, history) if curves else [],
        calibration=content.get("calibration"),
        thresholds=content.get("thresholds"),
        metric=trained.get("metric", "top1"),
        weights_alone="format" not in content,
        seen=seen_lists(content),
        cache=trained.get("cache", "none"),
    )
    preprocess, classes = member.preprocess, Classes.from_dict(data)
    log.info(
        f"{path}: {member.model.name}, epoch {network.epoch}, {counted(classes.count, classes.task)}, "
        f"{preprocess.scale} px ({preprocess.fit}), {chosen}"
    )
    warn_without_cut_points(member.model, path)
    warn_of_unknown_views(opt.tta, trained, path)
    return network


def build_member(
    content: dict[str, Any], path: str, opt: argparse.Namespace, device: torch.device, weight: float = 1.0
) -> tuple[Member, dict[str, Any], str]:
    """Build the network of a checkpoint's `content` on `device`, as eval.py runs it under the flags `opt`.

    Args:
        content: as utils.checkpoint.load gives it. path: its file, for messages.
        weight: of the member.

    Returns:
        The member, the checkpoint's `data`, and in words the precision and how it was chosen.

    Raises:
        UserError: the checkpoint does not fit its network; see build_from_checkpoint. Or the network does not take
            images of the size that --scale or --tta asks for.
    """
    model, data = build_from_checkpoint(content, path, opt.model)
    trained = content.get("opt", {})
    precision = opt.precision if opt.precision != "auto" else trained.get("precision_used", "auto")
    if precision == "fp16" and device.type == "cpu":  # fp16 is for CUDA
        precision = "fp32"
    preprocess = Preprocess.from_dict(data["preprocess"]) if "preprocess" in data else model.preprocess()
    trained = preprocess.scale if "preprocess" in data else 0  # a plain state dict does not say it
    preprocess = replace(preprocess, scale=opt.scale or preprocess.scale, fit=opt.fit or preprocess.fit)
    _check_sizes(model, preprocess, opt.tta, path, trained)
    chosen = optimize_for_inference(model, preprocess, opt, precision, device)
    return Member(model, preprocess, weight, path), data, chosen


def _check_sizes(model: BaseModel, preprocess: Preprocess, tta: str, path: str, trained: int) -> None:
    """Raise UserError where the network does not take images of a size that it will see.

    Args:
        path: its checkpoint. trained: the size that it was trained at, which needs no trial; 0: unknown.
    """
    scale, own = preprocess.scale, trained or own_size(model.net)
    if scale != trained:
        advice = f"give --scale {own}, its own size" if own not in (0, scale) else "give another --scale"
        check_size(model.net, scale, path, f"--scale {scale}", advice)
    sides = {view.side for view in get_views(tta, preprocess)}
    for side in sorted(sides - {trained, scale}):
        check_size(model.net, side, path, f"--tta {tta}", "give another --tta, or another --scale")


def _title(networks: list[_Network], saved: list[saved_probs.SavedProbs]) -> str:
    names = [f"{network.member.model.name}, epoch {network.epoch} of {network.tag}" for network in networks]
    return " + ".join(names + [Path(one.path).name for one in saved])


def _folder_name(opt: argparse.Namespace, networks: list[_Network], saved: list[str]) -> str:
    """Return the name of the folder for the results, below --tag.

    It has the epochs, and for checkpoints of another tag their tags and the views too. A few batches (--debug) get a
    folder of their own: they must not replace the results of the whole list.

    Args:
        saved: the names of the files of probabilities.
    """
    tags = [re.sub(r"[^\w.+-]", "_", network.tag).lstrip(".")[:MAX_TAG_LETTERS] or "_" for network in networks]
    epochs = [re.sub(r"[^\w-]", "_", network.epoch)[:MAX_EPOCH_LETTERS] for network in networks]
    debug = "_debug" if opt.debug else ""
    if all(network.tag == opt.tag for network in networks):
        return _cut("+".join(epochs + saved), MAX_NAME_LETTERS - len(debug)) + debug
    if len(set(tags)) == 1:
        parts = [f"{tags[0]}_{'+'.join(epochs)}"]
    else:
        parts = [f"{tag}_{epoch}" for tag, epoch in zip(tags, epochs, strict=True)]
    end = (f"_{opt.tta}" if opt.tta != "none" else "") + debug
    return _cut("+".join(parts + saved), MAX_NAME_LETTERS - len(end)) + end


def _cut(name: str, letters: int) -> str:
    """Return the name cut to `letters`, and to MAX_NAME_BYTES: a Chinese letter takes three bytes."""
    return os.fsencode(name[:letters])[:MAX_NAME_BYTES].decode(errors="ignore")


def _read_saved(paths: list[str]) -> list[tuple[saved_probs.SavedProbs, str]]:
    """Read the files of probabilities; return each with its sha256."""
    saved_probs.check_total(paths)
    saved = [read_hashed(path, functools.partial(saved_probs.read, path)) for path in paths]
    for one, _ in saved:
        classes = Classes.from_dict(one.data)
        what = counted(classes.count, classes.task)
        log.info(f"{one.path}: predictions of {count_of(len(one.readable), 'image')}, {what}")
    return saved


def _history(history: Any) -> list[dict[str, Any]]:
    """Return the scores of each epoch; older checkpoints hold them by epoch."""
    return list(history.values()) if isinstance(history, dict) else list(history or [])


def _temperature(opt: argparse.Namespace, networks: list[_Network]) -> float:
    """Return the value of --temperature: none (1), a number, or what `eval.py --calibrate` stored in the checkpoint."""
    if opt.temperature == "none":
        return 1.0
    if opt.temperature != "ckpt":
        return float(opt.temperature)
    if len(opt.load) > 1:
        raise UserError(
            "--temperature ckpt is of one network, not of a mean. `eval.py --calibrate` prints the mean's; "
            "give it as a number."
        )
    stored = networks[0].calibration if networks else None
    if stored is None:
        first = command("eval", {**vars(opt), "temperature": None, "save_probs": None, "calibrate": True})
        raise UserError(f"{opt.load[0]} holds no temperature. First run: {first}")
    _warn_of_other_settings("The temperature was", stored, opt, networks[0])
    return float(stored["temperature"])


def _warn_of_other_settings(what: str, stored: dict[str, Any], opt: argparse.Namespace, network: _Network) -> None:
    """Warn where what a checkpoint stores was fitted with other views, another size, or another fit than now.

    `what`: begins the sentence. Earlier versions did not store size and fit.
    """
    preprocess = network.member.preprocess
    for name, now in (("tta", opt.tta), ("scale", preprocess.scale), ("fit", preprocess.fit)):
        if stored.get(name, now) != now:
            log.warning(f"{what} fitted with --{name} {stored[name]}; now it is {now}.")


def _thresholds(
    opt: argparse.Namespace,
    ensemble: EnsembleFile | None,
    networks: list[_Network],
    saved: list[saved_probs.SavedProbs],
    classes: Classes,
    temperature: float,
) -> list[float] | None:
    """Return the probability of each label from which it counts as predicted; None: 0.5, or classes of another task.

    --threshold comes first. Without it they are those of the file of --ensemble, or those that the only member holds: a
    checkpoint from `eval.py --fit_thresholds`, a file of probabilities from the command that wrote it.
    """
    if ensemble is not None and ensemble.thresholds and classes.task != "multilabel":
        raise UserError(
            f"--ensemble {ensemble.path} holds thresholds, and the task of its members is {classes.task}; "
            "allowed: multilabel. Remove `thresholds` from the file."
        )
    if classes.task != "multilabel" or vars(opt).get("fit_thresholds"):
        return None
    if opt.threshold is not None:
        if len(opt.threshold) not in (1, classes.count):
            raise UserError(
                f"--threshold has {len(opt.threshold)} numbers; allowed: one, or one for each of the "
                f"{classes.count} labels."
            )
        return list(opt.threshold) * (classes.count if len(opt.threshold) == 1 else 1)
    if ensemble is not None and ensemble.thresholds:
        return ensemble.thresholds_at(temperature, classes.count)
    held = {one.member.path: one.thresholds["values"] for one in networks if one.thresholds is not None}
    held |= {one.path: one.thresholds for one in saved if one.thresholds is not None}
    if not held:
        if saved:  # their checkpoint may hold some, with which it is scored
            names = ", ".join(one.path for one in saved)
            log.info(f"Labels count as predicted {describe_thresholds([THRESHOLD])}: {names} holds no thresholds")
        return None
    if len(opt.load) > 1:
        log.warning(
            f"{next(iter(held))} holds thresholds of its own probabilities, not of a mean; labels count from "
            f"{THRESHOLD} on. Try: --threshold"
        )
        return None
    if networks and (stored := networks[0].thresholds) is not None:
        _warn_of_other_settings("The thresholds were", stored, opt, networks[0])
    values = labels_at_temperature(np.array(held[opt.load[0]]), temperature).tolist()
    log.info(f"Labels count as predicted {describe_thresholds(values)}, as {opt.load[0]} says")
    return values


def _check_classes(datas: list[dict[str, Any]], paths: tuple[str, ...]) -> None:
    """Raise UserError where members do not number the same classes in the same way."""
    first = Classes.from_dict(datas[0])
    for one, path in zip(map(Classes.from_dict, datas[1:]), paths[1:], strict=True):
        what = "task" if one.task != first.task else ""
        if one.count != first.count:
            what = what or f"number of {noun(one.task)}"
        if (one.names is None) != (first.names is None):
            what = what or f"{noun(one.task, 1)} names"
        elif not names_agree(one.names, first.names) and one.names and first.names:
            details = describe_difference(first.names, one.names, path, one.task)
            what = what or f"{noun(one.task, 1)} names ({details})"
        if what:
            raise UserError(f"{paths[0]} and {path} differ in their {what}, so their predictions cannot be averaged.")
