"""The records of one training run: where it starts, what it says while it runs, and what it leaves behind."""

import argparse
import copy
import csv
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils import checkpoint
from utils.batch import Batch
from utils.errors import UserError
from utils.files import atomic_write
from utils.logger import Scores, format_count, log, progress, start_logging, write_options
from utils.report import plots

# What a resumed run does not take from its checkpoint: where it runs and writes.
OWN = {"tag", "load", "resume", "config", "given", "gpu", "workers", "debug", "checkpoint_dir", "log_dir", "result_dir"}
SHAPES_RATE = ("--epochs", "--scheduler", "--lr", "--min_lr", "--warmup", "--batch_size", "--accumulate", "--step_size")
FEW_BAD = 10  # so many unreadable images are borne in any list, however short
LOG_SECONDS = 60.0  # without a terminal, a line of progress each so often
BAR_SECONDS = 0.5


class TrainingRun:
    """Begin with `TrainingRun.begin(opt)`.

    start: the checkpoint to start from, or None; source: its path. history: a dict of scores for each epoch done.
    next_epoch: the first epoch to train, from 1.
    """

    def __init__(self, opt: argparse.Namespace, start: dict[str, Any] | None, source: str) -> None:
        self.opt, self.start, self.source = opt, start, source
        self.checkpoints, self.logs = Path(opt.checkpoint_dir) / opt.tag, Path(opt.log_dir) / opt.tag
        resumed = start if opt.resume and start else {}
        self.history: list[dict[str, Any]] = list(resumed.get("history", []))
        self.next_epoch: int = resumed.get("epoch", 0) + 1
        self.data: dict[str, Any] = {}
        self.bad: dict[str, str] = {}
        self.unsaved: UserError | None = None

    @classmethod
    def begin(cls, opt: argparse.Namespace) -> "TrainingRun":
        """Open the log, read the checkpoint of --load or --resume, and on --resume take over its options.

        Flags that were given win over the checkpoint's, and each difference is said.

        Raises:
            UserError: no such checkpoint, or one that cannot be resumed.
        """
        start_logging(Path(opt.log_dir) / opt.tag / "log.txt")
        folder = Path(opt.checkpoint_dir) / opt.tag
        source = opt.load or (str(folder / "last.pt") if opt.resume else "")
        start = checkpoint.load(source) if source else None
        if opt.resume and start is not None:
            _take_options(opt, start, source)
        elif any(folder.glob("*.pt")):
            log.warning(
                f"{folder}/ has checkpoints of an earlier run, which this one replaces as it goes (--resume would go on with them)."
            )
        return cls(opt, start, source)

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

    def describe(self, model: Any, train_files: Any, val_files: Any, classes: Any) -> None:
        """Say what is about to be trained, and write options.yaml."""
        opt = self.opt
        self.data = {**classes.as_dict(), "preprocess": model.preprocess().as_dict()}
        self.scores = Scores(self.logs, first_step=self.next_epoch)
        write_options(opt, self.logs / "options.yaml")
        count = format_count(sum(p.numel() for p in model.net.parameters()))
        log.info(
            f"{model.name}: {count} parameters, {classes.count} classes, {opt.scale} px, {opt.precision_used} on {model.device}\n"
            f"{len(train_files)} training and {len(val_files)} validation images, {model.batches} batches of "
            f"{min(opt.batch_size, len(train_files))} an epoch, epochs {self.next_epoch} to {opt.epochs}\n"
            f"{opt.optimizer}, lr {opt.lr:g}, {opt.scheduler}, loss {opt.loss}, transform {opt.transform}, seed {opt.seed}"
        )

    def watch(self, epoch: int, model: Any) -> "Watch":
        """A watch over one epoch's batches; use it in a `with`."""
        return Watch(self, epoch, model)

    def end_epoch(self, epoch: int, scores: dict[str, Any], model: Any) -> None:
        """Log, plot and save. What cannot be written is said, and tried again next time.

        Raises:
            UserError: the network is no longer finite; it is not saved.
        """
        self.history.append({"epoch": epoch, **scores})
        log.info(f"epoch {epoch}/{self.opt.epochs}  " + _in_words(scores))
        self._check_finite(epoch, scores, model)
        self.scores.scalars("train", {name: scores[name] for name in ("train_loss", "lr", "images_per_second", "data_wait")}, epoch)
        validation = {name[4:]: value for name, value in scores.items() if name.startswith("val_")}
        self.scores.scalars("val", validation, epoch)
        try:
            self.scores.table(self.history)
            plots.curves(self.logs / "curves.png", self.history)
        except OSError as error:
            log.warning(f"The records in {self.logs}/ could not be written: {error}")
        self._save(epoch, model)

    def finish(self) -> None:
        """Close the records and say where they lie. Raises UserError where the last checkpoint could not be written."""
        self.scores.close()
        if self.bad:
            log.warning(f"{len(self.bad)} images could not be read in training; they are named in {self.logs}/bad_images.csv.")
        if self.unsaved is not None:
            raise self.unsaved
        best = self.best()
        if best is not None:
            log.info(f"best: epoch {best['epoch']}, top1 {best['val_top1']:.6f}")
        log.info(f"Checkpoints: {self.checkpoints}/   Records: {self.logs}/\nNext: python eval.py --load {self.checkpoints}/best.pt")

    def best(self) -> dict[str, Any] | None:
        """The history's row of the best validated epoch (the first of equals); None before any validation."""
        return max((row for row in self.history if "val_top1" in row), key=lambda row: row["val_top1"], default=None)

    def note_bad(self, bad: Iterable[tuple[int, str]], images: int) -> None:
        """Count and name unreadable images, each once; `images` is the list's length.

        Raises:
            UserError: more than --max_bad of the list, and more than ten.
        """
        new = {str(index): reason for index, reason in bad if str(index) not in self.bad}
        if not new:
            return
        self.bad |= new
        for reason in new.values():
            log.warning(f"unreadable, skipped (the next of the list stands in): {reason}")
        with atomic_write(self.logs / "bad_images.csv", "w") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([("index", "reason"), *self.bad.items()])
        if len(self.bad) > max(FEW_BAD, self.opt.max_bad * images):
            raise UserError(
                f"{len(self.bad)} of {images} images cannot be read, more than --max_bad {self.opt.max_bad:g}; the list of them: "
                f"{self.logs}/bad_images.csv.\nMend them or take them out, or allow more with --max_bad."
            )

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

    def _save(self, epoch: int, model: Any) -> None:
        best = self.best()
        names = [f"{epoch}_{model.name.replace(':', '-').replace('/', '-')}.pt"]
        names = names if epoch % self.opt.save_freq == 0 or epoch == self.opt.epochs else []
        names += ["best.pt"] if best is not None and best["epoch"] == epoch else []
        options = {name: value for name, value in vars(self.opt).items() if name not in ("given", "config")}
        content = {"model": model.name, "epoch": epoch, "opt": options, "data": self.data, "history": self.history, **model.state()}
        try:
            checkpoint.save(self.checkpoints / "last.pt", content, also=[self.checkpoints / name for name in names])
            self.unsaved = None
        except checkpoint.SaveError as error:
            self.unsaved = error
            log.warning(str(error))


