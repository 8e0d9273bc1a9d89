"""Batches in order, made ahead by threads or by processes.

Threads are the default: decoding, OpenCV and copying let go of the GIL, nothing travels between processes, no
shared memory is needed, and a batch comes first after milliseconds. Processes (torch's DataLoader) serve where a
user's own augmentation is Python that holds the GIL. Both give the same batches, bit for bit.
"""

import argparse
import functools
import os
import shlex
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from itertools import islice
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from dataloader.sampler import BatchKey
from utils import distributed
from utils.errors import ImageError, MachineFault, UserError
from utils.logger import log
from utils.signals import STOP_SIGNALS

AHEAD = 4  # batches a worker that are made before they are asked for
CPU_WORKERS, MAX_WORKERS = 2, 16  # by default; each worker holds AHEAD batches
SHARED_MEMORY = "/dev/shm"


class Batches:
    """`make(key)` for each key of a sampler, in order; every `iter()` starts the sampler anew.

    Raises:
        UserError: while iterating: no image could be read, or a worker was killed or is stuck for --worker_timeout.
    """

    def __init__(self, dataset: Any, sampler: Iterable[BatchKey], opt: argparse.Namespace) -> None:
        self.dataset, self.sampler, self.opt = dataset, sampler, opt
        on_gpu, limit = _for_gpu(opt), MAX_WORKERS
        if opt.loader == "process":
            # training's and validation's workers live side by side
            limit = max(CPU_WORKERS, min(limit, _shared_memory() // max(1, 2 * _shared_bytes(dataset, opt, workers=1))))
        else:
            dataset.pinned = on_gpu  # what forked workers make, torch's DataLoader copies
        self.workers: int = opt.workers if opt.workers is not None else _workers_here(on_gpu, limit)
        if self.workers and opt.loader == "process":
            _check_shared_memory(dataset, opt, self.workers)

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        return self.iterate(self.sampler)

    def iterate(self, keys: Iterable[BatchKey]) -> Iterator[Any]:
        """Return an iterator over the batches of `keys`; it shares no position with another."""
        source: Iterator[Any]
        if self.workers == 0:
            source = map(self.dataset.__getitems__, keys)
        elif self.opt.loader == "thread":
            source = in_threads(self.dataset.__getitems__, keys, self.workers, self.opt.worker_timeout)
        else:
            source = iter(_in_processes(self.dataset, keys, self.opt, self.workers))
        return self._guarded(source)

    def _guarded(self, source: Iterator[Any]) -> Iterator[Any]:
        """Faults of the data and of the machine become messages."""
        while True:
            try:
                batch = next(source, None)
            except ImageError as error:
                look = shlex.join(["python", "-m", "tools.doctor", str(self.dataset.files.source)])
                raise UserError(
                    f"{str(error).strip().splitlines()[-1]}\nMend the list; what is wrong, says: {look}"
                ) from error
            except MachineFault as error:  # from a worker process, with its traceback
                raise MachineFault(str(error).rpartition(f"{MachineFault.__name__}: ")[2].strip()) from error
            except TimeoutError as error:
                raise UserError(_stuck(self.opt)) from error
            except RuntimeError as error:
                text = str(error)
                if "timed out" in text:
                    raise UserError(_stuck(self.opt)) from error
                if SHARED_MEMORY in text:
                    raise UserError(_no_shared_memory(text, self.dataset, self.opt, self.workers)) from error
                if "exited unexpectedly" in text or "killed by signal" in text:
                    raise UserError(_killed(text, self.workers)) from error
                raise
            if batch is None:
                return
            yield batch


def in_threads(
    make: Callable[[BatchKey], Any], keys: Iterable[BatchKey], workers: int, timeout: float
) -> Iterator[Any]:
    """`make(key)` for each key, in order, by `workers` threads that run AHEAD batches each before the consumer."""
    cv2.setNumThreads(0)  # a thread a worker; OpenCV's own would fight them for the cores
    waiting: deque[Any] = deque()
    keys = iter(keys)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="loader")
    try:
        waiting.extend(pool.submit(make, key) for key in islice(keys, workers * AHEAD))
        while waiting:
            batch = waiting.popleft().result(timeout or None)
            waiting.extend(pool.submit(make, key) for key in islice(keys, 1))
            yield batch
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def default_workers(on_gpu: bool, cores: int, processes: int) -> tuple[int, str]:
    """Return how many workers load images where nobody has said it, and why in words.

    Args:
        on_gpu: whether the network runs on a GPU, and leaves the cores to the workers.
        cores: those that this run may use.
        processes: how many of the run's share them.
    """
    if not on_gpu:
        return CPU_WORKERS, "the network runs on the same cores"
    share = f" for {processes} processes" if processes > 1 else ""
    return min(
        MAX_WORKERS, max(CPU_WORKERS, cores // processes - 1)
    ), f"{cores} cores{share}, one left for the GPU's kernels"


@functools.cache  # once for all loaders of a run, and so logged once
def _workers_here(on_gpu: bool, limit: int) -> int:
    """Return and log default_workers on this machine, at most `limit`."""
    from joblib import cpu_count  # which knows a container's share of the cores

    count, why = default_workers(on_gpu, cpu_count(), distributed.local_world_size())
    if limit < count:
        count, why = limit, f"for more, {SHARED_MEMORY} is too small"
    log.info(f"Workers: {count} ({why}; -w to choose).")
    return count


def _in_processes(dataset: Any, keys: Iterable[BatchKey], opt: argparse.Namespace, workers: int) -> "DataLoader[Any]":
    return DataLoader(
        _Shared(dataset),  # type: ignore[arg-type]  # all that DataLoader asks of a data set is __getitems__
        batch_sampler=keys,  # type: ignore[arg-type]  # it yields keys, and the data set makes whole batches
        num_workers=workers,
        collate_fn=_same,
        pin_memory=_for_gpu(opt),
        worker_init_fn=_start_worker,
        prefetch_factor=AHEAD,
        timeout=opt.worker_timeout,
    )


class _Shared:
    """A data set whose batches are in shared memory when they are handed over.

    torch would move them there in a thread of the worker's queue, where a full /dev/shm loses the batch and the main
    process waits for it until --worker_timeout. Here the worker itself fails, and says so at once.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, key: BatchKey) -> Any:
        batch = self.dataset.__getitems__(key)
        try:
            for field in batch:
                for tensor in field if isinstance(field, tuple) else (field,):
                    if isinstance(tensor, torch.Tensor):
                        tensor.share_memory_()
        except (RuntimeError, OSError) as error:
            raise RuntimeError(f"{SHARED_MEMORY}: {error}") from None
        return batch


def _for_gpu(opt: argparse.Namespace) -> bool:
    """Whether batches go to a GPU, which copies from page-locked memory while the network runs."""
    return torch.cuda.is_available() and (opt.gpu is None or opt.gpu >= 0)


def _same(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    """One thread a worker. Signals that end the run are the main process's to handle: batch systems send them to all processes."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_for_parent, args=(os.getppid(),), daemon=True).start()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _end_for_parent(parent: int) -> None:
    """End this worker when SIGTERM comes from the process `parent` itself, which ends its workers so."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _shared_memory() -> int:
    """Return how many bytes of shared memory are free; where there is no such folder, more than anybody needs."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return 1 << 62


def _check_shared_memory(dataset: Any, opt: argparse.Namespace, workers: int) -> None:
    """Workers hand batches over in shared memory, which containers keep small: better said now than a bus error later."""
    free, wanted = _shared_memory(), _shared_bytes(dataset, opt, workers)
    if wanted > free:
        raise UserError(
            f"{workers} worker processes may hold {wanted / 1e6:.1f} MB of batches in {SHARED_MEMORY}, "
            f"where {free / 1e6:.1f} MB are free.\n{_less_shared_memory(wanted)}"
        )


def _shared_bytes(dataset: Any, opt: argparse.Namespace, workers: int) -> int:
    """Return how many bytes of batches the workers of all processes on this machine may hold at a time."""
    return dataset.batch_bytes(opt.batch_size) * workers * AHEAD * distributed.local_world_size()


def _less_shared_memory(wanted: int) -> str:
    return (
        "Use threads (--loader thread), fewer --workers or a smaller -b, "
        f"or give the container more: docker run --shm-size={(wanted >> 20) + 64}m."
    )


def _no_shared_memory(text: str, dataset: Any, opt: argparse.Namespace, workers: int) -> str:
    why = text.strip().splitlines()[-1].removeprefix("RuntimeError: ")
    wanted = 2 * _shared_bytes(dataset, opt, workers)  # training's and validation's workers live side by side
    return f"A worker process found no room for a batch ({why[:200]}).\n{_less_shared_memory(wanted)} Then continue with --resume."


def _stuck(opt: argparse.Namespace) -> str:
    return (
        f"No batch came for {opt.worker_timeout} s: a worker is stuck (a dead network drive, or too slow a disk?).\n"
        "Look at the drive, or wait longer: --worker_timeout SECONDS; 0 waits for ever."
    )


def _killed(text: str, workers: int) -> str:
    return (
        f"A worker process was killed ({text.strip().splitlines()[0][:200]}): most often the machine ran out of memory.\n"
        f"Use fewer --workers (now {workers}), --loader thread, or a smaller --cache ram; then go on with --resume."
    )
