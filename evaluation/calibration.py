"""Temperature scaling: one number that calibrates the confidences and keeps every prediction (Guo et al., 2017)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import BINS, MIN_PROBABILITY, Predictions, ece, reliability
from evaluation.multilabel import cross_entropy
from evaluation.targets import TargetPredictions, label_sets
from utils.errors import UserError

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
END_SHARE = 1e-3  # A temperature within this share of an end of the range is no minimum.
MAX_FLAT_LOSS = 1e-9  # Losses that differ by no more are equal.
MAX_VALUES_AT_ONCE = 4_000_000  # probabilities in memory as float64


class FittedTemperature(NamedTuple):
    """A temperature fitted on `images` images, with mean -log p and calibration error before and after."""

    temperature: float
    images: int
    loss_before: float
    loss_after: float
    ece_before: float
    ece_after: float

    @property
    def is_at_end(self) -> bool:
        """Return whether the temperature is an end of the range that is tried: none within it is better."""
        least, most = MIN_TEMPERATURE * (1 + END_SHARE), MAX_TEMPERATURE * (1 - END_SHARE)
        return not least < self.temperature < most


def classes_at_temperature(probability: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Return softmax(log p / T) of rows (M, C), float64 of the same shape.

    It equals softmax(logits / T), as a constant per row has no effect.
    """
    logits = np.log(np.maximum(probability.astype(np.float64), MIN_PROBABILITY)) / temperature
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    return logits / logits.sum(axis=1, keepdims=True)


def labels_at_temperature(probability: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """Return sigmoid(logit(p) / T) of probabilities of labels, in any shape; those of 0 and 1 stay what they are."""
    probability = probability.astype(np.float64)
    present, absent = probability ** (1 / temperature), (1 - probability) ** (1 / temperature)
    return present / (present + absent)


def fit_temperature(predictions: Predictions) -> FittedTemperature:
    """Fit the temperature with the lowest mean -log p on the whole rows that were kept (a sample of a huge list).

    Raises:
        UserError: no row holds a labelled, readable image.
    """
    rows = predictions.rows
    use = predictions.scorable[rows.row] if rows is not None else np.zeros(0, bool)
    if rows is None or not use.any():
        raise UserError("--calibrate needs labelled images that can be read; the validation list has none.")
    label, probability = predictions.label[rows.row[use]], rows.probability[use]
    temperature = _minimise(lambda tried: _scores(probability, label, tried)[0])
    before, after = _scores(probability, label, 1.0), _scores(probability, label, temperature)
    return FittedTemperature(temperature, len(label), before[0], after[0], before[1], after[1])


def fit_label_temperature(predictions: TargetPredictions, seed: int = 0) -> FittedTemperature:
    """Fit the temperature with the lowest mean binary cross entropy over images and labels.

    Of a long list a sample of the images is used.

    Returns:
        The temperature; the calibration errors are those of `label_ece`.

    Raises:
        UserError: no image that can be read has known labels.
    """
    sample = _sample(predictions, seed)
    count = int(sample.scorable.sum())
    if not count:
        raise UserError("--calibrate needs labelled images that can be read; the validation list has none.")
    temperature = _minimise(lambda tried: _label_loss(sample, tried))
    losses = [_label_loss(sample, one) for one in (1.0, temperature)]
    return FittedTemperature(temperature, count, *losses, *(label_ece(sample, one) for one in (1.0, temperature)))


def label_ece(predictions: TargetPredictions, temperature: float = 1.0) -> float:
    """Return the expected calibration error of the probabilities of all labels of all scorable images; 0 without any.

    Each probability is a confidence, and a hit if the image has the label.
    """
    sets, total, gap = label_sets(predictions), 0, np.zeros(BINS)
    for rows, values in predictions.blocks():
        bins = reliability(labels_at_temperature(values, temperature).ravel(), sets.rows(rows).astype(bool).ravel())
        gap += (bins["accuracy"] - bins["confidence"]) * bins["count"]
        total += values.size
    return float(np.abs(gap).sum() / max(total, 1))


def _label_loss(predictions: TargetPredictions, temperature: float) -> float:
    """Return the mean binary cross entropy over images and labels at a temperature."""
    sets, total, count = label_sets(predictions), 0.0, 0
    for rows, values in predictions.blocks():
        total += float(cross_entropy(labels_at_temperature(values, temperature), sets.rows(rows).astype(bool)).sum())
        count += values.size
    return total / count


def _sample(predictions: TargetPredictions, seed: int) -> TargetPredictions:
    """Return the predictions with at most MAX_VALUES_AT_ONCE probabilities scorable, of images drawn at random."""
    rows = np.flatnonzero(predictions.scorable)
    most = max(1, MAX_VALUES_AT_ONCE // predictions.value.shape[1])
    if len(rows) <= most:
        return predictions
    chosen = np.zeros(len(predictions.readable), bool)
    chosen[np.random.default_rng([seed, 5]).choice(rows, most, replace=False)] = True
    return replace(predictions, readable=chosen)


def _minimise(loss: Callable[[float], float]) -> float:
    """Return the temperature with the lowest loss; MIN_TEMPERATURE, if no other is better.

    Where no image is wrong, the loss is 0 from some temperature down, and a search stops anywhere there.
    """
    from scipy.optimize import minimize_scalar

    best = minimize_scalar(
        lambda logarithm: loss(float(np.exp(logarithm))),
        bounds=(np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    is_flat = abs(loss(MIN_TEMPERATURE) - best.fun) <= MAX_FLAT_LOSS
    return MIN_TEMPERATURE if is_flat else float(np.exp(best.x))


def _scores(probability: NDArray[np.float32], label: NDArray[np.int64], temperature: float) -> tuple[float, float]:
    """Return mean -log p and expected calibration error, computed a few rows at a time."""
    step = max(1, MAX_VALUES_AT_ONCE // probability.shape[1])
    true: list[Any] = []
    confidence: list[Any] = []
    hit: list[Any] = []
    for begin in range(0, len(label), step):
        part = classes_at_temperature(probability[begin : begin + step], temperature)
        target = label[begin : begin + step]
        true.append(part[np.arange(len(part)), target])
        confidence.append(part.max(axis=1))
        hit.append(part.argmax(axis=1) == target)
    loss = -np.log(np.maximum(np.concatenate(true), MIN_PROBABILITY)).mean()
    return float(loss), ece(np.concatenate(confidence), np.concatenate(hit))
