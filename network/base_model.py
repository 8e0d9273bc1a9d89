"""What every family shares: a network, how images reach it, and in which precision it runs.

training/engine.py trains it.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from network.backbones import arch_of
from network.heads import apply_head_and_pool
from network.precision import TIMED_BATCH, resolve_precision
from network.settings import NetworkSettings
from utils.batch import to_float
from utils.classes import Classes
from utils.preprocess import Preprocess
from utils.task import (
    POSITION,
    activation_of,
    logits_of,
    ordered_probabilities,
    position_units,
    predictions_of,
)

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Step = Callable[[Tensor], None]  # takes the loss in `update`


class BaseModel(nn.Module):
    """A network and its update step; a family adds `build` and `update`.

    `forward` takes uint8 (B, 3, S, S) images, or floats that are normalised already, and gives logits (B, C).

    Attributes:
        settings: what the network is built from.
        opt: all options, for a flag that you add.
        net: the network.
        dtype: that of autocast; None is fp32 throughout.
        frozen: modules kept in eval mode.
        criterion: the loss of (logits, targets); the engine sets it.
        train_net: what training runs instead of `net`; the engine sets it.
    """

    criterion: Callable[[Tensor, Any], Tensor]
    _scale: Tensor
    _shift: Tensor
    _target_mean: Tensor | None
    _target_std: Tensor | None
    ARCHS: ClassVar[dict[str, str]] = {}  # of a model of your own: name -> what `build` gets; see backbones.arch_of

    def __init__(self, opt: argparse.Namespace, name: str | None = None) -> None:
        """Build the network alone: no data, no optimizer. `name`, by default opt.model, decides what `build` gets."""
        super().__init__()
        self.opt = opt
        self.name = name or opt.model
        self.settings = network_settings(opt, self.name)
        self.net = apply_head_and_pool(self.build(arch_of(type(self), self.name)), self.settings)
        config = getattr(self.net, "pretrained_cfg", None) or {}
        self.mean, self.std = tuple(config.get("mean", IMAGENET[0])), tuple(config.get("std", IMAGENET[1]))
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        self.register_buffer("_scale", 1 / (255 * std), persistent=False)
        self.register_buffer("_shift", -mean / std, persistent=False)
        self.register_buffer("_target_mean", None, persistent=False)
        self.register_buffer("_target_std", None, persistent=False)
        self._classes: Classes | None = None  # those that are learned as numbers
        self.dtype: torch.dtype | None = None
        self.frozen: list[nn.Module] = []
        self.train_net: Callable[[Tensor], Tensor] | None = None

    def build(self, arch: str) -> nn.Module:
        """Return the network of `arch`, with `num_classes` outputs.

        Raises:
            UserError: there is no such network, or it has no ImageNet weights, or `scale` is too small for it.
        """
        raise NotImplementedError(f"{type(self).__module__}: write build(arch), which returns an nn.Module")

    def update(self, images: Tensor, targets: Any, step: Step) -> tuple[Tensor, Tensor]:
        """Train on one batch: forward, loss, and `step(loss)`, which goes backward and, if due, steps the optimizer.

        Args:
            images: float (B, 3, S, S), normalised.
            targets: one class per image: int64 (B,), or of mixed samples float (B, C), their shares of each class.
                Several labels: float (B, K), in [0, 1]. Numbers: float (B, T), in the units of the list. With
                --teacher: a training.distill.DistilledTargets.

        Returns:
            The loss, a detached scalar, and the logits (B, C), detached; both on the device.
        """
        raise NotImplementedError(
            f"{type(self).__module__}: write update(images, targets, step); network/ResNeSt/model.py is an example"
        )

    # ------------------------------------------------------------------------------------------------ forward

    def to_device(self, device: torch.device) -> None:
        """Move to `device`, with weights in channels_last: convolutions are up to twice as fast, on CPU and CUDA."""
        self.to(device)
        self.to(memory_format=torch.channels_last)

    @property
    def device(self) -> torch.device:
        return self._scale.device

    @property
    def num_classes(self) -> int:
        """Return the number of logits."""
        return 1000 if self.settings.num_classes is None else self.settings.num_classes

    def preprocess(self) -> Preprocess:
        """Return what evaluation shows this network."""
        return Preprocess(self.settings.scale, self.settings.fit, self.mean, self.std)

    def set_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Normalise images by `mean` and `std`, three each, of the RGB values in 0..1, from now on."""
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        own_mean, own_std = (torch.tensor(values, device=self.device) for values in (self.mean, self.std))
        self._scale, self._shift = 1 / (255 * own_std), -own_mean / own_std

    def normalise(self, images: Tensor) -> Tensor:
        """Return uint8 images as normalised float32 on the network's device, channels_last; floats are only moved."""
        images = images.to(self.device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = to_float(images, self._scale, self._shift)
        return images.contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) of images as `normalise` takes them; training runs `train_net`, if it is set."""
        run = self.train_net if self.training and self.train_net is not None else self.net
        return run(self.normalise(images))

    def predictions(self, logits: Tensor) -> Tensor:
        """Return what logits (B, K), float32, say: see utils.task.predictions_of; of a regression in its own units.

        Of ordered classes that are learned as numbers, these are probabilities of the classes.
        """
        found = predictions_of(self.settings.activation, logits)
        if self.target_units is None:
            return found
        mean, std = self.target_units
        found = found * std + mean
        if self._classes is None:
            return found
        return ordered_probabilities(found[:, 0], self._classes.count, self._classes.cut_points)

    @property
    def target_units(self) -> tuple[Tensor, Tensor] | None:
        """Return mean and standard deviation of the targets of a regression, float32 (T,) each; None of other tasks.

        Those of ordered classes that are learned as numbers are of their numbers.
        """
        if self._target_mean is None or self._target_std is None:
            return None
        return self._target_mean, self._target_std

    @property
    def ordered_classes(self) -> Classes | None:
        """Return the ordered classes that the network learns as numbers, with their cut points; None of other tasks."""
        return self._classes

    def set_target_units(self, classes: Classes) -> None:
        """Take the units in which the network learns the numbers of `classes`, if it does, and their cut points."""
        mean, std = classes.mean, classes.std
        if self.settings.activation == POSITION:
            self._classes = classes
            mean, std = ([one] for one in position_units(classes.count))
        if mean is not None and std is not None:
            self._target_mean = torch.tensor(mean, device=self.device)
            self._target_std = torch.tensor(std, device=self.device)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context for forward and loss, in the chosen precision."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype else contextlib.nullcontext()

    def set_precision(self, precision: str, kept: bool = False, batch_size: int = TIMED_BATCH) -> tuple[str, str]:
        """Run in `precision` from now on; return what "auto" chose, and why: see resolve_precision."""
        precision, why = resolve_precision(self, precision, kept, batch_size)
        self.dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        return precision, why

    @property
    def precision(self) -> str:
        """Return "fp32", "bf16" or "fp16", as `set_precision` chose it."""
        return {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.dtype]

    @contextlib.contextmanager
    def evaluating(self, net: nn.Module | None = None) -> Iterator[nn.Module]:
        """Keep `net`, by default the network itself, in eval mode while the body runs.

        It visits each of hundreds of modules, so enter it outside of a loop. Entering it again inside costs nothing.

        Args:
            net: the network with other weights, such as an average of them.
        """
        net = self.net if net is None else net
        was_training = self.training
        if was_training or net.training:
            self.eval()
            net.eval()
        try:
            yield net
        finally:
            if was_training:
                self.train()

    def train(self, mode: bool = True) -> "BaseModel":
        """Do as nn.Module, but keep the modules in `frozen` in eval mode, with their batch-norm statistics."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self


def network_settings(opt: argparse.Namespace, model: str) -> NetworkSettings:
    """Return what the network `model` is built from under the options `opt`."""
    activation = activation_of(getattr(opt, "task", "single"), getattr(opt, "loss", "ce"))
    return NetworkSettings(
        model=model,
        num_classes=None if opt.num_classes is None else logits_of(activation, opt.num_classes),
        activation=activation,
        scale=opt.scale,
        fit=opt.fit,
        pretrained=opt.pretrained,
        weights_dir=opt.weights_dir,
        weights_dir_given="weights_dir" in vars(opt).get("given", ()),
        drop=opt.drop,
        drop_path=opt.drop_path,
        head=opt.head,
        head_scale=opt.head_scale,
        pool=opt.pool,
        rebuilt=getattr(opt, "rebuilt", False),
    )
