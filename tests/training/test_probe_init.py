"""--probe_init: training starts at the probe's logits; what does not fit is refused."""

import os
import shutil
import signal

import pytest
import torch

import dataloader
import train
from benchmarks import crash_test
from conftest import NAMES
from tools import lr_find
from tools.probe import command
from training.engine import Engine
from utils import checkpoint
from utils.errors import UserError

MODEL = "timm:test_resnet"
FILE = "probe_timm-test_resnet.pt"
WORDS = f"--model {MODEL} --scale 32 -b 12 -w 0 --gpu -1 --lr 0.01 --transform light --precision fp32".split()


@pytest.fixture(scope="module")
def fitted(photo_set, tmp_path_factory):
    """Return a classifier that tools.probe has fitted to a network of random weights."""
    folder = tmp_path_factory.mktemp("probe")
    words = ["--models", MODEL, "--no-pretrained", "--scale", "32", "--gpu", "-1", "-w", "0", "--resamples", "100"]
    assert command.main([*words, "--data_root", str(photo_set), "--result_dir", str(folder), "--tag", "p"]) == 0
    return folder / "p" / FILE


@pytest.fixture
def first_logits(monkeypatch, script):
    """`first_logits(words)` returns logits of the training list where train.py would take its first step."""
    found = []

    def stop(run, loader, score):
        model = run.engine.model
        (batch,) = dataloader.eval_loader(model.opt.replace(batch_size=50), loader.files, (model.preprocess(),))
        with torch.inference_mode(), model.evaluating() as net:
            found.append(net(model.normalise(batch.images[0])))
        raise UserError("stopped before the first step")

    def logits(*words):
        with monkeypatch.context() as patch:
            patch.setattr(train, "train", stop)
            result = script("train.py", "--tag", "first", *WORDS, *words)
        assert "stopped before the first step" in result.err, result.err
        return found.pop(), result.out

    return logits


def probe_logits(fitted):
    """Return weight @ features + bias, of the features that the probe has on the disk."""
    import numpy as np

    weights = checkpoint.load(fitted)["weights"]
    (stored,) = (fitted.parent / "features").glob("*.npy")
    return torch.from_numpy(np.load(stored)) @ weights["fc.weight"].T + weights["fc.bias"]


def with_classes(photo_set, folder, names):
    """Copy the lists, with their classes numbered in the order of `names`, into `folder`."""
    folder.mkdir()
    for part in ("train", "val"):
        pairs = [line.rsplit(" ", 1) for line in (photo_set / f"{part}.txt").read_text().splitlines()]
        lines = [
            f"{path} {names.index(NAMES[int(label)]) if NAMES[int(label)] in names else 0}\n" for path, label in pairs
        ]
        (folder / f"{part}.txt").write_text("".join(lines))
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    return folder


def test_probe_init_network_gives_logits_of_probe(fitted, photo_set, first_logits):
    logits, out = first_logits("--data_root", photo_set, "--probe_init", fitted)
    expected = probe_logits(fitted)
    assert (logits - expected).abs().max() < 1e-4 and expected.std() > 0.5
    assert "the linear classifier that tools.probe fitted to it" in out


def test_probe_init_of_other_class_order_matches_by_name(fitted, photo_set, first_logits, tmp_path):
    other = with_classes(photo_set, tmp_path / "lists", [NAMES[2], NAMES[0], NAMES[1]])
    logits, out = first_logits("--data_root", other, "--probe_init", fitted)
    assert (logits - probe_logits(fitted)[:, [2, 0, 1]]).abs().max() < 1e-4
    assert "keeps 3 of 3 classes, by name" in out


def test_probe_init_of_another_size_is_warned(fitted, photo_set, first_logits):
    _, out = first_logits("--data_root", photo_set, "--probe_init", fitted, "--scale", 40, "--fit", "crop")
    assert "was fitted with --scale 32, this run has 40" in out
    assert "was fitted with --fit squash, this run has crop" in out


