"""tools.probe: features are computed once and survive a kill; a verdict needs its interval."""

import csv
import errno
import json
import shlex
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

import dataloader
from dataloader.file_list import read_list
from evaluation.bootstrap import paired_difference
from network.loading import build_from_checkpoint
from options import parse_train
from tools.embed import KNN_TEMPERATURE
from tools.probe import backbone, command, features, heads, report
from training import linear_head
from utils import checkpoint
from utils.classes import Classes
from utils.errors import UserError

WORDS = ["--no-pretrained", "--scale", "32", "--gpu", "-1", "-w", "0", "-b", "7", "--resamples", "100"]
MODEL = "timm:test_resnet"


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Return a folder with train.txt: 36 pictures of 3 colours, a quarter mislabelled, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    lines = []
    for label in range(3):
        for k in range(12):
            image = rng.integers(0, 120, (40, 40, 3), dtype=np.uint8)
            image[..., label if k % 4 else (label + 1) % 3] += 40
            cv2.imwrite(str(folder / f"{label}_{k}.png"), image)
            lines.append(f"{label}_{k}.png {label}")
    (folder / "broken.png").write_bytes(b"no picture")
    lines.insert(20, "broken.png 1")
    (folder / "train.txt").write_text("".join(f"{line}\n" for line in lines))
    (folder / "classes.txt").write_text("blue\ngreen\nred\n")
    return folder


def probe(*words):
    return command.main([*WORDS, *map(str, words)])


def opened(folder, *words):
    """Return the options, the backbone and the list, as the tool makes them."""
    opt = command.option_parser().parse([*WORDS, "--data_root", str(folder), *map(str, words)])
    return opt, backbone.build(backbone.Source(MODEL), opt, 3, torch.device("cpu")), read_list(folder / "train.txt")


@pytest.fixture(scope="module")
def gaussians():
    """Return features of 90 images, unequal in scale and far from 0, and labels of 3 classes that overlap."""
    rng = np.random.default_rng(1)
    label = np.repeat(np.arange(3, dtype=np.int32), 30)
    rows = rng.normal(size=(90, 5)) + 1.2 * np.eye(3, 5)[label]
    return (rows * [1, 10, 0.1, 3, 1] + [5, -20, 1, 0, 0]).astype(np.float32), label


# ------------------------------------------------------------------------ from end to end


