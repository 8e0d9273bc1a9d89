"""Averages of the weights, kept beside them: --ema after each step, --swa after each epoch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn


class Averages:
    """The averages of a network's weights. Either is None unless its flag asks for it.

    Attributes:
        ema: exponential, by timm, with a decay that warms up from 0.
        swa: the mean over the ends of epochs (Izmailov et al., 2018, algorithm 1), by torch.
    """

    def __init__(self, net: nn.Module, ema_decay: float = 0.0, swa: bool = False) -> None:
        self.ema = ModelEmaV3(net, decay=ema_decay, use_warmup=True) if ema_decay else None
        self._pairs = list(zip(_slots(self.ema.module), _slots(net), strict=True)) if self.ema is not None else []
        # weights of 16 bits need timm's rounding, or small changes are lost
        self._short = any(slot[name].dtype in (torch.bfloat16, torch.float16) for (slot, name), _ in self._pairs)
        self.swa = AveragedModel(net) if swa else None
        self.swa_ready = False  # whether its batch norm has statistics

    def available(self) -> list[str]:
        """Return what can be evaluated now: "raw" (the weights themselves), "ema", "swa"."""
        return ["raw"] + ["ema"] * (self.ema is not None) + ["swa"] * self.swa_ready

    def net(self, which: str) -> nn.Module:
        """Return the network called "ema" or "swa"."""
        average = {"ema": self.ema, "swa": self.swa}[which]
        assert average is not None
        return average.module

    @property
    def reads_live_buffers(self) -> bool:
        """Return whether `update_ema` must come before the network runs again: timm's update takes no `buffers`."""
        return self._short

    @torch.no_grad()
    def update_ema(self, net: nn.Module, step: int, buffers: Mapping[int, Tensor]) -> None:
        """Add the weights after optimizer step `step` (from 1) to `ema`.

        It computes what ModelEmaV3.update does, without its two state dicts per step, which take 1 to 3 ms.

        Args:
            buffers: {id of a buffer of `net`: its value after that step}, if the network has run again since.
        """
        if self.ema is None:
            return
        if self._short:
            self.ema.update(net, step=step)
            return
        pairs = [(mine[mine_name], theirs[name]) for (mine, mine_name), (theirs, name) in self._pairs]
        pairs = [(average, buffers.get(id(value), value)) for average, value in pairs]
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_(
            [one for one, _ in moving], [other for _, other in moving], weight=1.0 - self.ema.get_decay(step)
        )
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)

    def update_swa(self, net: nn.Module) -> None:
        """Add the weights at the end of an epoch to `swa`."""
        if self.swa is not None:
            self.swa.update_parameters(net)
            self.swa_ready = False

    def update_swa_batchnorm(self, images: Iterable[Tensor], frozen: Sequence[bool]) -> None:
        """Recompute the batch-norm statistics of `swa` from normalised images (B, 3, S, S); see recompute_batchnorm."""
        assert self.swa is not None
        recompute_batchnorm(self.swa.module, images, frozen)
        self.swa_ready = True

    def state_dict(self) -> dict[str, Any]:
        """Return, for a checkpoint, `ema` and `swa` as state dicts of the network, or None."""
        return {
            name: None if average is None else average.module.state_dict()
            for name, average in (("ema", self.ema), ("swa", self.swa))
        }

    def swa_state(self) -> dict[str, Any]:
        """Return, for a checkpoint, how many epochs `swa` averages, and whether its batch norm is ready."""
        return {"count": 0 if self.swa is None else int(self.swa.n_averaged), "ready": self.swa_ready}

    def load_state_dict(self, content: dict[str, Any], net: nn.Module) -> None:
        """Restore what `state_dict` and `swa_state` gave; what a checkpoint does not hold starts fresh from `net`."""
        if self.ema is not None:
            ema = content.get("ema")
            self.ema.module.load_state_dict(net.state_dict() if ema is None else ema)
        if self.swa is not None:
            swa = {"count": 0, "ready": False}
            if content.get("swa") is not None:
                self.swa.module.load_state_dict(content["swa"])
                swa = content["training"]["swa"]
            self.swa.n_averaged.fill_(swa["count"])
            self.swa_ready = bool(swa["ready"])


def recompute_batchnorm(net: nn.Module, images: Iterable[Tensor], frozen: Sequence[bool]) -> None:
    """Recompute the batch-norm statistics of `net` as their mean over `images`, and leave it in eval mode.

    Args:
        images: batches of normalised images (B, 3, S, S). A network without batch norm takes none.
        frozen: for each of net.modules(), whether --freeze holds it; such a module keeps its statistics.
    """
    held = [module for module, keep in zip(net.modules(), frozen, strict=True) if keep]
    kept = [(buffer, buffer.clone()) for module in held for buffer in module.buffers()]

    def shown() -> Iterable[Tensor]:
        for module in held:  # update_bn has just reset them, and set them to train
            module.eval()
        for buffer, value in kept:
            buffer.copy_(value)
        yield from images

    update_bn(shown(), net)
    net.eval()


def _slots(net: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """Return where the tensors of net.state_dict() are kept, in its order: a module may put another tensor there."""
    found: list[tuple[dict[str, Any], str]] = []
    for _, module in net.named_modules(remove_duplicate=False):
        found += [(module._parameters, name) for name, tensor in module._parameters.items() if tensor is not None]
        temporary = module._non_persistent_buffers_set
        found += [
            (module._buffers, name)
            for name, tensor in module._buffers.items()
            if tensor is not None and name not in temporary
        ]
    return found


def frozen_mask(net: nn.Module, frozen: Iterable[nn.Module]) -> list[bool]:
    """Return for each of net.modules() whether it is in `frozen`; the answer also holds for a copy of the network."""
    ids = {id(module) for module in frozen}
    return [id(module) in ids for module in net.modules()]
