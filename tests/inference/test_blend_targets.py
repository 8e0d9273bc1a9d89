"""Blending several labels per image, and numbers: formulas, fitted weights, saved predictions, refusals by name."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from scipy.stats import spearmanr

from dataloader.targets import joined
from evaluation.ranking import merit
from inference import blend, saved_probs
from inference.blend_targets import TargetCandidates
from options import choices
from options.plain_yaml import read_yaml
from utils.classes import Classes


def label_members(rng, count=300, labels=4, noise=(0.6, 0.8, 4.0)):
    """True labels (N, K), and candidates whose members see them through noise of their own."""
    present = rng.random((count, labels)) < 0.3
    logits = np.stack([2.5 * present - 1.5 + rng.normal(size=present.shape) * level for level in noise])
    each = (1 / (1 + np.exp(-logits))).astype(np.float32)
    sets = joined("multilabel", [np.flatnonzero(row).tolist() for row in present])
    return present, TargetCandidates(each, sets, Classes(labels, task="multilabel"))


def number_members(rng, count=300, noise=(0.6, 0.8, 4.0)):
    """True numbers (N, 2), and candidates as above."""
    true = rng.normal(size=(count, 2)) * (3, 0.01) + (100, 0)
    each = np.stack([true + rng.normal(size=true.shape) * level * (3, 0.01) for level in noise]).astype(np.float32)
    return true, TargetCandidates(each, true, Classes(2, task="regression", mean=[100.0, 0.0], std=[3.0, 0.01]))


DRAWS = {"multilabel": label_members, "regression": number_members}


def test_task_blenders_registry_equals_choices():
    assert {task: tuple(known) for task, known in blend.TASK_BLENDERS.items()} == choices.TASK_BLENDS


def test_geometric_blend_of_labels_is_the_normalised_product_of_both_chances():
    rng = np.random.default_rng(0)
    each, weights = rng.random((3, 5, 6)), np.array([0.5, 0.2, 0.3])
    power = weights[:, None, None]
    present, absent = np.prod(each**power, axis=0), np.prod((1 - each) ** power, axis=0)
    for way in ("geometric", "logits"):
        found = blend.combine(torch.tensor(each), torch.tensor(weights), way, "multilabel").numpy()
        assert found == pytest.approx(present / (present + absent))
    ends = blend.combine(
        torch.tensor([[[0.0, 1.0]], [[0.5, 0.5]]]), torch.tensor([0.5, 0.5]), "geometric", "multilabel"
    )
    assert ends.isfinite().all() and ends[0, 0] < 0.001 and ends[0, 1] > 0.999


def test_blend_value_of_labels_equals_scikit_learn():
    present, data = label_members(np.random.default_rng(1))
    weights = np.array([0.5, 0.3, 0.2])
    mean = np.tensordot(weights, data.each, 1)
    wanted = {
        "mAP": sk.average_precision_score(present, mean, average="macro"),
        "micro_f1": sk.f1_score(present, mean >= 0.5, average="micro"),
        "macro_f1": sk.f1_score(present, mean >= 0.5, average="macro"),
        "log_loss": np.mean([sk.log_loss(present[:, k], mean[:, k]) for k in range(4)]),
    }
    assert {name: data.value(weights, name) for name in choices.TASK_METRICS["multilabel"]} == pytest.approx(
        wanted, abs=1e-6
    )
    assert data.loss(weights) == pytest.approx(wanted["log_loss"], abs=1e-6)


def test_blend_value_of_numbers_equals_scikit_learn():
    true, data = number_members(np.random.default_rng(1))
    weights = np.array([0.5, 0.3, 0.2])
    mean = np.tensordot(weights, data.each, 1)
    wanted = {
        "mae": sk.mean_absolute_error(true, mean),
        "rmse": np.mean(np.sqrt(((true - mean) ** 2).mean(axis=0))),
        "r2": sk.r2_score(true, mean),
        "spearman": np.mean([spearmanr(true[:, k], mean[:, k]).statistic for k in range(2)]),
    }
    assert {name: data.value(weights, name) for name in choices.TASK_METRICS["regression"]} == pytest.approx(
        wanted, abs=1e-4
    )
    assert data.loss(weights) == pytest.approx((((true - mean) / (3, 0.01)) ** 2).mean(), rel=1e-4)


@pytest.mark.parametrize("task", DRAWS)
def test_optimal_weights_of_a_task_beat_a_fine_grid_and_have_the_right_slope(task):
    _, data = DRAWS[task](np.random.default_rng(2))
    weights = blend.optimal(data)
    steps = np.linspace(0, 1, 21)
    grid = [(a, b, 1 - a - b) for a, b in itertools.product(steps, steps) if a + b <= 1 + 1e-9]
    best = min(data.loss(np.array(point)) for point in grid)
    assert weights.sum() == pytest.approx(1) and weights.min() >= 0 and weights[0] > weights[1] > weights[2]
    assert data.loss(weights) <= best + 1e-7
    point, nudge = np.array([0.5, 0.3, 0.2]), 1e-4
    slope = data.convex_loss()(point)[1]
    for k, m in ((0, 1), (1, 2)):  # along the simplex
        move = np.zeros(3)
        move[[k, m]] = nudge, -nudge
        change = (data.loss(point + move) - data.loss(point - move)) / (2 * nudge)
        assert slope[k] - slope[m] == pytest.approx(change, rel=1e-2, abs=1e-5)


def test_loss_of_labels_is_the_same_in_blocks(monkeypatch):
    _, data = label_members(np.random.default_rng(3))
    weights = np.array([0.5, 0.3, 0.2])
    whole = data.convex_loss()(weights)
    monkeypatch.setattr("inference.blend_targets.BLOCK_VALUES", 28)
    parts = data.convex_loss()(weights)
    assert parts[0] == pytest.approx(whole[0]) and parts[1] == pytest.approx(whole[1])


@pytest.mark.parametrize(
    ("task", "metric"), [(task, metric) for task in DRAWS for metric in choices.TASK_METRICS[task]]
)
def test_greedy_blend_of_a_task_is_best_in_its_own_metric(task, metric, monkeypatch):
    monkeypatch.setattr(blend, "GREEDY_ROUNDS", 8)
    _, data = DRAWS[task](np.random.default_rng(4), count=100)
    own = merit({metric: data.value(blend.greedy(data, metric), metric)}, metric)
    assert own >= max(merit({metric: data.value(row, metric)}, metric) for row in np.eye(3))
    scores = blend.fit(data, np.arange(100), "greedy", metric=metric)[1]
    assert scores["fitted, same images"].keys() == {metric, "loss"}
    assert scores["mean"]["loss"] == pytest.approx(data.loss(np.full(3, 1 / 3)))


@pytest.mark.parametrize(
    ("task", "metric"), [(task, metric) for task in DRAWS for metric in choices.TASK_METRICS[task]]
)
def test_fit_of_equal_members_of_a_task_gains_nothing_on_other_images(task, metric, monkeypatch):
    monkeypatch.setattr(blend, "GREEDY_ROUNDS", 4)
    _, data = DRAWS[task](np.random.default_rng(5), count=60, noise=(0.8, 0.8))
    data.each[1] = data.each[0]
    _, scores = blend.fit(data, np.arange(60), "greedy", metric=metric)
    assert scores["fitted, other images"] == pytest.approx(scores["mean"], rel=1e-5, abs=1e-6)


# ------------------------------------------------------------------------ the scripts


def test_labels_of_saved_members_are_blended_fitted_and_submitted(script, colours, task_checkpoint):
    """The same from networks and from files; the fitted weights go to submit.py."""
    networks = [task_checkpoint("multilabel") for _ in range(2)]
    common = ["--gpu", -1, "-b", 6, "-w", 0, "--resamples", 0]
    for k, (network, tta) in enumerate(zip(networks, ("none", "flip"), strict=True)):
        assert script("eval.py", "--tag", f"m{k}", "--load", network, "--tta", tta, "--save_probs", *common).code == 0
    files = [next(Path(f"results/m{k}").glob("*/probs.npz")) for k in range(2)]
    each = np.stack([saved_probs.read(str(path)).values for path in files])
    assert each.dtype == np.float32 and not np.array_equal(each[0], each[1])
    lists = ["--val_list", colours / "multilabel/val.txt"]
    words = ["--load", *files, *lists, *common, "--save_probs"]
    assert script("eval.py", "--tag", "w", *words, "--weights", 3, 1).code == 0
    found = saved_probs.read("results/w/probs+probs/probs.npz").values
    assert found == pytest.approx(0.75 * each[0] + 0.25 * each[1], abs=1e-6)
    result = script("eval.py", "--tag", "g", *words, "--blend", "geometric")
    assert result.code == 0, result.err
    logits = np.log(each / (1 - each)).mean(axis=0)
    assert saved_probs.read("results/g/probs+probs/probs.npz").values == pytest.approx(
        1 / (1 + np.exp(-logits)), abs=1e-6
    )
    for how in choices.FITTED_BLENDS:
        result = script("eval.py", "--tag", how, "--load", *networks, *common, "--blend", how)
        assert result.code == 0, result.err
        assert "fitted, other images" in result.out and "mAP" in result.out and "top1" not in result.out
        (path,) = Path(f"results/{how}").glob("*/ensemble.yaml")
        assert sum(map(float, read_yaml(path)["weights"])) == pytest.approx(1)
        result = script("submit.py", "--tag", how, "--ensemble", path, "--gpu", -1, "--probabilities")
        assert result.code == 0, result.err


def test_numbers_of_saved_members_are_fitted_by_the_metric(script, colours, task_checkpoint, tmp_path):
    network = task_checkpoint("regression")
    common = ["--gpu", -1, "-b", 6, "-w", 0, "--resamples", 0]
    assert script("eval.py", "--tag", "one", "--load", network, "--save_probs", *common).code == 0
    (path,) = Path("results/one").glob("*/probs.npz")
    with np.load(path) as content:
        arrays = {name: content[name] for name in content.files}
    np.savez("far.npz", **arrays | {"predictions": arrays["predictions"] + np.float32(1000)})
    lists = ["--val_list", colours / "regression/val.txt"]
    for how in choices.FITTED_BLENDS:
        words = ["--load", path, "far.npz", *lists, *common, "--blend", how, "--metric", "rmse"]
        result = script("eval.py", "--tag", how, *words)
        assert result.code == 0, result.err
        assert f"weights: 1.0000 {path}, 0.0000 far.npz" in result.out and "rmse" in result.out
    np.savez("half.npz", **arrays | {"predictions": arrays["predictions"].astype(np.float16)})
    result = script("eval.py", "--tag", "h", "--load", "half.npz", *lists)
    assert result.code == 2 and "its predictions are float16; allowed: float32" in result.err
    np.savez("unknown.npz", **arrays | {"task": np.array("speech")})
    result = script("eval.py", "--tag", "h", "--load", "unknown.npz", *lists)
    assert result.code == 2 and "its task is 'speech'; allowed: single" in result.err


@pytest.mark.parametrize(("task", "how"), [("multilabel", "rank"), ("regression", "geometric"), ("regression", "rank")])
def test_blend_without_meaning_for_a_task_is_refused_by_name(script, task_checkpoint, task, how):
    network = task_checkpoint(task)
    result = script("eval.py", "--tag", "x", "--load", network, network, "--gpu", -1, "--blend", how)
    allowed = ", ".join(choices.TASK_BLENDS[task])
    assert result.code == 2 and f"--blend {how} does not fit" in result.err and f"allowed: {allowed}." in result.err
