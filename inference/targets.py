"""Predictions of several labels or numbers per image."""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from dataloader import check_readable
from dataloader.prefetch import BatchLoader
from evaluation.targets import TargetPredictions, of_list
from inference.predictor import Predictor, warn_unreadable
from inference.row_store import RowStore
from utils import distributed
from utils.batch import EvalBatch, Unreadable


class _Answer(NamedTuple):
    """The predictions for a batch: value float32 (B, K), readable bool (B,)."""

    value: Tensor
    readable: Tensor
    bad: Unreadable


def predict_targets(predictor: Predictor, loader: BatchLoader[EvalBatch], count: int) -> TargetPredictions:
    """Run the predictor over a loader. Several processes share the batches.

    Args:
        count: of labels or numbers, K.

    Returns:
        The predictions, in the main process; no rows in the others. Many are in a temporary file, which goes with them:
        see RowStore. Unreadable images are named in the log.

    Raises:
        UserError: no image can be read.
        NotFinite: a member gave NaN or infinite logits.
    """
    values, readable = RowStore(len(loader.dataset), np.float32), [np.empty(0, bool)]

    def answer(batch: EvalBatch, each: Tensor) -> _Answer:
        return _Answer(predictor.combine(each), predictor.readable(batch), batch.bad)

    labelled = loader.dataset.files.is_labelled()
    for found in predictor.share(loader, "evaluating", answer):
        warn_unreadable(found.bad, labelled)
        values.append(found.value.cpu().numpy())
        readable.append(found.readable.cpu().numpy())
    files, known = loader.dataset.files, np.concatenate(readable)
    index = np.arange(len(known))
    distributed.broadcast_from_main(lambda: check_readable(files, index, known))
    return of_list(index, values.array(count), known, files.targets)
