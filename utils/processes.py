"""One run in several processes, under torchrun. With one process every function here does nothing.

The environment says who we are (RANK, WORLD_SIZE, LOCAL_RANK), so asking needs no torch and no setting up.
"""

import os
from typing import TYPE_CHECKING, Any

from utils.errors import UserError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


def rank() -> int:
    """Which process this is, from 0; process 0 alone writes."""
    return int(os.environ.get("RANK", 0)) if world() > 1 else 0


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """Which process of its machine this is, from 0: its card."""
    return int(os.environ.get("LOCAL_RANK", 0))


def restarts() -> int:
    """How often torchrun has started all processes anew, after one had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def join(device: "torch.device") -> None:
    """Meet the other processes: nccl between cards, gloo on the CPU."""
    if world() == 1:
        return
    from torch import distributed

    if distributed.is_initialized():
        return
    kind = "nccl" if device.type == "cuda" else "gloo"
    if restarts() and os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        # torchrun keeps its store over a restart, and with it the addresses of the processes that are gone
        store = next(distributed.rendezvous("env://"))[0]
        store = distributed.PrefixStore(f"restart {restarts()}", store)
        distributed.init_process_group(kind, store=store, rank=rank(), world_size=world())
    else:
        distributed.init_process_group(kind)


def refuse(what: str) -> None:
    """Raise UserError under torchrun with several processes: each would do all of the work and write the same files."""
    if world() > 1:
        raise UserError(
            f"{what} run in one process, and torchrun started {world()}.\nStart it by itself: python SCRIPT … (--gpu says where)."
        )


def leave() -> None:
    """Part from the other processes."""
    if world() > 1:
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()


def wait_for_all() -> None:
    """Come back when every process has called this."""
    if world() > 1:
        from torch import distributed

        distributed.barrier()


def in_words() -> str:
    """ ", 2 processes" where there are several."""
    return f", {world()} processes" if world() > 1 else ""


def share(batch_size: int) -> int:
    """This process's part of a batch of `batch_size`. Raises UserError where it cannot be shared out evenly."""
    if batch_size % world():
        fitting = max(world(), batch_size // world() * world())
        raise UserError(f"-b {batch_size} cannot be shared out among {world()} processes; give a multiple, such as -b {fitting}.")
    return batch_size // world()


def mean(values: "torch.Tensor") -> "torch.Tensor":
    """The mean over the processes, in each of them; `values` is changed."""
    if world() > 1:
        from torch import distributed

        distributed.all_reduce(values)
        values /= world()
    return values


def highest(value: int, device: "torch.device") -> int:
    """The highest `value` of all processes, in each of them."""
    if world() == 1:
        return value
    import torch

    shared = torch.tensor(value, device=device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return int(shared)


def gather_rows(columns: "list[NDArray[Any]]") -> "list[NDArray[Any]]":
    """Rows that the processes hold between them, joined in every process; the first column holds their places."""
    if world() == 1:
        return columns
    import numpy as np

    parts = [part for part in gather(columns) if part]
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(joined[0], kind="stable")
    return [column[order] for column in joined]


def gather(thing: Any) -> list[Any]:
    """What each process holds, in every process."""
    if world() == 1:
        return [thing]
    from torch import distributed

    parts: list[Any] = [None] * world()
    distributed.all_gather_object(parts, thing)
    return parts


def same_everywhere(module: "torch.nn.Module") -> None:
    """Give every process the buffers and weights of process 0: between steps, batch statistics differ."""
    if world() > 1:
        from torch import distributed

        for tensor in module.state_dict().values():
            distributed.broadcast(tensor, 0)
