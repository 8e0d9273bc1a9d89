"""Blending: each way is its formula, fitted weights are the best there are, and files of another list are refused."""

import itertools
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from evaluation import metrics, ordinal
from evaluation.metrics import Predictions
from evaluation.ranking import merit
from inference import blend, saved_probs
from inference.predictor import SavedMember
from options import choices
from utils import checkpoint
from utils.errors import UserError
from utils.tensors import likeliest


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def members(rng, count=400, classes=7, noise=(1.0, 1.2, 4.0)):
    """Labels (N,), and the float32 (M, N, C) probabilities of members that see them through noise of their own."""
    label = rng.integers(classes, size=count)
    truth = np.eye(classes)[label] * 2.5
    return label, softmax(np.stack([truth + rng.normal(size=truth.shape) * level for level in noise])).astype(
        np.float32
    )


def held(label, each):
    return blend.Candidates(*(one.numpy() for one in blend.candidates(torch.from_numpy(each), torch.from_numpy(label))))


def test_rank_of_equal_classes_does_not_depend_on_their_numbers():
    """Classes without votes of neighbours (knn.npz) are all 0: the one with the lower number was ranked higher."""
    rng = np.random.default_rng(0)
    each, weights = rng.integers(3, size=(2, 20, 40)).astype(np.float32), np.array([0.7, 0.3], np.float32)
    above, equal = ((op(each[..., None, :], each[..., :, None])).sum(axis=-1) for op in (np.greater, np.equal))
    score = np.einsum("mbc,m->bc", 1 / (above + (equal + 1) / 2), weights)
    order = rng.permutation(40)
    found, renumbered = (
        blend.combine(torch.from_numpy(one), torch.from_numpy(weights), "rank").numpy()
        for one in (each, each[..., order])
    )
    assert found == pytest.approx(score / score.sum(axis=1, keepdims=True), rel=1e-5)
    assert renumbered == pytest.approx(found[:, order], rel=1e-6)


def test_combine_of_each_kind_equals_its_formula():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 5, 6)) * 3
    each, weights = softmax(logits), np.array([0.5, 0.2, 0.3])
    got = {way: blend.combine(torch.tensor(each), torch.tensor(weights), way).numpy() for way in blend.BLENDERS}
    assert got["mean"] == pytest.approx(np.einsum("mbc,m->bc", each, weights))
    assert got["logits"] == pytest.approx(softmax(np.einsum("mbc,m->bc", logits, weights)))
    product = np.prod(each ** weights[:, None, None], axis=0)
    assert got["geometric"] == pytest.approx(product / product.sum(axis=1, keepdims=True))
    rank = 1 + (each[..., None, :] > each[..., :, None]).sum(axis=-1)
    score = np.einsum("mbc,m->bc", 1 / rank, weights)
    assert got["rank"] == pytest.approx(score / score.sum(axis=1, keepdims=True))
    assert all(value.sum(axis=1) == pytest.approx(1) for value in got.values())


def unnamed_winner():
    """Labels and members, of whose mean class 10 is the likeliest, which is in neither's five; and of image 5 class 0.

    Each member has five classes of its own in front of class 10.
    """
    one = np.array([0.17, 0.16, 0.16, 0.16, 0.155, *[0.01] * 5, 0.145], np.float32)
    each = np.stack([one, np.concatenate([one[5:10], one[:5], one[10:]])])
    each = np.repeat(each[:, None], 6, axis=1)
    each[:, 5] = softmax(np.eye(11)[0] * 5)
    return np.zeros(6, np.int64), each / each.sum(axis=2, keepdims=True)


def test_fit_scores_count_classes_that_no_member_names_among_its_five(monkeypatch):
    """They were overlooked: top1 of the mean was 1, and eval.py's own score of it below was 1 / 6."""
    label, each = unnamed_winner()
    some = held(label, each)
    data = replace(some, whole=np.concatenate([each[:, :1], each], axis=1), row=np.arange(1, 7))
    monkeypatch.setattr(blend, "BLOCK_VALUES", 22)  # two images at a time
    weights = np.full((2, 6), 0.5)
    assert some.blended(weights).value(np.ones(1), "top1") == 1
    exact = data.blended(weights)
    mean = each.mean(axis=0)
    assert mean[:5].argmax(axis=1).tolist() == [10] * 5
    assert exact.value(np.ones(1), "top1") == pytest.approx(1 / 6)
    assert exact.value(np.ones(1), "log_loss") == pytest.approx(-np.log(mean[:, 0]).mean(), rel=1e-6)
    assert data.select(np.arange(6) > 3).blended(weights[:, 4:]).value(np.ones(1), "top1") == 0.5
    scores = blend.fit(data, np.arange(6), "optimal")[1]
    assert scores["mean"]["top1"] == pytest.approx(1 / 6) and scores["best single"]["top1"] == 1


