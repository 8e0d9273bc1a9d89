"""--task ordinal with a loss of numbers, in whole runs: cut points are fitted, stored, and used by every command."""

import json
from pathlib import Path

import pytest
import torch

from options import parse_train
from tools import long_tail
from tools.export import command as export
from training.cut_points import CutPoints
from training.losses import LossSettings
from training.setup import loss_settings
from training.task_losses import get_task_loss
from utils import checkpoint
from utils.task import position_units


def train(script, colours, small, *words):
    flags = ["--task", "ordinal", "--loss", "mse", "--num_classes", 3, "--data_root", colours / "ordinal", *small]
    result = script("train.py", "--tag", "run", *flags, "-b", 6, *words)
    assert result.code == 0, result.err
    return checkpoint.load(Path("checkpoints/run/last.pt"))


def evaluated(script, path, tag="e"):
    result = script("eval.py", "--tag", tag, "--load", path, "--gpu", -1, "-w", 0, "--resamples", 0)
    assert result.code == 0, result.err
    (found,) = Path(f"results/{tag}").glob("*/metrics.json")
    return json.loads(found.read_text())


def test_eval_of_cut_points_gives_the_scores_of_the_validation_that_fitted_them(script, colours, small):
    content = train(script, colours, small, "--epochs", 2, "--ema", 0.5)
    cuts = content["data"]["cut_points"]
    assert len(cuts) == 2 and cuts == sorted(cuts) and cuts != [0.5, 1.5]
    assert content["weights"]["fc.weight"].shape[0] == 1 and content["ema"] is not None
    metrics, last = evaluated(script, "checkpoints/run/last.pt"), content["history"][-1]
    for name in ("qwk", "mae", "top1", "log_loss"):
        assert metrics[name] == last[f"val_{name}"]
    checkpoint.save(Path("halfway.pt"), content | {"data": content["data"] | {"cut_points": [0.5, 1.5]}})
    assert evaluated(script, "halfway.pt", "h")["qwk"] <= metrics["qwk"]
    result = script("submit.py", "--tag", "run", "--load", "checkpoints/run/last.pt", "--gpu", -1)
    assert result.code == 0 and len(Path("results/run/submission.csv").read_text().splitlines()) == 5
    assert "holds no cut points" not in result.out + result.err


def test_run_without_validation_has_no_cut_points_and_predicts(script, colours, small):
    content = train(script, colours, small, "--epochs", 1, "--val_freq", 0)
    assert "cut_points" not in content["data"]
    for words in (["eval.py", "--resamples", 0], ["submit.py"]):
        result = script(*words, "--tag", "e", "--load", "checkpoints/run/last.pt", "--gpu", -1, "-w", 0)
        assert result.code == 0, result.err
        assert (result.out + result.err).count("checkpoints/run/last.pt holds no cut points between its classes") == 1
    (found,) = Path("results/e").glob("*/metrics.json")
    assert json.loads(found.read_text())["count"] == 8


def test_cut_points_are_stored_with_the_weights_that_they_were_fitted_to_alone(script, colours, small):
    content = train(script, colours, small, "--epochs", 2, "--val_freq", 2)
    assert "cut_points" in content["data"]
    result = script("train.py", "--tag", "run", "--resume", "--epochs", 3, "--val_freq", 0, "--keep", 2, "--gpu", -1)
    assert result.code == 0, result.err
    content = checkpoint.load(Path("checkpoints/run/last.pt"))
    assert content["epoch"] == 3 and "cut_points" not in content["data"]


def test_cut_points_of_one_step_hold_until_the_next():
    kept = CutPoints(3)
    kept.keep("raw", [0.5, 1.5], 10)
    kept.keep("ema", [0.4, 1.4], 10)
    assert kept.of("raw", 10) == [0.5, 1.5] and kept.of("ema", 10) == [0.4, 1.4] and kept.of("raw", 11) is None
    kept.keep("raw", [0.6, 1.6], 20)
    assert kept.of("ema", 20) is None and kept.of("raw", 10) is None


def test_tools_that_need_a_logit_per_class_refuse_numbers(script, colours, small, capfd):
    train(script, colours, small, "--epochs", 1)
    path = "checkpoints/run/last.pt"
    lists = ["--list", str(colours / "ordinal/val.txt"), "--gpu", "-1"]
    assert long_tail.main(["--load", path, *lists]) == 2
    assert "has no logit per class (--loss mse)" in capfd.readouterr().err


def test_export_of_cut_points_gives_the_classes_of_eval(script, colours, small, capfd):
    from inference import load
    from tools.export.speed import open_exported

    content = train(script, colours, small, "--epochs", 1)
    images = [str(colours / f"{k}.png") for k in range(12)]
    middle = float(load("checkpoints/run/last.pt", gpu=-1)(images).probabilities.mean())
    cuts = [1 - middle / 2, 1 + middle / 2]
    torch.save(content | {"data": content["data"] | {"cut_points": cuts}}, "cut.pt")
    words = ["--load", "cut.pt", "--val_list", str(colours / "ordinal/val.txt"), "--out", "exported"]
    assert export.main(words) == 0, capfd.readouterr()
    expected, exported = load("cut.pt", gpu=-1)(images), open_exported(Path("exported"))
    assert abs(exported.predictions(images) - expected.probabilities).max() < 1e-3
    assert [exported(image, top=1)[0][0] for image in images] == expected.names


@pytest.mark.parametrize("cuts", [[0.5], [1.5, 0.5], [0.5, float("nan")]])
def test_checkpoint_with_damaged_cut_points_is_refused(script, colours, small, cuts):
    content = train(script, colours, small, "--epochs", 1)
    torch.save(content | {"data": content["data"] | {"cut_points": cuts}}, "broken.pt")
    result = script("eval.py", "--tag", "b", "--load", "broken.pt", "--gpu", -1)
    assert result.code == 2 and "cut_points" in result.err


@pytest.mark.parametrize(("name", "each"), [("mse", lambda d: d**2), ("l1", abs)])
def test_loss_of_positions_is_that_of_standardised_class_numbers(name, each):
    opt = parse_train(["--task", "ordinal", "--loss", name])
    settings = loss_settings(opt)
    assert isinstance(settings, LossSettings)
    mean, std = position_units(5)
    logits, targets = torch.tensor([[0.3], [-1.0]]), torch.tensor([4, 0])
    found = get_task_loss("ordinal", settings, (torch.tensor([mean]), torch.tensor([std])))(logits, targets)
    wanted = [each(one - (label - mean) / std) for one, label in zip((0.3, -1.0), (4, 0), strict=True)]
    assert found.item() == pytest.approx(sum(wanted) / 2, rel=1e-6)
