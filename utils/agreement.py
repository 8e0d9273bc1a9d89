"""Checks that the processes of a run agree: each has its own command line and its own files."""

from collections.abc import Mapping

from utils import distributed
from utils.errors import UserError

MAX_DIFFERENCES = 20  # in a message
# Where a process runs, reads and writes; machines may differ here.
PLACES = {"config", "given", "gpu", "workers", "worker_timeout", "loader", "cache", "load", "teacher", "pretrained"}
PLACES |= {"data_root", "train_list", "val_list", "test_list", "checkpoint_dir", "log_dir", "result_dir"}


def check_alike(options: Mapping[str, object], more: Mapping[str, str]) -> None:
    """Compare what the processes of a run were given; call it before the work, in all of them.

    Args:
        options: by name; those of PLACES may differ.
        more: what else must be the same, by its name in the message.

    Raises:
        UserError: in every process, if they differ; it names what differs, with the value in each process.
    """
    if distributed.world_size() == 1:
        return
    mine = {f"--{name}": repr(value) for name, value in options.items() if name not in PLACES} | dict(more)
    all_of_them = distributed.all_gather_object(mine)
    keys = sorted({name for one in all_of_them for name in one})
    apart = [name for name in keys if len({one.get(name) for one in all_of_them}) > 1]
    if apart:
        shown = [
            f"  {name}: " + ", ".join(f"{one.get(name)} (process {rank})" for rank, one in enumerate(all_of_them))
            for name in apart[:MAX_DIFFERENCES]
        ]
        raise UserError(
            "\n".join(["The processes of this run were not started alike:", *shown])
            + "\nGive each machine the same flags and the same lists "
            "(torchrun gives one command line to all of its processes)."
        )
