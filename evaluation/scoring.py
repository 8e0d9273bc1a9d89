"""The scores of any task."""

from evaluation import metrics, multilabel, ordinal, regression
from evaluation.metrics import Predictions
from evaluation.targets import TargetPredictions
from utils.classes import Classes


def score(predictions: Predictions | TargetPredictions, classes: Classes) -> dict[str, float]:
    """Return the basic scores of the task of `classes`, which are fast enough for every epoch.

    The names are those of options.choices.TASK_METRICS, and loss, count, unreadable, num_classes.
    """
    if isinstance(predictions, TargetPredictions):
        if classes.task == "multilabel":
            return multilabel.score(predictions, multilabel.thresholds_of(classes))
        return regression.score(predictions, classes.std)
    scores = metrics.score(predictions, classes.count)
    return scores | ordinal.score(predictions, classes.count) if classes.task == "ordinal" else scores
