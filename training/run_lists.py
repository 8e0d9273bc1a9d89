"""The lists that a run trains on and validates on, with their classes."""

from dataclasses import dataclass

from dataloader.file_list import FileList
from dataloader.lists import path_fingerprint
from utils.classes import Classes


@dataclass(frozen=True)
class RunLists:
    """The opened lists of a run.

    train, val: the images, with the labels that `classes` numbers; `val` is None without a validation list.
    train_fingerprint, val_fingerprint: what a checkpoint records, to tell other lists apart. Without a validation list,
    `val_fingerprint` is that of the list that gave a resumed run its last scores, or None.
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

    def record(self) -> dict[str, dict[str, object]]:
        """Return what lists.json says of the lists: their content, where options.yaml says where they are."""
        lists = {"train": (self.train, self.train_fingerprint), "val": (self.val, self.val_fingerprint)}
        return {
            name: {"images": len(files), "fingerprint": fingerprint, "paths": path_fingerprint(files)}
            for name, (files, fingerprint) in lists.items()
            if files is not None
        }
