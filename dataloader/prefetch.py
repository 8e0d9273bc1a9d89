"""Batches in order, prepared ahead by threads or by processes.

Threads copy no batch between processes, need no shared memory, and have the first batch after milliseconds. Decoding,
OpenCV and copying release the GIL. A thread takes it a dozen times per image, however, and the main thread takes it for
each kernel of a GPU: 15 threads beside a ResNet50 on an H100 left it a sixth of its speed. Processes (torch's
DataLoader) share no GIL. They are the choice for a GPU, and for a user's own augmentation in Python code that holds the
GIL. Both give the same batches, bit for bit.
"""

import functools
import shlex
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError, wait
from dataclasses import dataclass, replace
from itertools import islice
from typing import Generic, Protocol, TypeVar

import cv2

from dataloader.sampler import BatchIndices
from dataloader.shared_memory import (
    PREFETCH_BATCHES,
    SHARED_MEMORY,
    check_shared_memory,
    max_processes,
    no_shared_memory,
    shared_bytes,
)
from dataloader.worker_processes import WAIT_PARTS, BatchDataset, process_loader, waiting_in_parts
from utils import distributed
from utils.cores import usable_cores
from utils.errors import ImageError, MachineFault, UserError
from utils.logger import log
from utils.run import LOADER_THREADS

MIN_WORKERS, MAX_WORKERS = 2, 16  # by default; each worker holds PREFETCH_BATCHES batches
MIN_BATCHES_PER_PROCESS = 2  # with fewer, a worker process takes longer to start than it saves
NO_THREAD = "can't start new thread"  # in Python's RuntimeError

T = TypeVar("T")
BatchT = TypeVar("BatchT")


class BatchSampler(Sized, Iterable[BatchIndices], Protocol):
    """Yields the indices of one batch after another, and knows how many there are."""


@dataclass(frozen=True)
class WorkerConfig:
    """Who prepares the batches.

    Attributes:
        kind: "thread", "process", or "auto", see `resolved`.
        count: the number of workers; 0: the calling thread; None: `default_workers`.
        timeout_seconds: how long to wait for a batch; 0: without limit.
        on_gpu: the network runs on a GPU, so that batches are page-locked and more cores are free for workers.
    """

    kind: str = "thread"
    count: int | None = None
    timeout_seconds: int = 300
    on_gpu: bool = False

    @property
    def pins_in_place(self) -> bool:
        """Return whether the dataset allocates page-locked memory; batches of worker processes are copied into it."""
        return self.on_gpu and self.kind == "thread"

    def resolved(self, batch_bytes: int, batches: int) -> "WorkerConfig":
        """Return this configuration with a kind other than "auto".

        Processes load images for a GPU, where shared memory holds their batches and there are enough `batches` of
        `batch_bytes`; threads do otherwise. Where the user gives no number of workers, a few processes do.
        """
        if self.kind != "auto":
            return self
        count = self.count if self.count is not None else _default_workers_here(self.on_gpu)[0]
        if not self.on_gpu or count == 0 or batches < MIN_BATCHES_PER_PROCESS * count:
            return replace(self, kind="thread")
        if max_processes(batch_bytes) >= (count if self.count is not None else MIN_WORKERS):
            return replace(self, kind="process")
        log.info(
            f"{SHARED_MEMORY} is too small for worker processes: threads load the images, and hold up the GPU. "
            f"Give a container more: docker run --shm-size={(2 * shared_bytes(batch_bytes, count) >> 20) + 64}m."
        )
        return replace(self, kind="thread")


class BatchLoader(Generic[BatchT]):
    """Loads the batches of a sampler in order; each `iter()` begins at the sampler's first batch.

    Raises:
        UserError: too little shared memory for the worker processes. While iterating: no image can be read, or a worker
            cannot start, was killed or is stuck.
    """

    def __init__(
        self,
        dataset: BatchDataset[BatchT],
        sampler: BatchSampler,
        batch_size: int,
        workers: WorkerConfig,
        passes: int = 1,
    ) -> None:
        """Decide who loads.

        Args:
            batch_size: the size of the largest batch, from which the need for shared memory follows.
            passes: how often the sampler's batches are loaded by the same workers.
        """
        self.dataset, self.sampler = dataset, sampler
        self._batch_bytes = dataset.batch_bytes(batch_size)
        self.config = workers.resolved(self._batch_bytes, passes * len(sampler))
        dataset.pinned = self.config.pins_in_place
        limit, in_processes = MAX_WORKERS, self.config.kind == "process"
        if in_processes:
            limit = max(MIN_WORKERS, min(limit, max_processes(self._batch_bytes)))
        count = self.config.count
        self.workers: int = count if count is not None else _workers_here(workers.on_gpu, limit, self.config.kind)
        if self.workers and in_processes:
            self.workers = min(self.workers, max(1, passes * len(sampler)))  # the others would have nothing to do
            check_shared_memory(shared_bytes(self._batch_bytes, self.workers), self.workers)

    def __len__(self) -> int:
        """Return the number of batches of the sampler."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[BatchT]:
        return self.iterate(self.sampler)

    def iterate(self, batches: Iterable[BatchIndices]) -> Iterator[BatchT]:
        """Return an iterator over the batches of these indices; it shares no position with another iterator."""
        make, timeout = self.dataset.__getitems__, self.config.timeout_seconds
        source: Iterator[BatchT]
        if self.workers == 0:
            source = map(make, batches)
        elif self.config.kind == "thread":
            source = prefetch_threaded(make, batches, self.workers, timeout)
        else:
            loader = process_loader(self.dataset, batches, self.workers, timeout / WAIT_PARTS, self.config.on_gpu)
            try:
                source = waiting_in_parts(iter(loader))
            except OSError as error:
                raise UserError(_not_started(error, f"{self.workers} worker processes")) from error
        return self._translate_errors(source)

    def _translate_errors(self, source: Iterator[BatchT]) -> Iterator[BatchT]:
        """Yield from `source`, and turn faults of the data and of the machine into messages for the user."""
        while True:
            try:
                batch = next(source, None)
            except ImageError as error:
                reason = str(error).strip().splitlines()[-1]
                doctor = shlex.join(["python", "-m", "tools.doctor", str(self.dataset.files.source)])
                raise UserError(
                    f"{reason}\nCorrect the list. To see everything that is wrong with it: {doctor}"
                ) from error
            except MachineFault as error:  # from a worker process, with its traceback
                raise MachineFault(str(error).rpartition(f"{MachineFault.__name__}: ")[2].strip()) from error
            except TimeoutError as error:
                raise UserError(_stuck(self.config.timeout_seconds)) from error
            except RuntimeError as error:
                message = self._worker_failure(str(error))
                if message is None:
                    raise
                raise UserError(message) from error
            if batch is None:
                return
            yield batch

    def _worker_failure(self, text: str) -> str | None:
        """Return the message for a RuntimeError of torch's DataLoader or a thread; None where no worker caused it."""
        if NO_THREAD in text:
            return _not_started(text, f"{self.workers} loader threads")
        if "timed out" in text:
            return _stuck(self.config.timeout_seconds)
        if SHARED_MEMORY in text:
            return no_shared_memory(text, 2 * shared_bytes(self._batch_bytes, self.workers))
        if "exited unexpectedly" in text or "killed by signal" in text:
            return _killed(text, self.workers)
        return None


