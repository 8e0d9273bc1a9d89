"""Checkpoints are written while training continues."""

import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from utils import checkpoint
from utils.logger import log


class AsyncCheckpointWriter:
    """Copies what is to be saved, and writes it in a thread, one checkpoint after another.

    Attributes:
        error: why the last checkpoint could not be written, or None.
        written: the path of the last one that was written.
        blocked_seconds: how long the callers have waited.
    """

    def __init__(self, marker: Path | None = None, before_write: Callable[[], None] = lambda: None) -> None:
        """`marker`: a file to delete after the first write. `before_write`: called in the thread before each write."""
        self._marker, self.before_write = marker, before_write
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._pending: Future[None] | None = None
        self.error: checkpoint.SaveError | None = None
        self.written: Path | None = None
        self.blocked_seconds = 0.0

    @property
    def busy(self) -> bool:
        """Return whether a checkpoint is still being written."""
        return self._pending is not None and not self._pending.done()

    def save(
        self, path: Path, content: dict[str, Any], also: Iterable[Path] = (), retention: "RetentionPolicy | None" = None
    ) -> None:
        """Copy `content` and return; the thread writes it to `path`, and under the names `also`.

        Then it deletes what `retention` does not keep.
        """
        began = time.monotonic()
        self.wait()
        copied = snapshot(content)
        self._pending = self._thread.submit(self._write, path, copied, list(also), retention)
        self.blocked_seconds += time.monotonic() - began

    def _write(
        self, path: Path, content: dict[str, Any], also: list[Path], retention: "RetentionPolicy | None"
    ) -> None:
        self.before_write()
        checkpoint.save(path, content, also)
        self.written = path
        if self._marker is not None:
            self._marker.unlink(missing_ok=True)
        for old in retention.expired(path.parent, content["epoch"]) if retention else []:
            old.unlink(missing_ok=True)

    def wait(self) -> None:
        """Wait until the last checkpoint is written. A failure is logged, and kept in `error` until a success."""
        if self._pending is None:
            return
        try:
            self._pending.result()
            self.error = None
        except checkpoint.SaveError as error:
            self.error = error
            log.warning(str(error))
        self._pending = None


def safe_model_name(model: str) -> str:
    """Return a model's name as part of a file name: `timm-resnet18` for `timm:resnet18`."""
    return model.replace(":", "-").replace("/", "-")


def epoch_names(model: str, epoch: int, is_best: bool, numbered: bool) -> list[str]:
    """Return the names under which the checkpoint of the end of `epoch` is kept, besides last.pt."""
    return [f"{epoch}_{safe_model_name(model)}.pt"] * numbered + ["best.pt"] * is_best


class RetentionPolicy:
    """Which numbered checkpoints to keep: the last `keep` epochs, every `every`-th, and the epochs in `always`."""

    def __init__(self, name: str, keep: int, every: int, always: Iterable[int]) -> None:
        self.pattern = re.compile(rf"(\d+)_{re.escape(name)}\.pt")
        self.keep, self.every, self.always = keep, every, set(always)

    def expired(self, folder: Path, epoch: int) -> list[Path]:
        """Return the files of `folder` to delete once `epoch` is done. Those of later epochs belong to another run."""
        gone = []
        for path in folder.iterdir():
            match = self.pattern.fullmatch(path.name)
            number = int(match[1]) if match else 0
            if 0 < number <= epoch - self.keep and number % self.every and number not in self.always:
                gone.append(path)
        return gone


def snapshot(content: Any) -> Any:
    """Return a copy of nested dicts and lists with every tensor copied to the CPU, so that training can change them."""
    if isinstance(content, torch.Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {key: snapshot(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(snapshot(value) for value in content)
    return content
