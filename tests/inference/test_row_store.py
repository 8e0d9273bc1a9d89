"""Rows that arrive in parts, in memory or in a temporary file."""

import numpy as np
import pytest

from inference import row_store
from inference.row_store import RowStore
from utils.errors import UserError


@pytest.mark.parametrize("limit", [1000, 0])
def test_row_store_returns_the_rows_in_order(monkeypatch, limit):
    monkeypatch.setattr(row_store, "MAX_ROW_VALUES", limit)
    rows = np.random.default_rng(0).normal(size=(17, 5)).astype(np.float32)
    store = RowStore(20, np.float16)  # fewer rows come with --debug
    for first in range(0, 17, 6):
        store.append(rows[first : first + 6])
    found = store.array()
    assert isinstance(found, np.memmap) == (limit == 0)
    assert found.dtype == np.float16 and np.array_equal(found, rows.astype(np.float16))
    found[0] = 1  # as with an array in memory
    assert RowStore(20, np.float32).array(3).shape == (0, 3)


def test_row_store_full_disk_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(row_store, "MAX_ROW_VALUES", 0)
    monkeypatch.setattr(row_store.tempfile, "TemporaryFile", lambda: open("/dev/full", "w+b"))
    with pytest.raises(UserError, match=r"0\.0 GB in .*No space left on device.*\nTry: TMPDIR"):
        RowStore(20, np.float32).append(np.zeros((2, 3), np.float32))
