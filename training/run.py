"""One training run: its epochs, its checkpoints, how it stops and continues, and how it recovers from a divergence."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evaluation.metrics import Predictions
from options.wording import count_of
from training import resuming
from training.checkpoint_writer import AsyncCheckpointWriter, RetentionPolicy, epoch_names, safe_model_name
from training.cut_points import CutPoints
from training.earlier import remove_earlier
from training.engine import Engine
from training.epoch import EpochTracker, format_metrics
from training.guard import Diverged
from training.recorder import RunRecorder
from training.run_lists import RunLists
from training.start import RunStart
from training.state import Scores
from training.step_curves import StepCurves
from training.unreadable import UnreadableImages
from utils import checkpoint, distributed, faults
from utils.classes import counted
from utils.errors import MachineFault, NotFinite, UserError
from utils.files import link_over, write_json, write_yaml
from utils.logger import format_count, log
from utils.seen_lists import entry, joined, seen_lists
from utils.signals import RunInterrupted, SignalHandler
from utils.task import POSITION

# What a process asks of all between two steps. The highest number wins; one above these is a signal: save and stop.
NOTHING, SHARE, SAVE = -2, -1, 0


@dataclass(frozen=True)
class RunSettings:
    """What a run takes from the options.

    Attributes:
        checkpoints, logs: the folders of its tag.
        val_freq: epochs between validations; 0: none.
        patience: validations without a better epoch that end the run; 0: none.
        last_stage: the first epoch of the last size of --scale_schedule.
        save_minutes: minutes between checkpoints within an epoch.
        keep, save_freq: which epochs' checkpoints stay.
        max_bad: the share of images that may be unreadable.
        overwrite: whether to delete an earlier run.
        options: what checkpoints keep.
        config: the same for --config.
        described: the recipe on one line.
        resume_command: the command that continues the run.
    """

    checkpoints: Path
    logs: Path
    batch_size: int
    val_freq: int
    patience: int
    last_stage: int
    save_minutes: float
    keep: int
    save_freq: int
    max_bad: float
    overwrite: bool
    histograms: bool
    options: dict[str, Any]
    config: dict[str, Any]
    described: str
    resume_command: str


@dataclass(frozen=True)
class RunFacts:
    """What a run works out beside its options.

    Attributes:
        precision, precision_reason: what "auto" chose, and why.
    """

    lists: RunLists
    precision: str
    precision_reason: str


class TrainingRun:
    """Owns a run's files, and its state beside the engine's. Of several processes, only the first writes.

    Attributes:
        state: how far the run is.
        recorder: that of metrics and pictures; None in the other processes.
        seen: the lists that the network learns from, and those that it, or its teacher, has learned from before.
    """

    def __init__(self, settings: RunSettings, start: RunStart, engine: Engine, facts: RunFacts) -> None:
        """Open the records; on --overwrite, delete those of an earlier run; log what is about to be trained."""
        self.settings, self.engine, self.facts, self.length = settings, engine, facts, engine.length
        self.state, self.source, self.resumed = start.state, start.source, start.resumed
        self.checkpoints, self.logs = settings.checkpoints, settings.logs
        self.last = self.checkpoints / "last.pt"
        lists = facts.lists
        before, teacher = seen_lists(start.content) if start.content is not None else [], engine.teacher
        own = entry(lists.paths["train"], lists.train_fingerprint, lists.classes.task)
        self.seen = joined(before, teacher.seen if teacher is not None else [], [own])
        bad_images = self.logs / "bad_images.csv"
        self.unreadable = UnreadableImages(bad_images, settings.max_bad, lists.train_images, self.state)
        self.signals, self.agreed_action = SignalHandler(), distributed.AsyncMax()
        self.writer = AsyncCheckpointWriter(self.checkpoints / resuming.NO_CHECKPOINT_MARKER)
        self.saved_at = time.monotonic()
        self.rewound = False
        self.cut_points: CutPoints | None = None
        if engine.model.settings.activation == POSITION:
            self.cut_points = CutPoints(lists.classes.count)
            content = start.content if start.resumed else None
            if content is not None and "cut_points" in content["data"] and content["showing"] == engine.active_weights:
                self.cut_points.keep(engine.active_weights, content["data"]["cut_points"], engine.step_count)
        self.curves = StepCurves(engine.model.device, engine.steps_per_epoch)
        self._load_curves()
        images = engine.settings.batches_per_epoch * min(settings.batch_size, lists.train_images)
        self.length.begin(start.watch, images, lists.val_images * len(engine.available_weights()))
        self.tracker: EpochTracker | None = None
        self.recorder: RunRecorder | None = None
        if distributed.is_main():
            self.recorder = self._open_records()
            lists.warn_seen(self.source, before)
            if teacher is not None:
                lists.warn_seen(f"--teacher {teacher.path}", teacher.seen)

    def _open_records(self) -> RunRecorder:
        settings, state, lists, model = self.settings, self.state, self.facts.lists, self.engine.model
        if settings.overwrite and not (self.resumed and self.source == str(self.last)):
            remove_earlier(self.checkpoints, self.logs)
        recorder = RunRecorder(self.logs, lists.classes, settings.histograms, state.next_epoch, state.metric)
        self.writer.before_write = recorder.flush
        if self.resumed:
            self._bring_best()
        write_yaml(self.logs / "options.yaml", settings.config)
        write_json(self.logs / "lists.json", lists.record())
        if self.resumed and state.history and self.source == str(self.last):
            recorder.write_history(state.history, self.curves.state_dict(within_epoch=False))
            if self.state.within is None:
                resuming.link_missing(self.last, self._names(self.state.history[-1]["epoch"]), self.state.history)
        batches = self.engine.settings.batches_per_epoch
        count = format_count(sum(p.numel() for p in model.net.parameters()))
        log.info(
            f"{model.name}: {count} parameters, {counted(lists.classes.count, lists.classes.task)}, "
            f"{model.settings.scale} px, {self.facts.precision} on {model.device}{distributed.process_count_text()}\n"
            f"{lists.train_images} training and {lists.val_images} validation images, "
            f"{count_of(batches, 'batch', 'batches')} of "
            f"{min(settings.batch_size, lists.train_images)} per epoch, "
            f"{self.length.described(state.next_epoch)}\n"
            f"{settings.described}"
        )
        return recorder

    # ------------------------------------------------------------------------------------------------ epochs

    def track(self, epoch: int) -> EpochTracker:
        """Return what tracks the batches of one epoch; use it in a `with`."""
        self.tracker = EpochTracker(self, epoch, self.engine)
        return self.tracker

    def is_over(self) -> bool:
        """Return whether no epoch is left, or --patience is exhausted."""
        if self.state.is_out_of_patience(self.settings.patience):
            return True
        return self.state.within is None and self.length.is_over(self.state.epochs_done)

    def should_validate(self, epoch: int) -> bool:
        """Return whether `epoch` ends with a validation."""
        return self.settings.val_freq > 0 and self.length.validates(epoch, self.settings.val_freq)

    def on_predictions(self, weights: str) -> Callable[[Predictions], None] | None:
        """Return what takes the predictions of a validation, for the confusion matrix; None if nothing is recorded."""
        return functools.partial(self.recorder.record_predictions, weights) if self.recorder is not None else None

    def cut_points_of(self, weights: str) -> Callable[[Predictions], Predictions] | None:
        """Return what fits cut points to the predictions of a validation, and applies them; None if there are none."""
        if self.cut_points is None:
            return None
        return functools.partial(self.cut_points.fit, weights, self.engine.step_count)

    def end_epoch(self, epoch: int, scores: Scores) -> None:
        """Log, plot and save.

        Raises:
            UserError: the network is no longer finite; it is not saved.
            RunInterrupted: a signal arrived in the epoch.
        """
        count = self.state.last_count()
        self.state.add_epoch(epoch, scores)
        if self.state.scored_from == epoch and count is not None:
            log.warning(
                f"Epoch {epoch} was validated on {scores['val_count']:g} images, the one before on {count:g}. The best "
                f"epoch and --patience count from epoch {epoch} on; that epoch replaces best.pt."
            )
        self.length.epoch_ended(self.engine.step_count)
        log.info(f"epoch {self.length.title(epoch)}  " + format_metrics(scores, self.state.metric))
        self._check_finite(epoch, scores)
        if self.recorder is not None:
            self.recorder.end_epoch(epoch, scores, self.engine)
            self.recorder.write_history(self.state.history, self.curves.state_dict(within_epoch=False))
        self._save_epoch(epoch)
        asked = distributed.all_reduce_max(self.signals.received or 0)
        if asked and not self.is_over():
            raise RunInterrupted(asked)

    def finish(self, command: Callable[[str, str], str]) -> None:
        """Close the records; log where they are, and the next command, which is `command("eval", checkpoint)`.

        Raises:
            UserError: the last checkpoint could not be written.
        """
        self.writer.wait()
        if self.recorder is None:
            return
        self.recorder.close()
        self.unreadable.log_summary()
        if self.writer.error is not None:
            raise self.writer.error
        best = self.state.best()
        if best is not None:
            if not self.length.is_over(self.state.epochs_done):
                log.info(
                    f"Stopped after epoch {self.state.epochs_done} of {self.length.epochs}: --patience "
                    f"{self.settings.patience} validations brought no better {self.state.metric}."
                )
            metric = self.state.metric
            log.info(f"best: epoch {best['epoch']}, {metric} {best[f'val_{metric}']:.6f}")
        if self.state.epochs_done < self.settings.last_stage:
            log.warning(
                f"--scale_schedule: the run ended after epoch {self.state.epochs_done}, before its last size, which "
                f"begins with epoch {self.settings.last_stage}: the network has not been trained at that size."
            )
        best_path = self.checkpoints / "best.pt"
        there = best is not None and resuming.holds(best_path, best)
        if best is not None and not there:
            why = "it could not be written, as a warning above says"
            if self.resumed:
                why = "it could not be written, or another run wrote it and it is not beside the resumed checkpoint"
            stale = f" {best_path} is of another epoch." if best_path.exists() else ""
            log.warning(f"{self.checkpoints}/ has no checkpoint of epoch {best['epoch']}, the best: {why}.{stale}")
        path = best_path if there else self.last
        if summary := self.length.summary():
            log.info(summary)
        then = command("submit" if best is None else "eval", str(path))
        log.info(f"Checkpoints: {self.checkpoints}/   Records: {self.logs}/\nNext: {then}")

    # ------------------------------------------------------------------------------------------------ saving

    def maybe_save(self, tracker: EpochTracker) -> None:
        """Between two optimizer steps, save every --save_minutes, or save and stop if a signal has arrived.

        Raises:
            RunInterrupted: it has arrived.
            UserError: the processes have found too many unreadable images.
        """
        idle = self.recorder is not None and not self.writer.busy
        late = idle and time.monotonic() - self.saved_at > 60 * self.settings.save_minutes
        wanted = SAVE if late else SHARE if self.unreadable.has_unshared else NOTHING
        action = self.agreed_action.exchange(self.signals.received or wanted)
        if action is None or action == NOTHING:
            return
        self.unreadable.share()
        if action == SHARE:
            return
        self.save(tracker)
        if action != SAVE:
            raise RunInterrupted(action)

    def save(
        self,
        tracker: EpochTracker | None = None,
        names: Iterable[str] = (),
        retention: RetentionPolicy | None = None,
    ) -> None:
        """Write last.pt, and under `names`, while training continues; with `tracker`, from within its epoch."""
        self.saved_at = time.monotonic()
        self.engine.settle()  # in every process: to explain a skipped step takes all of them
        within = tracker.state_dict() if tracker is not None else None
        curves = self.curves.state_dict(within_epoch=tracker is not None)
        if self.recorder is None:
            return
        if tracker is not None:
            self.recorder.write_steps(self.state.history, curves)
        facts, lists, model = self.facts, self.facts.lists, self.engine.model
        options = self.settings.options | {"epochs": self.length.epochs}
        options |= {"precision_used": facts.precision, "precision_why": facts.precision_reason}
        data = {**lists.classes.as_dict(), "preprocess": model.preprocess().as_dict()}
        data |= {"train_list": lists.train_fingerprint, "lists": lists.paths, "seen": self.seen}
        data |= {"val_list": lists.val_fingerprint} if lists.val_fingerprint is not None else {}
        cuts = self.cut_points and self.cut_points.of(self.engine.active_weights, self.engine.step_count)
        if cuts is not None:
            data["cut_points"] = cuts
        content = {"model": model.name, "opt": options, "data": data}
        content |= {**self.state.state_dict(), "within": within, "curves": curves, **self.engine.state_dict()}
        self.writer.save(self.last, content, [self.checkpoints / name for name in names], retention)

    def _save_epoch(self, epoch: int) -> None:
        best = self.state.best()
        always = {epoch} if best is None else {epoch, best["epoch"]}
        name = safe_model_name(self.engine.model.name)
        self.save(None, self._names(epoch), RetentionPolicy(name, self.settings.keep, self.settings.save_freq, always))

    def _names(self, epoch: int) -> list[str]:
        """Return the names under which the end of `epoch` is kept, besides last.pt."""
        numbered = self.settings.keep > 0 or epoch % self.settings.save_freq == 0 or self.is_over()
        return epoch_names(self.engine.model.name, epoch, self.state.is_best(epoch), numbered)

    def _bring_best(self) -> None:
        """Link the best checkpoint here, if the run is resumed under another tag."""
        best, folder = self.state.best(), Path(self.source).parent
        if best is None or folder.resolve() == self.checkpoints.resolve():
            return
        source = next((path for path in (folder / "best.pt", Path(self.source)) if resuming.holds(path, best)), None)
        if source is not None:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            link_over(source, self.checkpoints / "best.pt")
            log.info(f"{self.checkpoints}/best.pt is {source} (epoch {best['epoch']}) until an epoch is better.")

    # ------------------------------------------------------------------------------------------------ stopping

    @contextlib.contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Let a signal end the run at a safe point, after the checkpoint in progress is written.

        torchrun sends SIGTERM once one of several processes has ended, and SIGKILL 30 seconds later. So they all stay
        until the first has written the checkpoint, and a SIGTERM replaces no message.

        Raises:
            RunInterrupted: a signal has come; the message says how to continue.
            MachineFault: a file could not be read; the message says so too, if a checkpoint was written.
        """
        with self.signals:
            try:
                yield
            except RunInterrupted as stop:  # raised in all processes, or in the only one
                if distributed.world_size() > 1:
                    self.signals.ignore_sigterm_afterwards()
                distributed.broadcast_from_main(self._wait_until_written)
                text = f"{stop.name}: the run ends here. {self._how_to_continue()}"
                raise RunInterrupted(stop.number, text) from None
            except MachineFault as fault:
                self.writer.wait()
                if self.writer.written is None:
                    raise
                text = f"{fault}\nOnce that is fixed, continue the run. {self._how_to_continue()}"
                raise MachineFault(text) from fault
            finally:
                self.writer.wait()

    def _wait_until_written(self) -> None:
        """Wait until the last checkpoint is written. Raises its SaveError if it could not be."""
        self.writer.wait()
        if self.writer.error is not None:
            raise self.writer.error

    @contextlib.contextmanager
    def interruptible(self, tracker: EpochTracker) -> Iterator[None]:
        """Let a signal end the run at once, during a validation; the resumed run validates again from the start.

        Several processes would stop at different batches, so they validate to the end.

        Raises:
            UserError: the network's outputs are not finite.
        """
        alone = distributed.world_size() == 1
        try:
            with self.signals.immediate() if alone else contextlib.nullcontext():
                yield
        except RunInterrupted:
            self.save(tracker)
            raise
        except MachineFault:
            if alone:
                self.save(tracker)
            raise
        except NotFinite as error:
            raise self.divergence_error(f"{error} after epoch {tracker.epoch}", tracker.lr) from error

    def _how_to_continue(self) -> str:
        return f"It is saved in {self.last}. To continue:\n    {self.settings.resume_command}"

    # ------------------------------------------------------------------------------------------------ going wrong

    @staticmethod
    def can_recover(error: Exception) -> bool:
        """Return whether `error` is one that `recover` takes: a divergence, or a GPU without memory."""
        return isinstance(error, Diverged) or faults.is_gpu_full(error)

    def recover(self, error: Exception) -> None:
        """Go back after a divergence; after running out of memory, look for the batch that fits, and raise.

        Call it outside of the handler of `error`, and remove the traceback of `error` first: its frames hold the graph
        of the failed step, and with it the memory that a smaller batch needs.

        Raises:
            UserError: as `rewind`, or with the batch that fits.
            RuntimeError: `error`, out of memory, was not in training.
        """
        if faults.is_gpu_full(error):
            assert self.tracker is not None
            raise self.tracker.out_of_memory(error) from None
        assert isinstance(error, UserError)
        self.rewind(error)

    def rewind(self, error: UserError) -> None:
        """Go back once to what was saved last: a fault of the machine may not happen again.

        Raises:
            UserError: `error`, if it happened again, or if nothing was saved yet.
        """
        self.writer.wait()
        content = None if self.rewound else distributed.broadcast_from_main(self._last_good)
        if content is None:
            raise self.divergence_error(str(error), self.engine.learning_rate()) from None
        self.rewound = True
        steps = count_of(content["training"]["step"], "step")
        log.warning(f"{error}. The run goes back, once, to where it was after {steps}.")
        self.engine.load_weights(content)
        self.engine.load_state_dict(content)
        self.state.load_state_dict(content)
        self._load_curves()

    def _load_curves(self) -> None:
        self.curves.load_state_dict(self.state.curves, self.state.epochs_done, within_epoch=bool(self.state.within))
        self.state.curves = None  # they are in self.curves now

    def _last_good(self) -> dict[str, Any] | None:
        """Return the checkpoint that this run wrote last, or else the one it resumed; never one of an earlier run."""
        if self.writer.written is not None:
            return checkpoint.load(self.writer.written)
        if not self.resumed:
            return None
        return checkpoint.load(self.source) | {"within": self.state.within}

    def divergence_error(self, what: str, lr: float) -> UserError:
        """Return the error for numbers that are no longer finite."""
        return UserError(
            f"{what}. Earlier checkpoints in {self.checkpoints}/ are whole.\n"
            f"Try a lower --lr (it was {lr:g}), --clip_grad 1, --warmup 1, or --precision fp32."
        )

    def _check_finite(self, epoch: int, scores: Scores) -> None:
        """Raise UserError before a broken network replaces a good one: the last step may have broken it."""
        parameters = self.engine.model.net.parameters()
        if not bool(torch.stack([parameter.isfinite().all() for parameter in parameters]).all()):
            raise self.divergence_error(f"After epoch {epoch} weights are infinite or NaN", scores["lr"])
        if not math.isfinite(scores.get("val_loss", 0.0)):
            raise self.divergence_error(
                f"The validation loss is {scores['val_loss']} after epoch {epoch}", scores["lr"]
            )