def test_probe_writes_its_files_and_a_valid_command(colours, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert (
        probe("--models", MODEL, "timm:test_vit", "--data_root", colours, "--views", 2, "--tag", "look", "--folds", 3)
        == 0
    )
    shown = capfd.readouterr().out
    content = json.loads((tmp_path / "results/look/probe.json").read_text())
    with open("results/look/probe.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    best = content["first"]["backbone"]
    assert {row["backbone"] for row in rows} == {MODEL, "timm:test_vit"} and rows[0]["backbone"] == best
    assert content["images"] == 36 and content["classes"] == 3
    assert "Unreadable, so in no score" in shown and "broken.png" in shown
    assert (tmp_path / "results/look/probe.png").read_bytes()[:4] == b"\x89PNG"
    for row in content["backbones"]:
        low, high = row["linear"]["intervals"]["top1"]
        assert low <= row["linear"]["top1"] <= high and row["images_per_second"] > 0
        assert (
            row["parameters"] == sum(p.numel() for p in opened(colours)[1].model.net.parameters())
            or row["model"] != MODEL
        )
    last = shlex.split(shown.strip().splitlines()[-1])
    assert last[:2] == ["python", "train.py"] and content["next"] == shlex.join(last)
    opt = parse_train(last[2:])
    assert opt.model == best and opt.scale == 32 and opt.data_root == str(colours)
    assert checkpoint.load(opt.probe_init)["probe"]["method"] == "logistic"


def test_probe_again_reads_features_and_finds_the_same(colours, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    words = ("--models", MODEL, "--data_root", colours, "--views", 2)
    assert probe(*words) == 0
    first = (tmp_path / "results/probe/probe.json").read_text()
    monkeypatch.setattr(features, "_fill", lambda *_: pytest.fail("the features were computed again"))
    assert probe(*words) == 0
    assert (tmp_path / "results/probe/probe.json").read_text() == first
    assert "Only one backbone can be judged" in capfd.readouterr().out


def test_probe_file_in_its_network_gives_same_logits(colours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert probe("--models", MODEL, "--data_root", colours, "--neighbours", 3) == 0
    path = "results/probe/probe_timm-test_resnet.pt"
    content = checkpoint.load(path)
    model, data = build_from_checkpoint(content, path)
    opt, _, files = opened(colours)
    (stored,) = (tmp_path / "results/probe/features").glob("*.npy")
    weight, bias = content["weights"]["fc.weight"], content["weights"]["fc.bias"]
    expected = torch.from_numpy(np.load(stored)) @ weight.T + bias
    with torch.inference_mode():
        for batch in dataloader.eval_loader(opt, files, (model.preprocess(),)):
            logits, kept = model(batch.images[0]), batch.readable
            assert (logits - expected[batch.index])[kept].abs().max() < 1e-4
    assert Classes.from_dict(data).names == ["blue", "green", "red"]
    rows, label = np.delete(np.load(stored), 20, axis=0), np.delete(files.label, 20)
    path_to = [strength for strength in linear_head.DECAYS if strength >= content["probe"]["strength"]]
    *_, head = linear_head.fit([rows], label, np.arange(36), path_to, "logistic")  # fitted to all readable images
    assert torch.allclose(weight, head.weight, atol=1e-4) and torch.allclose(bias, head.bias, atol=1e-4)


def test_probe_of_checkpoint_takes_only_its_backbone(script, photo_set, colours, small, tmp_path):
    assert script("train.py", "--tag", "run", "--data_root", photo_set, "--epochs", 1, *small).code == 0
    assert probe("--load", "checkpoints/run/last.pt", "--models", MODEL, "--data_root", colours) == 0
    run, own = checkpoint.load(tmp_path / "checkpoints/run/last.pt"), tmp_path / "results/probe"
    found = [
        checkpoint.load(own / name)["weights"] for name in ("probe_timm-test_resnet-2.pt", "probe_timm-test_resnet.pt")
    ]
    same = [
        [torch.equal(weights[name], run["weights"][name]) for name in run["weights"] if "fc" not in name]
        for weights in found
    ]
    assert all(same[0]) and not all(same[1])
    assert not torch.equal(found[0]["fc.weight"], run["weights"]["fc.weight"])


def test_probe_of_checkpoint_keeps_its_normalisation(script, photo_set, colours, small, tmp_path):
    assert script("train.py", "--tag", "run", "--data_root", photo_set, "--epochs", 1, *small).code == 0
    content = checkpoint.load(path := tmp_path / "checkpoints/run/last.pt")
    mean, std = (0.4, 0.5, 0.6), (0.3, 0.2, 0.1)
    content["data"]["preprocess"] |= {"mean": mean, "std": std}
    checkpoint.save(path, content)
    assert probe("--load", "checkpoints/run/last.pt", "--data_root", colours) == 0
    written = tmp_path / "results/probe/probe_timm-test_resnet.pt"
    model, data = build_from_checkpoint(checkpoint.load(written), str(written))
    assert (
        (model.mean, model.std) == (mean, std) == (tuple(data["preprocess"]["mean"]), tuple(data["preprocess"]["std"]))
    )
    opt, _, _ = opened(colours)
    frozen = backbone.build(backbone.Source("checkpoints/run/last.pt", True), opt, 3, torch.device("cpu"))
    assert frozen.preprocess().mean == mean and frozen.model.std == std


def test_probe_of_checkpoint_that_was_trained_on_the_images_is_no_candidate(script, colours, small, tmp_path, capfd):
    assert script("train.py", "--tag", "run", "--data_root", colours, "--epochs", 1, "--val_freq", 0, *small).code == 0
    capfd.readouterr()
    assert probe("--load", "checkpoints/run/last.pt", "--models", MODEL, "--data_root", colours) == 0
    shown = "".join(capfd.readouterr())
    assert "* was trained on images that are probed here" in shown and "checkpoints/run/last.pt *" in shown
    assert f"Only one backbone can be judged: {MODEL}" in shown and f"--model {MODEL}" in shown
    found = json.loads((tmp_path / "results/probe/probe.json").read_text())
    assert [row["seen_images"] for row in found["backbones"]] == [0, 37] and found["first"]["backbone"] == MODEL


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--models", "timm:test_resnt"], "test_resnet"),
        (["--models", MODEL, MODEL], f"{MODEL} is named twice"),
        (["--models", "timm:deit_tiny_distilled_patch16_224"], "its classifier is no single layer"),
        (["--load", "none.pt"], "There is no checkpoint none.pt"),
    ],
)
def test_probe_of_unsuitable_source_is_refused(words, part, colours, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert probe(*words, "--data_root", colours, "--scale", 224) == 2
    assert part in capfd.readouterr().err


def test_default_sources_are_models_with_local_weights(tmp_path):
    opt = command.option_parser().parse(["--weights_dir", str(tmp_path)])
    assert "EfficientNet-Lite0" in {source.name for source in backbone.sources(opt)}
    (tmp_path / "resnet18.a1_in1k.safetensors").touch()
    assert "ResNet18" in {source.name for source in backbone.sources(opt)}


# ------------------------------------------------------------------------ features


def compute(folder, kept, *words, view=0):
    opt, frozen, files = opened(folder, *words)
    return features.compute(frozen, files, command.training_options(opt), view, kept, features.image_key(files))


def test_features_killed_half_way_continue_to_the_same_bits(colours, tmp_path, monkeypatch):
    whole = compute(colours, tmp_path / "whole")
    monkeypatch.setattr(features, "SAVE_SECONDS", -1.0)
    real, seen = backbone.Backbone.features, []

    def killed(self, images):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(len(images))
        return real(self, images)

    opt, frozen, files = opened(colours)
    options, key = command.training_options(opt), features.image_key(files)
    monkeypatch.setattr(backbone.Backbone, "features", killed)
    with pytest.raises(KeyboardInterrupt):
        features.compute(frozen, files, options, 0, tmp_path / "cut", key)
    assert not list((tmp_path / "cut").glob("*.npy"))
    (part,) = (tmp_path / "cut").glob("*.part")
    with open(part, "ab") as file:
        file.write(b"rows that no journal counts" * 500)
    seen.clear()
    monkeypatch.setattr(
        backbone.Backbone, "features", lambda self, images: seen.append(len(images)) or real(self, images)
    )
    found = features.compute(frozen, files, options, 0, tmp_path / "cut", key)
    assert sum(seen) == 37 - 4 * 7
    assert np.array_equal(found.rows, whole.rows) and np.array_equal(found.readable, whole.readable)
    assert np.flatnonzero(~found.readable).tolist() == [20] and isinstance(found.rows, np.memmap)
    assert sorted(path.suffix for path in (tmp_path / "cut").iterdir()) == [".json", ".npy"]
    assert len({path.stat().st_size for path in tmp_path.glob("*/*.npy")}) == 1


def test_features_differ_by_weights_size_and_changed_images(colours, tmp_path):
    kept = tmp_path / "kept"
    compute(colours, kept)
    compute(colours, kept)
    assert len(list(kept.glob("*.npy"))) == 1
    for count, words in enumerate((["--scale", "40"], ["--fit", "crop"], ["--seed", "1"], ["--max_pixels", "5000"]), 2):
        compute(colours, kept, *words)
        assert len(list(kept.glob("*.npy"))) == count, words
    image = colours / "0_0.png"
    image.write_bytes((colours / "1_0.png").read_bytes())
    compute(colours, kept)
    assert len(list(kept.glob("*.npy"))) == 6


def test_features_of_damaged_file_are_computed_again(colours, tmp_path, caplog):
    first = np.array(compute(colours, tmp_path).rows)
    (path,) = tmp_path.glob("*.npy")
    path.write_bytes(path.read_bytes()[:-100])
    assert np.array_equal(compute(colours, tmp_path).rows, first)
    assert "is damaged" in caplog.text


def test_views_differ_and_ignore_workers(colours, tmp_path):
    plain = compute(colours, tmp_path / "a").rows
    one = compute(colours, tmp_path / "a", view=1).rows
    two = compute(colours, tmp_path / "a", view=2).rows
    again = compute(colours, tmp_path / "b", "-w", 2, "-b", 5, view=1).rows
    assert np.allclose(one, again, atol=1e-5)
    assert min(np.abs(one - plain).max(), np.abs(one - two).max()) > 1e-2


def test_features_not_finite_end_naming_the_backbone(colours, tmp_path):
    opt, frozen, files = opened(colours)
    torch.nn.init.constant_(next(frozen.model.net.parameters()), torch.nan)
    with pytest.raises(UserError, match="timm:test_resnet gives infinite or NaN features"):
        features.compute(frozen, files, command.training_options(opt), 0, tmp_path, "key")


def test_features_on_full_disk_end_with_the_flags_that_help(colours, tmp_path, monkeypatch, capfd):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(features.os, "fsync", full)
        assert probe("--models", MODEL, "--data_root", colours) == 2
    assert "Free some space (`df -h`), or write elsewhere: --features DIR, --result_dir DIR" in capfd.readouterr().err
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    assert probe("--models", MODEL, "--data_root", colours) == 2
    assert "where 0.0 GB are free" in capfd.readouterr().err


# ------------------------------------------------------------------------ heads


def test_logistic_head_equals_scikit_learn(gaussians):
    from sklearn.linear_model import LogisticRegression

    rows, label = gaussians
    every = np.arange(90)
    *_, head = linear_head.fit([rows], label, every, [1.0, 0.01], "logistic")
    standard = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    direct = LogisticRegression(C=1 / (0.01 * 90), max_iter=1000).fit(standard, label)
    _, _, true = heads.predict(head, rows, every, label, 3)
    assert true == pytest.approx(direct.predict_proba(standard)[every, label], abs=2e-3)


def test_logistic_head_of_two_classes_has_two_rows(gaussians):
    from sklearn.linear_model import LogisticRegression

    rows, label = gaussians[0][:60], gaussians[1][:60]
    (head,) = linear_head.fit([rows], label, np.arange(60), [0.01], "logistic")
    assert head.weight.shape == (2, 5)
    standard = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    direct = LogisticRegression(C=1 / (0.01 * 60), max_iter=1000).fit(standard, label)
    _, _, true = heads.predict(head, rows, np.arange(60), label, 2)
    assert true == pytest.approx(direct.predict_proba(standard)[np.arange(60), label], abs=2e-3)


def test_discriminant_head_equals_scikit_learn(gaussians):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rows, label = gaussians
    (head,) = linear_head.fit([rows[:40], rows[40:80]], label[:40], np.arange(40), [0.3], "discriminant")  # two views
    both, twice = rows[:80], np.tile(label[:40], 2)
    direct = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3).fit(both, twice)
    _, _, true = heads.predict(head, both[:40], np.arange(40), label[:40], 2)
    assert true == pytest.approx(direct.predict_proba(both[:40])[np.arange(40), label[:40]], abs=1e-3)


def test_method_for_large_problem_is_discriminant():
    assert linear_head.method(60_000, 1280, 10) == "logistic"
    assert linear_head.method(100_000, 2048, 50_030) == "discriminant"


def test_discriminant_of_one_image_per_class_stays_finite_and_right():
    """Nothing varies within the classes: the covariance of all images takes its place."""
    rng = np.random.default_rng(2)
    rows, label = rng.normal(5, 3, (40, 8)).astype(np.float32), np.arange(40, dtype=np.int32)
    for head in linear_head.fit([rows], label, np.arange(40), linear_head.SHRINKAGES, "discriminant"):
        logits = torch.from_numpy(rows) @ head.weight.T + head.bias
        assert (logits.argmax(dim=1) == torch.arange(40)).all() and logits.abs().max() < 1e3


@pytest.mark.parametrize("kind", ["logistic", "discriminant"])
def test_cross_validation_of_random_labels_scores_at_chance(kind):
    rng = np.random.default_rng(0)
    rows, label = rng.normal(size=(200, 300)).astype(np.float32), rng.integers(0, 2, 200).astype(np.int32)
    fold = heads.fold_numbers(label, 5, 0)
    found = heads.cross_validate(
        [rows, rows], label, fold, [0.9, 0.1], kind
    )  # heads that saw an image would have all right
    assert (found.predictions.top[:, 0] == label).mean() < 0.65
    assert (heads.nearest_vote([rows, rows], label, fold, 1).top[:, 0] == label).mean() < 0.65


def test_cross_validation_of_images_that_are_listed_twice_scores_at_chance():
    """Both lines of an image are in one fold: the nearest image of another fold is another one."""
    rng = np.random.default_rng(0)
    rows, label = rng.normal(size=(100, 300)).astype(np.float32), rng.integers(0, 4, 100).astype(np.int32)
    order = rng.permutation(200) % 100
    fold = heads.fold_numbers(label[order], 5, 0, order)
    assert len(set(zip(order.tolist(), fold.tolist(), strict=True))) == 100 and set(fold) == set(range(5))
    assert (heads.nearest_vote([rows[order]], label[order], fold, 1).top[:, 0] == label[order]).mean() < 0.4
    assert np.array_equal(heads.fold_numbers(label, 5, 0), heads.fold_numbers(label, 5, 0, np.arange(100)))


def test_cross_validation_uses_the_strength_of_other_folds(monkeypatch):
    """Strength 0 has fold 0 right and strength 1 has fold 1, so that each is chosen for the other fold."""
    label, fold = np.zeros(4, np.int32), np.array([0, 0, 1, 1])
    monkeypatch.setattr(heads, "fit", lambda *_: iter((0, 1)))

    def predict(head, rows, held_out, label, width):
        right = fold[held_out] == head
        return np.where(right, 0, 7)[:, None], np.ones((len(right), 1), np.float32), right.astype(np.float32)

    monkeypatch.setattr(heads, "predict", predict)
    found = heads.cross_validate([np.zeros((4, 1), np.float32)], label, fold, [1.0, 0.1], "logistic")
    assert found.predictions.top[:, 0].tolist() == [7, 7, 7, 7] and found.top1.tolist() == [0.5, 0.5]


def test_best_strength_has_most_hits_then_lowest_loss():
    hit, loss = np.array([[1, 0], [1, 1], [1, 1]], bool), np.array([[0.1, 0.1], [3.0, 3.0], [2.0, 2.0]])
    assert heads._best(hit, loss) == 2


def test_predict_of_unseen_class_has_probability_0(gaussians):
    rows, label = gaussians
    (head,) = linear_head.fit([rows], label, np.arange(60), [0.01], "logistic")
    top, probability, true = heads.predict(head, rows, np.arange(60, 90), label, 3)
    assert (true == 0).all() and (top[:, 2] == -1).all() and (probability[:, 2] == 0).all()
    weight, bias = linear_head.whole_layer(head, 4)
    assert weight.shape == (4, 5) and not weight[2:].any() and bias[3] == head.bias.min()


def test_nearest_vote_equals_all_pairs_in_other_folds(gaussians, monkeypatch):
    monkeypatch.setattr(linear_head, "BLOCK_VALUES", 1000)
    rows, label = gaussians
    fold = np.arange(90) % 4
    views = [rows, rows + np.float32(0.5)]
    found = heads.nearest_vote(views, label, fold, 7)
    pool = np.concatenate(views)
    pool = pool / np.linalg.norm(pool, axis=1, keepdims=True)
    for k in range(90):
        cosine = np.where(np.tile(fold, 2) == fold[k], -np.inf, pool @ pool[k])
        near = np.argsort(-cosine)[:7]
        votes = np.bincount(label[near % 90], np.exp(cosine[near] / KNN_TEMPERATURE), minlength=3)
        assert found.top[k, 0] == votes.argmax()
        assert found.true_probability[k] == pytest.approx(votes[label[k]] / votes.sum(), abs=1e-3)


# ------------------------------------------------------------------------ verdict


def row(title, hit, loss=1.0, seen=0):
    hit = np.asarray(hit, bool)
    scores = {"top1": hit.mean(), "top5": 1.0, "mean_class_accuracy": hit.mean(), "loss": loss}
    values = (title, title, 1, 1, 1.0, 1, "logistic", 1.0, {}, scores, {}, 0.5, None, "x.pt", {})
    return report.Row(*values, hit, np.arange(len(hit)), seen)


def test_paired_difference_equals_bootstrap_over_images():
    rng = np.random.default_rng(0)
    one, other = rng.random(300) < 0.8, rng.random(300) < 0.7
    difference, low, high = paired_difference(one, other, seed=1, resamples=4000)
    assert difference == pytest.approx(one.mean() - other.mean())
    drawn = [one[places].mean() - other[places].mean() for places in rng.integers(0, 300, (4000, 300))]
    assert [low, high] == pytest.approx(np.percentile(drawn, (2.5, 97.5)), abs=0.01)


def test_verdict_leaves_out_networks_that_have_seen_the_images_unless_there_are_no_others():
    ranks = np.arange(1000)
    rows = [row("one", ranks < 700), row("two", ranks < 600), row("own", ranks < 1000, seen=5)]
    found = report.verdict(rows, 0, 500)
    assert found.best.title == "one" and [lead[0] for lead in found.leads] == ["two"]
    assert [one.title for one in report.ranked(rows)] == ["one", "two", "own"]
    assert report.verdict(rows[2:], 0, 500).best.title == "own"


def test_verdict_names_first_only_if_every_lead_is_significant():
    ranks = np.arange(1000)
    clear = report.verdict([row("slow", ranks < 700), row("good", ranks < 900)], 0, 500)
    assert clear.best.title == "good" and not clear.tied
    assert report.verdict_text(clear, 1000).startswith("First by the linear probe: good, top1 0.9000 of 1000 images.")
    three = [row("good", ranks < 900), row("slow", ranks < 700), row("near", (ranks + 5) % 1000 < 899)]
    close = report.verdict(three, 0, 500)
    assert [lead[0] for lead in close.tied] == ["near"]
    assert "cannot tell which backbone is first" in report.verdict_text(close, 1000)
    assert report.verdict([row("b", ranks < 5, 2.0), row("a", ranks < 5)], 0, 500).best.title == "a"
    with pytest.raises(UserError, match="readable for one backbone and not for another"):
        report.verdict([row("a", ranks < 5), row("b", ranks[1:] < 5)], 0, 500)


# ------------------------------------------------------------------------ images


def test_sample_keeps_class_shares(tmp_path, caplog):
    caplog.set_level("INFO")
    lines = [f"{k}.png {0 if k % 4 else 1}" for k in range(400)]
    (tmp_path / "train.txt").write_text("".join(f"{line}\n" for line in lines))
    files = read_list(tmp_path / "train.txt")
    opt = command.option_parser().parse(["--images", "100"])
    part = command.sample(files, opt)
    assert np.bincount(part.label).tolist() == [75, 25] and len(set(part.line.tolist())) == 100
    assert "A sample of 100 of 400 images" in caplog.text
    assert command.sample(files, opt.replace(images=None)) is files
    assert len(command.sample(files, opt.replace(images=None, debug=True, batch_size=10))) == 30


def test_count_folds_is_at_most_the_largest_class(caplog):
    assert command.count_folds(np.array([0] * 9 + [1] * 9), 5) == 5 and not caplog.text
    assert command.count_folds(np.array([0] * 9 + [1] * 3), 5) == 5
    assert "1 of 2 classes have fewer images than there are folds" in caplog.text
    assert command.count_folds(np.array([0, 0, 0, 1, 2]), 5) == 3
    with pytest.raises(UserError, match="cannot be cross-validated"):
        command.count_folds(np.array([0, 1, 2]), 5)


def test_file_names_tell_backbones_of_one_model_apart():
    assert command.file_names(["A", "timm:b", "A"]) == ["probe_A.pt", "probe_timm-b.pt", "probe_A-2.pt"]