@pytest.mark.parametrize(
    ("names", "words", "part"),
    [
        (NAMES, ["--model", "timm:test_vit"], f"holds {MODEL}, --model is timm:test_vit. Try: --model {MODEL}\n"),
        (NAMES, ["--pool", "gem"], "was fitted with --pool avg, not gem. Try: --pool avg"),
        ([*NAMES, "more"], [], "has 3 classes, the training list 4. Run tools.probe"),
        (["china", "flower", "other"], [], "has other classes: class 2 is 'hopper' there and 'other' in"),
    ],
)
def test_probe_init_that_does_not_fit_is_refused(names, words, part, fitted, photo_set, script, tmp_path):
    lists = with_classes(photo_set, tmp_path / "lists", list(names))
    result = script("train.py", "--tag", "x", *WORDS, "--data_root", lists, "--probe_init", fitted, *words)
    assert (result.code, part in result.err) == (2, True), result.err
    assert not (tmp_path / "checkpoints/x/last.pt").exists()


def test_probe_init_without_probe_is_refused(fitted, photo_set, script, tmp_path):
    content = checkpoint.load(fitted)
    checkpoint.save(
        tmp_path / "plain.pt", {name: value for name, value in content.items() if name not in ("format", "probe")}
    )
    result = script("train.py", "--tag", "x", *WORDS, "--data_root", photo_set, "--probe_init", "plain.pt")
    assert result.code == 2 and "plain.pt holds no classifier that tools.probe fitted" in result.err


@pytest.mark.parametrize("flag", [["--resume"], ["--load", "x.pt"], ["--pretrained"], ["--head", "cosine"]])
def test_probe_init_with_other_weight_flags_is_refused(flag, script):
    result = script("train.py", "--tag", "x", *WORDS, "--probe_init", "probe.pt", *flag)
    assert result.code == 2
    assert f"{' '.join(flag[:1] if flag[0] == '--load' else flag)} and --probe_init contradict" in result.err


def test_probe_init_run_cut_and_resumed_equals_whole(fitted, photo_set, script, tmp_path, monkeypatch):
    shutil.copy(fitted, tmp_path / FILE)
    words = [*WORDS, "--data_root", photo_set, "--epochs", 2]
    assert script("train.py", "--tag", "whole", *words, "--probe_init", FILE).code == 0
    real, sent = Engine.is_step_boundary, []

    def is_step_boundary(self, done):
        if self.step_count == 1 and not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))
        return real(self, done)

    monkeypatch.setattr(Engine, "is_step_boundary", is_step_boundary)
    assert script("train.py", "--tag", "cut", *words, "--probe_init", FILE).code == 143
    assert checkpoint.load(tmp_path / "checkpoints/cut/last.pt")["within"]["done"] > 0
    (tmp_path / FILE).unlink()  # a resumed run does not need it
    assert script("train.py", "--tag", "cut", "--resume", "--gpu", -1, "-w", 0).code == 0
    assert crash_test.differences(tmp_path, "whole", "cut") == []
    assert checkpoint.load(tmp_path / "checkpoints/cut/last.pt")["opt"]["probe_init"] == FILE


def test_lr_find_starts_from_the_probe(fitted, photo_set, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    opt = lr_find.option_parser().parse([*WORDS, "--data_root", str(photo_set), "--probe_init", str(fitted)])
    engine, *_ = lr_find.build(opt.replace(pretrained=False))
    assert torch.equal(engine.model.net.fc.weight, checkpoint.load(fitted)["weights"]["fc.weight"])
    assert lr_find.main([*WORDS, "--data_root", str(photo_set), "--probe_init", str(fitted), "--pool", "gem"]) == 2
    assert "--pool avg" in capfd.readouterr().err


def test_probe_init_keeps_batch_norm_statistics_and_trains_the_rest(fitted, photo_set, script, tmp_path):
    words = [*WORDS, "--data_root", photo_set, "--epochs", 1]
    assert script("train.py", "--tag", "x", *words, "--probe_init", fitted).code == 0
    before, after = (checkpoint.load(path)["weights"] for path in (fitted, tmp_path / "checkpoints/x/last.pt"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    statistics = {name for name in before if "running_" in name or "num_batches" in name}
    assert statistics and not statistics & changed
    assert changed == set(before) - statistics
