"""Worker processes: torch's DataLoader over whole batches, in shared memory, whose workers end with their parent."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader

from dataloader.file_list import FileList
from dataloader.sampler import BatchIndices
from dataloader.shared_memory import PREFETCH_BATCHES, SHARED_MEMORY
from utils.signals import STOP_SIGNALS

# A batch is waited for in this many parts: of the time in which the whole run was stopped (Ctrl-Z, SIGSTOP from a batch
# system), which the clock counts, the limit counts one part at most.
WAIT_PARTS = 10

T = TypeVar("T")
BatchT = TypeVar("BatchT")
BatchCo = TypeVar("BatchCo", covariant=True)


class BatchDataset(Protocol[BatchCo]):
    """Makes whole batches of a list. Its loader decides whether they are made in page-locked memory (`pinned`)."""

    files: FileList
    pinned: bool

    def __len__(self) -> int:
        """Return the number of listed images."""

    def __getitems__(self, batch: BatchIndices) -> BatchCo:
        """Return the batch of these indices."""

    def batch_bytes(self, batch_size: int) -> int:
        """Return the size in bytes of the images of the largest batch."""


def process_loader(
    dataset: BatchDataset[BatchT], batches: Iterable[BatchIndices], workers: int, timeout_seconds: float, on_gpu: bool
) -> "DataLoader[Any]":
    """Return torch's DataLoader over the batches of these indices."""
    return DataLoader(
        _SharedMemoryDataset(dataset),  # type: ignore[arg-type]  # DataLoader calls __getitems__ alone
        batch_sampler=batches,  # type: ignore[arg-type]  # the dataset makes a whole batch of each item
        num_workers=workers,
        collate_fn=_identity,
        pin_memory=on_gpu,
        worker_init_fn=_start_worker,
        prefetch_factor=PREFETCH_BATCHES,
        timeout=timeout_seconds,
    )


def waiting_in_parts(source: Iterator[T]) -> Iterator[T]:
    """Yield from the iterator of a DataLoader whose timeout is a part of the limit.

    Raises:
        RuntimeError: all parts have passed without a batch, or a worker failed.
    """
    parts = 0
    while True:
        try:
            batch = next(source)
        except StopIteration:
            return
        except RuntimeError as error:
            parts += 1
            # An error of a worker begins otherwise: after it, the next batch would be another one.
            if not str(error).startswith("DataLoader timed out") or parts == WAIT_PARTS:
                raise
            continue
        parts = 0
        yield batch


class _SharedMemoryDataset(Generic[BatchT]):
    """Wraps a dataset whose batches must be in shared memory when a worker hands them over.

    torch would move them there in a thread of the worker's queue. A full /dev/shm then loses the batch, and the main
    process waits for it until the timeout. Here the worker itself fails, and reports it at once.
    """

    def __init__(self, dataset: BatchDataset[BatchT]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Return the number of listed images."""
        return len(self.dataset)

    def __getitems__(self, indices: BatchIndices) -> BatchT:
        """Return the batch of these indices, in shared memory."""
        batch: Any = self.dataset.__getitems__(indices)
        try:
            for field in batch:
                for tensor in field if isinstance(field, tuple) else (field,):
                    if isinstance(tensor, torch.Tensor):
                        tensor.share_memory_()
        except (RuntimeError, OSError) as error:
            raise RuntimeError(f"{SHARED_MEMORY}: {error}") from None
        return batch


def _identity(batch: T) -> T:
    """Return the batch: the dataset has collated it already."""
    return batch


def _start_worker(_: int) -> None:
    """Set up a worker process: one thread, and no reaction to signals that end the run.

    Batch systems send those signals to all processes; the main process alone handles them.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_for_parent, args=(os.getppid(),), daemon=True).start()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _end_for_parent(parent: int) -> None:
    """End this worker when SIGTERM comes from the process `parent`, which ends its workers that way."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
