"""Runs a predictor over a list, and scores it: train.py's validation, and that of tools which try weights."""

from collections.abc import Callable

from dataloader.prefetch import BatchLoader
from evaluation import scoring
from evaluation.metrics import Predictions
from inference.predictor import Predictor, predict
from inference.targets import predict_targets
from utils import distributed
from utils.batch import EvalBatch
from utils.classes import Classes
from utils.task import has_probabilities


def evaluate(
    predictor: Predictor,
    loader: BatchLoader[EvalBatch],
    classes: Classes,
    see: Callable[[Predictions], None] | None = None,
    adapt: Callable[[Predictions], Predictions] | None = None,
) -> dict[str, float]:
    """Return the scores of evaluation.scoring.score over a loader; the same in every process.

    Several processes share the batches; the main one scores, and calls the two functions.

    Args:
        see: is called with the predictions of classes. adapt: returns those that are seen and scored instead of them.

    Raises:
        UserError: no image can be read.
        NotFinite: the network gives NaN or infinite logits.
    """
    if not has_probabilities(classes.task):
        targets = predict_targets(predictor, loader, classes.count)
        return distributed.broadcast_from_main(lambda: scoring.score(targets, classes))
    predictions = predict(predictor, loader)[0]

    def scores() -> dict[str, float]:
        shown = predictions if adapt is None else adapt(predictions)
        if see is not None:
            see(shown)
        return scoring.score(shown, classes)

    return distributed.broadcast_from_main(scores)
