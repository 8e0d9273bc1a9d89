"""Where a run starts: its tag, its options, and the checkpoint of --load or --resume."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from options import command
from training import resuming
from training.earlier import check_earlier
from training.probe_init import check_probe
from training.state import RunState
from utils import distributed
from utils.classes import Classes
from utils.errors import UserError
from utils.logger import log, start_logging
from utils.run_lock import acquire

# What a resumed run does not take from its checkpoint: where it runs and writes.
NOT_RESTORED = {
    "tag",
    "load",
    "resume",
    "config",
    "given",
    "gpu",
    "workers",
    "debug",
    "checkpoint_dir",
    "log_dir",
    "result_dir",
    "overwrite",
}
IMMUTABLE = ("model", "optimizer", "freeze", "head_lr", "layer_decay")  # what the saved state is of
BATCH_ORDER_OPTIONS = ("batch_size", "accumulate", "repeat_aug", "balance", "debug")  # what batch 100 of an epoch means
SCHEDULE_OPTIONS = (
    "--epochs",
    "--scheduler",
    "--lr",
    "--min_lr",
    "--warmup",
    "--batch_size",
    "--accumulate",
    "--step_size",
)


@dataclass
class RunStart:
    """Made by `begin`.

    opt: the options, with what a resumed run takes from its checkpoint. content: the checkpoint to start from, or None;
    source: its path. state: how far a resumed run is.
    """

    opt: Any
    content: dict[str, Any] | None
    source: str
    state: RunState

    @classmethod
    def begin(cls, opt: Any, restarted: bool) -> "RunStart":
        """Take the tag, open the log, read the checkpoint of --load or --resume, and on --resume take its options.

        Flags that were given override the checkpoint's; each change is logged. All processes of a run call it together.

        Args:
            restarted: torchrun started the run before, and starts it again.

        Raises:
            UserError: another run of the tag is going on, or would be replaced; there is no such checkpoint, or it cannot
                be resumed.
        """
        checkpoints, logs = Path(opt.checkpoint_dir) / opt.tag, Path(opt.log_dir) / opt.tag
        for folder in (checkpoints, logs):
            distributed.broadcast_from_main(functools.partial(acquire, folder))
        distributed.broadcast_from_main(lambda: None if restarted else _check_earlier(opt, checkpoints, logs))
        distributed.mark_begun()
        start_logging(logs / "log.txt")
        opt, content, source = find_start(opt, checkpoints, restarted)
        state = RunState()
        if content is not None and opt.resume:
            state.load_state_dict(content)
        if distributed.rank() == 0:
            for left in checkpoints.glob(".*.tmp"):  # of a run that was killed while it saved
                left.unlink(missing_ok=True)
        return cls(opt, content, source, state)

    @property
    def resumed(self) -> bool:
        """Whether the run continues, rather than starting from weights, or from nothing."""
        return self.opt.resume and self.content is not None

    def network_options(self, num_classes: int) -> Any:
        """Return the options to build the network with: nothing is fetched where a checkpoint brings the weights."""
        return self.opt.replace(num_classes=num_classes, pretrained=self.opt.pretrained and self.content is None)

    def is_complete(self, epochs: int) -> bool:
        """Return whether nothing is left to train of `epochs`, after saying so."""
        if self.state.next_epoch <= epochs:
            return False
        log.info(
            f"{self.source} is complete: epoch {self.state.epochs_done} of {epochs}. "
            "To train more, give more --epochs, or start a new run from its weights: --load without --resume."
        )
        return True

    def check_classes(self, names: list[str] | None, listed: Path) -> None:
        """Raise UserError where a resumed run has other classes: `names` are those of the classes.txt beside the list `listed`."""
        if self.resumed:
            assert self.content is not None
            resuming.check_classes(self.content, self.source, names, listed)

    def check_probe(self, classes: Classes) -> None:
        """Raise UserError where the classifier of --probe_init does not fit this run's network or classes."""
        if self.opt.probe_init and self.content is not None and not self.resumed:
            check_probe(self.content, self.source, vars(self.opt), classes)

    def check_list(self, fingerprint: str) -> None:
        """Start the epoch again where the training list, with this fingerprint, is not what the checkpoint was trained on."""
        if not self.resumed:
            return
        assert self.content is not None
        if self.content["data"].get("train_list", fingerprint) == fingerprint:
            return
        self.state.unreadable.clear()  # they are known by their places in the list
        again = resuming.begin_epoch_again(self.content)
        self.state.within = None
        what = f": epoch {self.state.next_epoch} begins again." if again else "; it is used from here on."
        log.warning(f"The training list is not the one that {self.source} was trained on{what}")

    def reason_for(self, precision: str, reason: str) -> str:
        """Return why the run is in `precision`: as the checkpoint says where it is the same, else `reason`."""
        saved = (self.content or {}).get("opt", {}) if self.resumed else {}
        return saved.get("precision_why") or reason if saved.get("precision_used") == precision else reason


