"""One run in several processes, under torchrun. With one process every function here does nothing.

The environment says who we are (RANK, WORLD_SIZE, LOCAL_RANK), so asking needs no torch and no setting up.
"""

import os
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from utils.errors import UserError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

T = TypeVar("T")
START = "classifier/start"  # in torchrun's store: the name of the newest start
BEGUN = "classifier/begun"  # in torchrun's store, once the run has the folders of its tag
PATIENCE, LOOK = timedelta(minutes=5), timedelta(seconds=1)  # with processes that begin later; between two looks


_stores: list[Any] = []  # torchrun's


def rank() -> int:
    """Which process this is, from 0; process 0 alone writes."""
    return int(os.environ.get("RANK", 0)) if world() > 1 else 0


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """Which process of its machine this is, from 0: its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_world() -> int:
    """How many processes there are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def join(device: "torch.device") -> bool:
    """Meet the other processes: by gloo, and by nccl besides between cards. Returns whether torchrun had started this run before.

    torchrun keeps its store over a restart, and in it the addresses of processes that are gone: so those of one start
    agree on a name first, and meet under it. That `begin` was called before is what tells a restart; torchrun's own count does
    not, for it differs between machines, and counts a start that was refused. One process alone meets nobody, but may be
    started anew just as well.
    """
    if not _has_agent():
        return False
    from torch import distributed

    if distributed.is_initialized():
        return False
    store = next(distributed.rendezvous("env://"))[0]
    _stores.append(store)
    again = store.check([BEGUN]) if rank() == 0 else False
    if world() == 1:
        return bool(again)
    name = _agree(store)
    # objects and flags travel by gloo, which holds up no card
    kind = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(kind, store=distributed.PrefixStore(name, store), rank=rank(), world_size=world())
    return bool(from_first(lambda: again))


def begin() -> None:
    """Note in torchrun's store that the run has begun: whatever starts after this is a restart of it."""
    if _stores and rank() == 0:
        _stores[-1].set(BEGUN, "")


def restarts() -> bool:
    """Whether an agent may start this run anew by itself: torchrun has told us its store."""
    return bool(_stores)


def _has_agent() -> bool:
    """Whether there are several processes, or torchrun started this one."""
    return world() > 1 or ("TORCHELASTIC_RUN_ID" in os.environ and "MASTER_ADDR" in os.environ)


def _agree(store: Any) -> str:
    """The name of this start, the same in all of its processes. What those of earlier starts left in `store` is not taken for it."""
    from torch import distributed

    mine = uuid.uuid4().hex
    if rank() == 0:
        store.set(START, mine)
        for other in range(1, world()):
            answer = f"{mine}/{other}"  # whoever is there now
            store.wait([answer], PATIENCE)
            store.set(f"{answer}/{store.get(answer).decode()}", "")
        return mine
    until = time.monotonic() + PATIENCE.total_seconds()
    while True:
        name = store.get(START).decode()  # of this start, or of one before
        store.set(f"{name}/{rank()}", mine)
        try:
            store.wait([f"{name}/{rank()}/{mine}"], LOOK)
            return name
        except distributed.DistStoreError:
            if time.monotonic() > until:
                raise


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


def in_words() -> str:
    """ ", 2 processes" where there are several."""
    return f", {world()} processes" if world() > 1 else ""


def share(batch_size: int) -> int:
    """This process's part of a batch of `batch_size`. Raises UserError where it cannot be shared out evenly."""
    if batch_size % world():
        fitting = max(world(), batch_size // world() * world())
        raise UserError(
            f"-b {batch_size} cannot be shared out among {world()} processes; give a multiple, such as -b {fitting}."
        )
    return batch_size // world()


def mean(values: "torch.Tensor") -> "torch.Tensor":
    """The mean over the processes, in each of them; `values` is changed."""
    if world() > 1:
        from torch import distributed

        distributed.all_reduce(values)
        values /= world()
    return values


def highest(value: int) -> int:
    """The highest `value` of all processes, in each of them."""
    return max(gather(value))


class Vote:
    """Asks all processes, each step, without holding one up: the answer to a question comes with the next."""

    def __init__(self) -> None:
        self._asked: tuple[Any, Any] | None = None

    def highest(self, value: int) -> int | None:
        """The highest `value` that any process gave in the last call (in this one, where there is one process); None in the first."""
        if world() == 1:
            return value
        import torch

        before, mine = self._asked, torch.tensor(value)
        self._asked = mine, torch.distributed.all_reduce(mine, torch.distributed.ReduceOp.MAX, async_op=True)
        if before is None:
            return None
        before[1].wait()
        return int(before[0])


def from_first(make: Callable[[], T]) -> T:
    """What `make()` gives in the first process, in every process.

    Raises:
        UserError: where it did in the first process.
    """
    if world() == 1:
        return make()
    from torch import distributed

    found: list[Any] = [None, None]
    if rank() == 0:
        try:
            found = [make(), None]
        except UserError as error:
            found = [None, str(error)]
    distributed.broadcast_object_list(found)
    if found[1] is not None:
        raise UserError(found[1])
    return found[0]


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


def same_statistics(module: "torch.nn.Module") -> None:
    """Give every process the batch statistics of process 0: each has seen its own part of the last batch."""
    if world() > 1:
        from torch import distributed

        for buffer in module.buffers():
            distributed.broadcast(buffer, 0)