def test_fit_scores_of_many_classes_equal_those_of_all_probabilities():
    label, each = members(np.random.default_rng(8), classes=30, noise=(1.5, 1.8, 2.5))
    data = replace(held(label, each), whole=each, row=np.arange(len(label)))
    weights, scores = blend.fit(data, np.arange(len(label)), "greedy", metric="top5")
    mean = np.einsum("mnc,m->nc", each.astype(np.float64), weights)
    rank = (mean > mean[np.arange(len(label)), label][:, None]).sum(axis=1)
    assert scores["fitted, same images"]["top5"] == pytest.approx((rank < 5).mean())
    assert scores["fitted, same images"]["top1"] == pytest.approx((rank < 1).mean())


def test_blenders_registry_equals_choices():
    assert tuple(blend.BLENDERS) == choices.BLENDS
    assert tuple(blend.FITTERS) == choices.FITTED_BLENDS


def test_blend_value_equals_scikit_learn():
    import sklearn.metrics as sk

    label, each = members(np.random.default_rng(3), classes=30)
    data, weights = held(label, each), np.array([0.5, 0.3, 0.2])
    mean = np.einsum("mbc,m->bc", each.astype(np.float64), weights)
    first = mean.argmax(axis=1)
    wanted = {
        "top1": sk.accuracy_score(label, first),
        "top5": sk.top_k_accuracy_score(label, mean, k=5, labels=np.arange(30)),
        "mean_class_accuracy": sk.balanced_accuracy_score(label, first),
        "macro_f1": sk.f1_score(label, first, average="macro"),
        "weighted_f1": sk.f1_score(label, first, average="weighted"),
        "log_loss": sk.log_loss(label, mean, labels=np.arange(30)),
        "qwk": sk.cohen_kappa_score(label, first, weights="quadratic"),
        "mae": np.abs(label - first).mean(),
    }
    assert {name: data.value(weights, name) for name in choices.TASK_METRICS["ordinal"]} == pytest.approx(
        wanted, abs=1e-6
    )


def test_blend_value_of_equal_classes_is_that_of_eval():
    """A tie counted as wrong: a blend had a lower score in the log than in metrics.json."""
    rng = np.random.default_rng(3)
    label, rows = rng.integers(8, size=300), rng.integers(1, 4, (300, 8)).astype(np.float32) / 8
    columns = np.arange(300), label, *(one.numpy() for one in likeliest(torch.from_numpy(rows), 5)[::-1])
    found = Predictions(*columns, rows[columns[:2]], np.ones(300, bool))
    wanted = metrics.score(found, 8) | ordinal.score(found, 8)
    assert 0 < wanted["top1"] < (rows.max(axis=1) == rows[columns[:2]]).mean()  # there are ties
    for name in choices.TASK_METRICS["ordinal"]:
        assert held(label, rows[None]).value(np.ones(1), name) == pytest.approx(wanted[name], abs=1e-6), name


@pytest.mark.parametrize("metric", choices.TASK_METRICS["ordinal"])
def test_greedy_blend_is_best_in_its_own_metric(metric):
    label, each = members(np.random.default_rng(4), classes=12, noise=(1.5, 1.6, 1.7, 3.0))
    data = held(label, each)
    own = merit({metric: data.value(blend.greedy(data, metric), metric)}, metric)
    single = [merit({metric: data.value(row, metric)}, metric) for row in np.eye(4)]
    assert own >= max(single)
    assert blend.fit(data, np.arange(400), "greedy", metric=metric)[1]["fitted, same images"].keys() >= {
        metric,
        "top1",
        "loss",
    }


