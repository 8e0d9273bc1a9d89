"""From checkpoints to probabilities: one network or several, one view or many."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from network.backbones import head_names
from network.base_model import BaseModel
from network.distill import Teacher
from network.loading import check_name, load_into, plain_classes, rebuild_options
from network.tta import get_views, pool
from utils import checkpoint, processes
from utils.errors import UserError
from utils.logger import log, progress
from utils.metrics import MOST_FLOATS, TINY, Predictions, Rows
from utils.preprocess import Preprocess


@dataclass(frozen=True)
class Member:
    """One network of an ensemble, how its images are prepared, and its weight in the mean."""

    model: BaseModel
    way: Preprocess
    weight: float = 1.0


class Predictor:
    """Probabilities of the classes: the weighted mean over members, of the mean over each one's views.

    `ways` are the distinct preparations of an image that some view wants; `dataloader.eval_loader(opt, files,
    predictor.ways)` gives batches that hold one tensor for each.
    """

    def __init__(self, members: Sequence[Member], tta: str = "none") -> None:
        self.members = list(members)
        self.views = [get_views(tta, member.way) for member in self.members]
        self.ways = tuple(dict.fromkeys(view.way for views in self.views for view in views))
        self.total = sum(member.weight for member in self.members)
        self.temperature = 1.0  # of the mean: softmax(log p / T), which for one network is softmax(logits / T)

    @torch.inference_mode()
    def __call__(self, images: tuple[Tensor, ...]) -> Tensor:
        """uint8 (B, 3, S, S) for each of `ways` -> float32 (B, C) on the device, rows summing to 1."""
        device = self.members[0].model.device
        moved = {way: image.to(device, non_blocking=True) for way, image in zip(self.ways, images, strict=True)}
        blend = torch.zeros((), device=device)
        for member, views in zip(self.members, self.views, strict=True):
            model = member.model
            with model.evaluating() as net, model.autocast():
                logits = [net(model.normalise(view.change(moved[view.way]))) for view in views]
            blend = blend + pool([one.float().softmax(dim=1) for one in logits]) * (member.weight / self.total)
        return blend if self.temperature == 1 else (blend.clamp_min(TINY).log() / self.temperature).softmax(dim=1)


def predict(
    predictor: Predictor, loader: Any, keep: bool = False, rows: NDArray[np.int64] | None = None
) -> tuple[Predictions, NDArray[np.float16] | None]:
    """Run the predictor over a loader of EvalBatch.

    Args:
        rows: int64 (M,), ascending; of these images (places in the order of the loader) whole rows go into Predictions.rows.

    Returns:
        The predictions, and with `keep` all probabilities, float16 (N, C), NumPy; else None. Unreadable images are
        named in the log, and their rows hold no prediction worth having: see Predictions.readable.
    """
    columns: list[tuple[torch.Tensor, ...]] = []
    kept = []
    whole = _Whole(rows)
    for batch in progress(loader, "evaluating", len(loader)):
        for _, reason in batch.bad:
            log.warning(f"unreadable, counts in no score: {reason}")
        probability = predictor(batch.images)
        top = probability.topk(min(5, probability.shape[1]))
        label = batch.label.to(probability.device, non_blocking=True)
        true = probability.gather(1, label.clamp_min(0)[:, None])[:, 0]
        columns.append((batch.index, batch.label, top.indices, top.values, true, batch.readable))
        whole.add(probability)
        if keep:
            kept.append(probability.half().cpu())
    joined = processes.gather_rows([torch.cat(column).cpu().numpy() for column in zip(*columns, strict=True)])
    predictions = Predictions(*joined)  # type: ignore[arg-type]
    predictions.rows = whole.rows()
    return predictions, torch.cat(kept).numpy() if keep else None


class _Whole:
    """Gathers whole rows of probabilities as the batches pass."""

    def __init__(self, wanted: NDArray[np.int64] | None) -> None:
        self.wanted, self.passed, self.parts = wanted, 0, [np.zeros((0, 0), np.float32)]

    def add(self, probability: Tensor) -> None:
        """Keep what is wanted of the next batch, float32 (B, C)."""
        if self.wanted is not None:
            first, end = np.searchsorted(self.wanted, (self.passed, self.passed + len(probability)))
            places = torch.from_numpy(self.wanted[first:end] - self.passed).to(probability.device)
            self.parts.append(probability[places].cpu().numpy())
            self.passed += len(probability)

    def rows(self) -> Rows | None:
        """What was gathered; None where nothing was wanted."""
        if self.wanted is None:
            return None
        parts = self.parts[1:]
        probability = np.concatenate(parts) if parts else self.parts[0]
        return Rows(self.wanted[: len(probability)], probability)


def whole_rows(count: int, num_classes: int, sample: bool, seed: int = 0) -> NDArray[np.int64] | None:
    """Of which of `count` images to keep every probability: all, while that is MOST_FLOATS; else none, or a drawn `sample`."""
    if count * num_classes <= MOST_FLOATS:
        return np.arange(count)
    if not sample:
        return None
    drawn = np.random.default_rng([seed, 5]).choice(count, max(1, MOST_FLOATS // num_classes), replace=False)
    return np.sort(drawn)


@dataclass(frozen=True)
class Loaded:
    """What `load_predictor` found: the predictor, the checkpoints' `data` (classes), a name for the results, and for a
    single checkpoint its `history` of training.
    """

    predictor: Predictor
    data: dict
    name: str
    history: list[dict] = field(default_factory=list)


def load_predictor(opt: argparse.Namespace, device: torch.device) -> Loaded:
    """Build the networks of all opt.load from their checkpoints alone, on `device`.

    --scale and --fit override the preprocessing that a checkpoint holds; --precision its precision.

    Raises:
        UserError: a checkpoint is missing, damaged, or of another model; or they disagree about the classes.
    """
    weights = opt.weights or [1.0] * len(opt.load)
    members, datas, epochs, contents = [], [], [], []
    for path, weight in zip(opt.load, weights, strict=True):
        content = checkpoint.load(path)
        model, data = _rebuild(content, path, opt)
        model.place(device)
        precision = opt.precision if opt.precision != "auto" else content.get("opt", {}).get("precision_used", "auto")
        model.set_precision(_usable(precision, device))
        way = Preprocess.from_dict(data["preprocess"]) if "preprocess" in data else model.preprocess()
        way = replace(way, scale=opt.scale or way.scale, fit=opt.fit or way.fit)
        members.append(Member(model, way, weight))
        datas.append(data)
        epochs.append(str(content.get("epoch", "weights")))
        contents.append({key: content.get(key) for key in ("history", "calibration")})
        log.info(f"{path}: {model.name}, epoch {epochs[-1]}, {data['num_classes']} classes, {way.scale} px ({way.fit})")
    _check_agree(datas, opt.load)
    predictor = Predictor(members, opt.tta)
    predictor.temperature = _temperature(opt, [content["calibration"] for content in contents])
    return Loaded(predictor, datas[0], "+".join(epochs), _history(contents))


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
    if len(stored) > 1:
        raise UserError(
            "--temperature ckpt is of one network, not of a mean. `eval.py --calibrate` prints the mean's; give it as a number."
        )
    if stored[0] is None:
        raise UserError(f"{opt.load[0]} holds no temperature. First run: python eval.py --load {opt.load[0]} --calibrate")
    if stored[0]["tta"] != opt.tta:
        log.warning(f"The temperature was fitted with --tta {stored[0]['tta']}; now it is {opt.tta}.")
    return float(stored[0]["temperature"])


def load_teacher(opt: argparse.Namespace, student: BaseModel) -> Teacher:
    """The network of --teacher, on the student's device and in its precision. Raises UserError where it does not fit."""
    model, _ = _rebuild(checkpoint.load(opt.teacher), opt.teacher, argparse.Namespace(model=None))
    model.place(student.device)
    model.dtype = student.dtype
    model.requires_grad_(False)
    return Teacher(model, opt, student)


