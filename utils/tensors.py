"""Many tensors at once."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

BLOCK_VALUES = 1 << 22  # values whose order is found together, with 12 bytes of keys each: 50 MB


def clones(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return copies, of the same shapes and dtypes; in one dispatched operation where torch has it (2.7 and later)."""
    if tensors and hasattr(torch, "_foreach_clone"):
        return list(torch._foreach_clone(list(tensors)))
    return [tensor.clone() for tensor in tensors]


@contextlib.contextmanager
def buffers_kept(net: nn.Module) -> Iterator[None]:
    """Restore the buffers of `net` after the body, such as the running statistics of batch norm."""
    buffers = list(net.buffers())
    with torch.no_grad():
        kept = clones(buffers)
    try:
        yield
    finally:
        if buffers:
            with torch.no_grad():
                torch._foreach_copy_(buffers, kept)


def likeliest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest values of each row of float32 (..., C), falling, and their places, int64.

    Of equal values the first is taken, as argmax and NumPy's stable argsort take it, on every device. Which of them
    torch's topk takes depends on `count`, C and the device.
    """
    number = values.shape[-1]
    last = torch.arange(number - 1, -1, -1, device=values.device)
    found = []
    for rows in values.reshape(-1, number).split(max(1, BLOCK_VALUES // number)):
        bits = (rows + 0.0).view(torch.int32)  # of -0.0 those of 0.0
        bits ^= bits >> 31 & 0x7FFFFFFF  # they rise as the values; those of negative ones fell
        keys = bits.long().bitwise_left_shift_(32).bitwise_or_(last)  # no two of a row are equal
        found.append(number - 1 - (keys.topk(count, dim=1).values & 0xFFFFFFFF))
    places = torch.cat(found).view(*values.shape[:-1], count)
    return values.gather(-1, places), places


def check_dense(tensor: Tensor) -> None:
    """Raise ValueError unless `tensor` is dense, on the CPU, and no repetition of a few numbers to an enormous size."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise ValueError(f"a tensor of layout {tensor.layout} on {tensor.device}; allowed: a dense one")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(
            f"a tensor of shape {tuple(tensor.shape)} over {tensor.untyped_storage().nbytes()} bytes of data"
        )
