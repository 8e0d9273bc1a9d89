"""How fast an exported model is beside PyTorch, on this machine."""

import functools
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from inference.predictor import Predictor
from options.wording import count_of

BATCH_SIZES = (1, 8)
ROUNDS = 7


def load_shipped(folder: Path) -> ModuleType:
    """Return the module predict.py of an exported folder."""
    spec = importlib.util.spec_from_file_location("exported_predict", folder / "predict.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def open_exported(folder: Path) -> Any:
    """Return the Predictor of an exported folder, with as many threads as torch has."""
    return load_shipped(folder).Predictor(folder, threads=torch.get_num_threads())


def compare_speed(folder: Path, predictor: Predictor) -> list[str]:
    """Return lines on the images per second of the exported model and of PyTorch, without decoding.

    Both run in turns; the median of ROUNDS counts.
    """
    exported = open_exported(folder)
    lines = [f"images per second without decoding, {count_of(torch.get_num_threads(), 'thread')}:"]
    rng = np.random.default_rng(0)
    for batch_size in BATCH_SIZES:
        shapes = [(batch_size, 3, way.scale, way.scale) for way in predictor.preprocesses]
        images = [rng.integers(0, 256, shape, np.uint8) for shape in shapes]
        tensors = tuple(torch.from_numpy(one).contiguous(memory_format=torch.channels_last) for one in images)
        with predictor.evaluating():
            runs = [functools.partial(exported.run, images), functools.partial(predictor, tensors)]
            theirs, ours = (batch_size / seconds for seconds in time_in_turns(runs))
        lines.append(
            f"  batches of {batch_size}: exported {theirs:.1f}, PyTorch {ours:.1f} ({theirs / ours:.2f} times)"
        )
    return lines


def time_in_turns(runs: Sequence[Callable[[], object]]) -> list[float]:
    """Return the median seconds of each function; they run in turns, so that a busy machine slows all."""
    for run in runs:
        run()
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, found in zip(runs, seconds, strict=True):
            began = time.perf_counter()
            run()
            found.append(time.perf_counter() - began)
    return [statistics.median(one) for one in seconds]