def _rebuild(content: dict, path: str, opt: argparse.Namespace) -> tuple[BaseModel, dict]:
    """The network of a checkpoint, or of a plain state dict and --model; and the checkpoint's `data`."""
    from network import get_model  # the registry imports this module

    check_name(content, opt.model, path)
    name = content.get("model") or opt.model
    if name is None:
        raise UserError(f"{path} is a plain state dict and does not say which network it is of. Add --model NAME.")
    data = content.get("data")
    if data is None:
        head = head_names(get_model(name)(rebuild_options(content, 2, name)).net)
        data = {"num_classes": plain_classes(content, head), "class_names": None, "class_images": None}
    model = get_model(name)(rebuild_options(content, data["num_classes"], name))
    load_into(model, content, path)
    return model.eval(), data


def _usable(precision: str, device: torch.device) -> str:
    """fp16 is CUDA's; a checkpoint that was trained so is evaluated in fp32 on a CPU."""
    return "fp32" if precision == "fp16" and device.type == "cpu" else precision


def _check_agree(datas: list[dict], paths: list[str]) -> None:
    for data, path in zip(datas[1:], paths[1:], strict=True):
        for key, what in (("num_classes", "number of classes"), ("class_names", "class names")):
            if data[key] != datas[0][key]:
                raise UserError(f"{paths[0]} and {path} differ in their {what}, so their predictions cannot be averaged.")
