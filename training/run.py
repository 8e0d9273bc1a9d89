"""The records of one training run: where it starts, what it says while it runs, and what it leaves behind."""

import argparse
import contextlib
import copy
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from options import resume_command
from training import resuming
from training.checkpoint_writer import Saver, Spare, file_name
from training.earlier import check_earlier, remove_earlier
from training.epoch import Watch, in_words
from training.recorder import Records
from training.unreadable import BadImages
from utils import checkpoint, distributed, run_lock
from utils.errors import MachineFault, NotFinite, UserError
from utils.files import link_over
from utils.logger import MetricsWriter, format_count, log, start_logging, write_options
from utils.signals import RunInterrupted, SignalHandler


class TrainingRun:
    """Begin with `TrainingRun.begin(opt)`. Of several processes, the first alone writes.

    start: the checkpoint to start from, or None, as it is after `describe`; source: its path. history: a dict of scores for
    each epoch done. next_epoch: the epoch to train next, from 1; within: how far it is already (see Watch.position), or None.
    """

    def __init__(self, opt: argparse.Namespace, start: dict[str, Any] | None, source: str) -> None:
        self.opt, self.start, self.source = opt, start, source
        self.checkpoints, self.logs = Path(opt.checkpoint_dir) / opt.tag, Path(opt.log_dir) / opt.tag
        self.writes = distributed.rank() == 0
        self.data: dict[str, Any] = {}
        self.saver, self.signals, self.vote = (
            Saver(self.checkpoints / resuming.UNSAVED),
            SignalHandler(),
            distributed.AsyncMax(),
        )
        self.saved_at = time.monotonic()
        self.rewound = False
        self._take_up(start if opt.resume and start else {})

    def _take_up(self, content: dict[str, Any]) -> None:
        self.history: list[dict[str, Any]] = list(content.get("history", []))
        self.next_epoch: int = content.get("epoch", 0) + 1
        self.within: dict[str, Any] | None = content.get("within")
        self.bad = BadImages(self.logs / "bad_images.csv", self.opt.max_bad, content.get("bad", {}))

    @classmethod
    def begin(cls, opt: argparse.Namespace, again: bool) -> "TrainingRun":
        """Take the tag, open the log, read the checkpoint of --load or --resume, and on --resume take over its options.

        Flags that were given win over the checkpoint's, and each difference is said. `again`: torchrun started it before.

        Raises:
            UserError: another run of the tag is going on, or would be replaced; no such checkpoint, or one that cannot be resumed.
        """
        folders = [Path(folder) / opt.tag for folder in (opt.checkpoint_dir, opt.log_dir)]
        for folder in folders:
            distributed.broadcast_from_main(functools.partial(run_lock.acquire, folder))
        distributed.broadcast_from_main(lambda: None if again else check_earlier(opt, *folders))
        distributed.mark_begun()
        start_logging(Path(opt.log_dir) / opt.tag / "log.txt")
        folder = folders[0]
        start, source = resuming.find_start(opt, folder, again)
        run = cls(opt, start, source)
        if run.writes:
            for left in folder.glob(".*.tmp"):  # of a run that was killed while it saved
                left.unlink(missing_ok=True)
        return run

    def complete(self) -> bool:
        """Whether nothing is left to train, after saying so."""
        if self.next_epoch <= self.opt.epochs:
            return False
        log.info(
            f"{self.source} is complete: epoch {self.next_epoch - 1} of {self.opt.epochs}. "
            f"To train on, start anew from it (--load without --resume), or give more --epochs."
        )
        return True

    def network_options(self) -> argparse.Namespace:
        """The options to build the network with: nothing is fetched where a checkpoint brings the weights."""
        opt = copy.copy(self.opt)
        opt.pretrained = opt.pretrained and self.start is None
        return opt

    def check_classes(self, names: list[str] | None, listed: Path) -> None:
        """Raise UserError where this is resumed with other classes: `names` are those of the classes.txt beside the list `listed`."""
        if self.opt.resume and self.start:
            resuming.check_classes(self.start, self.source, names, listed)

    def take_lists(self, fingerprint: str, lists: dict[str, str]) -> None:
        """Note what the epochs are made of. Where it is not what the checkpoint was trained on, its epoch begins again.

        Args:
            fingerprint: of the training list. lists: where the lists are, for who evaluates the checkpoints.
        """
        self.fingerprint, self.lists = fingerprint, lists
        before = self.start["data"].get("train_list", fingerprint) if self.opt.resume and self.start else fingerprint
        if before == fingerprint:
            return
        self.bad.named.clear()  # by their places in the list
        again = resuming.begin_epoch_again(self.start) if self.start else False
        self.within = None
        log.warning(
            f"The training list is not the one that {self.source} was trained on"
            + (f": epoch {self.next_epoch} begins again." if again else "; it is used from here on.")
        )

    def describe(self, model: Any, train_files: Any, val_files: Any, classes: Any) -> None:
        """Say what is about to be trained, and write options.yaml. `val_files`: None with --val_freq 0."""
        opt = self.opt
        known = (
            vars(opt).get("precision_why") if opt.precision == opt.precision_used else ""
        )  # by a run that is resumed
        opt.precision_why = known or model.precision_why
        self.data = {
            **classes.as_dict(),
            "preprocess": model.preprocess().as_dict(),
            "train_list": self.fingerprint,
            "lists": self.lists,
        }
        self.train_images = len(train_files)
        self.start = None  # its tensors lie in the model now
        if not self.writes:
            return
        if opt.overwrite and not (opt.resume and self.source == str(self.checkpoints / "last.pt")):
            remove_earlier(self.checkpoints, self.logs)
        self.scores = MetricsWriter(self.logs, first_step=self.next_epoch)
        self.records = Records(self.scores, classes, opt.histograms)
        self.saver.first = self.records.settle
        self._bring_best()
        write_options(opt, self.logs / "options.yaml")
        self._mend_records(model)
        count = format_count(sum(p.numel() for p in model.net.parameters()))
        log.info(
            f"{model.name}: {count} parameters, {classes.count} classes, {opt.scale} px, "
            f"{opt.precision_used} on {model.device}{distributed.process_count_text()}\n"
            f"{len(train_files)} training and {len(val_files or ())} validation images, {model.batches} batches of "
            f"{min(opt.batch_size, len(train_files))} an epoch, epochs {self.next_epoch} to {opt.epochs}\n"
            f"{opt.optimizer}, lr {opt.lr:g}, {opt.scheduler}, loss {opt.loss}, transform {opt.transform}, seed {opt.seed}"
        )

    @property
    def batches_done(self) -> int:
        """How many batches of the next epoch are behind us."""
        return self.within["done"] if self.within else 0

    def watch(self, epoch: int, model: Any) -> Watch:
        """A watch over one epoch's batches; use it in a `with`."""
        self.watching = Watch(self, epoch, model)
        return self.watching

    def seen(self, model: Any) -> Any:
        """What takes a validation's evaluation.metrics.Predictions, for the confusion matrix; None where nothing is written."""
        return (lambda predictions: self.records.predicted(model.showing, predictions)) if self.writes else None

    # -------------------------------------------------------------------------------------------- saving and stopping

    @contextlib.contextmanager
    def going(self) -> Iterator[None]:
        """Around the epochs: signals end the run where nothing is half done, and what is being written is finished."""
        try:
            with self.signals:
                yield
        except RunInterrupted as stop:
            self.saver.wait()
            if self.saver.error is not None:
                raise self.saver.error from None
            raise RunInterrupted(stop.number, f"{stop.name}: the run ends here. {self._how_to_continue()}") from None
        except MachineFault as fault:
            self.saver.wait()
            if self.saver.written is None:
                raise
            raise MachineFault(f"{fault}\nOnce that is fixed, the run can go on. {self._how_to_continue()}") from fault
        finally:
            self.saver.wait()
            distributed.shutdown()

    def _how_to_continue(self) -> str:
        command = resume_command(self.opt, distributed.world_size())
        return f"It is saved in {self.checkpoints}/last.pt. To continue:\n    {command}"

    def may_save(self, watch: Watch) -> None:
        """Between two optimizer steps: save every --save_minutes, or save and stop where a signal asked for it."""
        late = self.writes and not self.saver.busy and time.monotonic() - self.saved_at > 60 * self.opt.save_minutes
        asked = self.vote.exchange(self.signals.received or int(late) - 1)
        if asked is None or asked < 0:
            return
        self.save(watch.model, watch)
        if asked > 0:
            raise RunInterrupted(asked)

    def validates(self, epoch: int) -> bool:
        """Whether epoch `epoch` ends with a validation."""
        return self.opt.val_freq > 0 and (epoch % self.opt.val_freq == 0 or epoch == self.opt.epochs)

    @contextlib.contextmanager
    def validating(self, watch: Watch) -> Iterator[None]:
        """Around a validation, in which a signal ends the run at once: it is done anew when the run goes on.

        Of several processes each would leave at another place: they validate to the end.

        Raises:
            UserError: the network's answers are no numbers.
        """
        try:
            with self.signals.immediate() if distributed.world_size() == 1 else contextlib.nullcontext():
                yield
        except RunInterrupted:
            self.save(watch.model, watch)
            raise
        except MachineFault:
            if distributed.world_size() == 1:
                self.save(watch.model, watch)
            raise
        except NotFinite as error:
            raise self.diverged(f"{error} after epoch {watch.epoch}", watch.lr) from error

    def save(
        self, model: Any, watch: Watch | None = None, names: Iterable[str] = (), spare: Spare | None = None
    ) -> None:
        """Write last.pt, under `names` too, while training goes on; with `watch`, from within its epoch."""
        self.saved_at = time.monotonic()
        within = watch.position() if watch else None
        if not self.writes:
            return
        epoch = self.history[-1]["epoch"] if self.history else 0
        options = {
            name: value for name, value in vars(self.opt).items() if name not in ("given", "config", "overwrite")
        }
        content = {"model": model.name, "epoch": epoch, "opt": options, "data": self.data, "history": self.history}
        content |= {"within": within, "bad": self.bad.named, **model.state()}
        self.saver.save(self.checkpoints / "last.pt", content, [self.checkpoints / name for name in names], spare)

    def recover(self, error: Exception, model: Any) -> None:
        """Go back after a divergence; after running out of memory, look for the batch that fits, and raise.

        Call it where the handler of `error` has been left, with `error` freed of its traceback: its frames hold the failed step's
        graph, and so the very memory that a smaller batch would have.

        Raises:
            UserError: as `rewind`, or with the batch that fits.
            torch.OutOfMemoryError: it was not in training.
        """
        if isinstance(error, torch.OutOfMemoryError):
            raise self.watching.out_of_memory(error) from None
        assert isinstance(error, UserError)
        self.rewind(error, model)

    def rewind(self, error: UserError, model: Any) -> None:
        """Go back to what was saved last, once: a fault of the machine may not come again.

        Raises:
            UserError: `error`, where it came again, or where nothing was saved yet.
        """
        self.saver.wait()
        content = None if self.rewound else distributed.broadcast_from_main(self._last_good)
        if content is None:
            raise self.diverged(str(error), model.learning_rate()) from None
        self.rewound = True
        log.warning(f"{error}. Going back, once, to where the run was after {content['training']['step']} steps.")
        model.net.load_state_dict(content["weights"])
        model.load_state(content)
        self._take_up(content)

    def _last_good(self) -> dict[str, Any] | None:
        """The checkpoint that this run wrote last, or else resumed from. What an earlier run left under its tag is none of it."""
        if self.saver.written is not None:
            return checkpoint.load(self.saver.written)
        return checkpoint.load(self.source) | {"within": self.within} if self.opt.resume else None

    # -------------------------------------------------------------------------------------------- an epoch's end, the run's end

    def end_epoch(self, epoch: int, scores: dict[str, Any], model: Any) -> None:
        """Log, plot and save. What cannot be written is said, and tried again next time.

        Raises:
            UserError: the network is no longer finite; it is not saved.
            RunInterrupted: a signal had asked for it.
        """
        self.history.append({"epoch": epoch, **scores})
        self.next_epoch, self.within = epoch + 1, None
        log.info(f"epoch {epoch}/{self.opt.epochs}  " + in_words(scores))
        self._check_finite(epoch, scores, model)
        if self.writes:
            self.records.end_epoch(epoch, scores, model)
            self._write_records()
        self._save_epoch(epoch, model)
        asked = distributed.all_reduce_max(self.signals.received or 0)
        if asked and epoch < self.opt.epochs:
            raise RunInterrupted(asked)

    def finish(self, command: Callable[[str, str], str]) -> None:
        """Close the records and say where they are, and what to run next: `command("eval", checkpoint)` gives that.

        Raises:
            UserError: the last checkpoint could not be written.
        """
        self.saver.wait()
        if not self.writes:
            return
        self.records.close()
        self.bad.sum_up()
        if self.saver.error is not None:
            raise self.saver.error
        best = self.best()
        if best is not None:
            log.info(f"best: epoch {best['epoch']}, top1 {best['val_top1']:.6f}")
        there = best is not None and resuming.holds(self.checkpoints / "best.pt", best)
        if best is not None and not there:
            log.warning(
                f"{self.checkpoints}/ has no checkpoint of epoch {best['epoch']}: that was another run's, and is not beside its last."
            )
        path = self.checkpoints / ("best.pt" if there else "last.pt")
        then = command("submit" if best is None else "eval", str(path))
        log.info(f"Checkpoints: {self.checkpoints}/   Records: {self.logs}/\nNext: {then}")

    def best(self) -> dict[str, Any] | None:
        """The history's row of the best validated epoch (the first of equals); None before any validation."""
        return max((row for row in self.history if "val_top1" in row), key=lambda row: row["val_top1"], default=None)

    def diverged(self, what: str, lr: float) -> UserError:
        """The error for numbers that are no longer finite."""
        return UserError(
            f"{what}. Earlier checkpoints in {self.checkpoints}/ are whole.\n"
            f"Try a lower --lr (it was {lr:g}), --clip_grad 1, --warmup 1, or --precision fp32."
        )

    def _check_finite(self, epoch: int, scores: dict[str, Any], model: Any) -> None:
        """Raise UserError before a broken network takes the place of a good one: the last step may have broken it."""
        if not bool(torch.stack([parameter.isfinite().all() for parameter in model.net.parameters()]).all()):
            raise self.diverged(f"After epoch {epoch} weights are infinite or NaN", scores["lr"])
        if not math.isfinite(scores.get("val_loss", 0.0)):
            raise self.diverged(f"The validation loss is {scores['val_loss']} after epoch {epoch}", scores["lr"])

    def _save_epoch(self, epoch: int, model: Any) -> None:
        names = self._names(epoch, model)
        best = self.best()
        keep = {epoch} if best is None else {epoch, best["epoch"]}
        spare = Spare(file_name(model.name), self.opt.keep, self.opt.save_freq, keep)
        self.bad.gather()
        self.save(model, None, names, spare)

    def _names(self, epoch: int, model: Any) -> list[str]:
        """Under which names the end of `epoch` is kept, besides last.pt."""
        best = self.best()
        kept = self.opt.keep > 0 or epoch % self.opt.save_freq == 0 or epoch == self.opt.epochs
        return [f"{epoch}_{file_name(model.name)}.pt"] * kept + ["best.pt"] * (
            best is not None and best["epoch"] == epoch
        )

    def _bring_best(self) -> None:
        """Give the best checkpoint of a run that is resumed under another tag a name here too, as it would have in one run."""
        best, folder = self.best(), Path(self.source).parent
        if not self.opt.resume or best is None or folder.resolve() == self.checkpoints.resolve():
            return
        source = next((path for path in (Path(self.source), folder / "best.pt") if resuming.holds(path, best)), None)
        if source is not None:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            link_over(source, self.checkpoints / "best.pt")
            log.info(f"{self.checkpoints}/best.pt is {source} (epoch {best['epoch']}) until an epoch is better.")

    def _mend_records(self, model: Any) -> None:
        """Complete what a run that was killed between two of its files had left undone."""
        last = self.checkpoints / "last.pt"
        if not (self.opt.resume and self.history) or self.source != str(last):
            return
        self._write_records()
        if self.within is None:
            for name in self._names(self.history[-1]["epoch"], model):
                path = self.checkpoints / name
                if not (path.exists() and path.samefile(last)):
                    link_over(last, path)

    def _write_records(self) -> None:
        try:
            self.scores.table(self.history)
            self.records.curves(self.history)
        except OSError as error:
            log.warning(f"The records in {self.logs}/ could not be written: {error}")
