"""One epoch of training: its sums, its progress, and the moments at which the run may save and stop."""

import math
import resource
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evaluation.ranking import scores_text
from options.wording import count_of
from training.engine import Engine, StepResult
from training.memory import out_of_memory
from training.state import Scores
from training.step_curves import NUM_SUMS
from utils import distributed
from utils.batch import Batch
from utils.errors import MachineFault, UserError
from utils.logger import log, progress

if TYPE_CHECKING:
    from training.run import TrainingRun

LOG_SECONDS = 60.0  # between two lines of progress without a terminal
BAR_SECONDS = 0.5


class EpochTracker:
    """Sums over an epoch: loss, top-1, gradient norm, time, wait for data. It does not wait for the device.

    Use it in a `with`.

    Attributes:
        done: batches trained so far.
        ended: whether the epoch's training is over, as in a run that was cut while it was validating.
    """

    def __init__(self, run: "TrainingRun", epoch: int, engine: Engine) -> None:
        self.run, self.epoch, self.engine, self.length = run, epoch, engine, engine.length
        self.batches = engine.settings.batches_per_epoch
        self.total = torch.zeros(NUM_SUMS, device=engine.model.device)
        self.zero, self.one = torch.zeros((), device=engine.model.device), torch.ones((), device=engine.model.device)
        self.done = self.counted = self.images = 0
        self.waited = self.spent = self.lr = 0.0
        self.ended = False
        self.batch: Batch | None = None
        within = run.state.within
        if within is not None and within["epoch"] == epoch:
            self.load_state_dict(within)

    def load_state_dict(self, within: dict[str, Any]) -> None:
        """Continue where `state_dict` was called.

        Raises:
            UserError: the checkpoint counts more batches than an epoch has; it is damaged.
        """
        if within["done"] > self.batches:
            raise UserError(
                f"{self.run.source} was saved after batch {within['done']} of an epoch that has {self.batches}. "
                "It is damaged.\n"
                f"Resume from an earlier one: ls {self.run.checkpoints}"
            )
        totals = within["totals"]  # one per process
        total = totals[distributed.rank()] if len(totals) == distributed.world_size() else torch.stack(totals).mean(0)
        self.total[: len(total)] = total  # older checkpoints have no top-1
        self.done, self.counted, self.images = within["done"], within["counted"], within["images"]
        self.waited, self.spent, self.lr, self.ended = within["waited"], within["spent"], within["lr"], within["ended"]

    def __enter__(self) -> "EpochTracker":
        self.began = self.shown = self.logged = time.monotonic()
        title = f"epoch {self.length.title(self.epoch)}"
        self.bar = progress(None, title, self.batches, lines=False)  # `update` logs its own lines
        self.bar.update(self.done)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def out_of_memory(self, error: Exception) -> Exception:
        """Return the error that says which batch fits, if training ran out of memory; else `error`.

        Call it outside of the handler of `error`.
        """
        if self.batch is None or self.ended:
            return error
        return out_of_memory(self.engine, self.batch)

    def track(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the remaining batches of the epoch; between two optimizer steps, save or stop if that is due."""
        self.length.epoch_began()
        for _ in range(0 if self.ended else self.batches - self.done):
            asked = time.monotonic()
            self.batch = self._next(batches)
            self.waited += time.monotonic() - asked
            self.run.unreadable.record(self.batch.bad)
            self.lr = self.engine.learning_rate()
            stop = self._record(self.batch)
            try:
                yield self.batch
            finally:
                stop()
            if not self.engine.is_step_boundary(self.done):
                continue
            if self.length.step_done(self.engine.step_count):
                break
            if self.done < self.batches:
                self.run.maybe_save(self)
        self.length.training_ended(self.epoch, self.engine.step_count)

    def _next(self, batches: Iterator[Batch]) -> Batch:
        """Return the next batch. If the machine cannot read it, save what is trained so far, and raise."""
        try:
            return next(batches)
        except MachineFault:
            if distributed.world_size() == 1 and self.done and self.engine.is_step_boundary(self.done):
                self.run.save(self)
            raise

    def _record(self, batch: Batch) -> Callable[[], None]:
        """Show the run's first batch, and keep the gradients of each epoch's last; return what ends that."""
        if self.run.recorder is not None and self.done == 0 and self.epoch == 1:
            self.run.recorder.first_batch(batch)
        if self.run.recorder is not None and self.done + 1 == self.batches:
            return self.run.recorder.watch_gradients(self.engine)
        return lambda: None

    def update(self, result: StepResult) -> None:
        """Add what a batch gave. Now and then show the progress, which alone waits for the device."""
        self.done += 1
        self.counted += 1
        assert self.batch is not None
        self.images += len(self.batch.label) * distributed.world_size()
        stepped = self.engine.is_step_boundary(self.done)
        sums = self._sums(result, self.engine.grad_norm if stepped else None)
        self.total += sums
        self.run.curves.add(self.engine.step_count + (not stepped), sums, self.lr)
        self.bar.update()
        now = time.monotonic()
        if not self.bar.disable and now - self.shown > BAR_SECONDS:
            self.shown = now
            self.bar.set_postfix_str(format_metrics(self.scores()) + _memory(self.engine.model.device))
        elif self.bar.disable and now - self.logged > LOG_SECONDS:
            self.logged = now
            left = (self.spent + now - self.began) / max(1, self.counted) * (self.batches - self.done)
            left = max(0.0, min(left, self.length.seconds_left()))
            where = f"epoch {self.epoch}, batch {self.done}/{self.batches}"
            log.info(f"{where}  {format_metrics(self.scores())}  {left / 60:.0f} min left")

    def _sums(self, result: StepResult, norm: Tensor | None) -> Tensor:
        """Return what a batch adds to the sums, (NUM_SUMS,); the values of a skipped step are left out."""
        top1 = None if result.top1 is None else result.top1 + 0 * result.loss  # NaN if the loss is NaN
        seen = (result.loss, norm, top1)
        values = torch.stack([self.zero if value is None else value for value in seen])
        counts = torch.stack([self.zero if value is None else self.one for value in seen])
        if self.engine.guard.on:
            fine = values.isfinite()
            values, counts = torch.where(fine, values, 0), counts * fine
        return torch.stack([values, counts], dim=1).flatten()

    def close(self) -> Scores:
        """End the epoch's training; return its scores, the same in every process.

        Raises:
            UserError: too many images cannot be read, the loss is no longer a number, or no step of the epoch was
                taken.
        """
        self.engine.settle()  # so that the last step counts if it was skipped
        self.run.unreadable.share()
        if not self.ended:
            self.run.curves.reduce()
        self.ended = True
        self.total = distributed.all_reduce_mean_(self.total)
        scores = self.scores()
        if self.engine.guard.on and self.engine.grad_norm is not None and not self.total[3]:
            self._none_taken()
        return scores

    def _none_taken(self) -> None:
        """Warn if fp16 needed the whole epoch to find its scale; else raise UserError."""
        batches = count_of(self.done, "batch", "batches")
        what = f"No step of epoch {self.epoch} was taken: no gradient of its {batches} was finite"
        if self.engine.scaler.is_enabled() and self.engine.scaler.get_scale() > 1:
            scale = self.engine.scaler.get_scale()
            log.warning(f"{what}. fp16 is still finding its scale, now {scale:g}; short epochs need several for it.")
            return
        raise self.run.divergence_error(what, self.lr)

    def scores(self) -> Scores:
        """Return the scores so far.

        Returns:
            train_loss, train_top1 and grad_norm (means), lr (of the last step), images_per_second, data_wait (a share
            of the time), and skipped_steps if there are any. train_top1 is measured on augmented images, each with the
            weights of its step. It is left out if `update` does not return one row of logits per image.

        Raises:
            UserError: the loss is no longer a number.
        """
        losses, counted, norms, steps, right, compared = self.total.tolist()
        loss = losses / counted if counted else math.nan  # NaN: all steps so far were skipped
        norm = norms / max(1, steps)
        spent = max(1e-9, self.spent + time.monotonic() - self.began)
        scores = {"train_loss": loss} | ({"train_top1": right / compared} if compared else {})
        scores |= {"lr": self.lr, "images_per_second": self.images / spent, "data_wait": self.waited / spent}
        if counted and not math.isfinite(loss):
            raise self.run.divergence_error(f"The loss is {loss} in epoch {self.epoch}, by batch {self.done}", self.lr)
        skipped = {"skipped_steps": self.engine.guard.skipped} if self.engine.guard.skipped else {}
        return scores | {"grad_norm": norm} | skipped

    def state_dict(self) -> dict[str, Any]:
        """Return, for a checkpoint, the position within the epoch and the sums so far. Every process calls it."""
        numbers = {
            name: getattr(self, name) for name in ("epoch", "done", "counted", "images", "waited", "lr", "ended")
        }
        return {
            **numbers,
            "totals": distributed.all_gather_object(self.total.cpu()),
            "spent": self.spent + time.monotonic() - self.began,
        }


def format_metrics(scores: Scores, metric: str = "top1") -> str:
    """Return the scores of an epoch, or of a part of one, as a line of the log; of the validation, `metric` first."""
    words = [f"loss {scores['train_loss']:.4f}"]
    words += [f"top1 {scores['train_top1']:.4f}"] if "train_top1" in scores else []
    if "val_loss" in scores:
        words.append(f"val {scores_text(scores, metric, 'val_')}")
        words += [
            f"{name[4:7]} {scores[name]:.6f}"
            for name in (f"val_{weights}_{metric}" for weights in ("raw", "ema", "swa"))
            if name in scores
        ]
        if scores["val_unreadable"]:
            words.append(f"{scores['val_unreadable']} unreadable")
    words += [f"{count_of(int(scores['skipped_steps']), 'step')} skipped"] if scores.get("skipped_steps") else []
    words.append(f"lr {scores['lr']:.3g}  {scores['images_per_second']:.0f} images/s")
    words.append(f"waiting for data {100 * scores['data_wait']:.0f} %")
    return "  ".join(words)


def _memory(device: torch.device) -> str:
    """Return the peak memory of the GPU, or else of this process, in GB, as text."""
    used = (
        torch.cuda.max_memory_reserved(device)
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return f"  {used / 1e9:.1f} GB"
