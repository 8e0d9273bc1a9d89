"""Many tensors at once."""

from collections.abc import Sequence

import torch
from torch import Tensor


def clones(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return copies, of the same shapes and dtypes; in one dispatched operation where torch has it (2.7 and later)."""
    if tensors and hasattr(torch, "_foreach_clone"):
        return list(torch._foreach_clone(list(tensors)))
    return [tensor.clone() for tensor in tensors]
