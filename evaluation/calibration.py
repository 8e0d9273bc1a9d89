"""Temperature scaling: one number that makes confidences honest and leaves every prediction as it is (Guo et al., 2017)."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import TINY, Predictions, ece
from utils.errors import UserError

LEAST, MOST = 0.05, 20.0  # temperatures that are tried
AT_ONCE = 4_000_000  # probabilities that are sharpened at once


class Fitted(NamedTuple):
    """What was fitted on `images` validation images: mean -log p and expected calibration error, before and after."""

    temperature: float
    images: int
    loss_before: float
    loss_after: float
    ece_before: float
    ece_after: float


def scale(probability: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """softmax(log p / T) of rows (M, C): what softmax(logits / T) gives, for log p is the logits but for a constant."""
    logits = np.log(np.maximum(probability.astype(np.float64), TINY)) / temperature
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    return logits / logits.sum(axis=1, keepdims=True)


def fit_temperature(predictions: Predictions) -> Fitted:
    """The temperature with the least mean -log p on the whole rows that were kept (a drawn sample of a huge list).

    Raises:
        UserError: no row holds a labelled, readable image.
    """
    from scipy.optimize import minimize_scalar

    rows = predictions.rows
    use = predictions.seen[rows.row] if rows is not None else np.zeros(0, bool)
    if rows is None or not use.any():
        raise UserError("--calibrate needs labelled images that can be read; the validation list has none.")
    label, probability = predictions.label[rows.row[use]], rows.probability[use]

    def loss(log_temperature: float) -> float:
        return _scores(probability, label, float(np.exp(log_temperature)))[0]

    best = minimize_scalar(loss, bounds=(np.log(LEAST), np.log(MOST)), method="bounded", options={"xatol": 1e-6})
    temperature = float(np.exp(best.x))
    before, after = _scores(probability, label, 1.0), _scores(probability, label, temperature)
    return Fitted(temperature, len(label), before[0], after[0], before[1], after[1])


def _scores(probability: NDArray[np.float32], label: NDArray[np.int64], temperature: float) -> tuple[float, float]:
    """Mean -log p and expected calibration error, a few rows at a time."""
    step = max(1, AT_ONCE // probability.shape[1])
    true: list[Any] = []
    sure: list[Any] = []
    hit: list[Any] = []
    for begin in range(0, len(label), step):
        part, wanted = scale(probability[begin : begin + step], temperature), label[begin : begin + step]
        true.append(part[np.arange(len(part)), wanted])
        sure.append(part.max(axis=1))
        hit.append(part.argmax(axis=1) == wanted)
    loss = -np.log(np.maximum(np.concatenate(true), TINY)).mean()
    return float(loss), ece(np.concatenate(sure), np.concatenate(hit))
