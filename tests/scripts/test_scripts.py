"""The four scripts, one after another, as a user runs them."""

import csv
import json
import re
import shutil

import pytest

from dataloader.file_list import read_list
from dataloader.list_checks import path_fingerprint
from options import build_parser
from utils import checkpoint


@pytest.fixture
def trained(script, photo_set, small, tmp_path):
    """A finished run of two epochs, tag `run`, in the current folder."""
    result = script("train.py", "--tag", "run", "--data_root", photo_set, "--epochs", 2, *small)
    assert result.code == 0, result.err + result.out
    return tmp_path


def test_scripts_warn_of_flags_without_an_effect(trained, script, photo_set, small):
    """The options of a resumed run are its checkpoint's: beside them --min_lr acts, and --focal_gamma does not."""
    log = trained / "logs/run/log.txt"
    assert "no effect" not in log.read_text()
    more = ["--epochs", 3, "--focal_gamma", 3, "--min_lr", 0.001]
    assert script("train.py", "--tag", "run", "--data_root", photo_set, "--resume", *more, "--gpu", -1).code == 0
    assert re.findall("--.* no effect .*", log.read_text()) == [
        "--focal_gamma has no effect with --loss ce. Try: leave it out, or --loss focal"
    ]
    words = ["--tag", "run", "--load", "checkpoints/run/last.pt", "--data_root", photo_set, "--gpu", -1, "-w", 0]
    result = script("eval.py", *words, "--cache_size", 64, "--no-report")
    assert result.code == 0 and "--cache_size has no effect without --cache" in result.out + result.err


def test_eval_says_where_training_saw_other_pixels(script, photo_set, small, tmp_path):
    words = ["--tag", "run", "--data_root", photo_set, "--gpu", -1, "-w", 0]
    assert script("train.py", *small, *words, "--epochs", 1, "--cache", "ram").code == 0
    words += ["--load", tmp_path / "checkpoints/run/last.pt", "--no-report"]
    files, cached = script("eval.py", *words), script("eval.py", *words, "--cache", "ram")
    assert files.code == cached.code == 0
    assert "was trained and validated with --cache ram" in files.out + files.err
    assert "trained and validated with" not in cached.out + cached.err


@pytest.mark.pictures
def test_train_writes_checkpoints_and_logs(trained, photo_set):
    numbered = {f"{epoch}_timm-test_resnet.pt" for epoch in (1, 2)}
    assert {path.name for path in (trained / "checkpoints/run").iterdir()} == {*numbered, "last.pt", "best.pt"}
    names = {path.name for path in (trained / "logs/run").iterdir()}
    assert {"log.txt", "metrics.csv", "curves.png", "options.yaml", "lists.json"} <= names
    data = checkpoint.load(trained / "checkpoints/run/last.pt")["data"]
    paths = [path_fingerprint(read_list(photo_set / f"{name}.txt")) for name in ("train", "val")]
    assert json.loads((trained / "logs/run/lists.json").read_text()) == {
        "train": {"images": 36, "fingerprint": data["train_list"], "paths": paths[0]},
        "val": {"images": 12, "fingerprint": data["val_list"], "paths": paths[1]},
    }
    assert any(name.startswith("events.out.tfevents") for name in names)
    with open(trained / "logs/run/metrics.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    assert re.search(
        r"pid \d+\ttag run\tdone in \d+ s\tpython train.py --tag run ", (trained / "run_log.txt").read_text()
    )


def test_eval_score_equals_that_of_training(trained, script, photo_set):
    with open(trained / "logs/run/metrics.csv") as file:
        last = list(csv.DictReader(file))[-1]
    checkpoint = "checkpoints/run/2_timm-test_resnet.pt"
    result = script(
        "eval.py", "--tag", "run", "--load", checkpoint, "--data_root", photo_set, "-b", 12, "--gpu", -1, "-w", 0
    )
    assert result.code == 0, result.err
    metrics = json.loads((trained / "results/run/2/metrics.json").read_text())
    assert metrics["options"]["precision_used"] == ["fp32"]
    for name in ("top1", "top5", "mean_class_accuracy", "loss"):
        assert abs(metrics[name] - float(last[f"val_{name}"])) < 1e-6
    assert metrics["count"] == 12
    assert f"top1 {metrics['top1']:.6f}" in (trained / "logs/run/log.txt").read_text()


