"""Temperature scaling: one number that calibrates the confidences and keeps every prediction (Guo et al., 2017)."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import MIN_PROBABILITY, Predictions, ece
from utils.errors import UserError

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
MAX_VALUES_AT_ONCE = 4_000_000  # probabilities in memory as float64


class Fitted(NamedTuple):
    """A temperature fitted on `images` images, with mean -log p and calibration error before and after."""

    temperature: float
    images: int
    loss_before: float
    loss_after: float
    ece_before: float
    ece_after: float


def apply_temperature(probability: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Return softmax(log p / T) of rows (M, C). It equals softmax(logits / T), as a constant per row has no effect."""
    logits = np.log(np.maximum(probability.astype(np.float64), MIN_PROBABILITY)) / temperature
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    return logits / logits.sum(axis=1, keepdims=True)


def at_temperature(probability: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Return sigmoid(logit(p) / T) of probabilities of labels, in any shape; those of 0 and 1 stay what they are."""
    present, absent = probability ** (1 / temperature), (1 - probability) ** (1 / temperature)
    return present / (present + absent)


def fit_temperature(predictions: Predictions) -> Fitted:
    """Fit the temperature with the lowest mean -log p on the whole rows that were kept (a sample of a huge list).

    Raises:
        UserError: no row holds a labelled, readable image.
    """
    from scipy.optimize import minimize_scalar

    rows = predictions.rows
    use = predictions.scorable[rows.row] if rows is not None else np.zeros(0, bool)
    if rows is None or not use.any():
        raise UserError("--calibrate needs labelled images that can be read; the validation list has none.")
    label, probability = predictions.label[rows.row[use]], rows.probability[use]

    def loss(log_temperature: float) -> float:
        return _scores(probability, label, float(np.exp(log_temperature)))[0]

    best = minimize_scalar(
        loss, bounds=(np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)), method="bounded", options={"xatol": 1e-6}
    )
    temperature = float(np.exp(best.x))
    before, after = _scores(probability, label, 1.0), _scores(probability, label, temperature)
    return Fitted(temperature, len(label), before[0], after[0], before[1], after[1])


def _scores(probability: NDArray[np.float32], label: NDArray[np.int64], temperature: float) -> tuple[float, float]:
    """Return mean -log p and expected calibration error, computed a few rows at a time."""
    step = max(1, MAX_VALUES_AT_ONCE // probability.shape[1])
    true: list[Any] = []
    confidence: list[Any] = []
    hit: list[Any] = []
    for begin in range(0, len(label), step):
        part, target = apply_temperature(probability[begin : begin + step], temperature), label[begin : begin + step]
        true.append(part[np.arange(len(part)), target])
        confidence.append(part.max(axis=1))
        hit.append(part.argmax(axis=1) == target)
    loss = -np.log(np.maximum(np.concatenate(true), MIN_PROBABILITY)).mean()
    return float(loss), ece(np.concatenate(confidence), np.concatenate(hit))
