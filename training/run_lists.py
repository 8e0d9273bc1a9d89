"""The lists that a run trains on and validates on, with their classes."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from dataloader.file_list import FileList
from dataloader.list_checks import path_fingerprint
from evaluation.seen_images import warn_seen
from utils import distributed
from utils.agreement import check_alike
from utils.classes import Classes
from utils.files import file_hash
from utils.seen_lists import Seen, entry


@dataclass(frozen=True)
class RunLists:
    """The opened lists of a run.

    Attributes:
        train, val: the images, with the labels that `classes` numbers; `val` is None without a validation list.
        train_fingerprint, val_fingerprint: what a checkpoint records, to tell other lists apart. Without a validation
            list, `val_fingerprint` is that of the list that gave a resumed run its last scores, or None.
        paths: where the lists are, for the evaluation of the checkpoints.
    """

    train: FileList
    val: FileList | None
    classes: Classes
    train_fingerprint: str
    val_fingerprint: str | None
    paths: dict[str, str]

    @property
    def train_images(self) -> int:
        """Return the number of training images."""
        return len(self.train)

    @property
    def val_images(self) -> int:
        """Return the number of validation images; 0 without a validation list."""
        return 0 if self.val is None else len(self.val)

    def check_alike(self, options: Mapping[str, object], teacher: str) -> None:
        """Compare what the processes of a run were given; call it before the first step, in all of them.

        The first process reads --load for all of them.

        Args:
            options: by name.
            teacher: the path of --teacher, or "".

        Raises:
            UserError: in every process, if they differ; it names what differs, with the value in each process.
        """
        if distributed.world_size() == 1:
            return
        names = "\n".join(self.classes.names or ()).encode(errors="surrogateescape")
        more = {
            "the training list": self.train.fingerprint()[:12],
            "the validation list": "none" if self.val is None else self.val.fingerprint()[:12],
            "the names of classes.txt": hashlib.sha256(names).hexdigest()[:12],
            "the teacher's file": file_hash(teacher)[:12] if teacher else "none",
        }
        check_alike(options, more)

    def warn_seen(self, what: str, seen: Seen) -> None:
        """Warn where a network that the run starts from, or learns from, was trained on validation images.

        It also warns where that cannot be told, because such a list has changed or is gone, or nobody knows it.

        Args:
            what: the network, for messages.
            seen: the lists that it has learned from; the run's own is left out, for train.py compares the two.
        """
        if self.val is None:
            return
        effect = "It knows their answers, so the validation scores, and the choice of the best epoch, say nothing."
        warn_seen(what, [one for one in seen if not self._is_own(one)], self.val, effect)

    def _is_own(self, one: Mapping[str, str | None]) -> bool:
        """Return whether a list of `seen` is the run's own, also where it has been moved, or its path is left out.

        A list of equal labels and names that is still there may be of other images.
        """
        if one == entry(self.train.source, self.train_fingerprint, self.classes.task):
            return True
        path = one.get("path")
        return one.get("fingerprint") == self.train_fingerprint and (path is None or not os.path.isfile(path))

    def record(self) -> dict[str, dict[str, object]]:
        """Return what lists.json says of the lists: their content, where options.yaml says where they are."""
        lists = {"train": (self.train, self.train_fingerprint), "val": (self.val, self.val_fingerprint)}
        return {
            name: {"images": len(files), "fingerprint": fingerprint, "paths": path_fingerprint(files)}
            for name, (files, fingerprint) in lists.items()
            if files is not None
        }
