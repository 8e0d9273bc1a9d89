"""How long a run is: a number of epochs. training/hours.py has the run that ends with the time instead."""

import math
from collections.abc import Callable
from typing import Any

from utils.batch import Batch
from utils.clock import Stopwatch


class RunLength:
    """A run of `epochs` epochs, each of `batches` batches.

    The run calls `begin`, and then, in every process and in this order: `epoch_began`; `step_done` after each optimizer
    step; `training_ended` before the validation of the epoch; `epoch_ended` after it. A run of a number of epochs
    needs none of them.

    Attributes:
        epochs: how many there are.
        factor: the factor of the learning rate at an optimizer step, counted from 0.
    """

    def __init__(self, epochs: int, batches: int, factor: Callable[[int], float]) -> None:
        self.epochs, self.batches, self.factor = epochs, batches, factor

    def is_over(self, epochs_done: int) -> bool:
        """Return whether no epoch is left."""
        return epochs_done >= self.epochs

    def validates(self, epoch: int, every: int) -> bool:
        """Return whether `epoch` ends with a validation if there is one `every` few epochs and after the last."""
        return epoch % every == 0 or epoch == self.epochs

    def is_before(self, share: float, batch: Batch) -> bool:
        """Return whether less than `share` of the run precedes `batch`."""
        return (batch.epoch - 1) * self.batches + batch.number < share * self.epochs * self.batches

    def title(self, epoch: int) -> str:
        """Return "3/20" for the third of 20 epochs."""
        return f"{epoch}/{self.epochs}"

    def described(self, first: int) -> str:
        """Return "epochs 1 to 20" for a run that begins with epoch `first`."""
        return f"epochs {first} to {self.epochs}"

    def summary(self) -> str:
        """Return what the end of a run says of its length; "" if there is nothing to say."""
        return ""

    def seconds_left(self) -> float:
        """Return the seconds that are left for training, if the time is limited."""
        return math.inf

    def begin(self, watch: Stopwatch, train_images: int, validation_images: int) -> None:
        """Take what is known when the run begins: its clock, and how many images an epoch and a validation read."""

    def epoch_began(self) -> None:
        """Note that the first batch of an epoch, or the next one of a resumed epoch, is about to be loaded."""

    def step_done(self, step: int) -> bool:
        """Return whether the run's training ends after `step` optimizer steps, within the epoch."""
        return False

    def training_ended(self, epoch: int, step: int) -> None:
        """Note that the training of `epoch` is over, after `step` optimizer steps of the run."""

    def epoch_ended(self, step: int) -> None:
        """Note that the validation of an epoch is over, if it had one."""

    def state_dict(self) -> dict[str, Any] | None:
        """Return what a checkpoint keeps of it."""
        return None

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Continue where `state_dict` was called."""
