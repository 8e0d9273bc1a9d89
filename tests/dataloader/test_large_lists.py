"""Millions of lines: worker processes share the index, and orders are what the plain way gives. Figures: dev/LOG.md."""

import gc
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloader.dataset import TrainDataset
from dataloader.file_list import FileList, read_list
from dataloader.prefetch import BatchLoader, WorkerConfig
from dataloader.sampler import SamplingConfig, TrainSampler, stable_order

LINES = 500_000  # a fifth of 2.5 million, and so is the memory allowed
BATCH = 1000


def private() -> int:
    """Bytes that this process shares with no other."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * sum(int(kb) for kb in re.findall(r"^Private_(?:Clean|Dirty): +(\d+) kB", text, re.MULTILINE))


class Index(TrainDataset):
    """Reads of each image what the real one reads before the file: path, line, label; `work` stands for the file."""

    def __init__(self, files: FileList, work) -> None:
        self.files, self.work = files, work

    def batch_bytes(self, batch_size: int) -> int:
        return 0

    def __getitems__(self, key):
        if key.number == 0:
            gc.collect()  # touches the objects that the fork shared, once; not the index's doing
        for index in key.indices.tolist():
            self.work(index, self.files.path(index), self.files.location(index))
        assert self.files.label[key.indices].min() >= 0
        return (private() if key.number % 20 in (0, 19) else 0,)  # not each time: the kernel walks through all pages


def growth(folder: Path, lines: int, work) -> int:
    """By how many bytes a worker's private memory grows over an epoch of a list of that many lines."""
    with open(folder / "train.txt", "w") as file:
        file.writelines(
            f"/data/images/class_{k % 50_030:05}/photograph_{k:07}.jpg {k % 50_030}\n" for k in range(lines)
        )
    files = read_list(folder / "train.txt")
    workers = WorkerConfig("process", 1)
    seen = [
        batch[0]
        for batch in BatchLoader(
            Index(files, work), TrainSampler(files.label, BATCH, 1, SamplingConfig(1)), BATCH, workers
        )
    ]
    assert len(seen) == lines // BATCH
    return max(seen) - seen[0]


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no such file but on Linux")
def test_file_list_in_worker_process_is_not_copied(tmp_path):
    assert growth(tmp_path, LINES, lambda *_: None) < 30e6 * LINES / 2.5e6


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no such file but on Linux")
def test_list_of_strings_in_worker_process_is_copied(tmp_path):
    """The same measure of an index of Python strings: to read one counts a reference, which copies its page."""
    paths = [f"/data/images/photograph_{k:07}.jpg" for k in range(LINES // 5)]
    assert growth(tmp_path, LINES // 5, lambda index, *_: paths[index]) > 2 * 30e6 * LINES / 5 / 2.5e6


def test_train_sampler_of_long_list_is_whole_and_balanced():
    labels = (np.random.default_rng(0).zipf(1.3, LINES) % 50_030).astype(np.int32)
    order = TrainSampler(labels, 256, 1, SamplingConfig(1)).order(1)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(LINES))
    drawn = np.bincount(labels[TrainSampler(labels, 256, 1, SamplingConfig(1, "class")).order(1)], minlength=50_030)
    present = np.bincount(labels, minlength=50_030) > 0
    assert np.abs(drawn[present] - LINES / present.sum()).max() <= 1  # of each class as many, but for the rounding
    assert drawn[~present].sum() == 0


@settings(max_examples=60, deadline=None, database=None)
@given(st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 5), max_size=50), st.sampled_from([np.int32, np.int64]))
def test_stable_order_equals_numpy(values, dtype):
    values = np.array(values, dtype)
    assert np.array_equal(stable_order(values), np.argsort(values, kind="stable"))
