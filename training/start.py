"""Where a run starts: its tag, and the checkpoint of --load or --resume."""

import functools
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from dataloader.transforms import scale_stages
from evaluation.ranking import check_decides, is_constant
from network.heads import final_layer
from network.loading import known_units
from options import Options, command, rules
from options.defaults import Facts, fill_defaults
from options.unused import unused_flags
from options.values import flag_text
from scheduler import find_table, run_length
from training import resuming
from training.checkpoint_writer import epoch_names
from training.distill import Teacher
from training.earlier import check_earlier
from training.probe_init import batch_norms, check_probe, is_untrained
from training.resumed_options import restore_options
from training.state import RunState
from utils import distributed
from utils.classes import Classes
from utils.clock import Stopwatch
from utils.errors import UserError
from utils.files import check_writable
from utils.logger import log, start_logging
from utils.run_lock import acquire

# They decide how an image is scored.
PREPROCESS_OPTIONS = ("scale", "fit")
CHOSEN = "Chosen for this run (give a flag to decide it yourself; --preset original takes the template's values):"


@dataclass
class RunStart:
    """The start of a run, made by `begin`.

    Attributes:
        opt: the options, with what a resumed run takes from its checkpoint; not what later follows from the lists.
        state: how far a resumed run is.
        content, source: the checkpoint to start from, or None, and its path.
        watch: counts from the start of the program, for --hours.
    """

    opt: Options
    content: dict[str, Any] | None
    source: str
    state: RunState
    watch: Stopwatch = field(default_factory=Stopwatch)

    @classmethod
    def begin(cls, opt: Options, restarted: bool, watch: Stopwatch) -> "RunStart":
        """Take the tag, open the log, read the checkpoint of --load or --resume, and on --resume take its options.

        Flags that were given override the checkpoint's; each change is logged. All processes of a run call it together.

        Args:
            restarted: torchrun restarted the run.
            watch: as the attribute.

        Raises:
            UserError: another run of the tag is active, or would be replaced. Or there is no such checkpoint, or it
                cannot be resumed.
        """
        checkpoints, logs = Path(opt.checkpoint_dir) / opt.tag, Path(opt.log_dir) / opt.tag
        for folder in (checkpoints, logs):
            distributed.broadcast_from_main(functools.partial(acquire, folder))
        for path in (checkpoints / "last.pt", logs / "log.txt"):  # before hours of training
            distributed.broadcast_from_main(functools.partial(check_writable, path))
        distributed.broadcast_from_main(lambda: None if restarted else _check_earlier(opt, checkpoints, logs))
        distributed.mark_begun()
        start_logging(logs / "log.txt")
        opt, content, source = find_start(opt, checkpoints, restarted)
        state = RunState(metric=opt.metric)
        if content is not None and opt.resume:
            state.load_state_dict(content)
        if distributed.is_main():
            for left in checkpoints.glob(".*.tmp"):  # of a run that was killed while it saved
                left.unlink(missing_ok=True)
        return cls(opt, content, source, state, watch)

    @property
    def logs(self) -> Path:
        """Return the folder of the run's log."""
        return Path(self.opt.log_dir) / self.opt.tag

    @property
    def resumed(self) -> bool:
        """Return whether the run continues an earlier one, rather than starting from weights or from nothing."""
        return bool(self.opt.resume)  # find_start has set it; where it is true, it has found a checkpoint

    @property
    def resumed_content(self) -> dict[str, Any]:
        """Return the checkpoint of a resumed run; it is there until the engine has taken its tensors."""
        assert self.resumed and self.content is not None
        return self.content

    def network_options(self, opt: Options) -> Options:
        """Return `opt` to build the network with: nothing is downloaded if a checkpoint holds the weights."""
        return opt.replace(pretrained=opt.pretrained and self.content is None)

    def keep_units(self, classes: Classes) -> Classes:
        """Return the classes of the list with the units that a loaded network has learned its numbers in.

        The list may be another one than the network's, or have changed since, and with it mean and deviation.
        """
        if self.content is None or classes.mean is None:
            return classes
        if not self.resumed:
            return known_units(classes, self.content, self.source)
        data = self.resumed_content["data"]
        return replace(classes, mean=data["target_mean"], std=data["target_std"])

    def is_complete(self) -> bool:
        """Return whether a resumed run has no epoch left to train; if so, log it. See `is_out_of_patience` too."""
        if not self.resumed:
            return False
        if self.opt.hours is not None:
            return self._has_used_hours()
        epochs = run_length(self.opt.scheduler, self.opt.epochs, given=False)
        if self.state.next_epoch <= epochs:
            return False
        more = "more --epochs"
        if find_table(self.opt.scheduler) is not None:
            more = f"another --scheduler ({self.opt.scheduler} sets {epochs} epochs, whatever --epochs says)"
        log.info(
            f"{self.source} is complete: epoch {self.state.epochs_done} of {epochs}. "
            f"To train more, give {more}, or start a new run from its weights: --load without --resume."
        )
        return True

    def is_out_of_patience(self) -> bool:
        """Return whether a resumed run has ended by --patience; if so, log it.

        Ask once the lists are open: `adopt_validation_list` may let --patience count from the next epoch on.
        """
        if not self.resumed or not self.state.is_out_of_patience(self.opt.patience):
            return False
        log.info(
            f"{self.source} is complete: it stopped after epoch {self.state.epochs_done} by --patience "
            f"{self.opt.patience}. To train on, give more --patience."
        )
        return True

    def link_last_epoch(self) -> None:
        """Give the last checkpoint of a complete run its other names, if the run was killed before it had them."""
        folder, state = Path(self.opt.checkpoint_dir) / self.opt.tag, self.state
        if not distributed.is_main() or state.within is not None or self.source != str(folder / "last.pt"):
            return
        epoch = state.epochs_done
        names = epoch_names(self.resumed_content["model"], epoch, state.is_best(epoch), numbered=True)
        resuming.link_missing(folder / "last.pt", names, state.history)

    def fill_defaults(self, opt: Options, net: nn.Module, images: int, classes: int) -> Options:
        """Return `opt` with the flags that were not given, unless a checkpoint has set them, and the run's epochs.

        Args:
            opt: the options of the run, with its classes.
            images: number of training images. classes: those that have some.

        Raises:
            UserError: --min_lr is above the learning rate that was chosen, --mix_off has nothing to leave out, or
                --scale_schedule is longer than the run.
        """
        if not self.resumed:
            opt, reasons = fill_defaults(opt, facts_of(opt, images, classes, net))
            if reasons:
                log.info("\n  ".join([CHOSEN, *reasons]))
            if opt.min_lr > opt.lr:
                raise UserError(
                    f"--min_lr {opt.min_lr:g} is above the chosen --lr {opt.lr:g}. Try: --lr {opt.min_lr:g}"
                )
            if problems := rules.mix_off(opt):
                raise UserError(problems[0])
        warn_unused(opt)
        timed = opt.hours is not None
        epochs = run_length(opt.scheduler, opt.epochs, given="epochs" in opt.given, timed=timed)
        last, size = scale_stages(opt.scale_schedule)[-1] if opt.scale_schedule else (1, opt.scale)
        warn_of_last_size(size, opt.scale)
        if last > epochs and self.chooses(opt, "scale_schedule", "scheduler", "epochs"):
            raise UserError(
                f"--scale_schedule {opt.scale_schedule} has a size from epoch {last} on, and the run has {epochs} "
                f"epochs. Try: --epochs {last} or more, or a schedule that ends earlier"
            )
        return opt.replace(epochs=epochs)

    def chooses(self, opt: Options, *names: str) -> bool:
        """Return whether these options of `opt` are other than when the run began, as all of a new run are.

        A rule between them is asked then alone: the version that a run began with may not have had it.
        """
        saved = self.content["opt"] if self.resumed and self.content is not None else {}
        return not self.resumed or any(getattr(opt, name) != saved.get(name) for name in names)

    def _has_used_hours(self) -> bool:
        clock = self.resumed_content["training"].get("clock")
        if clock is None or not clock["over"] or clock["hours"] != self.opt.hours or self.state.within is not None:
            return False
        log.info(
            f"{self.source} is complete: its --hours {self.opt.hours:g} ended with epoch {self.state.epochs_done}. "
            "To train more, give more --hours, or start a new run from its weights: --load without --resume."
        )
        return True

    def check_classes(self, names: list[str] | None, listed: Path) -> None:
        """Raise UserError if a resumed run has other classes than `names`, the classes.txt beside the list `listed`."""
        if self.resumed:
            resuming.check_classes(self.resumed_content, self.source, names, listed)

    def check_metric(self, classes: int) -> None:
        """Raise UserError if every network of this number of classes has the same --metric.

        A resumed run keeps the metric that it began with, so there it is a warning.
        """
        if not self.resumed:
            check_decides(self.opt.metric, classes, "the best epoch")
        elif is_constant(self.opt.metric, classes):
            log.warning(
                f"--metric {self.opt.metric} is 1 for every network of {classes} classes: the best epoch stays the "
                "first, and --patience counts from it. Another --metric needs a new run."
            )

    def check_probe(self, classes: Classes) -> None:
        """Raise UserError if the classifier of --probe_init does not fit this run's network or classes."""
        if self.opt.probe_init and self.content is not None and not self.resumed:
            check_probe(self.content, self.source, vars(self.opt), classes)

    def check_teacher(self, teacher: Teacher | None) -> None:
        """Raise UserError if the path of a resumed run's --teacher holds another network than before.

        A --teacher of another path is a change that was logged. Checkpoints of earlier versions note no network.
        """
        if not self.resumed or teacher is None or self.resumed_content["opt"].get("teacher") != teacher.path:
            return
        if self.resumed_content["training"].get("teacher", teacher.identity) != teacher.identity:
            raise UserError(
                f"--teacher {teacher.path} is another network than the one that {self.source} has learned from: the "
                "file was replaced.\nPut that network back to continue. Or copy the new one, and name the copy to "
                "learn from it from here on: --teacher COPY"
            )

    def warn_other_lists(self, lists: Mapping[str, str]) -> None:
        """Warn where a resumed run reads other lists than before, though no flag says so and those are still there.

        Relative paths start at the working folder: in another one they may name other lists, of the same names and
        labels.

        Args:
            lists: where its lists are now, as checkpoints record them (dataloader.lists_of).
        """
        if not self.resumed or "data_root" in self.opt.given:
            return
        known = self.resumed_content["data"].get("lists") or {}  # earlier versions did not note them
        names = [name for name in ("train", "val") if f"{name}_list" not in self.opt.given and name in known]
        other = [
            name
            for name in (names if self.opt.val_freq else names[:1])
            if Path(known[name]).is_file() and Path(known[name]).resolve() != Path(lists[name]).resolve()
        ]
        if other:
            flags = shlex.join(word for name in other for word in (f"--{name}_list", known[name]))
            changes = ", ".join(f"{known[name]} -> {lists[name]}" for name in other)
            log.warning(
                f"Resuming {self.source} with other lists, as relative paths start at the working folder: {changes}. "
                f"To keep those of the run, try: {flags}"
            )

    def adopt_training_list(self, fingerprint: str) -> None:
        """Continue with the training list of this fingerprint; if it is another one, a cut epoch begins again."""
        if not self.resumed:
            return
        if self.resumed_content["data"].get("train_list", fingerprint) == fingerprint:
            return
        self.state.unreadable.clear()  # they are known by their places in the list
        was_cut = self.state.within is not None
        self.state.within = self.resumed_content["within"] = None
        what = f": epoch {self.state.next_epoch} begins again." if was_cut else "; it is used from here on."
        log.warning(f"The training list is not the one that {self.source} was trained on{what}")

    def adopt_validation_list(self, fingerprint: str | None, images: int = 0) -> str | None:
        """Continue with the validation list of this fingerprint; None: without one. Return what checkpoints note.

        That is `fingerprint`; without a list, it is that of the list that gave the last scores. If a resumed run has
        scores of another list, of the few images of --debug, or of images of another --scale or --fit, the best epoch
        and --patience are counted from the next epoch on: such scores cannot be compared.

        Args:
            images: how many images of the list will be scored.
        """
        if not self.resumed:
            return fingerprint
        known: str | None = self.resumed_content["data"].get("val_list")  # earlier versions did not note it
        count = self.state.last_count()
        resized = [
            f"{flag_text(name, self.resumed_content['opt'][name])} -> {getattr(self.opt, name)}"
            for name in PREPROCESS_OPTIONS
            if self.resumed_content["opt"].get(name, getattr(self.opt, name)) != getattr(self.opt, name)
        ]
        if fingerprint is not None and known is not None and fingerprint != known:
            problem = f"The validation list is not the one that {self.source} was scored on."
        elif fingerprint is not None and count is not None and resized:
            problem = f"{self.source} was scored on images of another size or fit ({', '.join(resized)})."
        elif fingerprint is not None and self._debug_changed() and count not in (None, images):
            problem = f"{self.source} was scored on {count:g} images of the validation list, which now gives {images}."
        else:
            return fingerprint or known
        self.state.scored_from = self.state.next_epoch
        log.warning(
            f"{problem} The best epoch and --patience count from epoch {self.state.next_epoch} on; that epoch replaces "
            "best.pt."
        )
        return fingerprint

    def _debug_changed(self) -> bool:
        """Return whether the run is resumed with --debug and was without it, or the other way round."""
        return self.resumed and bool(self.resumed_content["opt"].get("debug", self.opt.debug)) != self.opt.debug

    def reason_for(self, precision: str, reason: str) -> str:
        """Return why the run has this `precision`: the checkpoint's reason if it is the same, else `reason`."""
        saved = self.resumed_content.get("opt", {}) if self.resumed else {}
        return saved.get("precision_why") or reason if saved.get("precision_used") == precision else reason


