"""The members of a prediction that are networks, each built from its checkpoint."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from evaluation.step_points import Row, rows_of
from inference.folding import optimize_for_inference
from inference.predictor import Member
from inference.tta import get_views, warn_of_unknown_views
from network.base_model import BaseModel
from network.loading import build_from_checkpoint, warn_without_cut_points
from network.sizes import check_size, own_size
from utils import checkpoint, weight_sources
from utils.classes import Classes, counted
from utils.files import read_hashed
from utils.logger import log
from utils.preprocess import Preprocess
from utils.seen_lists import Seen, seen_lists


@dataclass(frozen=True)
class LoadedNetwork:
    """A network, and what its checkpoint says beside the weights."""

    member: Member
    sha256: str  # of the file
    identity: str  # sha256 of what decides its predictions
    data: dict[str, Any]
    tag: str
    epoch: str  # "weights": a plain state dict, which has none
    history: list[dict[str, Any]]  # scores per epoch
    points: list[Row]  # by step, as in steps.csv
    calibration: dict[str, Any] | None  # of eval.py --calibrate
    thresholds: dict[str, Any] | None  # of eval.py --fit_thresholds
    metric: str  # the one that chose the best epoch
    weights_alone: bool  # whether it is a plain state dict
    seen: Seen
    cache: str  # --cache of its run


def load_network(path: str, weight: float, opt: argparse.Namespace, device: torch.device) -> LoadedNetwork:
    """Build the network of the checkpoint `path` on `device`, and log what it is.

    Raises:
        UserError: as utils.checkpoint.load and build_member.
    """
    content, sha256 = read_hashed(weight_sources.locate(path)[0], lambda: checkpoint.load(path))
    identity = checkpoint.identity(content)
    member, data, chosen = build_member(content, path, opt, device, weight)
    trained = content.get("opt", {})
    history, curves = _history(content.get("history")), content.get("curves")
    network = LoadedNetwork(
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


def _history(history: Any) -> list[dict[str, Any]]:
    """Return the scores of each epoch; older checkpoints hold them by epoch."""
    return list(history.values()) if isinstance(history, dict) else list(history or [])
