"""One run in several processes, under torchrun. With one process, every function here does nothing.

torchrun sets RANK, WORLD_SIZE and LOCAL_RANK in the environment, so asking for them needs neither torch nor `init`.
"""

import contextlib
import gc
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from utils.errors import UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
START_KEY = "classifier/start"  # in torchrun's store: the name of the newest start
BEGUN_KEY = "classifier/begun"  # in torchrun's store, once the run owns the folders of its tag
RENDEZVOUS_TIMEOUT = timedelta(minutes=5)  # for processes that start later
# Of prediction, where the main process may fit an ensemble for hours while the others wait. A killed process closes its
# connections, which gloo notices at once. nccl does not, so training keeps torch's own limit.
PREDICTION_TIMEOUT = timedelta(days=1)
POLL_INTERVAL = timedelta(seconds=1)
GLOO_LOST = ("closed by peer", "reset by peer", "broken pipe")  # in gloo's errors, after the end of another process
GLOO_LATE = "timed out"  # in gloo's errors, after the timeout of `init`

_stores: "list[torch.distributed.Store]" = []  # torchrun's store, once `init` has opened it
_restarted = False  # what `was_restarted` returns
_has_joined = False  # whether `init` has started the process group; a caller's own group shares no work with us


def rank() -> int:
    """Return the number of this process, from 0. Only process 0, the main process, writes files."""
    return int(os.environ.get("RANK", 0)) if world_size() > 1 else 0


def is_main() -> bool:
    """Return whether this process writes, and has the results of all; it is the only one, or the first of several."""
    return rank() == 0


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """Return the number of this process on its machine, from 0: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_world_size() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def init(device: "torch.device", timeout: timedelta | None = None) -> None:
    """Join the process group: gloo, and nccl as well where `device` is a GPU.

    torchrun keeps its store over a restart, with the addresses of processes that have ended. The processes of one start
    therefore agree on a name first, and form their group under it. `was_restarted` then tells a restart from a first
    start, by the note that `mark_begun` leaves. torchrun's own count of restarts differs between machines, and includes
    a start that was refused. A single process under torchrun joins no group, but torchrun may restart it as well.

    Args:
        device: the device of this process.
        timeout: how long a process waits for another; None: torch's own limit, 30 minutes.
    """
    global _restarted, _has_joined
    _restarted = False
    if not _has_agent():
        return
    from torch import distributed

    if distributed.is_initialized():
        return
    store = next(distributed.rendezvous("env://"))[0]
    _stores.append(store)
    _restarted = is_main() and bool(store.check([BEGUN_KEY]))
    if world_size() == 1:
        return
    name = _rendezvous_name(store)
    # Objects and flags travel by gloo, which does not hold up the GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    named_store = distributed.PrefixStore(name, store)
    distributed.init_process_group(backend, timeout=timeout, store=named_store, rank=rank(), world_size=world_size())
    _has_joined = True
    _restarted = broadcast_from_main(lambda: _restarted)


def was_restarted() -> bool:
    """Return whether torchrun has started this run before; `init` finds it out."""
    return _restarted


def mark_begun() -> None:
    """Note in torchrun's store that the run has begun: every later start is a restart of it."""
    if _stores and is_main():
        _stores[-1].set(BEGUN_KEY, "")


def may_restart() -> bool:
    """Return whether torchrun may restart this run by itself."""
    return bool(_stores)


def _has_agent() -> bool:
    """Return whether there are several processes, or torchrun started this one."""
    return world_size() > 1 or ("TORCHELASTIC_RUN_ID" in os.environ and "MASTER_ADDR" in os.environ)


def _rendezvous_name(store: "torch.distributed.Store") -> str:
    """Return the name of this start, the same in all of its processes, whatever earlier starts left in `store`."""
    from torch import distributed

    own_id = uuid.uuid4().hex
    if is_main():
        store.set(START_KEY, own_id)
        for other in range(1, world_size()):
            answer = f"{own_id}/{other}"  # holds the id of the process that has this rank now
            store.wait([answer], RENDEZVOUS_TIMEOUT)
            store.set(f"{answer}/{store.get(answer).decode()}", "")
        return own_id
    deadline = time.monotonic() + RENDEZVOUS_TIMEOUT.total_seconds()
    while True:
        name = store.get(START_KEY).decode()  # of this start, or of an earlier one
        store.set(f"{name}/{rank()}", own_id)
        try:
            store.wait([f"{name}/{rank()}/{own_id}"], POLL_INTERVAL)
            return name
        except distributed.DistStoreError:
            if time.monotonic() > deadline:
                raise


def require_single_process(what: str) -> None:
    """Raise UserError if torchrun started several processes that have not joined a group by `init`.

    Each would do all of the work and write the same files.
    """
    if world_size() > 1 and not _has_group():
        refuse_several_processes(what)


