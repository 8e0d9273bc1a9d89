"""Copies of many tensors, and the largest values of a row."""

import numpy as np
import pytest
import torch

from utils import tensors
from utils.tensors import clones, likeliest


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


@pytest.mark.parametrize("number", (1, 3, 6, 10, 50, 1000))
def test_likeliest_of_equal_values_are_the_first(number, device, monkeypatch):
    """torch's topk takes any of them: with 10 classes and one of 5, another class than with 1 of 10."""
    rng = np.random.default_rng(number)
    rows = rng.integers(-2, 3, (200, number)).astype(np.float32) / 4
    rows[0], rows[1, ::2], rows[2, -1:] = 0, -0.0, np.inf
    count = min(5, number)
    monkeypatch.setattr(tensors, "BLOCK_VALUES", 3500)  # of a thousand, three rows at a time
    order = np.argsort(-rows, axis=1, kind="stable")[:, :count]
    values, places = likeliest(torch.from_numpy(rows).to(device).view(2, 100, number), count)
    assert np.array_equal(places.cpu().view(200, count), order)
    assert np.array_equal(values.cpu().view(200, count), np.take_along_axis(rows, order, axis=1))
    assert np.array_equal(places[..., 0].cpu().view(200), rows.argmax(axis=1))
