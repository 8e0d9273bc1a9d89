"""--fit_head: training starts from a classifier that is fitted to the frozen network; a run is none the less exact."""

import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import dataloader
import train
from benchmarks import crash_test
from network import get_model
from network.heads import final_layer
from options import parse_train
from options.defaults import fill_defaults
from tools import lr_find
from training import fit_head, linear_head
from training.engine import Engine
from training.setup import fit_classifier
from training.start import facts_of
from utils import checkpoint
from utils.errors import NotFinite, UserError

MODEL = "timm:test_resnet"
WORDS = f"--model {MODEL} --scale 32 -b 12 -w 0 --gpu -1 --lr 0.01 --transform light --precision fp32".split()


def see_images(net):
    """Let the batch norms of `net` see random images."""
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(8, 3, 32, 32))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return a file of random weights with statistics, which a run starts from as if they were trained."""
    torch.manual_seed(3)
    model = get_model(MODEL)(parse_train([*WORDS, "--no-pretrained"]).replace(num_classes=3))
    see_images(model.net)
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.save(model.net.state_dict(), path)
    return path


@pytest.fixture
def words(weights, photo_set):
    return [*WORDS, "--data_root", photo_set, "--load", weights, "--fit_head"]


def features_and_logits(model, opt, files):
    """Return what the classifier is given and what it gives for each image, in eval mode: (N, D) and (N, C)."""
    seen = []
    (batch,) = dataloader.eval_loader(opt.replace(batch_size=len(files)), files, (model.preprocess(),))
    hook = model.net.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode(), model.evaluating():
        logits = model(batch.images[0])
    hook.remove()
    return seen[0].numpy().astype(np.float64), logits.numpy()


def test_fit_head_first_step_starts_at_logits_of_logistic_regression(words, script, monkeypatch):
    """scikit-learn, fitted here to standardised features, with the strength that the held-out images prefer."""
    found = []

    def stop(run, loader, score):
        model = run.engine.model
        found.append((*features_and_logits(model, model.opt, loader.files), loader.files.label))
        raise UserError("stopped before the first step")

    monkeypatch.setattr(train, "train", stop)
    result = script("train.py", "--tag", "x", *words)
    assert "stopped before the first step" in result.err
    assert "fitting the classifier to the features of 36 images (linear, logistic)" in result.out
    ((features, logits, label),) = found
    held_out = fit_head._held_out(label, np.arange(len(label)), 42)
    features = features[:, features[~held_out].std(axis=0) > 1e-4]  # a constant one tells nothing
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    losses, direct = [], []
    for decay in linear_head.DECAYS:
        part = LogisticRegression(C=1 / (decay * (~held_out).sum()), max_iter=2000)
        mean, deviation = features[~held_out].mean(axis=0), features[~held_out].std(axis=0)
        part.fit((features[~held_out] - mean) / deviation, label[~held_out])
        chances = part.predict_proba((features[held_out] - mean) / deviation)
        losses.append(-np.log(chances[np.arange(held_out.sum()), label[held_out]]).mean())
        whole = LogisticRegression(C=1 / (decay * len(label)), max_iter=2000).fit(standard, label)
        direct.append(whole.predict_proba(standard))
    expected = direct[int(np.argmin(losses))]
    ours = torch.from_numpy(logits).softmax(dim=1).numpy()
    assert np.abs(ours - expected).max() < 0.01 and np.abs(direct[0] - direct[-1]).max() > 0.2


def test_fit_head_keeps_batch_norm_statistics_and_trains_the_rest(words, weights, script, tmp_path):
    assert script("train.py", "--tag", "x", *words, "--epochs", 1).code == 0
    before, after = torch.load(weights), checkpoint.load(tmp_path / "checkpoints/x/last.pt")["weights"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    statistics = {name for name in before if "running_" in name or "num_batches" in name}
    assert statistics and not statistics & changed
    assert changed == set(before) - statistics


def test_fit_head_run_cut_and_resumed_equals_whole(words, script, tmp_path, monkeypatch):
    words = [*words, "--epochs", 2]
    assert script("train.py", "--tag", "whole", *words).code == 0
    real, sent = Engine.is_step_boundary, []

    def is_step_boundary(self, done):
        if self.step_count == 1 and not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))
        return real(self, done)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "is_step_boundary", is_step_boundary)
        assert script("train.py", "--tag", "cut", *words).code == 143
    result = script("train.py", "--tag", "cut", "--resume", "--gpu", -1, "-w", 0)
    assert result.code == 0 and "fitting the classifier" not in result.out
    assert crash_test.differences(tmp_path, "whole", "cut") == []
    assert checkpoint.load(tmp_path / "checkpoints/cut/last.pt")["opt"]["fit_head"] is True


def test_fit_head_of_a_resumed_run_cannot_change(words, script, tmp_path):
    assert script("train.py", "--tag", "x", *words, "--epochs", 1).code == 0
    result = script("train.py", "--tag", "x", "--resume", "--epochs", 2, "--no-fit_head", "--gpu", -1)
    assert result.code == 2 and "was trained with --fit_head, whose state does not fit --no-fit_head." in result.err


def test_fit_head_of_a_run_that_is_older_than_the_flag_cannot_change(words, script, tmp_path):
    without = [word for word in words if word != "--fit_head"]
    assert script("train.py", "--tag", "x", *without, "--epochs", 1).code == 0
    last = tmp_path / "checkpoints/x/last.pt"
    content = {name: value for name, value in checkpoint.load(last).items() if name != "format"}
    del content["opt"]["fit_head"]
    checkpoint.save(last, content)
    result = script("train.py", "--tag", "x", "--resume", "--epochs", 2, "--fit_head", "--gpu", -1)
    assert result.code == 2 and "was trained with --no-fit_head, whose state" in result.err


def test_fit_head_run_resumed_with_moving_statistics_is_refused(words, script):
    assert script("train.py", "--tag", "x", *words, "--epochs", 1).code == 0
    result = script("train.py", "--tag", "x", "--resume", "--epochs", 2, "--no-freeze_bn", "--gpu", -1)
    assert result.code == 2 and "--no-freeze_bn and --fit_head contradict" in result.err


def test_fit_head_run_is_repeated_by_its_options_yaml_also_after_a_resume(words, script, tmp_path):
    assert script("train.py", "--tag", "one", *words, "--epochs", 1).code == 0
    result = script("train.py", "--tag", "two", "--config", "logs/one/options.yaml")
    assert result.code == 0, result.err
    one, two = (checkpoint.load(tmp_path / f"checkpoints/{tag}/last.pt") for tag in ("one", "two"))
    assert all(torch.equal(one["weights"][name], two["weights"][name]) for name in one["weights"])
    assert script("train.py", "--tag", "two", "--resume", "--epochs", 2, "--gpu", -1, "-w", 0).code == 0
    result = script("train.py", "--tag", "three", "--config", "logs/two/options.yaml")
    assert result.code == 0 and "fitting the classifier" in result.out, result.err
    three = checkpoint.load(tmp_path / "checkpoints/three/last.pt")
    assert three["epoch"] == 2 and three["opt"]["load"] == one["opt"]["load"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--no-pretrained", "--fit_head and --no-pretrained contradict"),
        ("--probe_init p.pt", "--fit_head and --probe_init contradict"),
        ("--head cosine", "--head cosine and --fit_head contradict"),
        ("--task multilabel", "--fit_head and --task multilabel contradict"),
        ("--no-freeze_bn", "--no-freeze_bn and --fit_head contradict"),
    ],
)
def test_fit_head_with_flags_that_contradict_is_refused(flags, said, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_train(["--fit_head", *flags.split()])
    assert stop.value.code == 2 and said in capsys.readouterr().err


def opened(photo_set, flags=()):
    """Return the options, a network of random weights and the training list."""
    opt = parse_train([*WORDS, "--data_root", str(photo_set), "--no-pretrained", *flags]).replace(num_classes=3)
    model = get_model(MODEL)(opt)
    see_images(model.net)
    return opt, model, dataloader.open_list(opt, "train", drop_missing=True)


def test_fit_head_ignores_an_unreadable_image(photo_set, tmp_path):
    lines = (photo_set / "train.txt").read_text().splitlines()
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "train.txt").write_text("".join(f"{line}\n" for line in [*lines, f"{tmp_path}/broken.jpg 2"]))
    fitted = []
    for folder in (photo_set, tmp_path):
        torch.manual_seed(0)
        opt, model, files = opened(folder)
        fit_classifier(opt, model, files)
        fitted.append(model.net.fc)
    assert len(files) == 37
    assert torch.equal(fitted[0].weight, fitted[1].weight) and torch.equal(fitted[0].bias, fitted[1].bias)


def test_fit_head_without_a_linear_last_layer_is_refused():
    with pytest.raises(UserError, match="Odd does not end with one linear layer.*--no-fit_head"):
        fit_head.fit_head(
            SimpleNamespace(net=nn.Identity(), name="Odd"), [], np.zeros(0, np.int32), np.zeros(0, np.uint64), 1
        )


def test_fit_head_of_a_network_that_adds_to_the_last_layer_is_refused(photo_set, monkeypatch):
    opt, model, files = opened(photo_set)
    whole = type(model.net).forward
    monkeypatch.setattr(type(model.net), "forward", lambda net, images: whole(net, images) + 1)
    with pytest.raises(UserError, match="does not end with one linear layer"):
        fit_classifier(opt, model, files)


def test_fit_head_of_untrained_weights_is_refused_and_never_chosen(photo_set):
    """A network of one's own may have no trained weights, whatever --pretrained says."""
    opt, model, files = opened(photo_set)
    assert facts_of(parse_train([]), 100, 3, model.net).pretrained
    untrained = get_model(MODEL)(opt)
    few = parse_train([])
    facts = facts_of(few, 100, 3, untrained.net)
    assert facts.features == untrained.net.fc.in_features and not facts.pretrained
    assert not fill_defaults(few, facts)[0].fit_head and fill_defaults(few, replace(facts, pretrained=True))[0].fit_head
    with pytest.raises(UserError, match="has no trained weights"):
        fit_classifier(opt, untrained, files)


