"""Builds a Predictor from checkpoints and files of probabilities."""

import argparse
import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataloader.file_list import FileList
from evaluation.step_points import Row
from inference import saved_probs
from inference.ensemble_file import EnsembleFile
from inference.members import load_network
from inference.predictor import Predictor, SavedMember
from inference.result_names import folder_name, title_of
from inference.stored_fits import temperature_of, thresholds_of
from inference.task_flags import check_task
from options.choices import TASK_METRICS
from options.wording import count_of
from utils import distributed
from utils.classes import Classes, counted, describe_difference, names_agree, noun
from utils.errors import UserError
from utils.files import read_hashed
from utils.logger import log
from utils.seen_lists import Seen, joined


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
    networks = [load_network(path, weight, opt, device) for path, weight in network_pairs]
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
    predictor.temperature = temperature_of(opt, networks)
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
        name=folder_name(opt, networks, [Path(one.path).stem for one in saved]),
        title=title_of(networks, saved),
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
        thresholds=thresholds_of(opt, ensemble, networks, saved, Classes.from_dict(data), predictor.temperature),
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


def _read_saved(paths: list[str]) -> list[tuple[saved_probs.SavedProbs, str]]:
    """Read the files of probabilities; return each with its sha256."""
    saved_probs.check_total(paths)
    saved = [read_hashed(path, functools.partial(saved_probs.read, path)) for path in paths]
    for one, _ in saved:
        classes = Classes.from_dict(one.data)
        what = counted(classes.count, classes.task)
        log.info(f"{one.path}: predictions of {count_of(len(one.readable), 'image')}, {what}")
    return saved


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