# ------------------------------------------------------------------------------------------------ threads


def prefetch_threaded(
    make: Callable[[BatchIndices], T], batches: Iterable[BatchIndices], workers: int, timeout_seconds: float
) -> Iterator[T]:
    """Yield `make(batch)` for each of `batches`, in order; `workers` threads run PREFETCH_BATCHES batches each ahead.

    Raises:
        TimeoutError: a batch takes longer than `timeout_seconds`; 0 waits without limit. Whatever `make` raises.
    """
    cv2.setNumThreads(0)  # one thread per worker; OpenCV's own would compete with them for the cores
    waiting: deque[Future[T]] = deque()
    batches = iter(batches)
    pool = ThreadPoolExecutor(workers, thread_name_prefix=LOADER_THREADS)
    try:
        waiting.extend(pool.submit(make, batch) for batch in islice(batches, workers * PREFETCH_BATCHES))
        while waiting:
            made = _result(waiting.popleft(), timeout_seconds)
            waiting.extend(pool.submit(make, batch) for batch in islice(batches, 1))
            yield made
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _result(future: Future[T], timeout_seconds: float) -> T:
    """Return what `future` gives, waiting in parts. Raises TimeoutError, or what the future raises."""
    if timeout_seconds:
        for _ in range(WAIT_PARTS):
            if future.done() or wait([future], timeout_seconds / WAIT_PARTS).done:
                break
        else:
            raise TimeoutError
    return future.result()


def default_workers(on_gpu: bool, cores: int, processes: int) -> tuple[int, str]:
    """Return how many workers load images where the user gives no number, and why, in words.

    Args:
        on_gpu: whether the network runs on a GPU, which leaves the cores to the workers.
        cores: the cores that this run may use.
        processes: the training processes that share them.
    """
    if not on_gpu:
        return MIN_WORKERS, "the network runs on the same cores"
    share = f" for {processes} processes" if processes > 1 else ""
    count = min(MAX_WORKERS, max(MIN_WORKERS, cores // processes - 1))
    return count, f"{cores} cores{share}, one left for the GPU's kernels"


def _default_workers_here(on_gpu: bool) -> tuple[int, str]:
    """Return `default_workers` of this machine."""
    return default_workers(on_gpu, usable_cores(), distributed.local_world_size())


@functools.cache  # once for all loaders of a run, and so logged once
def _workers_here(on_gpu: bool, limit: int, kind: str) -> int:
    """Return and log `default_workers` on this machine, at most `limit`."""
    count, why = _default_workers_here(on_gpu)
    if limit < count:
        count, why = limit, f"{SHARED_MEMORY} is too small for more"
    kinds = "processes" if kind == "process" else "threads"
    log.info(f"Workers: {count} {kinds} ({why}; -w overrides the number, --loader the kind).")
    return count


# ------------------------------------------------------------------------------------------------ messages


def _not_started(error: object, workers: str) -> str:
    """Return the message for workers that the system did not start, such as "8 loader threads"."""
    return (
        f"{workers} cannot start: {error}.\n"
        f"Use fewer --workers, or --workers 0. Limits: `ulimit -u`, the pids limit of a container; processes also need "
        f"{SHARED_MEMORY} and `ulimit -n` (--loader thread does without)."
    )


def _stuck(timeout_seconds: int) -> str:
    """Return the message for a batch that did not come in time."""
    return (
        f"No batch came for {timeout_seconds} s: a worker is stuck. Is a network drive down, or the disk too slow?\n"
        "Check the drive, or wait longer: --worker_timeout SECONDS; 0 waits without limit."
    )


def _killed(text: str, workers: int) -> str:
    """Return the message for a worker that was killed."""
    return (
        f"A worker process was killed ({text.strip().splitlines()[0][:200]}): "
        "most often, the machine ran out of memory.\n"
        f"Use fewer --workers (now {workers}), --loader thread, or a smaller --cache ram; then continue with --resume."
    )