def test_final_layer_of_a_network_with_a_second_classifier_is_none():
    net = timm.create_model("test_resnet", num_classes=3)
    assert final_layer(net) is net.fc
    net.aux_head = nn.Linear(2, 3)  # as timm's VOLO has
    assert final_layer(net) is None


def test_fit_head_of_broken_weights_is_refused(photo_set):
    opt, model, files = opened(photo_set)
    nn.init.constant_(next(model.net.parameters()), np.nan)
    with pytest.raises(NotFinite, match="infinite or NaN features"):
        fit_classifier(opt, model, files)


def test_held_out_is_a_fifth_of_each_class_and_follows_the_seed():
    label = np.repeat(np.array([4, 0, 7], np.int32), (11, 4, 5))
    image = np.arange(len(label)).astype(np.uint64)
    held_out = fit_head._held_out(label, image, 1)
    assert [int(held_out[label == name].sum()) for name in (4, 0, 7)] == [2, 0, 1]
    assert np.array_equal(held_out, fit_head._held_out(label, image, 1))
    assert any(not np.array_equal(held_out, fit_head._held_out(label, image, seed)) for seed in range(2, 6))


def test_held_out_image_that_is_listed_again_is_held_out_with_all_its_lines():
    """One of two classes stays in the fit. A fit that has seen an image's other line would need no regularisation."""
    label = np.tile(np.repeat(np.array([0, 1], np.int32), 10), 2)
    image = np.tile(np.arange(20), 2).astype(np.uint64)
    for seed in range(8):
        held_out = fit_head._held_out(label, image, seed)
        assert np.array_equal(held_out[:20], held_out[20:]) and np.bincount(label[held_out]).tolist() == [4, 4]
    label[20:] = np.roll(label[20:], 1)  # images 0 and 10 have two classes now
    for seed in range(8):
        held_out = fit_head._held_out(label, image, seed)
        assert np.array_equal(held_out[:20], held_out[20:]) and not held_out[[0, 10]].any() and held_out.any()


