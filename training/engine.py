"""The engine: what happens to one batch, from its images on the CPU to the optimizer's step.

    engine = build_engine(opt, model, batches_per_epoch)      # training/setup.py
    result = engine.train_step(batch)                       # moves, normalises, mixes, and calls the model's `update`
    model.update(images, targets, step)                     # network/<family>/model.py: forward, loss, step(loss)
    engine.descend(batch, loss)                             # backward, clip, optimizer.step()

A steady step reads nothing back from the device. `settle` looks at its outcome one step later.
"""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from network.base_model import BaseModel
from optimizer import OptimizerSettings, load_optimizer_state
from optimizer.sam import SAM
from training.averages import Averages, frozen_mask
from training.clipping import clip_gradients
from training.distill import DistilledTargets, Teacher
from training.guard import Diverged, NonFiniteGuard, Skip, explain_non_finite
from training.length import RunLength
from training.lora import Adapters
from training.losses import Loss
from training.mix import Mix, mix_batch
from training.own_loss import first_update
from utils import distributed
from utils.batch import Batch
from utils.errors import UserError
from utils.logger import log, progress
from utils.rng import seed_batch
from utils.tensors import buffers_kept

if TYPE_CHECKING:
    from dataloader import TrainLoader

Targets = Tensor | DistilledTargets


@dataclass(frozen=True)
class StepSettings:
    """The numbers that the engine steps by.

    Attributes:
        seed: of the draws of a batch: mixing, dropout.
        lr: the learning rate that the schedule multiplies by its factor.
        batches_per_epoch: those that one process trains.
        accumulate: batches per optimizer step.
        clip_grad: the largest norm, value or ratio of a gradient, as `clip_mode` says; None: no limit.
        clip_mode: "norm", "value" or "agc"; see clip_gradients.
        sam_radius: 0 without --sam.
        max_nonfinite_steps: how many steps in a row may be skipped; 0 looks at no gradient.
        mix_off: the last share of the run, in which nothing is mixed.
        swa_start: the first epoch that --swa averages.
        counts_right: whether the largest logit is the predicted class, so that top-1 can be counted.
        validated: whether epochs are validated; if not, an average predicts, if there is one.
    """

    seed: int
    lr: float
    batches_per_epoch: int
    accumulate: int = 1
    clip_grad: float | None = None
    clip_mode: str = "norm"
    sam_radius: float = 0.0
    max_nonfinite_steps: int = 0
    mix_off: float = 0.0
    swa_start: int | None = None
    counts_right: bool = True
    validated: bool = True


@dataclass(frozen=True)
class Parts:
    """What the engine drives; `training.setup.build_engine` makes it from the options.

    Attributes:
        criterion: the loss of (logits, targets).
        optimizer_settings: what `optimizer` was built from.
        length: how long the run is; it holds the schedule of the learning rate.
        averages: those of the weights, for --ema and --swa.
        clip_params: the parameters that --clip_grad clips.
        mix: mixes the images of a batch, or None.
        teacher: gives further targets, or None.
        train_net: what training runs instead of the network (compiled, or one of several processes); None: the network.
        recomputes: whether the backward pass runs parts of the forward pass once more (--checkpoint_grad).
        adapters: what the layers of the network have with --lora, or None.
    """

    criterion: Loss
    optimizer: torch.optim.Optimizer
    optimizer_settings: OptimizerSettings
    length: RunLength
    averages: Averages
    clip_params: list[nn.Parameter]
    mix: Mix | None = None
    teacher: Teacher | None = None
    train_net: nn.Module | None = None
    recomputes: bool = False
    adapters: Adapters | None = None


class StepResult(NamedTuple):
    """What a batch gave, on the device.

    Attributes:
        loss: a detached scalar.
        top1: the share of the images that are classified correctly, or None.
    """

    loss: Tensor
    top1: Tensor | None


