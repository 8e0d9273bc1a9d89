"""Predictions of several labels or numbers per image, and of a list of any task."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dataloader import check_readable
from dataloader.prefetch import BatchLoader
from evaluation.scored import Scored, TargetScored
from evaluation.targets import TargetPredictions, of_list
from inference.predictor import Predictor, predict, warn_unreadable
from inference.row_store import RowStore
from inference.session import Inference
from utils import distributed
from utils.batch import EvalBatch, Unreadable
from utils.task import has_probabilities


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
    for part in predictor.share(loader, "evaluating", answer):
        warn_unreadable(part.bad, labelled)
        values.append(part.value.cpu().numpy())
        readable.append(part.readable.cpu().numpy())
    files, known = loader.dataset.files, np.concatenate(readable)
    index = np.arange(len(known))
    distributed.broadcast_from_main(lambda: check_readable(files, index, known))
    return of_list(index, values.array(count), known, files.targets)


def predict_list(
    run: Inference, keep: bool = False, rows: NDArray[np.int64] | None = None
) -> tuple[Scored | TargetScored, NDArray[np.float16] | NDArray[np.float32] | None]:
    """Predict the list of `run`, of any task, with all of its members.

    Args:
        keep: whether to return the values too.
        rows: of the images whose every probability of a class is wanted, as `predict` takes them.

    Returns:
        The predictions with what names them, and with `keep` the values that inference.saved_probs writes: log
        probabilities of classes, float16 (N, C), else float32 (N, K). Without `keep`, None.
    """
    if has_probabilities(run.classes.task):
        predictions, probabilities = predict(run.predictor, run.batches(), keep=keep, rows=rows)
        return Scored(predictions, run.files, run.classes), probabilities
    targets = predict_targets(run.predictor, run.batches(), run.classes.count)
    return TargetScored(targets, run.files, run.classes), targets.value if keep else None
