"""From checkpoints to probabilities: one network or several, one view or many."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from network.backbones import head_names
from network.base_model import BaseModel
from network.distill import Teacher, same_names
from network.folding import quicken
from network.loading import check_name, load_into, plain_classes, rebuild_options
from network.tta import get_views, pool
from utils import checkpoint, processes, saved_probs
from utils.blend import combine
from utils.errors import UserError
from utils.logger import log, progress
from utils.metrics import MOST_FLOATS, TINY, Predictions, Rows
from utils.preprocess import Preprocess

# Pixels of a forward pass. CPU: 8 images of 224 px, whose activations stay near the cache; measured, batches of 64 are
# 10 to 25 % slower an image. CUDA: 128 of them, so that the views of a small batch fill the card.
CPU_PIXELS, GPU_PIXELS = 8 * 224**2, 128 * 224**2


@dataclass(frozen=True)
class SavedMember:
    """Probabilities of every image of the list, float16 or float32 (N, C), from a file, and their weight."""

    probability: NDArray[Any]
    weight: float = 1.0


@dataclass(frozen=True)
class Member:
    """One network of an ensemble, how its images are prepared, and its weight in the mean."""

    model: BaseModel
    way: Preprocess
    weight: float = 1.0


class Predictor:
    """Probabilities of the classes: those of the members, each the mean over its views, blended.

    `ways` are the distinct preparations of an image that some view wants; `dataloader.eval_loader(opt, files,
    predictor.ways)` gives batches that hold one tensor for each. `members` are the networks, `saved` what files hold.
    """

    def __init__(self, members: Sequence[Member], tta: str = "none", blend: str = "mean", saved: Sequence[SavedMember] = ()) -> None:
        self.members, self.saved, self.blend = list(members), list(saved), blend
        self.views = [get_views(tta, member.way) for member in self.members]
        self.ways = tuple(dict.fromkeys(view.way for views in self.views for view in views))
        self.weights = [member.weight for member in self.members] + [one.weight for one in self.saved]
        self.temperature = 1.0  # of the blend: softmax(log p / T), which for one network is softmax(logits / T)
        self.known: Tensor | None = None  # bool (N,): for which images of the list every saved member has a row worth having

    def readable(self, batch: Any) -> Tensor:
        """bool (B,): the images of an EvalBatch that all members could read."""
        return batch.readable if self.known is None else batch.readable & self.known[batch.index]

    @torch.inference_mode()
    def each(self, images: tuple[Tensor, ...], index: Tensor | None = None) -> Tensor:
        """uint8 (B, 3, S, S) for each of `ways`, and places in the list (B,) for `saved` -> float32 (M, B, C), networks first."""
        device = self.members[0].model.device if self.members else torch.device("cpu")
        moved = {way: image.to(device, non_blocking=True) for way, image in zip(self.ways, images, strict=True)}
        found = []
        for member, views in zip(self.members, self.views, strict=True):
            logits = _logits(member.model, [view.change(moved[view.way]) for view in views])
            if self.blend == "logits":  # the views too
                found.append(torch.stack(logits).mean(dim=0).softmax(dim=1))
            else:
                found.append(pool([one.softmax(dim=1) for one in logits]))
        for one in self.saved:
            assert index is not None, "saved probabilities are found by an image's place"
            found.append(torch.from_numpy(one.probability[index.numpy()].astype(np.float32)).to(device))
        return torch.stack(found)

    def __call__(self, images: tuple[Tensor, ...], index: Tensor | None = None) -> Tensor:
        """As `each`, blended: float32 (B, C) on the device, rows summing to 1."""
        each = self.each(images, index)
        weights = torch.tensor(self.weights, device=each.device)
        blend = combine(each, weights / weights.sum(), self.blend)
        return blend if self.temperature == 1 else (blend.clamp_min(TINY).log() / self.temperature).softmax(dim=1)


def _logits(model: BaseModel, shown: list[Tensor]) -> list[Tensor]:
    """Logits, float32 (B, C), of each of `shown`, uint8 (B, 3, S, S); those of one size share passes of a good size."""
    places: dict[int, list[int]] = {}
    for k, images in enumerate(shown):
        places.setdefault(images.shape[-1], []).append(k)
    found: dict[int, Tensor] = {}
    with model.evaluating() as net, model.autocast():
        for side, group in places.items():
            images = torch.cat([shown[k] for k in group]) if len(group) > 1 else shown[group[0]]
            most = max(len(shown[0]), GPU_PIXELS // side**2) if images.is_cuda else max(1, CPU_PIXELS // side**2)
            logits = torch.cat([net(model.normalise(part)).float() for part in images.split(most)])
            found.update(zip(group, logits.chunk(len(group)), strict=True))
    return [found[k] for k in range(len(shown))]


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
        probability = predictor(batch.images, batch.index)
        top = probability.topk(min(5, probability.shape[1]))
        label = batch.label.to(probability.device, non_blocking=True)
        true = probability.gather(1, label.clamp_min(0)[:, None])[:, 0]
        columns.append((batch.index, batch.label, top.indices, top.values, true, predictor.readable(batch)))
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
    """What `load_predictor` found: the predictor, the checkpoints' `data` (classes), a name for the results, for a single
    checkpoint its `history` of training, and the files of the members, in the order of `predictor.weights`.
    """

    predictor: Predictor
    data: dict
    name: str
    history: list[dict] = field(default_factory=list)
    paths: tuple[str, ...] = ()


def load_predictor(opt: argparse.Namespace, device: torch.device, files: Any = None) -> Loaded:
    """Build the networks of all opt.load from their checkpoints alone, on `device`; read those that are .npz for `files`.

    --scale and --fit override the preprocessing that a checkpoint holds; --precision its precision.

    Raises:
        UserError: a checkpoint is missing, damaged, or of another model; or they disagree about the classes.
    """
    weights = opt.weights or [1.0] * len(opt.load)
    pairs = sorted(zip(opt.load, weights, strict=True), key=lambda pair: pair[0].endswith(".npz"))  # stable: networks first
    members, datas, epochs, contents = [], [], [], []
    for path, weight in (pair for pair in pairs if not pair[0].endswith(".npz")):
        content = checkpoint.load(path)
        model, data = _rebuild(content, path, opt)
        precision = opt.precision if opt.precision != "auto" else content.get("opt", {}).get("precision_used", "auto")
        way = Preprocess.from_dict(data["preprocess"]) if "preprocess" in data else model.preprocess()
        way = replace(way, scale=opt.scale or way.scale, fit=opt.fit or way.fit)
        chosen = quicken(model, way, opt, _usable(precision, device), device)
        members.append(Member(model, way, weight))
        datas.append(data)
        epochs.append(str(content.get("epoch", "weights")))
        log.info(f"{path}: {model.name}, epoch {epochs[-1]}, {data['num_classes']} classes, {way.scale} px ({way.fit}), {chosen}")
        contents.append({key: content.get(key) for key in ("history", "calibration")})
    saved = _read_saved(pairs[len(members) :], files)
    paths = tuple(path for path, _ in pairs)
    datas += [one.data for one in saved]
    _check_agree(datas, list(paths))
    rows = [SavedMember(one.probability, weight) for one, (_, weight) in zip(saved, pairs[len(members) :], strict=True)]
    predictor = Predictor(members, opt.tta, opt.blend, rows)
    predictor.temperature = _temperature(opt, [content["calibration"] for content in contents])
    if saved:
        predictor.known = torch.from_numpy(np.logical_and.reduce([one.readable for one in saved]))
    name = "+".join(epochs + [Path(one.path).stem for one in saved])[:100]
    return Loaded(predictor, datas[0], name, _history(contents), paths)


def _read_saved(pairs: list[tuple[str, float]], files: Any) -> list[saved_probs.SavedProbs]:
    """The files of probabilities, each checked to be of the list `files`."""
    found = [saved_probs.read(path) for path, _ in pairs]
    wanted = saved_probs.list_hash(files) if found else ""
    for one in found:
        saved_probs.check_list(one, files, wanted)
        log.info(f"{one.path}: probabilities of {len(one.probability)} images, {one.data['num_classes']} classes")
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
        raise UserError(f"{opt.load[0]} holds no temperature. First run: python eval.py --load {opt.load[0]} --calibrate")
    if stored[0]["tta"] != opt.tta:
        log.warning(f"The temperature was fitted with --tta {stored[0]['tta']}; now it is {opt.tta}.")
    return float(stored[0]["temperature"])


def load_teacher(opt: argparse.Namespace, student: BaseModel, class_names: list[str] | None = None) -> Teacher:
    """The network of --teacher, on the student's device and in its precision. Raises UserError where it does not fit."""
    model, data = _rebuild(checkpoint.load(opt.teacher), opt.teacher, argparse.Namespace(model=None))
    model.place(student.device)
    model.dtype = student.dtype
    model.requires_grad_(False)
    same_names(data["class_names"], class_names, opt.teacher)
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