def _check_earlier(opt: Any, checkpoints: Path, logs: Path) -> None:
    reads = {"load": opt.load, "teacher": opt.teacher}
    clear = command("clear", {name: getattr(opt, name) for name in ("tag", "checkpoint_dir", "log_dir")})
    check_earlier(opt.tag, checkpoints, logs, reads, opt.resume, opt.overwrite, clear)


def find_start(opt: Any, folder: Path, again: bool) -> tuple[Any, dict[str, Any] | None, str]:
    """Return the options, the checkpoint of --load, or last.pt of `folder` on --resume, and its path; else None and "".

    Of several processes the first alone reads, and hands on what it read: other machines need not have the file.
    `again` and the errors are those of resuming.read_start.
    """
    load, cache_given = opt.load or opt.probe_init, "cache" in opt.given
    resume, start, source = distributed.broadcast_from_main(
        lambda: resuming.read_start(opt.tag, folder, load, opt.resume, again, cache_given)
    )
    opt = opt.replace(resume=resume)
    if resume and start is not None:
        opt = restore_options(opt, start, source)
    return opt, start, source


def restore_options(opt: Any, start: dict[str, Any], source: str) -> Any:
    """Return the checkpoint's options, overridden by the flags that were given; each change is logged.

    Raises:
        UserError: a flag contradicts it.
    """
    saved = start["opt"]
    for name in IMMUTABLE:
        instead = "start a new run" if name == "model" else f"start a new run from the weights: --load {source}"
        if name in opt.given and getattr(opt, name) != saved.get(name, getattr(opt, name)):
            raise UserError(
                f"{source} was trained with --{name} {saved[name]}, whose state does not fit {getattr(opt, name)}.\n"
                f"Leave --{name} out, or {instead} without --resume."
            )
    theirs = {name: value for name, value in saved.items() if name not in NOT_RESTORED and name in vars(opt)}
    changed = [
        f"--{name} {value} -> {getattr(opt, name)}"
        for name, value in theirs.items()
        if name in opt.given and getattr(opt, name) != value
    ]
    if "precision_used" in saved:
        theirs["precision"] = saved["precision_used"]  # what "auto" came to
    opt = opt.replace(**{name: value for name, value in theirs.items() if name not in opt.given})
    within = start.get("within") or {}
    if any(getattr(opt, name) != saved.get(name) for name in BATCH_ORDER_OPTIONS) and resuming.begin_epoch_again(start):
        log.warning(
            f"{source} was saved in epoch {within['epoch']}, which begins again: its batches are no longer the same."
        )
        within = {}
    but = f", but {', '.join(changed)}" if changed else ""
    where = f"in epoch {within['epoch']}, after batch {within['done']}" if within else f"after epoch {start['epoch']}"
    log.info(f"Resuming {source} {where}, with its options{but}.")
    if any(change.startswith(SCHEDULE_OPTIONS) for change in changed):
        log.warning(
            "The learning rate follows the changed schedule from here on, so it may jump where the run was cut."
        )
    return opt
