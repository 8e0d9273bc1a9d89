"""Many tensors at once."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


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


def check_dense(tensor: Tensor) -> None:
    """Raise ValueError unless `tensor` is dense, on the CPU, and no repetition of a few numbers to an enormous size."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise ValueError(f"a tensor of layout {tensor.layout} on {tensor.device}; allowed: a dense one")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(
            f"a tensor of shape {tuple(tensor.shape)} over {tensor.untyped_storage().nbytes()} bytes of data"
        )
