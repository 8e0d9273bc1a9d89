"""What every family shares: the training state around a network, and the one owner of the optimizer's step."""

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from network.losses import get_loss
from network.mix import get_mix
from optimizer import get_optimizer
from scheduler import Span, get_schedule
from utils.batch import Batch, to_float
from utils.preprocess import Preprocess
from utils.rng import seed_step

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class BaseModel(nn.Module):
    """A network with its way of training; a family adds `build` and `update`.

    `forward` takes uint8 (B, 3, S, S) images, or floats that are normalised already, and gives logits (B, C).
    """

    _scale: Tensor
    _shift: Tensor
    ARCHS: ClassVar[dict[str, str]] = {}  # our name -> the backbone's; a name that is not in it takes the first

    def __init__(self, opt: argparse.Namespace, name: str | None = None) -> None:
        """Build the network alone: no data, no optimizer. `name` (by default opt.model) picks among ARCHS."""
        super().__init__()
        self.opt = opt
        self.name = name or opt.model
        self.net = self.build(self.ARCHS.get(self.name, next(iter(self.ARCHS.values()), self.name)))
        config = getattr(self.net, "pretrained_cfg", None) or {}
        self.mean, self.std = tuple(config.get("mean", IMAGENET[0])), tuple(config.get("std", IMAGENET[1]))
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        self.register_buffer("_scale", 1 / (255 * std), persistent=False)
        self.register_buffer("_shift", -mean / std, persistent=False)
        self.dtype: torch.dtype | None = None  # of autocast; None: fp32 throughout
        self.ema: Any = None
        self.step_count = 0

    def build(self, arch: str) -> nn.Module:
        """The network of `arch`, with opt.num_classes outputs."""
        raise NotImplementedError(f"{type(self).__module__}: write build(arch), which returns an nn.Module")

    def update(self, batch: Batch) -> Tensor:
        """One training step; returns the loss, a detached scalar on the device."""
        raise NotImplementedError(f"{type(self).__module__}: write update(batch); network/ResNeSt/model.py is an example")

    # -------------------------------------------------------------------------------------------- forward

    def place(self, device: torch.device) -> None:
        """Move to `device`, weights in channels_last: convolutions are up to twice as fast so, on CPU and CUDA alike."""
        self.to(device)
        self.to(memory_format=torch.channels_last)

    @property
    def device(self) -> torch.device:
        return self._scale.device

    @property
    def num_classes(self) -> int:
        return 1000 if self.opt.num_classes is None else self.opt.num_classes

    def preprocess(self) -> Preprocess:
        """What evaluation shows this network."""
        return Preprocess(self.opt.scale, self.opt.fit, self.mean, self.std)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 images of any device -> normalised float32 on the network's, channels_last; floats are moved alone."""
        images = images.to(self.device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = to_float(images, self._scale, self._shift)
        return images.contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.normalise(images))

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context of forward and loss, in the precision that was chosen."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype else contextlib.nullcontext()

    def set_precision(self, precision: str) -> str:
        """Choose "fp32", "bf16" or "fp16"; returns what "auto" came to: bf16 or fp16 on CUDA, fp32 on the CPU."""
        if precision == "auto":
            precision = "fp32" if self.device.type == "cpu" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        self.dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        return precision

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """The network to evaluate: the averaged weights where --ema keeps them; in eval mode while the body runs."""
        net = self.ema.module if self.ema is not None else self.net
        was = net.training
        net.eval()
        try:
            yield net
        finally:
            net.train(was)

    # -------------------------------------------------------------------------------------------- training

    def setup_training(self, opt: argparse.Namespace, steps_per_epoch: int) -> None:
        """Optimizer, schedule, scaler, EMA, mixing and loss; call it on the device, after weights were loaded.

        Args:
            steps_per_epoch: batches an epoch; the optimizer steps once every opt.accumulate of them, and at the end.
        """
        self.batches = steps_per_epoch
        self.criterion = get_loss(opt)
        self.mix = get_mix(opt, self.num_classes)
        self.optimizer = get_optimizer(self.net, opt)
        per_epoch = -(-steps_per_epoch // opt.accumulate)
        span = Span(opt.epochs * per_epoch, per_epoch, round(opt.warmup * per_epoch), opt.step_size, opt.min_lr / opt.lr if opt.lr else 0.0)
        self.schedule = get_schedule(opt.scheduler, span)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        if opt.ema:
            from timm.utils import ModelEmaV3

            self.ema = ModelEmaV3(self.net, decay=opt.ema, use_warmup=True)
        self.train()

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images and targets on the device: normalised, and mixed if asked. Seeds the randomness of this step."""
        seed_step(self.opt.seed, batch.epoch, batch.step)
        self._batch = batch.step
        images = self.normalise(batch.image)
        targets = batch.label.to(self.device, non_blocking=True)
        return self.mix(images, targets) if self.mix else (images, targets)

    def step(self, loss: Tensor) -> None:
        """Backward; every opt.accumulate batches (and at an epoch's end) clip, step the optimizer, average the weights."""
        first = self._batch // self.opt.accumulate * self.opt.accumulate
        share = min(self.opt.accumulate, self.batches - first)
        self.scaler.scale(loss / share).backward()
        if self._batch + 1 < first + share:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        if self.opt.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.net.parameters(), self.opt.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_count += 1
        if self.ema is not None:
            self.ema.update(self.net, step=self.step_count)

    def learning_rate(self) -> float:
        """The rate of the next optimizer step."""
        return self.opt.lr * self.schedule(self.step_count)

    # -------------------------------------------------------------------------------------------- state

    def state(self) -> dict[str, Any]:
        """This model's part of a checkpoint: `weights`, `ema` (None without), and `training`, as tensors and plain data."""
        training = {"step": self.step_count, "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        ema = None if self.ema is None else self.ema.module.state_dict()
        return {"weights": self.net.state_dict(), "ema": ema, "training": training}

    def load_state(self, content: dict[str, Any]) -> None:
        """Take up training where `state()` was called; call it after setup_training, with the weights loaded."""
        training = content["training"]
        self.step_count = training["step"]
        self.optimizer.load_state_dict(training["optimizer"])
        self.scaler.load_state_dict(training["scaler"])
        if self.ema is not None and content["ema"] is not None:
            self.ema.module.load_state_dict(content["ema"])
