"""Recomputes the statistics of batch norm for averaged weights, with images of the training list."""

import argparse
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import dataloader
from network.base_model import BaseModel
from network.loading import build_from_checkpoint, options_from_checkpoint
from options import Options, changed
from tools.average.ingredients import Ingredient
from training.averages import frozen_mask, recompute_batchnorm
from training.setup import frozen_modules
from utils.logger import log, progress
from utils.preprocess import Preprocess
from utils.seen_lists import Seen, entry


class Refresher:
    """Recomputes batch norm as train.py --swa does: in training mode, with the augmented images of one epoch.

    Attributes:
        about: what was done, as plain data: the images and batches, or the reason why nothing is recomputed.
        seen: the list of these images, as utils.seen_lists has it; [] where nothing is recomputed.
    """

    def __init__(
        self,
        opt: argparse.Namespace,
        parts: Sequence[Ingredient],
        device: torch.device,
        images: int,
        train_list: str | None,
    ) -> None:
        """Open the training list, if there is something to recompute.

        Args:
            opt: flags of eval.py. images: how many training images to use, rounded up to whole batches; 0: none.
            train_list: the flag; None: the list that the checkpoints record.

        Raises:
            UserError: there is no training list, or it is unusable.
        """
        self.parts, self.device = parts, device
        model, _ = build_from_checkpoint(parts[0].content, parts[0].path)
        norms = [name for name, module in model.net.named_modules() if _has_statistics(module)]
        self.frozen = _frozen_names(model.net, parts)
        self.loader: dataloader.TrainLoader | None = None
        self.about: dict[str, Any] = {"images": 0}
        self.seen: Seen = []
        reason = ""
        if not norms:
            reason = f"{model.name} has none"
        elif set(norms) <= self.frozen:
            reason = "the runs froze all of them"
        elif not images:
            reason = f"they are those of the checkpoint{'s, averaged' if len(parts) > 1 else ''}"
        if reason:
            self.about |= {"reason": reason}
            log.info(f"No statistics of batch norm are recomputed: {reason}.")
            return
        self.loader = self._open(opt, train_list)
        size = self.loader.sampler.batch_size
        self.batches = min(len(self.loader), -(-images // size))
        self.about = {"images": self.batches * size, "batches": self.batches}
        log.info(f"The statistics of batch norm are recomputed with {self.batches * size} training images.")

    def _open(self, opt: argparse.Namespace, train_list: str | None) -> dataloader.TrainLoader:
        content = self.parts[0].content
        data = content["data"]
        flags = changed(opt, train_list=train_list)
        known = {part.path: part.content["data"].get("lists") for part in self.parts}
        files = dataloader.open_list(flags, "train", drop_missing=True, known=known, task=data.get("task", "single"))
        dataloader.warn_changed(files, "train", {part.path: part.content["data"] for part in self.parts})
        self.seen = [entry(files.source, files.fingerprint(), data.get("task", "single"))]
        trained = options_from_checkpoint(content, data["num_classes"], content["model"])
        assert isinstance(trained, Options)
        # The epoch decides the order of the images, their augmentation, and the stage of --scale_schedule.
        self.epoch = max(1, *(part.content.get("epoch", 1) for part in self.parts))
        own = {name: getattr(opt, name) for name in ("workers", "gpu", "batch_size", "loader", "max_pixels")}
        own |= {"epochs": self.epoch, "cache": "none", "debug": False}
        return dataloader.train_loader(trained.replace(**own), files, Preprocess.from_dict(data["preprocess"]))

    def __call__(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `weights`, {name: tensor}, with new statistics, on the CPU; the same where nothing is recomputed."""
        if self.loader is None:
            return weights
        content = {**self.parts[0].content, "weights": weights}
        model, _ = build_from_checkpoint(content, "the average")
        model.to_device(self.device)
        model.set_precision(_precision(content, self.device))
        held = [module for name, module in model.net.named_modules() if name in self.frozen]
        with torch.no_grad(), model.autocast():
            recompute_batchnorm(model.net, self._images(model), frozen_mask(model.net, held))
        found = model.net.state_dict()
        return {name: found[name].cpu().contiguous().clone() for name in weights}

    def _images(self, model: BaseModel) -> Iterator[Tensor]:
        assert self.loader is not None
        batches = islice(self.loader.batches(self.epoch), self.batches)
        for batch in progress(batches, "statistics of batch norm", self.batches):
            yield model.normalise(batch.image)


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _frozen_names(net: nn.Module, parts: Sequence[Ingredient]) -> set[str]:
    """Return the names of the modules that every run kept in eval mode (--freeze, --fit_head, and what else does)."""
    found: list[set[str]] = []
    for part in parts:
        content = part.content
        opt = options_from_checkpoint(content, content["data"]["num_classes"], content["model"])
        net.requires_grad_(True)  # freeze() decides by it
        frozen = {id(module) for module in frozen_modules(opt, net)}
        found.append({name for name, module in net.named_modules() if id(module) in frozen})
    return set.intersection(*found)


def _precision(content: dict[str, Any], device: torch.device) -> str:
    """Return the precision that the network was trained in, as far as the device has it."""
    precision = str(content["opt"].get("precision_used", "fp32"))
    return "fp32" if precision == "fp16" and device.type == "cpu" else precision
