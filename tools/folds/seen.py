"""What networks have seen: those that predict for a fold, or that a fold starts from, must not know held-out images."""

import json
from pathlib import Path
from typing import Any

import dataloader
from dataloader.file_list import FileList, read_list
from dataloader.list_checks import is_list_of
from evaluation.seen_images import count_seen, find_seen
from options import Options
from tools.folds.flags import same_file
from tools.folds.plan import Fold, FoldsRun, clear_command
from utils import checkpoint
from utils.errors import UserError
from utils.seen_lists import STARTS, seen_lists

# ------------------------------------------------------------------------------------------------ networks of folds


def check_runs(run: FoldsRun) -> None:
    """Raise UserError if a fold's last.pt, which is finished or would be resumed, is not of this fold's training."""
    for fold in run.folds:
        path = fold.checkpoints / "last.pt"
        if not path.is_file():
            continue
        content = checkpoint.load(path)
        check_network(run, fold, path, content)
        trained = _trained_identity(fold)
        if trained is not None and trained != checkpoint.identity(content):
            raise UserError(
                f"{path} is not the network that these folds trained: another run of tag {fold.tag!r} has replaced or "
                f"continued it.\n{_again(run, fold)}"
            )


def check_network(run: FoldsRun, fold: Fold, path: Path, content: dict[str, Any]) -> None:
    """Raise UserError if the checkpoint `content` of `path` records another training list than that of its fold.

    Its network may have seen held-out images. So may one that was begun with another list, and resumed with that of its
    fold. Checkpoints of early versions record none, and pass.
    """
    data = content.get("data") or {}
    known = data.get("train_list")
    if known is None:
        return
    if is_list_of(_training_list(run, fold), known):
        _check_lists_before(run, fold, path, content)
        return
    listed = (data.get("lists") or {}).get("train")
    named = f": {listed}" if listed and not same_file(listed, fold.train_list) else ""
    raise UserError(
        f"{path} was trained on another list than {fold.train_list}{named}.\nIt may have seen the images that fold "
        f"{fold.number} holds out: its scores would not be out of fold.\n{_again(run, fold)}"
    )


def _check_lists_before(run: FoldsRun, fold: Fold, path: Path, content: dict[str, Any]) -> None:
    """Raise UserError if the network has learned from held-out images before it learned from the list of its fold."""
    data = content["data"]
    before = [one for one in seen_lists(content) if one.get("fingerprint") != data["train_list"]]
    if "seen" not in data or not before:
        return
    count, _ = find_seen(before, read_list(fold.val_list, task=run.train.task))
    if count:
        raise UserError(
            f"{path} was trained on {count} of the images that fold {fold.number} holds out, before it was trained on "
            f"{fold.train_list}: its scores would not be out of fold.\n{_again(run, fold)}"
        )


def _again(run: FoldsRun, fold: Fold) -> str:
    return (
        f"To put it into the trash, try: {clear_command(run, fold)}\n"
        "Then the same command trains that fold again. Or give another --tag."
    )


def _training_list(run: FoldsRun, fold: Fold) -> FileList:
    """Return the fold's training list, with the images that are missing."""
    listed = run.train.replace(train_list=str(fold.train_list), check_files=False)
    return dataloader.open_list(listed, "train", task=run.train.task)


def _trained_identity(fold: Fold) -> str | None:
    """Return the identity that last.pt had when its run was complete; None if it is not, or none was noted."""
    try:
        content = json.loads(fold.trained.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("identity") if isinstance(content, dict) else None


# ------------------------------------------------------------------------------------------------ starts


def check_start(train: Options, files: FileList) -> None:
    """Refuse to start from, or to learn from, a network that was trained on images of the list that is divided.

    Predictions of these images would not be out of fold.

    Raises:
        UserError: --load, --probe_init or --teacher is such a network.
    """
    for name in STARTS:
        path = vars(train)[name]
        count = count_seen(f"--{name} {path}", seen_lists(checkpoint.load(path)), files) if path else 0
        if count:
            raise UserError(
                f"--{name} {path} was trained on {count} of the {len(files)} images of {files.source}, which the folds "
                "hold out: their scores would not be out of fold.\nGive a checkpoint of other images, or leave it out."
            )
