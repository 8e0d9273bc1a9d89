"""The run of --hours: it ends with the time, and its learning rate follows the share of the time that is used.

Each optimizer step asks the clock, so the schedule follows a machine that becomes slower or faster. What the last
reading led to is in the checkpoint: with the same readings, a resumed run takes the same steps.
"""

import math
import time
from dataclasses import replace
from typing import Any

from options.wording import count_of
from scheduler import Span, get_schedule
from training.length import RunLength
from utils import distributed
from utils.batch import Batch
from utils.clock import Stopwatch
from utils.errors import UserError
from utils.logger import log

PACE_STEPS = 100  # the pace is an average over about this many steps
FIRST_STEPS = 10  # may take minutes, as with --compile: the pace is that of the later ones
# The share of the time that is planned. The rest is for the last records and the end of the process, which come after
# the last validation and cannot be measured.
AIM = 0.985
NEAR_END = 0.01  # A run whose epoch ends with less than this share of the time left ends with the epoch.
VALIDATION_COST = 1 / 3  # Until a validation is measured, one image costs this share of a training image.
MICROSECONDS = 1_000_000


class TimedLength(RunLength):
    """A run that ends when `hours` are used, start-up, validations and saving included.

    Time is of three kinds: the start, training, and pauses. A pause is the validation and the saving after an epoch
    that is validated; without validations, the saving after any epoch. The run ends with a pause. The learning rate
    follows the share of the training time that has passed, so it reaches its floor when the last pause has to begin.

    An epoch is not validated if less training time than a validation takes would be left after that: the run would soon
    end, and validate again. So the time for the last validation is always there.

    Attributes:
        limit: seconds.
        planned: epochs, the last one cut short; 0 before the first step. epochs: the next whole number.
        at: seconds of the run at the last reading of the clock, the same in all processes.
        trained: seconds of training. steps: optimizer steps that took them.
        step_seconds: recent seconds per step.
        pause: how long the last pause was, in steps of the pace then: a slower machine also validates more slowly.
            None before the first.
        share: of the training time, what has passed, from 0 to 1.
        over: whether no training is left.
    """

    def __init__(
        self, hours: float, batches: int, scheduler: str, span: Span, val_freq: int, last_stage: int = 1
    ) -> None:
        """`span`: its total is not used. `last_stage`: the first epoch of the last size of --scale_schedule."""
        super().__init__(1, batches, self._factor)
        self.hours, self.limit = hours, 3600 * hours
        self.scheduler, self.span, self.val_freq = scheduler, span, val_freq
        self.last_stage = last_stage
        self.at = self.trained = self.step_seconds = self.share = self.planned = 0.0
        self.steps, self.over = 0, False
        self.pause: float | None = None
        self.used_before = 0.0  # in the processes before this one
        self.watch: Stopwatch | None = None
        self.clock = distributed.AsyncMax()
        self.images_per_step = 0.0
        self.validation_steps = 0.0  # as many training steps read as many images
        self.paused_at: float | None = None
        self.measures_pause = False

    # ------------------------------------------------------------------------------------------------ what it decides

    def _factor(self, step: int) -> float:
        """Return the factor of the learning rate: the schedule's, over as many steps as this pace makes of the time."""
        total = max(step / self.share, self.span.warmup + 1) if self.share > 0 else math.inf
        return get_schedule(self.scheduler, replace(self.span, total=total))(step)

    def is_over(self, epochs_done: int) -> bool:
        """Return whether the time is used."""
        return self.over

    def validates(self, epoch: int, every: int) -> bool:
        """Return whether `epoch` ends with a validation: see the class."""
        return self.over or (epoch % every == 0 and self.seconds_left() > 2 * self._pause())

    def is_before(self, share: float, batch: Batch) -> bool:
        """Return whether less than `share` of the training time has passed."""
        return self.share < share

    def title(self, epoch: int) -> str:
        """Return "3/20" for the third of 20 planned epochs; "1" before there is a plan."""
        return f"{epoch}/{max(epoch, self.epochs)}" if self.steps else str(epoch)

    def described(self, first: int) -> str:
        """Return "from epoch 1, for 0.5 hours" for a run that begins with epoch `first`."""
        return f"from epoch {first}, for {count_of(f'{self.hours:g}', 'hour')}"

    def summary(self) -> str:
        """Return how long the run took."""
        used = self._seconds()
        return f"--hours {self.hours:g}: took {_clock_text(used)}, {100 * used / self.limit:.1f} % of it."

    def seconds_left(self) -> float:
        """Return the seconds that are left for training, and for the pauses before the last one."""
        return AIM * self.limit - self.at - self._pause()

    # ------------------------------------------------------------------------------------------------ what happens

    def begin(self, watch: Stopwatch, train_images: int, validation_images: int) -> None:
        """Count from when `watch` was made. `validation_images`: in all passes of one validation."""
        self.watch = watch
        self.images_per_step = train_images / self.span.per_epoch
        self.validation_steps = validation_images / self.images_per_step
        used = f" {_clock_text(self.used_before)} of it are used." if self.used_before else ""
        now = time.time()
        end = end_text(now, now + self.limit - self._seconds())
        log.info(f"--hours {self.hours:g}: the run ends at about {end}.{used}")

    def epoch_began(self) -> None:
        """End the pause before it. Raises UserError if the time is used before the first step of a run."""
        now = self._agreed()
        if not self.steps and now >= self.limit:
            raise UserError(
                f"--hours {self.hours:g} is {_clock_text(self.limit)}, and starting alone took {_clock_text(now)}. "
                f"Try: --hours {math.ceil(10 * now) / 3600:.2g}"
            )
        self._end_pause()
        self.paused_at = None

    def step_done(self, step: int) -> bool:
        """Read the clock, and plan the rest; return whether no whole step is left.

        With several processes the reading is that of the first one at the step before: no process waits.
        """
        reading = self.clock.exchange(round(self._seconds() * MICROSECONDS) if distributed.is_main() else 0)
        if reading is None:
            return False
        now = max(self.at, reading / MICROSECONDS)
        spent, self.at = now - self.at, now
        self.steps += 1
        self.trained += spent
        averaged = self.steps - FIRST_STEPS if self.steps > FIRST_STEPS else self.steps
        self.step_seconds += (spent - self.step_seconds) / min(averaged, PACE_STEPS)
        self._plan(step, within=True)
        if self.steps == PACE_STEPS:
            self._announce()
        return self.over

    def training_ended(self, epoch: int, step: int) -> None:
        """Begin a pause; decide whether the run ends with this epoch."""
        self.paused_at = self._agreed()
        self._plan(step, within=True)
        self.measures_pause = not self.val_freq or self.validates(epoch, self.val_freq)

    def epoch_ended(self, step: int) -> None:
        """Decide whether the time allows another epoch, if this was not the last."""
        self._agreed()
        self._end_pause()
        self._plan(step, within=False)

    # ------------------------------------------------------------------------------------------------ the plan

    def _plan(self, step: int, within: bool) -> None:
        """Divide the time left into training and pauses.

        Args:
            step: optimizer steps so far.
            within: whether the end of the present epoch is still to come, even if all of its steps are done.
        """
        if self.over or not self.steps:
            return
        pause, pace, per_epoch = self._pause(), max(self.step_seconds, 1 / MICROSECONDS), self.span.per_epoch
        cycle = per_epoch * (self.val_freq or 1)  # steps from one pause to the next
        left, to_epoch, to_pause = self.seconds_left(), -step % per_epoch, -step % cycle
        if not within:
            to_epoch, to_pause = to_epoch or per_epoch, to_pause or cycle
        if 0 <= left - to_epoch * pace < NEAR_END * self.limit:
            left = to_epoch * pace
        elif (beyond := left - to_pause * pace - 2 * pause) > 0:
            left -= pause * math.ceil(beyond / (cycle * pace + pause))
        self.over = left < pace / 2
        self.share = 1.0 if self.over else self.trained / (self.trained + left)
        self.planned = (step + (0 if self.over else left / pace)) / per_epoch
        self.epochs = math.ceil(self.planned)

    def _announce(self) -> None:
        speed = self.images_per_step / self.step_seconds
        log.info(f"--hours {self.hours:g}: about {count_of(f'{self.planned:.3g}', 'epoch')} at {speed:.0f} images/s.")
        if self.span.warmup >= self.planned * self.span.per_epoch:
            epochs = count_of(f"{self.span.warmup / self.span.per_epoch:.3g}", "epoch")
            log.warning(
                f"--warmup takes {epochs}, longer than the run: "
                "the learning rate does not reach --lr. Try: a shorter --warmup, or more --hours"
            )
        if self.last_stage > self.epochs:
            log.warning(
                f"--scale_schedule has a size from epoch {self.last_stage} on, which this run does not reach. "
                "Try: a schedule that ends earlier, or more --hours"
            )

    def _pause(self) -> float:
        """Return the seconds that the next pause will take."""
        if self.pause is not None:
            return self.pause * self.step_seconds
        is_known = self.steps >= 2 * FIRST_STEPS
        return VALIDATION_COST * self.validation_steps * self.step_seconds if is_known else 0.0

    def _end_pause(self) -> None:
        if self.paused_at is not None and self.measures_pause and self.step_seconds:
            self.pause = (self.at - self.paused_at) / self.step_seconds

    def _agreed(self) -> float:
        """Read the clock of the first process."""
        self.at = max(self.at, distributed.broadcast_from_main(self._seconds))
        return self.at

    def _seconds(self) -> float:
        """Return the seconds that the run has taken, here and in the processes before this one."""
        return self.used_before + (self.watch.seconds() if self.watch is not None else 0.0)

    # ------------------------------------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the time used, and the plan."""
        names = ("hours", "planned", "trained", "steps", "step_seconds", "pause", "share", "over")
        return {"used": self._seconds()} | {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Continue where `state_dict` was called; a run that had no --hours counts from now on.

        A run that goes back to its last checkpoint (`TrainingRun.rewind`) does not get its time back.
        """
        if state is None:
            return
        if self.watch is None:
            self.used_before = self.at = state["used"]
        self.planned, self.epochs = state["planned"], math.ceil(state["planned"])
        self.trained, self.steps, self.step_seconds = state["trained"], state["steps"], state["step_seconds"]
        self.pause, self.share, self.over = state["pause"], state["share"], state["over"]
        if state["hours"] != self.hours:
            self.share, self.over = min(1.0, self.share * state["hours"] / self.hours), False


def end_text(now: float, end: float) -> str:
    """Return the local time of `end`, with its date where that is not the date of `now`; both in seconds of Unix."""
    dates = [time.strftime("%Y-%m-%d ", time.localtime(moment)) for moment in (now, end)]
    return ("" if dates[0] == dates[1] else dates[1]) + time.strftime("%H:%M", time.localtime(end))


def _clock_text(seconds: float) -> str:
    """Return "2 h 05 min", "12 min 30 s" or "45 s"."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"