def test_held_candidates_score_as_whole_rows():
    label, each = members(np.random.default_rng(1), classes=30)
    data, weights = held(label, each), np.array([0.5, 0.3, 0.2])
    mean = np.einsum("mbc,m->bc", each, weights)
    assert data.probability.shape[2] == 16
    assert data.value(weights, "top1") == pytest.approx((mean.argmax(axis=1) == label).mean())
    assert data.loss(weights) == pytest.approx(-np.log(mean[np.arange(len(label)), label]).mean(), rel=1e-5)


def test_optimal_weights_beat_a_fine_grid():
    label, each = members(np.random.default_rng(2))
    data = held(label, each)
    weights = blend.optimal(data)
    steps = np.linspace(0, 1, 41)
    grid = [(a, b, 1 - a - b) for a, b in itertools.product(steps, steps) if a + b <= 1 + 1e-9]
    best = min(data.loss(np.array(point)) for point in grid)
    assert weights.sum() == pytest.approx(1) and weights.min() >= 0
    assert data.loss(weights) <= best + 1e-7
    assert best - data.loss(weights) < 1e-3


def test_optimal_that_does_not_move_is_no_worse_than_each_member_and_is_warned_of_once(monkeypatch, caplog):
    """SciPy 1.18 ended at its start for a loss of a million."""
    from scipy import optimize

    monkeypatch.setattr(optimize, "minimize", lambda value, start, **_: optimize.OptimizeResult(x=start))
    monkeypatch.setattr("utils.logger.log.propagate", True)
    label, each = members(np.random.default_rng(3), noise=(1.0, 1.1, 60.0))
    data = held(label, each)
    losses = [data.loss(np.array(weights)) for weights in (*np.eye(3), np.full(3, 1 / 3))]
    weights, _ = blend.fit(data, np.arange(400), "optimal")
    assert data.loss(np.array(weights)) == min(losses) < losses[-1]  # a single member, before the mean of all
    assert caplog.text.count("may be") == 1
    caplog.clear()
    monkeypatch.undo()
    monkeypatch.setattr("utils.logger.log.propagate", True)
    blend.fit(data, np.arange(400), "optimal")
    assert "may be" not in caplog.text


def test_greedy_weights_drop_a_useless_member():
    label, each = members(np.random.default_rng(3), noise=(1.0, 1.0, 60.0))
    data = held(label, each)
    weights = blend.greedy(data)
    single = [data.value(np.eye(3)[k], "top1") for k in range(3)]
    assert data.value(weights, "top1") >= max(single)
    assert data.value(weights, "top1") >= data.value(np.full(3, 1 / 3), "top1")
    assert weights[2] == 0
    assert weights.sum() == pytest.approx(1)


def test_fit_of_useless_members_reports_no_gain():
    rng = np.random.default_rng(4)
    classes, count = 4, 60
    label = rng.integers(classes, size=count)
    each = softmax(rng.normal(size=(25, count, classes))).astype(np.float32)  # 25 members that know nothing
    _, scores = blend.fit(held(label, each), np.arange(count), "greedy")
    assert scores["fitted, same images"]["top1"] > 0.4  # what luck can be picked
    assert scores["fitted, other images"]["top1"] < scores["fitted, same images"]["top1"] - 0.1
    with pytest.raises(UserError, match="needs at least 5 labelled"):
        blend.fit(held(label[:4], each[:, :4]), np.arange(4), "greedy")
    with pytest.raises(UserError, match="there are 4"):
        blend.fit(held(label, each), np.arange(count) % 4, "greedy")


@pytest.mark.parametrize("metric", choices.TASK_METRICS["ordinal"])
@pytest.mark.parametrize("how", choices.FITTED_BLENDS)
def test_fit_of_equal_members_gains_nothing_on_other_images(how, metric):
    """Whatever the weights are, the predictions are the same; a mean of the scores of each part is another number."""
    label, each = members(np.random.default_rng(6), count=60, classes=12, noise=(1.5, 1.5))
    each[1] = each[0]
    _, scores = blend.fit(held(label, each), np.arange(60), how, metric=metric)
    assert scores["fitted, other images"] == pytest.approx(scores["mean"], abs=1e-6)


