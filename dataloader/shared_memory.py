"""The shared memory in which worker processes hand over their batches; containers keep it small."""

import shutil

from utils import distributed
from utils.errors import UserError

SHARED_MEMORY = "/dev/shm"
PREFETCH_BATCHES = 4  # that each worker holds


def max_processes(batch_bytes: int) -> int:
    """Return how many workers find room in shared memory, twice: for training and validation at the same time."""
    return _free_bytes() // max(1, 2 * shared_bytes(batch_bytes, workers=1))


def shared_bytes(batch_bytes: int, workers: int) -> int:
    """Return how many bytes of batches the workers of all processes on this machine hold at most."""
    return batch_bytes * workers * PREFETCH_BATCHES * distributed.local_world_size()


def check_shared_memory(wanted: int, workers: int) -> None:
    """Raise UserError where the workers' batches exceed shared memory, which containers keep small.

    Without this check, the run would end later with a bus error.
    """
    free = _free_bytes()
    if wanted > free:
        raise UserError(
            f"{workers} worker processes may hold {wanted / 1e6:.1f} MB of batches in {SHARED_MEMORY}, "
            f"where {free / 1e6:.1f} MB are free.\n{_advice(wanted)}"
        )


def no_shared_memory(text: str, wanted: int) -> str:
    """Return the message for a worker whose batch did not fit into shared memory."""
    why = text.strip().splitlines()[-1].removeprefix("RuntimeError: ")
    return f"A worker process found no room for a batch ({why[:200]}).\n{_advice(wanted)} Then continue with --resume."


def _advice(wanted: int) -> str:
    """Return the advice for too little shared memory."""
    return (
        "Use threads (--loader thread), fewer --workers or a smaller -b, "
        f"or give the container more: docker run --shm-size={(wanted >> 20) + 64}m."
    )


def _free_bytes() -> int:
    """Return the free bytes of shared memory; where the folder does not exist, more than anyone needs."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return 1 << 62