def test_train_averages_are_scored_and_best_is_shown(script, photo_set, small, tmp_path):
    flags = ["--data_root", photo_set, "--epochs", 2, "--ema", 0.9, "--swa", 1]
    assert script("train.py", "--tag", "run", *small, *flags).code == 0
    with open(tmp_path / "logs/run/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    content = checkpoint.load(tmp_path / "checkpoints/run/last.pt")
    scores = {which: float(rows[-1][f"val_{which}_top1"]) for which in ("raw", "ema", "swa")}
    assert scores[content["showing"]] == max(scores.values()) == float(rows[-1]["val_top1"])
    assert rows[0]["val_swa_top1"] == ""  # its batch-norm statistics are taken after the last epoch
    found = []
    for which in scores:
        checkpoint.save(tmp_path / "x.pt", {**content, "showing": which})
        done = script(
            "eval.py", "--tag", which, "--load", "x.pt", "--data_root", photo_set, "-b", 12, "--gpu", -1, "-w", 0
        )
        assert done.code == 0
        metrics = json.loads((tmp_path / f"results/{which}/run_2/metrics.json").read_text())
        found.append(metrics["loss"])
        assert abs(metrics["top1"] - scores[which]) < 1e-6
        if which == content["showing"]:
            assert abs(metrics["loss"] - float(rows[-1]["val_loss"])) < 1e-6
    assert len(set(found)) == 3


def test_resume_with_other_freeze_or_lr_flags_is_refused(trained, script):
    for flag, value in (("--freeze", 1), ("--layer_decay", 0.5), ("--head_lr", 3)):
        result = script("train.py", "--tag", "run", "--resume", "--epochs", 3, flag, value)
        assert result.code == 2
        assert f"was trained with {flag} " in result.err


def test_submit_has_every_test_image_in_order(trained, script, photo_set):
    done = script(
        "submit.py", "--tag", "run", "--load", "checkpoints/run/best.pt", "--data_root", photo_set, "--gpu", -1
    )
    assert done.code == 0
    lines = (trained / "results/run/submission.csv").read_text().splitlines()
    listed = (photo_set / "test.txt").read_text().splitlines()
    assert lines[0] == "id,predicted"
    assert [line.split(",")[0] for line in lines[1:]] == [path.split("/")[-1] for path in listed]
    assert all(line.split(",")[1] in ("0", "1", "2") for line in lines[1:])


@pytest.mark.parametrize(
    ("more", "shown"), [([], "raw"), (["--ema", "0.9"], "ema"), (["--ema", "0.9", "--swa", 2], "swa")]
)
def test_train_without_validation_list_shows_newest_average(script, small, photo_set, tmp_path, more, shown):
    """All that there is to learn from; the newest weights, or their average, are what is submitted."""
    shutil.copy(photo_set / "train.txt", tmp_path)
    words = [*small, "--data_root", tmp_path, "--tag", "all", "--epochs", 2, *more]
    refused = script("train.py", *words)
    assert refused.code == 2 and "--val_freq 0" in refused.err
    result = script("train.py", *words, "--val_freq", 0)
    assert result.code == 0, result.err
    assert "36 training and 0 validation images" in result.out and "val top1" not in result.out
    assert not (tmp_path / "checkpoints/all/best.pt").exists()
    assert checkpoint.load(tmp_path / "checkpoints/all/last.pt")["showing"] == shown
    command = re.search(r"Next: python (.*)", result.out)[1].split()
    place = command.index("TEST_LIST")  # there is none: the command as printed ended with an error
    assert command[0] == "submit.py" and command[place - 1] == "--test_list"
    command[place] = photo_set / "test.txt"
    assert script(*command, "--gpu", -1).code == 0
    assert len((tmp_path / "results/cache/submission.csv").read_text().splitlines()) == 7


UNTUNED = "--model timm:test_resnet --no-pretrained --scale 32 -w 0 --gpu -1 --precision fp32 --epochs 2".split()


def test_train_without_flags_logs_chosen_values_and_resume_keeps_them(script, photo_set, tmp_path):
    """A resumed run takes them from the checkpoint, though more epochs would choose others."""
    result = script("train.py", "--tag", "run", "--data_root", photo_set, *UNTUNED)
    assert result.code == 0, result.err
    chosen = checkpoint.load(tmp_path / "checkpoints/run/last.pt")["opt"]
    log = (tmp_path / "logs/run/log.txt").read_text()
    for name in ("batch_size", "lr", "weight_decay", "warmup", "transform", "smooth"):
        value = chosen[name]
        shown = f"--{name} {value:g}" if isinstance(value, float) else f"--{name} {value}"
        assert re.search(rf"  (--\w+ \S+ )*{re.escape(shown)} .*\(.*\w.*\)", log), shown
    assert (chosen["preset"], chosen["vflip"], chosen["batch_size"]) == ("auto", 0.5, 16)
    assert script("train.py", "--tag", "run", "--resume", "--epochs", 12).code == 0
    resumed = checkpoint.load(tmp_path / "checkpoints/run/last.pt")["opt"]
    assert {name for name in build_parser("train").derived if resumed[name] != chosen[name]} == {"epochs"}


def test_train_min_lr_above_the_chosen_rate_is_refused(script, photo_set):
    result = script("train.py", "--tag", "run", "--data_root", photo_set, "--min_lr", 0.5, *UNTUNED)
    assert result.code == 2 and "--min_lr 0.5 is above the chosen --lr 0.00" in result.err


def test_train_scale_schedule_beyond_the_last_epoch_is_refused(script, photo_set, small):
    """The log named the last size, and the run trained at the first alone."""
    words = ["--tag", "run", "--data_root", photo_set, *small, "--scale_schedule", "1:16,3:32"]
    result = script("train.py", *words, "--epochs", 2)
    assert result.code == 2 and "a size from epoch 3 on, and the run has 2 epochs. Try: --epochs 3" in result.err
    result = script("train.py", *words, "--epochs", 3)
    assert result.code == 0 and "not been trained at that size" not in result.out + result.err


def test_train_end_before_the_last_size_is_warned_of(script, photo_set, small):
    """--patience ends the run: no step changes the weights."""
    words = ["--tag", "run", "--data_root", photo_set, *small, "--scale_schedule", "1:16,4:32", "--epochs", 4]
    result = script("train.py", *words, "--patience", 1, "--lr", 1e-30, "--metric", "top1")
    assert result.code == 0 and "before its last size, which begins with epoch 4" in result.out + result.err
    result = script("train.py", "--tag", "run", "--data_root", photo_set, "--resume", "--epochs", 3, "--patience", 9)
    assert result.code == 2 and "a size from epoch 4 on, and the run has 3 epochs. Try: --epochs 4" in result.err
    result = script("train.py", "--tag", "run", "--resume", "--repeat_aug", 5, "--patience", 9)
    assert result.code == 2 and "cannot hold each image --repeat_aug 5 times; allowed: a multiple of 5" in result.err


def test_train_options_yaml_repeats_the_chosen_values(script, photo_set, tmp_path):
    assert script("train.py", "--tag", "one", "--data_root", photo_set, *UNTUNED).code == 0
    config = tmp_path / "logs/one/options.yaml"
    assert script("train.py", "--tag", "two", "--config", config, "--epochs", 12).code == 0
    assert "no effect" not in "".join((tmp_path / f"logs/{tag}/log.txt").read_text() for tag in ("one", "two"))
    one, two = (checkpoint.load(tmp_path / f"checkpoints/{tag}/last.pt")["opt"] for tag in ("one", "two"))
    assert {name for name in one if one[name] != two[name]} - {"tag"} == {"epochs"}
