"""One stream out of what several processes make in turn: the main process gets all of it, in order, a part at a time.

No process holds more than MAX_UNDER_WAY parts of another, or of its own that the main process has not taken yet.
"""

import contextlib
import io
import pickle
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from utils import distributed
from utils.errors import ProcessLost, UserError

MAX_UNDER_WAY = 2  # parts: one travels while the next is made

T = TypeVar("T")


class _Message(NamedTuple):
    """What a process sends: a part, an error, or neither at its end."""

    parts: tuple[object, ...] = ()
    error: str | None = None


def in_turns(parts: Iterable[T]) -> Iterator[T]:
    """Yield the parts of all processes: the first of each in the order of their ranks, then the second of each, ...

    All processes call it, each with its own parts. The main process yields all parts; the others send theirs, and yield
    none. So a list whose batches the processes take in turn (dataloader.sampler.EvalSampler) comes in its own order.
    With one process, its parts are yielded as they are.

    Args:
        parts: tuples, also nested ones, of tensors and plain data. With several processes, tensors arrive on the CPU.

    Raises:
        UserError: another process raised it.
        ProcessLost: another process has ended.
    """
    world = distributed.world_size()
    if world == 1:
        yield from parts
    elif not distributed.is_main():
        _send_all(parts)
    else:
        own = iter(parts)
        taking = deque(range(world))  # the processes that have not ended, the next one first
        received = [0] * world
        while taking:
            turn = taking.popleft()
            message = _next(own) if turn == 0 else _receive(turn, received[turn])
            received[turn] += 1
            if message.error is not None:
                raise UserError(f"In process {turn}: {message.error}")
            if message.parts:
                taking.append(turn)
                yield message.parts[0]  # type: ignore[misc]


def _next(own: Iterator[T]) -> _Message:
    """Return the next part of this process, its tensors on the CPU."""
    for part in own:
        return _Message((_on_cpu(part),))
    return _Message()


def _on_cpu(part: Any) -> Any:
    if isinstance(part, Tensor):
        return part.cpu()
    if isinstance(part, tuple):
        fields = [_on_cpu(field) for field in part]
        return part._make(fields) if hasattr(part, "_make") else tuple(fields)
    return part


# ------------------------------------------------------------------------------------------------ messages


class _Pickler(pickle.Pickler):
    """Pickles tensors as NumPy arrays, whose memory is copied once."""

    def reducer_override(self, content: object) -> Any:
        """Return how to rebuild a tensor; leave everything else to pickle."""
        return (torch.from_numpy, (content.cpu().numpy(),)) if isinstance(content, Tensor) else NotImplemented


class _Sent(NamedTuple):
    """A message under way: its size and its bytes, which must stay in memory, and their transfers."""

    tensors: tuple[Tensor, Tensor]
    transfers: list[Any]


def _send_all(parts: Iterable[object]) -> None:
    """Send each part to the main process, then that there are no more.

    Raises:
        UserError: making the parts raised it; the main process is told, and prints it.
    """
    waiting, number, own = deque[_Sent](), 0, iter(parts)
    failed: UserError | None = None
    message = _Message(("the first part",))
    while message.parts:
        try:
            message = _next(own)
        except UserError as error:
            failed, message = error, _Message(error=str(error))
        waiting.append(_send(message, number))
        number += 1
        if len(waiting) == MAX_UNDER_WAY:
            _wait(waiting.popleft())
    while waiting:
        _wait(waiting.popleft())
    if failed is not None:
        failed.printed_elsewhere = True
        raise failed


def _send(message: _Message, number: int) -> _Sent:
    """Begin to send message `number` of this process, from 0; each has its own tags."""
    with io.BytesIO() as file:
        _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(message)
        content = torch.frombuffer(bytearray(file.getbuffer()), dtype=torch.uint8)
    tensors = torch.tensor([len(content)]), content
    with _losing(0):
        transfers = [torch.distributed.isend(one, 0, tag=2 * number + k) for k, one in enumerate(tensors)]
    return _Sent(tensors, transfers)


def _wait(sent: _Sent) -> None:
    with _losing(0):
        for transfer in sent.transfers:
            transfer.wait()


def _receive(process: int, number: int) -> _Message:
    """Return message `number` of a process."""
    size = torch.zeros(1, dtype=torch.long)
    with _losing(process):
        torch.distributed.recv(size, process, tag=2 * number)
        content = torch.empty(int(size), dtype=torch.uint8)
        torch.distributed.recv(content, process, tag=2 * number + 1)
    message = pickle.loads(content.numpy().data)
    assert isinstance(message, _Message)
    return message


@contextlib.contextmanager
def _losing(process: int) -> Iterator[None]:
    """Raise ProcessLost where a transfer with `process` fails."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(distributed.lost(f"Process {process}")) from error
