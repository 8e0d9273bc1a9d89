"""Where the lists are: where the flags say, else where the checkpoint records them, else in datasets/."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.logger import log

DEFAULT_ROOT = "datasets"  # of --data_root
KINDS = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class ListFlags:
    """What the flags say about the lists.

    Attributes:
        data_root: the folder of lists.
        root_given: whether the command line or a config sets it.
        paths: --train_list, --val_list and --test_list by "train", "val" and "test", as far as the command has them;
            None: not given.
    """

    data_root: str
    root_given: bool
    paths: Mapping[str, str | None]

    def path(self, name: str) -> Path:
        """Return the path of the list `name`: its own flag's, or <name>.txt in the data root."""
        given = self.paths[name]
        return Path(given) if given else Path(self.data_root) / f"{name}.txt"

    def says(self, name: str) -> bool:
        """Return whether a flag says where the list `name` is."""
        return bool(self.paths[name]) or self.root_given

    def to_record(self) -> dict[str, str]:
        """Return what a checkpoint records: absolute paths by "data_root", "train", "val" and "test".

        The test list is expected in the data root, or beside --train_list where that alone is given.
        """
        train = self.paths["train"]
        beside_train = train and self.data_root == DEFAULT_ROOT and not self.root_given
        root = Path(train).parent if train and beside_train else Path(self.data_root)
        paths = {
            "data_root": root,
            "train": self.path("train"),
            "val": self.path("val"),
            "test": root / "test.txt",
        }
        return {name: os.path.abspath(path) for name, path in paths.items()}

    def recorded(self, name: str, known: Mapping[str, object]) -> tuple[Path | None, str]:
        """Return where the checkpoints had their list `name`, and which of them record it, in words.

        (None, "") where a flag says where it is, or no checkpoint records it.

        Args:
            known: {path of the checkpoint: what `to_record` returned}.

        Raises:
            UserError: the checkpoints record different lists.
        """
        if self.says(name):
            return None, ""
        found = {
            path: lists[name]
            for path, lists in known.items()
            if isinstance(lists, Mapping) and isinstance(lists.get(name), str)
        }
        if len({os.path.realpath(path) for path in found.values()}) > 1:
            shown = "\n".join(f"  {path}: {listed}" for path, listed in found.items())
            caution = "\nOne network may have learned from the list of another, and scores too well there."
            caution = caution if name == "val" else ""
            raise UserError(
                f"The checkpoints remember different {KINDS[name]} lists:\n{shown}\n"
                f"Say which one to use: --{name}_list FILE, or --data_root DIR.{caution}"
            )
        owners = " and ".join(found) if len(found) <= 2 else f"{len(found)} checkpoints"
        return next((Path(listed) for listed in found.values()), None), owners

    def choose(self, name: str, known: Mapping[str, object]) -> Path:
        """Return the path of the list `name` for these checkpoints, and log it where no flag says it.

        Args:
            known: as for `recorded`.

        Raises:
            UserError: the recorded list is gone, or the checkpoints record different ones.
        """
        path, owners = self.recorded(name, known)
        if path is None:
            chosen = self.path(name)
            if not self.says(name):
                log.info(f"The {KINDS[name]} list is {chosen}: no checkpoint says where its lists were.")
            return chosen
        if not path.is_file():
            raise UserError(
                f"There is no list {path}, the {KINDS[name]} list that {owners} recorded.\n"
                f"Say where it is now: --{name}_list FILE, or --data_root DIR, which holds {name}.txt."
            )
        log.info(f"The {KINDS[name]} list is {path}, as {owners} recorded; --{name}_list and --data_root override it.")
        return path
