"""tools.long_tail: the new checkpoint holds the layer of its paper's formula. tools.best_scale tries what it says."""

import csv
import json

import numpy as np
import pytest
import torch

from conftest import locked_elsewhere
from dataloader.file_list import FileList
from tools import best_scale, embed, long_tail
from utils import checkpoint, run_lock

IMAGES = [900, 90, 9, 0]


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(0)
    return torch.nn.Linear(6, 4), torch.randn(50, 6)


@pytest.mark.parametrize("tau", [0.0, 0.4, 1.0])
def test_long_tail_layer_equals_its_formula(head, tau):
    linear, features = head
    with torch.no_grad():
        logits = linear(features)
    got = {}
    for method in long_tail.METHODS:
        change = long_tail.layer(method, linear.weight.detach(), linear.bias.detach(), IMAGES)(tau)
        got[method] = long_tail.adjusted(logits.numpy(), linear.bias.detach(), change)
    weight = linear.weight.detach().numpy()
    wanted = features.numpy() @ (weight / np.linalg.norm(weight, axis=1, keepdims=True) ** tau).T
    assert got["norm"] == pytest.approx(wanted if tau else logits.numpy(), abs=1e-5)
    prior = np.array([900, 90, 9, 0.5]) / 999
    assert got["prior"] == pytest.approx(logits.numpy() - tau * np.log(prior), abs=1e-5)


def test_class_mean_weighs_classes_equally():
    label = np.array([0] * 8 + [2] * 2)
    assert long_tail.class_mean(np.array([True] * 8 + [False] * 2), label) == 0.5


def test_cross_fit_of_chance_reports_no_gain():
    rng = np.random.default_rng(0)
    hits, label = rng.random((200, 60)) < 0.5, rng.integers(3, size=60)
    best, _, balanced = long_tail.cross_fit(hits, label, np.arange(60), 0)
    assert long_tail.class_mean(hits[best], label) > 0.65
    assert balanced < long_tail.class_mean(hits[best], label) - 0.05
    sure = np.zeros((3, 60), bool)
    sure[1] = True
    assert long_tail.cross_fit(sure, label, np.arange(60), 0) == (1, 1.0, 1.0)


def test_cross_fit_of_images_listed_twice_scores_as_of_each_image_once():
    """In a doubled list, each line was scored with a setting chosen by the other one."""
    rng = np.random.default_rng(1)
    hits, label = rng.random((200, 60)) < 0.5, rng.integers(3, size=60)
    once = long_tail.cross_fit(hits, label, np.arange(60), 0)
    twice = np.tile(hits, 2), np.tile(label, 2)
    assert long_tail.cross_fit(*twice, np.arange(120) % 60, 0) == pytest.approx(once)
    assert long_tail.cross_fit(*twice, np.arange(120), 0)[2] > once[2] + 0.1


@pytest.fixture
def skewed(script, photo_set, small, tmp_path):
    """A checkpoint whose network leans to class 0 by a bias of 9, as a long tail would have it lean."""
    assert script("train.py", "--tag", "run", "--data_root", photo_set, "--epochs", 5, *small).code == 0
    path = tmp_path / "checkpoints/run/last.pt"
    content = checkpoint.load(path)
    content["weights"]["fc.bias"][0] += 9
    content["data"]["class_images"] = [100_000, 10, 10]
    checkpoint.save(path, content)
    return path


def test_long_tail_checkpoint_scores_as_printed(skewed, script, photo_set, capfd):
    assert long_tail.main(["--load", str(skewed), "--list", str(photo_set / "val.txt"), "--gpu", "-1", "-w", "0"]) == 0
    said = capfd.readouterr().out
    assert "mean class accuracy" in said
    old, path = checkpoint.load(skewed), skewed.with_suffix(".prior.pt")
    if not path.exists():
        path = skewed.with_suffix(".norm.pt")
    new = checkpoint.load(path)
    tau = new["long_tail"]["tau"]
    if new["long_tail"]["mean"] == "prior":
        share = torch.tensor([100_000.0, 10, 10]) / 100_020
        assert torch.allclose(new["weights"]["fc.bias"], old["weights"]["fc.bias"] - tau * share.log(), atol=1e-5)
        assert torch.equal(new["weights"]["fc.weight"], old["weights"]["fc.weight"])
    else:
        length = old["weights"]["fc.weight"].norm(dim=1, keepdim=True)
        assert torch.allclose(new["weights"]["fc.weight"], old["weights"]["fc.weight"] / length**tau, atol=1e-5)
    scores = []
    for load, tag in ((skewed, "old"), (path, "new")):
        done = script(
            "eval.py", "--tag", tag, "--load", load, "--data_root", photo_set, "--gpu", -1, "-w", 0, "--no-report"
        )
        assert done.code == 0
        metrics = json.loads(next((skewed.parents[2] / f"results/{tag}").glob("*/metrics.json")).read_text())
        scores.append(metrics["mean_class_accuracy"])
    assert scores[0] == pytest.approx(1 / 3)
    assert scores[1] > scores[0]
    (skewed.parent / "bad.jpg").write_text("no image")
    for more, code, said in (
        ("", 2, "None of the 1 images"),
        ("".join((photo_set / "val.txt").open()), 0, "Unreadable, so in no score"),
    ):
        (skewed.parent / "bad.txt").write_text(f"bad.jpg 0\n{more}")
        capfd.readouterr()
        assert (
            long_tail.main(["--load", str(skewed), "--list", str(skewed.parent / "bad.txt"), "--gpu", "-1", "-w", "0"])
            == code
        )
        assert said in "".join(capfd.readouterr())
    assert not list(skewed.parent.glob(".*.lock"))