def test_fit_of_images_listed_twice_scores_as_of_each_image_once():
    """Members that know nothing: in a doubled list, each line was predicted by weights fitted to the other one."""
    rng = np.random.default_rng(4)
    classes, count = 4, 60
    label = rng.integers(classes, size=count)
    each = softmax(rng.normal(size=(25, count, classes))).astype(np.float32)
    twice, image = held(np.tile(label, 2), np.tile(each, (1, 2, 1))), np.arange(2 * count)
    once = blend.fit(held(label, each), np.arange(count), "greedy")[1]["fitted, other images"]
    assert blend.fit(twice, image % count, "greedy")[1]["fitted, other images"] == pytest.approx(once, abs=1e-6)
    leaking = blend.fit(twice, image, "greedy")[1]["fitted, other images"]
    assert leaking["top1"] > once["top1"] + 0.1


# ------------------------------------------------------------------------ the scripts


@pytest.fixture
def pair(script, photo_set, small):
    """Two finished runs, tags a and b, in the current folder; flags of evaluation."""
    for tag, seed in (("a", 1), ("b", 2)):
        done = script("train.py", "--tag", tag, "--seed", seed, "--data_root", photo_set, "--epochs", 1, *small)
        assert done.code == 0
    return ["--data_root", photo_set, "-b", 5, "--gpu", -1, "-w", 0]


def run_eval(script, *words):
    result = script("eval.py", *words)
    assert result.code == 0, result.err
    return result.out


def test_saved_probs_blend_as_networks_do(script, pair, tmp_path, photo_set):
    import json

    for tag in "ab":
        run_eval(script, "--tag", tag, "--load", f"checkpoints/{tag}/last.pt", "--save_probs", *pair)
    files = [f"results/{tag}/1/probs.npz" for tag in "ab"]
    run_eval(
        script, "--tag", "nets", "--load", "checkpoints/a/last.pt", "checkpoints/b/last.pt", "--weights", 1, 3, *pair
    )
    away = photo_set.with_name("away")
    photo_set.rename(away)  # no image is read, nor looked for, where only files are blended
    photo_set.mkdir()
    shutil.copy(away / "val.txt", photo_set)
    try:
        run_eval(script, "--tag", "files", "--load", *files, "--weights", 1, 3, *pair)
    finally:
        shutil.rmtree(photo_set)
        away.rename(photo_set)
    run_eval(script, "--tag", "both", "--load", files[0], "checkpoints/b/last.pt", "--weights", 1, 3, *pair)
    found = {
        tag: json.loads(next((tmp_path / f"results/{tag}").glob("*/metrics.json")).read_text())
        for tag in ("nets", "files", "both")
    }
    assert found["files"]["loss"] == pytest.approx(found["nets"]["loss"], rel=1e-3)
    assert found["both"]["loss"] == pytest.approx(found["nets"]["loss"], rel=1e-3)
    assert found["files"]["count"] == 12

    out = run_eval(
        script, "--tag", "fit", "--blend", "optimal", "--load", "checkpoints/a/last.pt", "checkpoints/b/last.pt", *pair
    )
    assert "fitted, other images" in out
    written = tmp_path / "results/fit/a_1+b_1/ensemble.yaml"
    content = yaml.safe_load(written.read_text())
    scores = json.loads((written.parent / "metrics.json").read_text())
    assert scores["loss"] == pytest.approx(content["scores"]["fitted, same images"]["loss"], rel=1e-4)
    run_eval(script, "--tag", "again", "--ensemble", written, *pair)
    again = json.loads(next((tmp_path / "results/again").glob("*/metrics.json")).read_text())
    assert again["loss"] == pytest.approx(scores["loss"], rel=1e-4)
    assert script("submit.py", "--tag", "fit", "--ensemble", written, *pair).code == 0
    heavier = "ab"[int(np.argmax(content["weights"]))]
    member = tmp_path / f"checkpoints/{heavier}/last.pt"
    # stores a temperature, which a blend leaves alone
    run_eval(script, "--tag", "t", "--load", member, "--calibrate", *pair)
    assert script("submit.py", "--tag", "fit", "--ensemble", written, *pair).code == 0
    other = checkpoint.load(member)
    name = next(name for name, value in other["weights"].items() if value.is_floating_point())
    other["weights"][name] = other["weights"][name] + 1e-3
    checkpoint.save(member, other)
    refused = script("submit.py", "--tag", "fit", "--ensemble", written, *pair)
    assert refused.code == 2 and "has changed since" in refused.err

    content["blend"] = "rank"
    written.write_text(yaml.safe_dump(content))
    refused = script("submit.py", "--tag", "fit", "--ensemble", written, "--pseudo_label", 0.9, *pair)
    assert refused.code == 2 and "--pseudo_label needs probabilities" in refused.err
    refused = script("eval.py", "--tag", "fit", "--ensemble", written, "--save_probs", *pair)
    assert refused.code == 2 and "--save_probs needs probabilities" in refused.err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("eval.py", "--calibrate"),
        ("eval.py", "--temperature 2"),
        ("eval.py", "--save_probs"),
        ("eval.py", "--metric log_loss"),
        ("submit.py", "--temperature ckpt"),
        ("submit.py", "--save_probs"),
        ("submit.py", "--pseudo_label 0.9"),
    ],
)
def test_flags_of_probabilities_beside_ranks_are_refused(script, name, words):
    """A mean of 1/rank got a temperature, and probs.npz held it as probabilities for later blends."""
    result = script(name, "--tag", "r", "--load", "a.pt", "b.pt", "--blend", "rank", *words.split())
    flag = words if "log_loss" in words else words.split()[0]
    assert result.code == 2 and f"{flag} and --blend rank contradict: ranks are not probabilities" in result.err


