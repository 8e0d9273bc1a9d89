"""Copies of many tensors."""

import pytest
import torch

from utils.tensors import clones


@pytest.mark.parametrize("one_call", (True, False))
def test_clones_are_equal_with_memory_of_their_own(monkeypatch, one_call):
    if not one_call:  # torch 2.6
        monkeypatch.delattr("torch._foreach_clone", raising=False)
    tensors = [torch.tensor([-0.0, 1.5]), torch.tensor(7), torch.ones(2, 3, dtype=torch.bfloat16)]
    found = clones(tensors)
    for copy, tensor in zip(found, tensors, strict=True):
        assert copy.dtype == tensor.dtype and copy.data_ptr() != tensor.data_ptr()
        assert torch.equal(copy, tensor) and torch.equal(copy.signbit(), tensor.signbit())
    assert clones([]) == []