def test_fit_head_of_two_images_per_class_takes_the_usual_strength():
    rng = np.random.default_rng(0)
    features, label = rng.normal(size=(6, 4)).astype(np.float32), np.repeat(np.arange(3, dtype=np.int32), 2)
    head, choice = fit_head._best_head(features, label, np.arange(len(label)), "logistic", 1)
    *_, expected = linear_head.fit([features], label, np.arange(6), linear_head.DECAYS[:2], "logistic")
    assert choice == (fit_head.USUAL_STRENGTH, 0, 0.0) and torch.equal(head.weight, expected.weight)


def test_lr_find_fits_no_head_unasked(words, monkeypatch):
    """The rate that it suggests is given to train.py, which then fits none."""
    seen = []

    def fill(opt, facts):
        seen.append(facts)
        return fill_defaults(opt, facts)

    monkeypatch.setattr(lr_find, "fill_defaults", fill)
    lr_find.build(lr_find.option_parser().parse([str(word) for word in words]).replace(pretrained=False))
    assert (seen[0].features, seen[0].classes, seen[0].pretrained) == (0, 3, True)


def test_lr_find_steps_from_the_fitted_head(words, weights):
    opt = lr_find.option_parser().parse([str(word) for word in words])
    engine, *_ = lr_find.build(opt.replace(pretrained=False))
    assert not torch.equal(engine.model.net.fc.weight, torch.load(weights)["fc.weight"])
    assert all(not module.training for module in engine.model.frozen)
