"""Checks that the processes of a run agree: each has its own command line and its own files."""

import hashlib
from collections.abc import Mapping

from dataloader.file_list import FileList
from utils import distributed
from utils.errors import UserError
from utils.files import file_hash

# Where a process runs, reads and writes; machines may differ here. The first process reads --load for all of them.
PLACES = {"config", "given", "gpu", "workers", "worker_timeout", "loader", "cache", "load", "teacher", "pretrained"}
PLACES |= {"data_root", "train_list", "val_list", "test_list", "checkpoint_dir", "log_dir", "result_dir"}


def check_agree(
    options: Mapping[str, object], lists: Mapping[str, FileList | None], class_names: list[str] | None, teacher: str
) -> None:
    """Compare what the processes of a run were given; call it before the first step.

    Args:
        options: by name.
        lists: by name, or None.
        teacher: the path of --teacher, or "".

    Raises:
        UserError: in every process, if they differ; it names what differs, with the value in each process.
    """
    if distributed.world_size() == 1:
        return
    mine = {f"--{name}": repr(value) for name, value in options.items() if name not in PLACES}
    mine |= {
        f"the {name} list": files.fingerprint()[:12] if files is not None else "none" for name, files in lists.items()
    }
    names = "\n".join(class_names or ()).encode(errors="surrogateescape")
    mine["the class names"] = hashlib.sha256(names).hexdigest()[:12]
    mine["the teacher's file"] = file_hash(teacher)[:12] if teacher else "none"
    all_of_them = distributed.all_gather_object(mine)
    keys = sorted({name for one in all_of_them for name in one})
    apart = [name for name in keys if len({one.get(name) for one in all_of_them}) > 1]
    if apart:
        shown = [
            f"  {name}: " + ", ".join(f"{one.get(name)} (process {rank})" for rank, one in enumerate(all_of_them))
            for name in apart[:20]
        ]
        raise UserError(
            "\n".join(["The processes of this run were not started alike:", *shown])
            + "\nGive each machine the same flags and the same lists "
            "(torchrun gives one command line to all of its processes)."
        )