def refuse_several_processes(what: str) -> None:
    """Raise UserError if torchrun started several processes, whether they share a group or not."""
    if world_size() > 1:
        raise UserError(
            f"{what} run in one process, but torchrun started {world_size()}.\n"
            "Try: python SCRIPT … without torchrun (--gpu chooses the GPU)."
        )


def _has_group() -> bool:
    """Return whether this process has joined the group of `init`."""
    from torch import distributed

    return _has_joined and distributed.is_initialized()


def shutdown() -> None:
    """Leave the process group, and end its threads; call it when nothing that holds the group is needed any more.

    A thread of gloo that still runs when the interpreter ends can abort the process (exit code -6) after its work is
    done. Call it only where every process ends well: the threads end when what they were sent has been received.
    """
    if world_size() > 1 and "torch" in sys.modules:
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()
            global _has_joined
            _has_joined = False
            gc.collect()  # DistributedDataParallel holds the group too, in reference cycles


def process_count_text() -> str:
    """Return ", 2 processes" for a run of two processes, "" for a run of one."""
    return f", {world_size()} processes" if world_size() > 1 else ""


def per_process_batch(batch_size: int) -> int:
    """Return the part of a batch of `batch_size` that each process takes.

    Raises:
        UserError: the number of processes does not divide `batch_size`.
    """
    if batch_size % world_size():
        multiple = max(world_size(), batch_size // world_size() * world_size())
        raise UserError(
            f"-b {batch_size} cannot be divided among {world_size()} processes; "
            f"give a multiple of {world_size()}, such as -b {multiple}."
        )
    return batch_size // world_size()


def all_reduce_mean_(values: "torch.Tensor") -> "torch.Tensor":
    """Replace `values`, floats of one shape in all processes, in place by their mean over them, and return them."""
    if world_size() > 1:
        from torch import distributed

        distributed.all_reduce(values)
        values /= world_size()
    return values


def all_reduce_max(value: int) -> int:
    """Return the highest `value` of all processes."""
    return max(all_gather_object(value))


def all_reduce_min(value: int) -> int:
    """Return the lowest `value` of all processes."""
    return min(all_gather_object(value))


class AsyncMax:
    """The maximum over all processes, one call late: no process waits for another."""

    def __init__(self) -> None:
        self._pending: tuple[torch.Tensor, torch.distributed.Work] | None = None  # of the last call: value, all-reduce

    def exchange(self, value: int) -> int | None:
        """Send `value`; return the highest value that any process sent in the previous call, None in the first call.

        With one process it returns `value` itself.
        """
        if world_size() == 1:
            return value
        import torch

        previous, sent = self._pending, torch.tensor(value)
        self._pending = sent, torch.distributed.all_reduce(sent, torch.distributed.ReduceOp.MAX, async_op=True)
        if previous is None:
            return None
        previous[1].wait()
        return int(previous[0])


def broadcast_from_main(make: Callable[[], T]) -> T:
    """Call `make()` in the main process, and return its result in every process.

    Raises:
        UserError: in every process, where `make` raised it in the main process.
    """
    if world_size() == 1:
        return make()
    from torch import distributed

    found: list[Any] = [None, None]  # the result, and an error
    if is_main():
        try:
            found = [make(), None]
        except UserError as error:
            found = [None, error]
    distributed.broadcast_object_list(found)
    if found[1] is not None:
        found[1].printed_elsewhere = not is_main()
        raise found[1]
    return found[0]


@contextlib.contextmanager
def share_errors() -> Iterator[None]:
    """Run the body in every process; if it raises UserError in one of them, raise in all. The main process prints it.

    Without it, every process would print the same message, or the others would wait for the one that ended.
    """
    own: UserError | None = None
    try:
        yield
    except UserError as error:
        own = error
    texts = all_gather_object(None if own is None else str(own))
    failed = next((process for process, text in enumerate(texts) if text is not None), None)
    if failed is None:
        return
    raised = own or UserError(f"In process {failed}: {texts[failed]}")
    raised.printed_elsewhere = not is_main()
    raise raised


def describe_lost(error: BaseException) -> str | None:
    """Return the message for an error of gloo after another process has ended or is late; None for any other error."""
    text = str(error).lower()
    if "gloo" in text and GLOO_LATE in text:
        return (
            "Another process of this run did not answer in time: it hangs, is far slower, or the network is down. "
            "The run ends. What was written before is whole."
        )
    return lost("Another process") if "gloo" in text and any(part in text for part in GLOO_LOST) else None


def lost(who: str) -> str:
    """Return the message after the process `who` has ended."""
    return (
        f"{who} of this run has ended, so the run ends too. What was written before is whole.\n"
        "The report of torchrun names the process and its signal. SIGKILL often means that the memory was full."
    )


def all_gather_object(value: T) -> list[T]:
    """Return the `value` of each process, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def broadcast_buffers(module: "torch.nn.Module") -> None:
    """Copy the buffers of process 0 to every process: each has batch-norm statistics of its own part of the batch."""
    if world_size() > 1:
        from torch import distributed

        for buffer in module.buffers():
            distributed.broadcast(buffer, 0)
