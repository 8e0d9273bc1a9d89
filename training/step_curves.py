"""The curves of a run by step, kept on the device: sums over equal stretches of steps, at most MAX_POINTS of them."""

import math
from typing import Any

import torch
from torch import Tensor

from utils import distributed

MAX_POINTS = 2000
NUM_SUMS = 6  # The sum and the count of losses, of gradient norms, and of top-1.


class StepCurves:
    """Sums of loss, gradient norm and top-1 over each `stride` optimizer steps, and their last learning rates.

    When MAX_POINTS are full, neighbours are added to one another and `stride` doubles: what a run has then depends on
    its steps alone, however often it was resumed. Adding a batch reads nothing back from the device.

    Attributes:
        step: the last optimizer step that has been added.
        per_epoch: optimizer steps per epoch.
        sums: (MAX_POINTS, NUM_SUMS) on the device.
        lr: MAX_POINTS learning rates; NaN where no step has been added.
    """

    def __init__(self, device: torch.device, per_epoch: int) -> None:
        self.per_epoch, self.device = per_epoch, device
        self._clear()

    def _clear(self) -> None:
        self.step, self.stride = 0, 1
        self.sums = torch.zeros(MAX_POINTS, NUM_SUMS, device=self.device)
        self.lr = [math.nan] * MAX_POINTS

    def add(self, step: int, sums: Tensor, lr: float) -> None:
        """Add the sums, float (NUM_SUMS,), of a batch of optimizer step `step`, from 1, with the learning rate `lr`."""
        while step > MAX_POINTS * self.stride:
            self._halve()
        point = (step - 1) // self.stride
        self.sums[point].add_(sums)
        self.lr[point] = lr
        self.step = step

    def _halve(self) -> None:
        pairs = self.sums.view(MAX_POINTS // 2, 2, NUM_SUMS).sum(dim=1)
        self.sums = torch.cat([pairs, torch.zeros_like(pairs)])
        rates = zip(self.lr[::2], self.lr[1::2], strict=True)
        self.lr = [first if math.isnan(second) else second for first, second in rates] + [math.nan] * (MAX_POINTS // 2)
        self.stride *= 2

    def reduce(self) -> None:
        """Replace the sums by their means over the processes, as metrics.csv has them; at the end of an epoch."""
        self.sums = distributed.all_reduce_mean_(self.sums)

    # ------------------------------------------------------------------------------------------------ state

    def state_dict(self, within_epoch: bool) -> dict[str, Any]:
        """Return what a checkpoint keeps: the points so far.

        Args:
            within_epoch: whether the processes differ, so that the sums of each are kept. Then all of them call it.
        """
        count = -(-self.step // self.stride)
        own = self.sums[:count].cpu()
        return {
            "step": self.step,
            "stride": self.stride,
            "per_epoch": self.per_epoch,
            "sums": distributed.all_gather_object(own) if within_epoch else [own],
            "lr": torch.tensor(self.lr[:count], dtype=torch.float64),
        }

    def load_state_dict(self, state: dict[str, Any] | None, epochs_done: int, within_epoch: bool) -> None:
        """Continue where `state_dict` was called.

        Args:
            state: None of an older checkpoint: the points begin with the next step.
            epochs_done: whole epochs before the position at which the run continues.
            within_epoch: whether that position is within the next epoch. If not, points of an epoch that begins again
                are dropped, and steps are counted by epochs, which may have another length now (as in `Engine`).
        """
        self._clear()
        if state is None:
            return
        sums, lr = state["sums"], state["lr"].tolist()
        own = sums[distributed.rank()] if len(sums) == distributed.world_size() else torch.stack(sums).mean(0)
        self.step, self.stride = state["step"], state["stride"]
        if not within_epoch and self.step > epochs_done * state["per_epoch"]:
            self.step = epochs_done * state["per_epoch"]
            own, lr = own[: self.step // self.stride], lr[: self.step // self.stride]
        if state["per_epoch"] != self.per_epoch:
            self._rescale(own, lr, state["per_epoch"])
            return
        self.sums[: len(own)] = own.to(self.sums)
        self.lr[: len(lr)] = lr

    def _rescale(self, sums: Tensor, lr: list[float], per_epoch: int) -> None:
        """Take over points of a run whose epochs had `per_epoch` steps: they stay at their places within the epochs."""
        ends = [min((point + 1) * self.stride, self.step) for point in range(len(sums))]
        self.step, self.stride = 0, 1
        for end, row, rate in zip(ends, sums, lr, strict=True):
            self.add(max(1, math.ceil(end * self.per_epoch / per_epoch)), row.to(self.sums), rate)
