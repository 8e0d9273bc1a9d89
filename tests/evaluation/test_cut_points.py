"""Cut points of ordered classes that are learned as numbers: the best kappa there is, and the same bits everywhere."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from evaluation import cut_points
from evaluation.metrics import Predictions
from evaluation.ordinal import order_scores, quadratic_weighted_kappa
from evaluation.ordinal import score as ordinal_score
from training.task_losses import VALUE_LOSSES
from utils.task import POSITION_LOSSES, ordered_probabilities, position_units
from utils.tensors import likeliest


def predictions(position, label, count, cuts=None, readable=None) -> Predictions:
    """Return what a network gives that predicts these positions."""
    probability = ordered_probabilities(torch.as_tensor(position, dtype=torch.float32), count, cuts)
    values, top = likeliest(probability, min(5, count))
    label = np.asarray(label, np.int64)
    true = probability.gather(1, torch.from_numpy(label).clamp_min(0)[:, None])[:, 0]
    readable = np.ones(len(label), bool) if readable is None else readable
    return Predictions(np.arange(len(label)), label, top.numpy(), values.numpy(), true.numpy(), readable)


def kappa(position, label, cuts, count) -> float:
    predicted = np.searchsorted(cuts, position, side="right")
    return quadratic_weighted_kappa(np.asarray(label), predicted, np.ones(len(label)), count)


def test_position_losses_are_those_of_numbers():
    assert tuple(VALUE_LOSSES) == POSITION_LOSSES


@pytest.mark.parametrize("count", [2, 3, 7])
def test_likeliest_class_is_the_one_between_whose_cut_points_the_position_is(count):
    rng = np.random.default_rng(count)
    position = torch.from_numpy(rng.uniform(-1, count, 500).astype(np.float32))
    for cuts in (None, np.sort(rng.uniform(0.1, count - 1.1, count - 1)).tolist()):
        found = ordered_probabilities(position, count, cuts)
        edges = [k + 0.5 for k in range(count - 1)] if cuts is None else cuts
        assert found.argmax(dim=1).tolist() == np.searchsorted(edges, position.clamp(0, count - 1), "right").tolist()
        assert torch.allclose(found.sum(dim=1), torch.ones(500)) and (found > 0).sum(dim=1).max() <= 2
        order = position.argsort()
        expected = (found * torch.arange(count)).sum(dim=1)[order]
        assert (expected.diff() >= -1e-5).all()


def test_probabilities_of_equal_cut_points_leave_the_class_between_them_out():
    position = torch.tensor([0.0, 0.9, 1.0, 1.1, 2.0])
    found = ordered_probabilities(position, 3, [1.0, 1.0])
    assert found.isfinite().all() and found.argmax(dim=1).tolist() == [0, 0, 2, 2, 2]


@pytest.mark.parametrize("seed", range(6))
def test_fitted_cut_points_have_the_best_kappa_of_all(seed):
    rng = np.random.default_rng(seed)
    count = 3 + seed % 2
    label = rng.integers(count, size=11)
    position = np.clip(label * 0.3 + rng.normal(0.5, 0.4, 11), 0, count - 1).astype(np.float32)
    position[3] = position[2]  # equal predictions cannot be told apart
    found = predictions(position, label, count)
    cuts = cut_points.fit(found, count)
    values = np.unique(position)
    places = [values[0] - 1, *((values[:-1] + values[1:]) / 2), values[-1] + 1]
    best = max(
        kappa(position, label, some, count) for some in itertools.combinations_with_replacement(places, count - 1)
    )
    assert cuts == sorted(cuts) and kappa(position, label, cuts, count) == pytest.approx(best, abs=1e-9)
    assert ordinal_score(cut_points.cut(found, cuts, count), count)["qwk"] == pytest.approx(best, abs=1e-9)


def test_cut_points_ignore_unreadable_images_and_do_without_any():
    position, label = [0.25, 0.5, 1.5, 1.75, 1.25], [0, 0, 2, 2, 0]
    readable = np.array([True] * 4 + [False])
    assert cut_points.fit(predictions(position, label, 3, readable=readable), 3) == [1.0, 1.0]
    assert cut_points.fit(predictions(position, label, 3), 3) == [1.375, 1.375]
    assert cut_points.fit(predictions([], [], 3), 3) == [0.5, 1.5]


@pytest.mark.parametrize("position", [[2.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
def test_cut_points_of_a_network_that_knows_nothing_are_halfway(position):
    assert cut_points.fit(predictions(position, [0, 1, 2], 3), 3) == [0.5, 1.5]


def test_positions_come_back_from_probabilities_bit_for_bit():
    rng = np.random.default_rng(0)
    position = np.concatenate([rng.uniform(0, 6, 2000), np.arange(7), np.arange(6) + 0.5]).astype(np.float32)
    found = predictions(position, np.zeros(len(position)), 7)
    assert np.array_equal(cut_points.positions(found), position)


def test_positions_of_a_mean_over_views_are_the_means_of_their_positions():
    rng = np.random.default_rng(0)
    each = rng.uniform(0, 3, (2, 200)).astype(np.float32)
    each[:, 0] = 0, 2  # two classes apart
    found = predictions(each[0], np.zeros(200), 4)
    mean = torch.stack([ordered_probabilities(torch.from_numpy(one), 4) for one in each]).mean(dim=0)
    top = mean.topk(4)
    found = replace(found, top=top.indices.numpy(), probability=top.values.numpy())
    assert cut_points.positions(found) == pytest.approx(each.mean(axis=0), abs=1e-5)


def test_cut_predictions_equal_those_of_a_network_with_the_cut_points():
    rng = np.random.default_rng(1)
    position, label = rng.uniform(-0.5, 4.5, 300).astype(np.float32), rng.integers(5, size=300)
    cuts = cut_points.fit(predictions(position, label, 5), 5)
    one, other = cut_points.cut(predictions(position, label, 5), cuts, 5), predictions(position, label, 5, cuts)
    for name in ("top", "probability", "true_probability"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    assert order_scores(label, one.top[:, 0], np.ones(300), 5) == order_scores(label, other.top[:, 0], np.ones(300), 5)


def test_cut_point_between_two_neighbours_of_float32_tells_them_apart():
    low = np.float32(0.25)
    high = np.nextafter(low, np.float32(2))
    found = predictions([low, low, high, high], [0, 0, 1, 1], 2)
    cuts = cut_points.fit(found, 2)
    assert cut_points.cut(found, cuts, 2).top[:, 0].tolist() == [0, 0, 1, 1]


def test_cut_points_of_many_images_are_found_at_a_sample_of_places(monkeypatch):
    monkeypatch.setattr(cut_points, "MAX_TERMS", 100)
    rng = np.random.default_rng(2)
    label = rng.integers(3, size=400)
    position = np.clip(label + rng.normal(0, 0.3, 400), 0, 2)
    cuts = cut_points.fit(predictions(position, label, 3), 3)
    assert kappa(position, label, cuts, 3) > 0.8


def test_position_units_are_mean_and_deviation_of_the_numbers():
    assert position_units(5) == pytest.approx((2, np.arange(5).std()))
