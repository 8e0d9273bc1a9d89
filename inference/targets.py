"""Predictions of several labels or numbers per image."""

import tempfile

import numpy as np
from numpy.typing import NDArray

from dataloader import check_readable
from dataloader.prefetch import BatchLoader
from evaluation.metrics import MAX_ROW_VALUES
from evaluation.targets import TargetPredictions, of_list
from inference.predictor import Predictor
from utils import distributed
from utils.batch import EvalBatch
from utils.logger import log


def predict_targets(predictor: Predictor, loader: BatchLoader[EvalBatch], count: int) -> TargetPredictions:
    """Run the predictor over a loader.

    Args:
        count: of labels or numbers, K.

    Returns:
        The predictions; beyond MAX_ROW_VALUES in a temporary file, which goes with them. Unreadable images are named in
        the log.

    Raises:
        UserError: no image can be read.
        NotFinite: a member gave NaN or infinite logits.
    """
    images = len(loader.dataset)
    value = _empty(images, count)
    index, readable, done = np.empty(images, np.int64), np.empty(images, bool), 0
    for batch, each in predictor.run(loader, "evaluating"):
        for _, reason in batch.bad:
            log.warning(f"unreadable, counts in no score: {reason}")
        some = slice(done, done + len(batch.index))
        value[some] = predictor.combine(each).cpu().numpy()
        index[some], readable[some] = batch.index.numpy(), predictor.readable(batch).cpu().numpy()
        done = some.stop
    index, value, readable = index[:done], value[:done], readable[:done]
    if distributed.world_size() > 1:
        index, value, readable = distributed.gather_rows([index, value, readable])
    files = loader.dataset.files
    check_readable(files, index, readable)
    return of_list(index, value, readable, files.targets)


def _empty(images: int, count: int) -> NDArray[np.float32]:
    """Return room for float32 (images, count): in memory, or in a file that is deleted with the last use of it."""
    if images * count <= MAX_ROW_VALUES:
        return np.empty((images, count), np.float32)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=(images, count))