class Watch:
    """Counts one epoch: the loss without waiting for the device, the time spent waiting for data, unreadable images."""

    def __init__(self, run: TrainingRun, epoch: int, model: Any) -> None:
        self.run, self.epoch, self.model = run, epoch, model
        self.total = torch.zeros((), device=model.device)
        self.count = self.images = 0
        self.waited = 0.0
        self.lr = 0.0

    def __enter__(self) -> "Watch":
        self.began = self.shown = self.logged = time.monotonic()
        self.bar = progress(None, f"epoch {self.epoch}", self.model.batches)
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass the batches through, counting the time that is spent waiting for each."""
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - asked
            if batch is None:
                return
            self.run.note_bad(batch.bad, self.model.batches * len(batch.label))
            self.lr = self.model.learning_rate()
            yield batch

    def loss(self, loss: Tensor, batch: Batch) -> None:
        """Add a batch's loss; now and then show where we are, which alone waits for the device."""
        self.total += loss
        self.count += 1
        self.images += len(batch.label)
        self.bar.update()
        now = time.monotonic()
        if not self.bar.disable and now - self.shown > BAR_SECONDS:
            self.shown = now
            self.bar.set_postfix_str(_in_words(self.scores()))
        elif self.bar.disable and now - self.logged > LOG_SECONDS:
            self.logged = now
            log.info(f"epoch {self.epoch}, batch {self.count}/{self.model.batches}  " + _in_words(self.scores()))

    def scores(self) -> dict[str, Any]:
        """train_loss (mean so far), lr (of the last step), images_per_second, data_wait (share of the time).

        Raises:
            UserError: the loss is no longer a number.
        """
        loss = self.total.item() / max(1, self.count)
        spent = max(1e-9, time.monotonic() - self.began)
        if not math.isfinite(loss):
            raise self.run.diverged(f"The loss is {loss} in epoch {self.epoch}, by batch {self.count}", self.lr)
        return {"train_loss": loss, "lr": self.lr, "images_per_second": self.images / spent, "data_wait": self.waited / spent}


def _take_options(opt: argparse.Namespace, start: dict[str, Any], source: str) -> None:
    """Make the checkpoint's options those of this run, but for the flags that were given, which are said."""
    if "training" not in start:
        raise UserError(f"{source} holds weights alone, so it cannot be resumed. Start from them: --load {source} without --resume.")
    saved = start["opt"]
    for name in ("model", "optimizer", "freeze", "head_lr", "layer_decay"):
        anew = "train anew" if name == "model" else f"start anew from the weights: --load {source}"
        if name in opt.given and getattr(opt, name) != saved.get(name, getattr(opt, name)):
            raise UserError(
                f"{source} was trained with --{name} {saved[name]}, whose state does not fit {getattr(opt, name)}.\n"
                f"Leave --{name} out, or {anew} without --resume."
            )
    changed = []
    for name, value in saved.items():
        if name in OWN:
            continue
        if name not in opt.given:
            setattr(opt, name, value)
        elif getattr(opt, name) != value:
            changed.append(f"--{name} {value} -> {getattr(opt, name)}")
    if "precision" not in opt.given:
        opt.precision = saved.get("precision_used", opt.precision)
    but = f", but {', '.join(changed)}" if changed else ""
    log.info(f"Resuming {source} after epoch {start['epoch']}, with its options{but}.")
    if any(change.startswith(SHAPES_RATE) for change in changed):
        log.warning("The learning rate follows the changed schedule from here on, so it may jump where the run was cut.")


def _in_words(scores: dict[str, Any]) -> str:
    words = [f"loss {scores['train_loss']:.4f}"]
    if "val_top1" in scores:
        words.append(
            "val top1 {val_top1:.6f}  top5 {val_top5:.6f}  mean class {val_mean_class_accuracy:.6f}  loss {val_loss:.6f}".format(**scores)
        )
        words += [f"{name[4:-5]} {scores[name]:.6f}" for name in ("val_raw_top1", "val_ema_top1", "val_swa_top1") if name in scores]
        if scores["val_unreadable"]:
            words.append(f"{scores['val_unreadable']} unreadable")
    words.append(f"lr {scores['lr']:.3g}  {scores['images_per_second']:.0f} images/s  waiting for data {100 * scores['data_wait']:.0f} %")
    return "  ".join(words)
