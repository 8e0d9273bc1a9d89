"""What a resumed run takes over from its checkpoint."""

import shlex
from pathlib import Path
from typing import Any

from utils import checkpoint, distributed
from utils.classes import describe_difference, names_agree
from utils.errors import MachineFault, UserError
from utils.files import atomic_write
from utils.logger import log

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
CACHE_FILES = "images-*.sqlite"  # as dataloader.stores names them
NO_CHECKPOINT_MARKER = ".nothing_saved_yet"


def find_start(opt: Any, folder: Path, again: bool) -> tuple[Any, dict[str, Any] | None, str]:
    """Return the options, the checkpoint of --load, or last.pt of `folder` on --resume, and its path; without, None and "".

    Of several processes the first alone reads, and hands on what it read: other machines need not have the file. With
    `again`, torchrun has restarted the run after a process died: it resumes by itself, if it has saved anything.

    Raises:
        UserError: no such checkpoint, or one that cannot be resumed.
    """
    resume, start, source = distributed.broadcast_from_main(lambda: _read_start(opt, folder, again))
    opt = opt.replace(resume=resume)
    if resume and start is not None:
        opt = restore_options(opt, start, source)
    return opt, start, source


def _read_start(opt: Any, folder: Path, again: bool) -> tuple[bool, dict[str, Any] | None, str]:
    """Return whether to resume, and the checkpoint and its path as `find_start` gives them."""
    last, fresh = folder / "last.pt", folder / NO_CHECKPOINT_MARKER
    if again and not (last.exists() or fresh.exists()):
        raise UserError(
            f"torchrun restarted tag {opt.tag!r}, and {folder}/ has nothing of it: the first process is on another machine now.\n"
            "Put checkpoints where all machines see them (--checkpoint_dir), or fix who is first by --node_rank; "
            "then go on where last.pt lies, with --resume."
        )
    if again and not fresh.exists():
        log.info(f"torchrun restarted the run: it continues from {last}.")
        return True, _checked(opt, checkpoint.load(last), str(last)), str(last)
    source = opt.load or opt.probe_init or (str(last) if opt.resume else "")
    start = checkpoint.load(source) if source else None
    start = _checked(opt, start, source) if start is not None and opt.resume else start
    if distributed.may_restart() and source != str(last):
        with atomic_write(fresh, "w") as file:
            file.write("Until this run writes its first checkpoint, a restart by torchrun starts from the beginning.\n")
    return opt.resume, start, source


def _checked(opt: Any, start: dict[str, Any], source: str) -> dict[str, Any]:
    """Return `start`, a checkpoint to resume. Raises UserError where it is none, or would say where this run writes."""
    if "training" not in start:
        raise UserError(
            f"{source} holds weights alone, so it cannot be resumed. Start from them: --load {source} without --resume."
        )
    _check_cache(opt, start["opt"], source)
    return start


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
    if any(getattr(opt, name) != saved.get(name) for name in BATCH_ORDER_OPTIONS) and begin_epoch_again(start):
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


def check_classes(start: dict[str, Any], source: str, names: list[str] | None, listed: Path) -> None:
    """Raise UserError where the classes.txt beside `listed`, with `names`, numbers the classes otherwise than the checkpoint."""
    known = (start.get("data") or {}).get("class_names")
    if known and names and not names_agree(known, names):
        raise UserError(
            f"{source} was trained with other classes than {listed.parent / 'classes.txt'} names, or in another order: "
            f"{describe_difference(known, names, 'classes.txt')}. --resume goes on with the same classes.\n"
            f"Put the lists and classes.txt back as they were, or start from its weights: --load {source} without --resume "
            "carries the classifier over by name."
        )


def holds(path: Path, row: dict[str, Any]) -> bool:
    """Return whether `path` is a checkpoint of the end of the epoch that `row` of the history is of, with the same scores."""
    if not path.is_file():
        return False
    try:
        content = checkpoint.load(path)
    except MachineFault:
        raise
    except UserError:
        return False
    history = content.get("history")
    last = history[-1] if isinstance(history, list) and history else {}
    return content.get("within") is None and all(
        last.get(key) == row.get(key) for key in ("epoch", "val_top1", "val_loss")
    )


def _check_cache(opt: Any, saved: dict[str, Any], source: str) -> None:
    """Raise UserError where the checkpoint names a folder for --cache that is no cache yet: a file must not say what is created."""
    cache = str(saved.get("cache", "none"))
    folder = Path(cache.removeprefix("disk:"))
    if "cache" in opt.given or not cache.startswith("disk:") or any(folder.glob(CACHE_FILES)):
        return
    raise UserError(
        f"{source} was trained with --cache {cache}, and {folder}/ holds no cache. A checkpoint does not decide where files go.\n"
        f"Add --cache {shlex.quote(cache)} to make one there, or --cache ram, which holds the same images."
    )


def begin_epoch_again(start: dict[str, Any]) -> bool:
    """Forget how far the checkpoint `start` is within its epoch; returns whether it was."""
    within, start["within"] = start.get("within"), None
    return within is not None
