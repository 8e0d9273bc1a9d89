"""The options of a resumed run: those of its checkpoint, changed by the flags that were given."""

from typing import Any

from options import Options, rules
from options.choices import AUTO_BATCH, SAME_HEADS
from options.options import build_parser
from options.values import flag_text
from scheduler import find_table
from utils.errors import UserError
from utils.logger import log
from utils.task import activation_of

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
# The saved state depends on them.
IMMUTABLE = (
    *("model", "task", "head", "pool", "loss", "metric"),
    *("optimizer", "freeze", "head_lr", "layer_decay", "lora", "fit_head"),
)
# A change of one of them changes which images the rest of a cut epoch reads, so that epoch begins again.
BATCH_ORDER_OPTIONS = ("seed", "batch_size", "accumulate", "repeat_aug", "balance", "debug")
SCHEDULE_OPTIONS = (
    "--epochs",
    "--hours",
    "--scheduler",
    "--lr",
    "--min_lr",
    "--warmup",
    "--batch_size",
    "--accumulate",
    "--step_size",
)


def restore_options(opt: Options, content: dict[str, Any], source: str) -> Options:
    """Return the checkpoint's options, overridden by the flags that were given; each change is logged.

    If the changes give the rest of a cut epoch other batches, `content` loses its position in that epoch.

    Raises:
        UserError: a flag contradicts the checkpoint.
    """
    saved = content["opt"]
    if opt.batch_size == AUTO_BATCH and "batch_size" in saved:
        log.info(f"-b auto: a resumed run keeps its batch, so -b is {saved['batch_size']}.")
        opt = opt.replace(batch_size=saved["batch_size"])
    _refuse_immutable(opt, saved, source)
    before = _options_before(opt, saved)
    changed = [
        f"--{name} {value} -> {getattr(opt, name)}"
        for name, value in before.items()
        if name in opt.given and getattr(opt, name) != value
    ]
    if "precision_used" in saved:
        before["precision"] = saved["precision_used"]  # what "auto" chose
    opt = _merge(opt, before, saved)
    if find_table(opt.scheduler) is not None and before.get("hours") is None:  # the table sets the epochs
        changed = [change for change in changed if not change.startswith("--epochs ")]
    _refuse_contradictions(opt, before, changed, saved, source)
    _restart_reordered_epoch(opt, content, source)
    within = content.get("within") or {}
    but = f", but {', '.join(changed)}" if changed else ""
    where = f"in epoch {within['epoch']}, after batch {within['done']}" if within else f"after epoch {content['epoch']}"
    log.info(f"Resuming {source} {where}, with its options{but}.")
    if any(change.startswith(SCHEDULE_OPTIONS) for change in changed):
        log.warning(
            "The learning rate follows the changed schedule from here on, so it may jump where the run was cut."
        )
    return opt


def _refuse_immutable(opt: Options, saved: dict[str, Any], source: str) -> None:
    """Raise UserError if a given flag differs from the option `saved` in a checkpoint whose state depends on it."""
    task = saved.get("task", "single")
    for name in IMMUTABLE:
        instead = "start a new run" if name == "model" else f"start a new run from the weights: --load {source}"
        before = saved.get(name, rules.OFF.get(name, getattr(opt, name)))  # of a flag that is newer than the run
        if name in opt.given and not _have_same_state(name, before, getattr(opt, name), task):
            raise UserError(
                f"{source} was trained with {flag_text(name, before)}, whose state does not fit "
                f"{flag_text(name, getattr(opt, name))}.\n"
                f"Leave --{name} out, or {instead} without --resume."
            )


def _have_same_state(name: str, before: Any, now: Any, task: str) -> bool:
    """Return whether a run of `task` has the same state with the option `name` as `before` and as it is `now`."""
    if name == "loss":  # most losses want the same logits; those of ordered classes give them another meaning
        return activation_of(task, before) == activation_of(task, now)
    return before == now or (name == "head" and {before, now} == SAME_HEADS)


def _options_before(opt: Options, saved: dict[str, Any]) -> dict[str, Any]:
    """Return the options that the run had, of those that a resumed run takes over.

    A given flag that an older checkpoint does not know had its default.
    """
    get_default = build_parser("train").get_default
    defaults = {name: get_default(name) for name in opt.given if name not in NOT_RESTORED}
    return defaults | {name: value for name, value in saved.items() if name not in NOT_RESTORED and name in vars(opt)}


def _merge(opt: Options, before: dict[str, Any], saved: dict[str, Any]) -> Options:
    """Return the options that the run had `before`, where no flag was given."""
    replaced = {other for flag, other in (("epochs", "hours"), ("hours", "epochs")) if flag in opt.given}
    kept = {name: value for name, value in before.items() if name not in opt.given and name not in replaced}
    return opt.replace(**kept, load=saved.get("load"))  # what the run began with, as its records say


def _refuse_contradictions(
    opt: Options, before: dict[str, Any], changed: list[str], saved: dict[str, Any], source: str
) -> None:
    """Raise UserError if the merged options contradict each other, and those of the run `before` did not."""
    if problems := rules.lists_beside_root(opt, opt.given, saved, source):
        raise UserError(problems[0])
    if problems := rules.resumed(opt, opt.replace(**before)):
        named = [change for change in changed if change.split()[0] in " ".join(problems)]
        but = f"; you change {', '.join(named)}" if named else ""
        raise UserError(
            "\n".join(problems) + f"\nA resumed run keeps the options of {source}{but}.\n"
            f"Try: leave the change out, or start a new run from the weights: --load {source} without --resume"
        )


def _restart_reordered_epoch(opt: Options, content: dict[str, Any], source: str) -> None:
    """Begin the epoch in which the checkpoint `content` was saved again, if its batches are no longer the same."""
    within = content.get("within")
    reordered = any(getattr(opt, name) != content["opt"].get(name) for name in BATCH_ORDER_OPTIONS)
    if within is not None and reordered:
        content["within"] = None
        log.warning(
            f"{source} was saved in epoch {within['epoch']}, which begins again: its batches are no longer the same."
        )