def warn_unused(opt: Options) -> None:
    """Warn of the given flags that change nothing beside the other options of a run, which are final."""
    for line in unused_flags(opt, distributed.world_size()):
        log.warning(line)


def warn_of_last_size(size: int, scale: int) -> None:
    """Warn where --scale_schedule ends with another `size` than --scale."""
    if size != scale:
        log.warning(
            f"--scale_schedule ends with {size} px, and --scale is {scale}: the network is scored at {scale} px, and "
            f"later predicts at that size. To use the size of the last epochs, try: --scale {size}"
        )


def facts_of(opt: Options, images: int, classes: int = 0, net: nn.Module | None = None) -> Facts:
    """Return what the defaults follow from, for a list of `images` of `classes`; 0: their number is unknown.

    Without the network `net`, it is taken to have batch norms, and no classifier to fit.
    """
    head = None if net is None else final_layer(net)
    table = find_table(opt.scheduler)
    pretrained = bool(opt.pretrained or opt.load or opt.probe_init) and not (net is not None and is_untrained(net))
    return Facts(
        images,
        pretrained,
        batch_norm=net is None or bool(batch_norms(net)),
        features=head.in_features if isinstance(head, nn.Linear) else 0,
        classes=classes,
        scheduled_epochs=table.epochs if table else None,
    )


def _check_earlier(opt: Options, checkpoints: Path, logs: Path) -> None:
    reads = {"load": opt.load, "teacher": opt.teacher}
    clear = command("clear", {name: getattr(opt, name) for name in ("tag", "checkpoint_dir", "log_dir")})
    check_earlier(checkpoints, logs, reads, opt.resume, opt.overwrite, clear)


def find_start(opt: Options, folder: Path, restarted: bool) -> tuple[Options, dict[str, Any] | None, str]:
    """Return the options, the checkpoint to start from, and its path; without one, None and "".

    The checkpoint is that of --load, or last.pt of `folder` on --resume. Of several processes only the first reads it,
    and sends it to the others: their machines need not have the file. `restarted` and the errors are those of
    resuming.read_start.
    """
    load, cache_given = opt.load or opt.probe_init, "cache" in opt.given
    resume, content, source = distributed.broadcast_from_main(
        lambda: resuming.read_start(opt.tag, folder, load, opt.resume, restarted, cache_given)
    )
    opt = opt.replace(resume=resume)
    if resume and content is not None:
        opt = restore_options(opt, content, source)
    return opt, content, source