def test_eval_of_ranks_says_that_the_losses_mean_nothing(script, task_checkpoint):
    network = task_checkpoint("ordinal")
    words = ["--load", network, network, "--gpu", -1, "-w", 0, "--resamples", 0, "--no-report"]
    for blend_name in ("mean", "rank"):
        result = script("eval.py", "--tag", blend_name, "--blend", blend_name, *words)
        assert result.code == 0, result.err
        assert ("log_loss, loss and ece are of means of 1/rank" in result.out + result.err) == (blend_name == "rank")


def test_saved_probs_keep_small_probabilities():
    """A geometric mean hangs on the smallest: of plain float16 what is below 6e-8 would be lost."""
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, 9, (2, 500, 40)))
    each = logits.softmax(dim=2).float()
    saved = torch.stack(
        [SavedMember(saved_probs.to_log_float16(one.numpy()), is_log=True).rows(torch.arange(500)) for one in each]
    )
    assert (each < 1e-8).float().mean() > 0.2
    assert torch.allclose(saved.sum(dim=2), torch.ones(2, 500), atol=1e-5)
    assert (saved / each - 1).abs().max() < 0.02
    assert (saved - each).abs().max() < 1e-3
    weights = torch.tensor([0.5, 0.5])
    exact, found = (blend.combine(p, weights, "geometric") for p in (each, saved))
    assert (exact - found).abs().max() < 4e-3
    plain = blend.combine(each.half().float(), weights, "geometric")
    assert (exact - plain).abs().max() > 0.1


