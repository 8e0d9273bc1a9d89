"""Scores against scikit-learn's."""

import numpy as np
import pytest
from sklearn import metrics as sk

from evaluation.metrics import Predictions, per_class, score

CLASSES = 12


@pytest.fixture
def case():
    """300 predictions over 12 classes, of which class 11 never occurs; 20 are unreadable."""
    rng = np.random.default_rng(0)
    probability = rng.dirichlet(np.full(CLASSES, 0.3), 300).astype(np.float32)
    label = rng.integers(0, CLASSES - 1, 300)
    probability[np.arange(300), label] += 0.3
    probability = (probability / probability.sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
    top = np.argsort(-probability, axis=1)[:, :5]
    readable = np.arange(300) % 15 != 0
    columns = (
        np.arange(300),
        label,
        top,
        np.take_along_axis(probability, top, 1),
        probability[np.arange(300), label],
        readable,
    )
    return Predictions(*columns), probability


def test_score_equals_scikit_learn(case):
    predictions, probability = case
    seen = predictions.readable
    label, first = predictions.label[seen], predictions.top[seen][:, 0]
    scores = score(predictions, CLASSES)
    assert scores["top1"] == pytest.approx(sk.accuracy_score(label, first), abs=1e-9)
    assert scores["top5"] == pytest.approx(
        sk.top_k_accuracy_score(label, probability[seen], k=5, labels=range(CLASSES)), abs=1e-9
    )
    assert scores["mean_class_accuracy"] == pytest.approx(sk.balanced_accuracy_score(label, first), abs=1e-9)
    assert scores["loss"] == pytest.approx(
        sk.log_loss(label, probability[seen].astype(np.float64), labels=range(CLASSES)), abs=1e-6
    )
    assert (scores["count"], scores["unreadable"], scores["num_classes"]) == (280, 20, CLASSES)


def test_per_class_counts_equal_scikit_learn(case):
    predictions, _ = case
    seen = predictions.readable
    label, first = predictions.label[seen], predictions.top[seen][:, 0]
    table = per_class(predictions, CLASSES)
    matrix = sk.confusion_matrix(label, first, labels=range(CLASSES))
    assert (table["count"] == matrix.sum(axis=1)).all()
    assert (table["predicted"] == matrix.sum(axis=0)).all()
    assert (table["correct"] == matrix.diagonal()).all()
    assert np.isnan(table["accuracy"][11])
    assert table["accuracy"][:11] == pytest.approx(matrix.diagonal()[:11] / matrix.sum(axis=1)[:11])


def test_score_of_zero_probability_has_finite_loss(case):
    predictions, _ = case
    predictions.true_probability[:] = 0
    assert 80 < score(predictions, CLASSES)["loss"] < 90


def test_score_of_nothing_readable_is_zero(case):
    predictions, _ = case
    predictions.readable[:] = False
    scores = score(predictions, CLASSES)
    assert (scores["top1"], scores["count"], scores["unreadable"]) == (0.0, 0, 300)
