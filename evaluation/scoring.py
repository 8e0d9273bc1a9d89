"""The scores of any task."""

from evaluation import metrics, multilabel, ordinal, regression
from evaluation.metrics import Predictions
from evaluation.targets import TargetPredictions
from options.choices import METRICS, Metric
from utils.classes import Classes

# What an evaluation measures beside the metrics: metrics.extended_scores, and calibration.label_ece.
EXTENDED = {
    "mean_class_error": Metric("Mean class error", (0, 1), in_percent=True, lower_is_better=True),
    "ece": Metric("Calibration error", (0, 1), in_percent=True, lower_is_better=True),
    "roc_auc": Metric("ROC-AUC (macro)", (0, 1)),
    "head_accuracy": Metric("Head (> 100 images)", (0, 1), in_percent=True),
    "middle_accuracy": Metric("Middle (20–100)", (0, 1), in_percent=True),
    "tail_accuracy": Metric("Tail (< 20)", (0, 1), in_percent=True),
}
SCORES = METRICS | EXTENDED


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