def test_checkpoint_identity_depends_on_predictions_only():
    content = {
        "model": "m",
        "epoch": 3,
        "weights": {"a": torch.arange(6.0).view(2, 3), "n": torch.tensor(7)},
        "ema": None,
        "showing": "raw",
        "opt": {"head": "linear", "pool": "avg"},
        "data": {"num_classes": 3, "class_names": ["x", "y", "z"]},
        "calibration": None,
    }
    same = [
        content | {"calibration": {"temperature": 2.0}, "training": {"step": 4}, "epoch": 9},
        content | {"weights": dict(reversed(content["weights"].items()))},
        content | {"weights": {**content["weights"], "a": content["weights"]["a"].t().contiguous().t()}},
    ]
    assert {checkpoint.identity(one) for one in same} == {checkpoint.identity(content)}
    others = [
        content | {"weights": {**content["weights"], "a": content["weights"]["a"].view(3, 2)}},
        content | {"weights": {**content["weights"], "a": content["weights"]["a"].double()}},
        content | {"weights": {**content["weights"], "a": content["weights"]["a"] + 1e-6}},
        content | {"ema": content["weights"]},
        content | {"showing": "ema"},
        content | {"opt": {"head": "cosine", "pool": "avg"}},
        content | {"data": {"num_classes": 3, "class_names": ["x", "yz", ""]}},
    ]
    assert len({checkpoint.identity(one) for one in [content, *others]}) == 1 + len(others)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("blend", "foo", "blend is 'foo'; allowed: mean"),
        ("weights", [0, 0], "weights are"),
        ("weights", ["much", 1], "numbers from 0 on"),
        ("weights", [float("nan"), 1], "numbers from 0 on"),
        ("load", [["a.pt"], None], "load holds a value that is no text"),
        ("tta", "foo", "tta is 'foo'"),
        ("scale", "big", "scale is 'big'"),
        ("fit", "stretch", "fit is 'stretch'"),
    ],
)
def test_ensemble_file_edited_wrongly_is_refused(script, tmp_path, photo_set, key, value, said):
    content = {
        "load": ["a.pt", "b.pt"],
        "hashes": ["0", "1"],
        "weights": [1, 2],
        "blend": "mean",
        "tta": "none",
        "scale": None,
        "fit": None,
    }
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(content | {key: value}))
    result = script("submit.py", "--ensemble", "e.yaml", "--data_root", photo_set, "--gpu", -1)
    assert result.code == 2
    assert said in result.err


def test_saved_probs_of_another_list_are_refused(script, pair, photo_set, tmp_path):
    run_eval(script, "--tag", "a", "--load", "checkpoints/a/last.pt", "--save_probs", *pair)
    lines = (photo_set / "val.txt").read_text().splitlines()
    (tmp_path / "other.txt").write_text("\n".join([*lines[1:], lines[0]]))
    path = "results/a/1/probs.npz"
    refused = script("eval.py", "--load", path, "--val_list", tmp_path / "other.txt", *pair)
    assert refused.code == 2 and "another list" in refused.err
    (tmp_path / "broken.npz").write_bytes((tmp_path / path).read_bytes()[:300])
    refused = script("eval.py", "--load", "broken.npz", *pair)
    assert refused.code == 2 and "damaged" in refused.err


def test_saved_probs_too_large_are_refused(monkeypatch, script, pair):
    with pytest.raises(UserError, match=r"150000 images with 50030 classes each are 15\.0 GB"):
        saved_probs.check_size(150_000, 50_030, "--save_probs")
    run_eval(script, "--tag", "a", "--load", "checkpoints/a/last.pt", "--save_probs", *pair)
    path = "results/a/1/probs.npz"
    size = saved_probs.read(path).values.nbytes
    monkeypatch.setattr(saved_probs, "MAX_BYTES", 2 * size)
    run_eval(script, "--load", path, path, *pair)
    monkeypatch.setattr(saved_probs, "MAX_BYTES", 2 * size - 128 - 4096 * 3)
    refused = script("eval.py", "--load", path, path, path, *pair)
    assert refused.code == 2 and "together" in refused.err
    monkeypatch.setattr(saved_probs, "MAX_BYTES", 10)
    refused = script("eval.py", "--load", "checkpoints/a/last.pt", "--save_probs", *pair)
    assert refused.code == 2 and "of probabilities" in refused.err
    out = run_eval(script, "--blend", "greedy", "--load", "checkpoints/a/last.pt", "checkpoints/b/last.pt", *pair)
    assert "the networks run again" in out and "top1" in out


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--load", "a.pt", "--blend", "greedy"], "needs two or more"),
        (["--load", "a.pt", "b.pt", "--blend", "optimal", "--weights", "1", "2"], "--blend fits the weights"),
        (["--load", "a.pt", "--ensemble", "x.yaml"], "contradict"),
        (["--ensemble", "x.yaml", "--blend", "greedy"], "fitted already"),
        (["--ensemble", "x.yaml"], "There is no file x.yaml for --ensemble"),
    ],
)
def test_blend_flags_that_contradict_are_refused(script, words, what):
    result = script("eval.py", *words)
    assert result.code == 2 and what in result.err


def test_blend_fitted_in_submit_is_refused(script):
    result = script("submit.py", "--load", "a.pt", "b.pt", "--blend", "greedy")
    assert result.code == 2 and "which a test list does not have" in result.err