class Engine:
    """Owns the training of one network: its steps, the optimizer, the averages, and what a checkpoint keeps of them.

    Attributes:
        step_count: optimizer steps so far, skipped ones included.
        grad_norm: that of the last step, before clipping, a scalar on the device.
        active_weights: "raw", "ema" or "swa", the weights to predict with: the best of the last validation.
        on_gradients: called before each step's gradients are clipped; or None.
        watches_loss: whether the next step looks if the model uses its criterion; the first one does.
    """

    def __init__(self, model: BaseModel, settings: StepSettings, parts: Parts) -> None:
        self.model, self.settings = model, settings
        self.optimizer, self.optimizer_settings = parts.optimizer, parts.optimizer_settings
        self.length, self.averages, self.clip_params = parts.length, parts.averages, parts.clip_params
        self.schedule = parts.length.factor
        self.mix, self.teacher, self.train_net = parts.mix, parts.teacher, parts.train_net
        self.recomputes, self.adapters = parts.recomputes, parts.adapters
        self.fused = bool(getattr(parts.optimizer, "_step_supports_amp_scaling", False))
        self.scaler = self._new_scaler()
        self.sam = SAM(model.net, settings.sam_radius) if settings.sam_radius else None
        self.guard = NonFiniteGuard(model.net, settings.max_nonfinite_steps, model.device)
        self.step_count = 0
        self.grad_norm: Tensor | None = None
        self.on_gradients: Callable[[], None] | None = None
        self.active_weights = "raw"
        self.watches_loss = True
        self._in_step: list[Batch] = []  # the batches of the step that is being accumulated
        self._unsettled: list[Batch] = []  # those of the last step, until `settle`
        self._ran_train_net = False
        self._copy_stream = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None
        model.criterion = parts.criterion
        model.train_net = None if self.train_net is None else self._run_train_net
        model.train()

    # ------------------------------------------------------------------------------------------------ one step

    def train_step(self, batch: Batch) -> StepResult:
        """Train on one batch. With --sam it passes twice, and the result is that of the first pass."""
        images, targets = self.prepare(batch)
        step = self.descend if self.sam is None else self.ascend
        update = functools.partial(first_update, self.model) if self.watches_loss else self.model.update
        self.watches_loss = False
        loss, logits = update(images, targets, functools.partial(step, batch))
        if self.sam is not None:
            self.model.update(*self.prepare(batch), functools.partial(self.descend, batch))
        return StepResult(loss, share_right(logits, targets) if self.settings.counts_right else None)

    def prepare(self, batch: Batch) -> tuple[Tensor, Targets]:
        """Seed the randomness of the batch; return images and targets on the device, normalised, and mixed if asked.

        Their shapes are those that BaseModel.update takes.
        """
        seed_batch(self.settings.seed, batch.epoch, batch.number)
        if isinstance(self.train_net, DistributedDataParallel):  # gradients travel once per step, not once per batch
            self.train_net.require_backward_grad_sync = self.is_step_boundary(batch.number + 1)
        images, labels = self._to_device(batch.image, batch.label)
        if labels.dtype == torch.uint8:  # the labels of a multi-label task, a quarter of the size while they travel
            labels = labels.float()
        mix = self.mix if self._mixes(batch) else None
        images, targets = mix_batch(mix, images, labels, self.model.normalise, alone=self.train_net is None)
        if distributed.rank():  # all processes mix alike; their dropout differs
            seed_batch(self.settings.seed, batch.epoch, batch.number, distributed.rank())
        return images, targets if self.teacher is None else self.teacher.distilled(images, targets)

    def ascend(self, batch: Batch, loss: Tensor) -> None:
        """Go backward from `loss`, a scalar, and climb to the weights at which --sam takes the gradient."""
        assert self.sam is not None
        self._backward(batch, loss)
        self.sam.ascend()

    def descend(self, batch: Batch, loss: Tensor) -> None:
        """Go backward from `loss`, a scalar.

        At a step's last batch, clip the gradient and step the optimizer if the gradient is finite.
        """
        self._backward(batch, loss)
        self._in_step.append(batch)
        if not self.is_step_boundary(batch.number + 1):
            return
        if self.sam is not None:
            self.sam.restore()
        self.settle()
        lr = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.scaler.unscale_(self.optimizer)
        if self.on_gradients is not None:
            self.on_gradients()
        self.grad_norm = nn.utils.get_total_norm([p.grad for p in self.model.net.parameters() if p.grad is not None])
        finite = self.guard.check_and_restore(self.grad_norm, self.scaler)
        if self.settings.clip_grad is not None:
            clip_gradients(self.clip_params, self.settings.clip_grad, self.settings.clip_mode)
        if finite is None:
            self.scaler.step(self.optimizer)
        elif self.fused:  # the kernel looks at `found_inf` itself, on the device
            self.optimizer.grad_scale, self.optimizer.found_inf = None, (~finite).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif bool(finite):  # the one read-back of the optimizers that are not fused
            self.optimizer.step()
        self.scaler.update()
        self.zero_gradients()
        self.step_count += 1
        self._in_step, self._unsettled = [], self._in_step
        if finite is None or self.averages.reads_live_buffers:
            self.settle()

    def settle(self) -> None:
        """Update the averages after the last step; if it was skipped, count and explain it.

        By the end of the next step the outcome has arrived on the host, so reading it does not wait. `net`,
        `state_dict` and `end_epoch` settle first, since they need the present state.

        Raises:
            Diverged: --max_nan steps in a row were skipped.
        """
        batches, self._unsettled = self._unsettled, []
        if not batches:
            return
        if self.guard.was_finite():
            self.averages.update_ema(self.model.net, self.step_count, self.guard.kept)
        elif (skip := self.guard.record_skip()) is not Skip.QUIET:
            what = explain_non_finite(self, batches)
            if skip is Skip.GIVE_UP:
                count = self.guard.max_consecutive
                skipped = "1 step was skipped" if count == 1 else f"{count} steps in a row were skipped"
                raise Diverged(f"{what} {skipped}")
            log.warning(f"{what} The step is skipped.")

    def is_step_boundary(self, done: int) -> bool:
        """Return whether, after `done` batches of an epoch, no gradient is waiting for more."""
        return done % self.settings.accumulate == 0 or done == self.settings.batches_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Return how many times an epoch steps the optimizer: once per --accumulate batches, and at its end."""
        return -(-self.settings.batches_per_epoch // self.settings.accumulate)

    def learning_rate(self) -> float:
        """Return the learning rate of the next optimizer step."""
        return self.settings.lr * self.schedule(self.step_count)

    def zero_gradients(self) -> None:
        """Free the gradients, and what an interrupted step of --sam kept."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.sam is not None and self.sam.perturbed:
            self.sam.restore()

    def _backward(self, batch: Batch, loss: Tensor) -> None:
        if self.train_net is not None and not self._ran_train_net:
            raise UserError(
                f"{type(self.model).__module__}: update() calls self.net(images), "
                "which bypasses torchrun and --compile. Call self(images)."
            )
        self._ran_train_net = False
        accumulate = self.settings.accumulate
        first = batch.number // accumulate * accumulate
        in_step = min(accumulate, self.settings.batches_per_epoch - first)
        # The recomputation would count the batch twice in batch norm's statistics. Its layers must not be told to leave
        # them alone instead: torch checks that the recomputation saves the same tensors, and they are among these.
        with buffers_kept(self.model.net) if self.recomputes else contextlib.nullcontext():
            self.scaler.scale(loss / in_step).backward()

    def _mixes(self, batch: Batch) -> bool:
        """Return whether the batch is before the last part of the run, in which --mix_off mixes nothing."""
        return self.length.is_before(1 - self.settings.mix_off, batch)

    def _to_device(self, *tensors: Tensor) -> list[Tensor]:
        """Return copies on the device; on a GPU, a side stream makes them while the previous step still runs."""
        device = self.model.device
        if self._copy_stream is None:
            return [tensor.to(device, non_blocking=True) for tensor in tensors]
        with torch.cuda.stream(self._copy_stream):
            copies = [tensor.to(device, non_blocking=True) for tensor in tensors]
        current = torch.cuda.current_stream(device)
        current.wait_stream(self._copy_stream)
        for copy in copies:
            copy.record_stream(current)  # its memory is free when the step that reads it is over
        return copies

    def _run_train_net(self, images: Tensor) -> Tensor:
        assert self.train_net is not None
        self._ran_train_net = True
        return self.train_net(images)

    # ---------------------------------------------------------------------------------------- epochs and weights

    def available_weights(self) -> list[str]:
        """Return which weights can be evaluated now: "raw", and "ema" and "swa" if they are kept and ready."""
        return self.averages.available()

    def net(self, weights: str) -> nn.Module:
        """Return the network with the weights "raw", "ema" or "swa", to be evaluated; with --lora they are merged."""
        self.settle()
        net = self.model.net if weights == "raw" else self.averages.net(weights)
        return net if self.adapters is None else self.adapters.merged(net)

    def end_epoch(self, epoch: int, loader: "TrainLoader") -> None:
        """Average the weights from the first epoch of --swa on; after the last one, compute batch-norm statistics.

        Every process calls it.

        Args:
            loader: the statistics are those of its images of epoch `epoch`.
        """
        self.settle()
        settings = self.settings
        if settings.swa_start and epoch >= settings.swa_start:
            self.active_weights = "raw" if self.active_weights == "swa" else self.active_weights
            self.averages.update_swa(self.model.net)
            if epoch == self.length.epochs:
                count = settings.batches_per_epoch
                batches = progress(islice(loader.batches(epoch), count), "statistics of --swa", count)
                images = (self.model.normalise(batch.image) for batch in batches)
                with self.model.autocast():
                    self.averages.update_swa_batchnorm(images, frozen_mask(self.model.net, self.model.frozen))
        for weights in self.available_weights():  # what is validated is what the first process saves
            distributed.broadcast_buffers(self.net(weights))
        if not settings.validated:
            self.active_weights = self.available_weights()[-1]

    # ------------------------------------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the training, as tensors and plain data.

        `weights`; `ema` and `swa` (None without); `showing`, which of the three to predict with; and `training`.
        """
        self.settle()
        training = {
            "step": self.step_count,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "swa": self.averages.swa_state(),
            "skipped": self.guard.skipped,
        }
        clock = self.length.state_dict()
        training |= {} if clock is None else {"clock": clock}
        training |= {} if self.teacher is None else {"teacher": self.teacher.identity}
        weights = {"weights": self.net("raw").state_dict(), **self.averages.state_dict()}
        if self.adapters is not None:
            ema = self.averages.ema.module if self.averages.ema is not None else None
            training["lora"] = self.adapters.state_dict(self.model.net, ema)
            weights["ema"] = None if ema is None else self.net("ema").state_dict()
        return {**weights, "showing": self.active_weights, "training": training}

    def load_weights(self, content: dict[str, Any]) -> None:
        """Load the weights of a checkpoint of this run into the network."""
        split = content if self.adapters is None else self.adapters.split(content, self.model.net)
        self.model.net.load_state_dict(split["weights"])

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Continue where `state_dict` was called; the weights themselves are loaded already, except those of --lora.

        Args:
            content: a checkpoint. At an epoch's start the step is counted by epochs, which may have another length now.

        Raises:
            UserError: its optimizer's state or its adapters do not fit.
        """
        training = content["training"]
        if self.adapters is not None:
            content = self.adapters.split(content, self.model.net)
            self.model.net.load_state_dict(content["weights"])
        self._in_step, self._unsettled = [], []  # of a step that was given up
        self.zero_gradients()
        self.guard.skipped = training.get("skipped", 0)
        self.length.load_state_dict(training.get("clock"))
        self.guard.snapshot_buffers()
        at_start = "epoch" in content and not content.get("within")
        self.step_count = content["epoch"] * self.steps_per_epoch if at_start else training["step"]
        load_optimizer_state(self.optimizer, training["optimizer"], self.optimizer_settings)
        self.scaler = self._new_scaler()  # the old one may be within a step that was given up
        if training["scaler"]:  # {} of a run that was not in fp16
            self.scaler.load_state_dict(training["scaler"])
        self.averages.load_state_dict(content, self.model.net)
        showing = content.get("showing")
        self.active_weights = showing if showing in self.available_weights() else "raw"

    def _new_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.model.device.type, enabled=self.model.dtype == torch.float16)


def share_right(logits: Tensor, targets: Targets) -> Tensor | None:
    """Return the share of a batch that the logits (B, C) classify correctly, a scalar on the device.

    It is None for logits of another shape. The class of a mixed sample (--mixup, --cutmix) is the one with the larger
    share.
    """
    labels = targets.labels if isinstance(targets, DistilledTargets) else targets
    if logits.ndim != 2 or len(logits) != len(labels):
        return None
    right = labels if labels.ndim == 1 else labels.argmax(dim=1)
    return (logits.argmax(dim=1) == right).float().mean()