def test_long_tail_of_images_that_the_network_was_trained_on_warns(skewed, photo_set, capfd):
    for name, warns in (("val", False), ("train", True)):
        capfd.readouterr()
        path = photo_set / f"{name}.txt"
        assert long_tail.main(["--load", str(skewed), "--list", str(path), "--gpu", "-1", "-w", "0"]) == 0
        count = len(path.read_text().splitlines())
        shown = "".join(capfd.readouterr())
        assert (f"{skewed} was trained on {count} of the {count} images of {path}" in shown) == warns


def test_long_tail_replaces_only_its_own_checkpoints(skewed, photo_set, capfd):
    words = ["--load", str(skewed), "--list", str(photo_set / "val.txt"), "--gpu", "-1", "-w", "0"]
    mine = [skewed.with_suffix(".norm.pt"), skewed.with_suffix(".prior.pt")]
    for path in mine:
        path.write_bytes(skewed.read_bytes())
    assert long_tail.main(words) == 2
    assert f"{mine[0]} exists already and does not look like a checkpoint of tools.long_tail" in capfd.readouterr().err
    assert all(path.read_bytes() == skewed.read_bytes() for path in mine)
    assert long_tail.main([*words, "--force"]) == 0
    (written,) = (path for path in mine if "long_tail" in checkpoint.load(path))
    next(path for path in mine if path != written).unlink()
    capfd.readouterr()
    assert long_tail.main(words) == 0
    said = capfd.readouterr().out
    assert f"{written} is replaced." in said and "of an earlier call" not in said
    (other,) = (path for path in mine if path != written)
    other.write_bytes(written.read_bytes())  # of the other method, made of an earlier last.pt
    assert long_tail.main(words) == 0
    assert f"{other} is of an earlier call" in capfd.readouterr().out and other.exists()
    with locked_elsewhere(run_lock.lock_path(skewed.parent)):  # its run goes on
        assert long_tail.main(words) == 2
    assert "is in use by another command" in capfd.readouterr().err


def test_best_scale_counts_an_image_of_several_lines_once():
    files = FileList.of_paths(["a.png", "b.png", "a.png", "./a.png"], "--list")
    right = {32: np.array([False, True, False, False]), 48: np.array([True, False, True, True])}
    row = best_scale._row(files, 48, {scale: ({"top1": 0.5, "loss": 1.0}, hit) for scale, hit in right.items()}, 32)
    assert (row["gained"], row["lost"], row["p"]) == (1, 1, 1)


def test_best_scale_of_images_that_the_network_was_trained_on_warns(skewed, photo_set, tmp_path, capfd):
    for name, warns in (("val", False), ("train", True)):
        capfd.readouterr()
        path = photo_set / f"{name}.txt"
        words = ["--load", skewed, "--list", path, "--out", tmp_path / "out", *"--scales 32 --gpu -1 -w 0".split()]
        assert best_scale.main(list(map(str, words))) == 0
        count = len(path.read_text().splitlines())
        shown = "".join(capfd.readouterr())
        assert (f"--load {skewed} was trained on {count} of the {count} images of {path}" in shown) == warns
        assert ("nor does the best size" in shown) == warns


def test_best_scale_scores_equal_eval(skewed, script, photo_set, tmp_path, capfd):
    words = ["--load", skewed, "--list", photo_set / "val.txt", "--out", tmp_path / "out"]
    words += "--scales 24 48 --gpu -1 -w 0".split()
    assert best_scale.main([str(word) for word in words]) == 0
    assert "leave --scale out" in capfd.readouterr().out
    with open(tmp_path / "out/best_scale.csv") as file:
        rows = {int(row["scale"]): row for row in csv.DictReader(file)}
    assert list(rows) == [24, 32, 48]
    assert (tmp_path / "out/best_scale.png").read_bytes()[:4] == b"\x89PNG"
    flags = ["--data_root", photo_set, "--gpu", -1, "-w", 0, "--no-report", "--scale", 48]
    assert script("eval.py", "--tag", "at48", "--load", skewed, *flags).code == 0
    metrics = json.loads(next((tmp_path / "results/at48").glob("*/metrics.json")).read_text())
    assert float(rows[48]["loss"]) == pytest.approx(metrics["loss"], abs=1e-5)


@pytest.mark.parametrize(("tool", "name"), [(best_scale, "best_scale"), (long_tail, "long_tail"), (embed, "embed")])
def test_tools_of_classes_refuse_labels_by_name(tool, name, task_checkpoint, colours, capfd):
    words = ["--load", str(task_checkpoint("multilabel")), "--list", str(colours / "multilabel/val.txt"), "--gpu", "-1"]
    assert tool.main(words) == 2
    assert (
        f"is of --task multilabel; tools.{name} is for one class per image: single, ordinal." in capfd.readouterr().err
    )
