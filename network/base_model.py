"""What every family shares: the training state around a network, and the one owner of the optimizer's step."""

import argparse
import contextlib
from collections.abc import Iterator
from itertools import islice
from typing import Any, ClassVar

import torch
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from network.backbones import arch_of, head_names
from network.heads import shape_head
from network.precision import choose
from optimizer import get_optimizer, take_up
from optimizer.sam import Sam
from scheduler import get_schedule, span_of
from training.averages import Averages, still_modules
from training.finetune import freeze, rate_scales
from training.guard import Guard, largest_batch
from training.losses import Loss, get_loss
from training.mix import blended, get_mix
from training.wrapping import run_by, share_norm
from utils import distributed
from utils.batch import Batch, to_float
from utils.errors import UserError
from utils.logger import progress
from utils.preprocess import Preprocess
from utils.rng import seed_step

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class BaseModel(nn.Module):
    """A network with its way of training; a family adds `build` and `update`.

    `forward` takes uint8 (B, 3, S, S) images, or floats that are normalised already, and gives logits (B, C).
    """

    _scale: Tensor
    _shift: Tensor
    ARCHS: ClassVar[dict[str, str]] = {}  # of a model of your own: name -> what `build` gets; see backbones.arch_of

    def __init__(self, opt: argparse.Namespace, name: str | None = None) -> None:
        """Build the network alone: no data, no optimizer. `name`, by default opt.model, decides what `build` gets."""
        super().__init__()
        self.opt = opt
        self.name = name or opt.model
        self.net = shape_head(self.build(arch_of(type(self), self.name)), opt)
        config = getattr(self.net, "pretrained_cfg", None) or {}
        self.mean, self.std = tuple(config.get("mean", IMAGENET[0])), tuple(config.get("std", IMAGENET[1]))
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        self.register_buffer("_scale", 1 / (255 * std), persistent=False)
        self.register_buffer("_shift", -mean / std, persistent=False)
        self.dtype: torch.dtype | None = None  # of autocast; None: fp32 throughout
        self.averages: Any = None  # Averages, while training
        self.frozen: list[nn.Module] = []
        self.showing = "raw"  # which weights are the ones to evaluate, and to predict with: "raw", "ema" or "swa"
        self._evaluated: tuple[str, nn.Module] | None = None  # within `evaluating`: which, and its network
        self.step_count = 0
        self.runner: nn.Module | None = (
            None  # what training runs in the network's place: compiled, or for several processes
        )
        self._forwarded = False
        self.grad_norm: Tensor | None = None  # of the last step, before clipping
        self.top1: Tensor | None = (
            None  # of the last batch, the share that the network had right; a scalar on the device
        )
        self._wanted: Tensor | None = None  # what the next logits are to be compared with

    def build(self, arch: str) -> nn.Module:
        """The network of `arch`, with opt.num_classes outputs."""
        raise NotImplementedError(f"{type(self).__module__}: write build(arch), which returns an nn.Module")

    def update(self, batch: Batch) -> Tensor:
        """One training step; returns the loss, a detached scalar on the device."""
        raise NotImplementedError(
            f"{type(self).__module__}: write update(batch); network/ResNeSt/model.py is an example"
        )

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
        """Logits (B, C) of images as `normalise` takes them; in training by way of what --compile and torchrun put in between."""
        run = self.runner if self.training and self.runner is not None else self.net
        self._forwarded = True
        logits = run(self.normalise(images))
        if self.training and self._wanted is not None:
            self._compare(logits.detach())
        return logits

    def _compare(self, logits: Tensor) -> None:
        """Set `top1`; of a blended sample (--mixup, --cutmix) the class with the larger share is the right one."""
        wanted, self._wanted = self._wanted, None
        if wanted is not None and logits.ndim == 2 and len(logits) == len(wanted):
            right = wanted if wanted.ndim == 1 else wanted.argmax(dim=1)
            self.top1 = (logits.argmax(dim=1) == right).float().mean()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context of forward and loss, in the precision that was chosen."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype else contextlib.nullcontext()

    def set_precision(self, precision: str, kept: bool = False) -> str:
        """Choose "fp32", "bf16" or "fp16"; returns what "auto" came to, and `precision_why` says how: see network.precision.choose."""
        precision, self.precision_why = choose(self, precision, kept)
        self.dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        return precision

    @contextlib.contextmanager
    def evaluating(self, which: str | None = None) -> Iterator[nn.Module]:
        """The network to evaluate, in eval mode while the body runs: "raw", "ema" or "swa"; by default `self.showing`.

        Each of hundreds of modules is told so: enter it outside of a loop, within which entering it again costs nothing.
        """
        which = which or self.showing
        before, was = self._evaluated, self.training
        if before is not None and before[0] == which:
            yield before[1]
            return
        self.eval()
        try:
            self._evaluated = which, self._with_weights(which).eval()
            yield self._evaluated[1]
        finally:
            self._evaluated = before
            self.train(was)

    def _with_weights(self, which: str) -> nn.Module:
        return self.net if which == "raw" or self.averages is None else self.averages.net(which)

    def train(self, mode: bool = True) -> "BaseModel":
        """As nn.Module's, but what --freeze holds stays in eval mode, and its batch norm keeps its statistics."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    # -------------------------------------------------------------------------------------------- training

    def setup_training(
        self,
        opt: argparse.Namespace,
        steps_per_epoch: int,
        class_images: list[int] | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        """Frozen layers, optimizer, schedule, scaler, averages, mixing and loss; call it on the device, after weights were loaded.

        Args:
            steps_per_epoch: batches an epoch; the optimizer steps once every opt.accumulate of them, and at the end.
            class_images: training images a class, for the losses of long tails.
            class_names: those of a teacher must be the same.

        Raises:
            UserError: --freeze, --layer_decay, --sam or --swa do not fit this network or this run.
        """
        self.batches = steps_per_epoch
        self.net = share_norm(self.net, opt, self.device)
        self.criterion: Loss = get_loss(opt, class_images, self.device)
        if opt.teacher:
            from training.distill import load_teacher  # it builds networks, and so imports this module

            self.criterion = load_teacher(opt, self, class_names).loss(self.criterion)
        self.mix = get_mix(opt, self.num_classes)
        head = head_names(self.net)
        self.frozen = freeze(self.net, opt.freeze)
        self.optimizer = get_optimizer(self.net, opt, rate_scales(self.net, opt.head_lr, opt.layer_decay), head)
        learning = {name: parameter for name, parameter in self.net.named_parameters() if parameter.requires_grad}
        # AGC leaves the classifier alone (Brock et al., 2021, section 4.1)
        self.clipped = [p for name, p in learning.items() if opt.clip_mode != "agc" or name not in head]
        self.per_epoch = -(-steps_per_epoch // opt.accumulate)  # optimizer steps
        self.schedule = get_schedule(opt.scheduler, span_of(opt, self.per_epoch))
        self.scaler = self._new_scaler()
        self.sam = Sam(self.net, opt.sam) if opt.sam else None
        if opt.sam and self.scaler.is_enabled():
            raise UserError(
                "--sam does not go with fp16, whose scaled gradients it would climb by; give --precision bf16 or fp32."
            )
        if opt.swa and opt.swa > opt.epochs:
            raise UserError(f"--swa {opt.swa} begins after the last epoch, {opt.epochs}; allowed: 1 to {opt.epochs}.")
        self.averages = Averages(self.net, opt)
        self.guard = Guard(self.net, opt.max_nan)
        self.train()
        self.runner = run_by(self.net, opt, self.device)

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images and targets on the device: normalised, and mixed if asked. Seeds the randomness of this step."""
        seed_step(self.opt.seed, batch.epoch, batch.step)
        self._batch = batch
        if isinstance(self.runner, DistributedDataParallel):  # gradients travel once a step, not once a batch
            self.runner.require_backward_grad_sync = self.between_steps(batch.step + 1)
        images, labels = (tensor.to(self.device, non_blocking=True) for tensor in (batch.image, batch.label))
        images, targets = blended(self.mix, images, labels, self.normalise, alone=self.runner is None)
        if distributed.rank():  # blended alike; dropout differs
            seed_step(self.opt.seed, batch.epoch, batch.step, distributed.rank())
        if self.sam is None or not self.sam.away:  # the second pass of --sam has other weights
            self._wanted, self.top1 = targets, None
        if self.opt.teacher:
            self.criterion.images = images  # type: ignore[attr-defined]  # what the teacher is to look at
        return images, targets

    def step(self, loss: Tensor) -> None:
        """Backward; every opt.accumulate batches (and at an epoch's end) clip, step the optimizer, average the weights.

        With --sam the first call of a batch climbs and runs `update` again, under the same seed; the call in there steps.
        """
        place = self._batch.step
        first = place // self.opt.accumulate * self.opt.accumulate
        share = min(self.opt.accumulate, self.batches - first)
        if self.runner is not None and not self._forwarded:
            raise UserError(
                f"{type(self).__module__}: update() calls self.net(images), which torchrun and --compile miss: self(images)."
            )
        self._forwarded = False
        self.scaler.scale(loss / share).backward()
        if not self.between_steps(place + 1):
            return
        if self.sam is not None:
            if not self.sam.away:
                self.sam.climb()
                self.update(self._batch)
                return
            self.sam.back()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate() * group["lr_scale"]
        self.scaler.unscale_(self.optimizer)
        self.grad_norm = nn.utils.get_total_norm([p.grad for p in self.net.parameters() if p.grad is not None])
        if self.guard.passes(self, self.grad_norm, self._batch):
            if self.opt.clip_grad is not None:
                dispatch_clip_grad(self.clipped, self.opt.clip_grad, self.opt.clip_mode)
            self.scaler.step(self.optimizer)
            self.averages.after_step(self.net, self.step_count + 1)
        self.scaler.update()
        self.zero_gradients()
        self.step_count += 1

    def between_steps(self, done: int) -> bool:
        """Whether, after `done` batches of an epoch, no gradient is waiting for more."""
        return done % self.opt.accumulate == 0 or done == self.batches

    def zero_gradients(self) -> None:
        """Let go of the gradients, and of what a step of --sam that was given up kept."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.sam is not None and self.sam.away:
            self.sam.back()

    def largest_batch(self, batch: Batch) -> int | None:
        """Return how many images of `batch` fit into memory, after a torch.OutOfMemoryError; None: not even two. See training.guard."""
        return largest_batch(self, batch)

    def end_epoch(self, epoch: int, loader: Any) -> None:
        """Average the weights, from epoch opt.swa on; after the last epoch, take the average's batch-norm statistics.

        All processes call it. Where nothing is ever validated (--val_freq 0), the model shows an average from now on, if there is one.

        `loader`: dataloader.TrainLoader; the statistics are those of epoch `epoch`'s images, anew.
        """
        if self.opt.swa and epoch >= self.opt.swa:
            self.showing = "raw" if self.showing == "swa" else self.showing
            self.averages.after_epoch(self.net)
            if epoch == self.opt.epochs:
                batches = progress(islice(loader.batches(epoch), self.batches), "statistics of --swa", self.batches)
                with self.autocast():
                    self.averages.finish_swa(
                        (self.normalise(batch.image) for batch in batches), still_modules(self.net, self.frozen)
                    )
        for which in self.averages.names():  # what is validated is what process 0 saves
            distributed.broadcast_buffers(self._with_weights(which))
        if not self.opt.val_freq:
            self.showing = self.averages.names()[-1]

    def _new_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def learning_rate(self) -> float:
        """The rate of the next optimizer step."""
        return self.opt.lr * self.schedule(self.step_count)

    # -------------------------------------------------------------------------------------------- state

    def state(self) -> dict[str, Any]:
        """This model's part of a checkpoint, as tensors and plain data.

        `weights`; `ema` and `swa` (None without); `showing`, which of the three to predict with; and `training`.
        """
        averages = self.averages
        training = {
            "step": self.step_count,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        training["swa"] = averages.swa_state()
        training["skipped"] = self.guard.skipped
        return {"weights": self.net.state_dict(), **averages.state(), "showing": self.showing, "training": training}

    def load_state(self, content: dict[str, Any]) -> None:
        """Take up training where `state()` was called; call it after setup_training, with the weights loaded."""
        training = content["training"]
        self.guard.skipped = training.get("skipped", 0)
        # at an epoch's begin by the epochs, which may have another number of steps from here on (-b, or another list)
        between = "epoch" in content and not content.get("within")
        self.step_count = content["epoch"] * self.per_epoch if between else training["step"]
        self.zero_gradients()  # of a step that was given up
        self.guard.remember()
        take_up(self.optimizer, training["optimizer"], self.opt)
        self.scaler = self._new_scaler()  # the old one may be within a step that was given up
        if training["scaler"]:  # {} of a run that was not in fp16
            self.scaler.load_state_dict(training["scaler"])
        self.averages.load_state(content)
        self.showing = content["showing"] if content.get("showing") in self.averages.names() else "raw"
