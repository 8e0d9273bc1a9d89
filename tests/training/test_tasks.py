"""--task from lists to submission: several labels, numbers and ordered classes, trained, resumed, scored, submitted."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import Script
from options import choices, parse_train
from utils import checkpoint

TASKS = ("multilabel", "regression", "ordinal", "ordinal --loss corn", "ordinal --loss huber")


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("words", TASKS)
def test_task_is_trained_resumed_scored_and_submitted(words, colours, script: Script, small):
    task = words.split()[0]
    flags = ["--task", *words.split(), "--data_root", colours / task, *small, "-b", "6", "--mixup", "0.2"]
    if "--loss" in words:
        flags = flags[:-2]  # its targets are steps between classes, or their numbers
    for tag, more in (("whole", []), ("cut", ["--keep", "2"])):
        result = script("train.py", "--tag", tag, *flags, "--epochs", "2", *more)
        assert result.code == 0, result.err
    noun = {"multilabel": "2 labels", "regression": "2 numbers", "ordinal": "3 ordered classes"}[task]
    assert f" parameters, {noun}, 32 px" in result.out
    metric = choices.TASK_METRICS[task][0]
    assert "best: epoch " in result.out and f", {metric} " in result.out
    result = script("train.py", "--tag", "again", "--resume", "--gpu", "-1", "--load", _first("checkpoints/cut"))
    assert result.code == 0, result.err
    whole, again = (checkpoint.load(Path(f"checkpoints/{tag}/last.pt")) for tag in ("whole", "again"))
    assert all(torch.equal(value, again["weights"][name]) for name, value in whole["weights"].items())
    assert (
        whole["data"]["task"] == task and whole["history"][-1][f"val_{metric}"] == again["history"][-1][f"val_{metric}"]
    )

    load = ["--load", "checkpoints/whole/last.pt", "--gpu", "-1", "-w", "0"]
    result = script("eval.py", "--tag", "whole", *load, "--resamples", "20", "--tta", "flip")
    assert result.code == 0, result.err
    assert f"epoch 2, {noun}, 32 px" in result.out
    folder = Path("results/whole/2")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {*choices.TASK_METRICS[task]} <= {*metrics, "top5"} and metrics["count"] == 8
    assert (folder / "report.html").stat().st_size > 5000
    rows = table(folder / "predictions.csv")
    assert len(rows) == 8
    if task == "regression":
        assert not re.search("class|top1|accuracy", result.out.replace("classes.txt", ""))
        gaps = [
            abs(float(row[f"target_{name}"]) - float(row[f"predicted_{name}"]))
            for row in rows
            for name in ("redness", "greenness")
        ]
        assert metrics["mae"] == pytest.approx(np.mean(gaps), rel=1e-6)
        # in its own units: an untrained network predicts about the mean of the list
        assert 20 < np.mean([float(row["predicted_redness"]) for row in rows]) < 190

    result = script("submit.py", "--tag", "whole", *load)
    assert result.code == 0, result.err
    rows = table(Path("results/whole/submission.csv"))
    assert [row["id"] for row in rows] == [f"{k}.png" for k in range(26, 30)]
    heads = {"regression": ["id", "redness", "greenness"]}.get(task, ["id", "predicted"])
    assert list(rows[0]) == heads and "no effect" not in result.out
    if task == "regression":
        result = script("submit.py", "--tag", "whole", *load, "--columns", "name", "price", "--labels", "name")
        assert result.code == 0 and list(table(Path("results/whole/submission.csv"))[0]) == ["name", *heads[1:]]
        assert "the second name, 'price', has no effect" in result.out and "--labels: no effect" in result.out


def _first(folder: str) -> str:
    return str(next(Path(folder).glob("1_*.pt")))


def test_submit_labels_over_the_threshold_or_a_probability_for_each(colours, script: Script, small):
    result = script(
        "train.py", "--tag", "m", "--task", "multilabel", "--data_root", colours / "multilabel", *small, "--epochs", "1"
    )
    assert result.code == 0, result.err
    load = ["--tag", "m", "--load", "checkpoints/m/last.pt", "--gpu", "-1", "-w", "0"]
    assert script("submit.py", *load, "--probabilities", "--out", "p.csv").code == 0
    rows = table(Path("p.csv"))
    assert list(rows[0]) == ["id", "red", "green"]
    p = np.array([[float(row["red"]), float(row["green"])] for row in rows])
    edge = float(np.median(p)) + 1e-9
    result = script(
        "submit.py", *load, "--threshold", f"{edge:.9f}", "--labels", "name", "--joiner", "+", "--out", "l.csv"
    )
    assert result.code == 0, result.err
    wanted = [
        "+".join(name for name, above in zip(("red", "green"), row >= round(edge, 9), strict=True) if above)
        for row in p
    ]
    assert [row["predicted"] for row in table(Path("l.csv"))] == wanted and len(set(wanted)) > 1
    result = script("submit.py", *load, "--format", "json", "--out", "l.json")
    objects = json.loads(Path("l.json").read_text())
    assert result.code == 0 and [one["id"] for one in objects] == [row["id"] for row in rows]
    assert [one["predicted"] for one in objects] == [[k for k in (0, 1) if row[k] >= 0.5] for row in p]

    result = script("submit.py", *load, "--top_k", "2")
    assert result.code == 2 and "--top_k is for one class per image" in result.err
    result = script("eval.py", *load, "--metric", "top1")
    assert (
        result.code == 2 and "--metric top1 does not fit checkpoints/m/last.pt, whose task is multilabel" in result.err
    )


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--task regression --head arcface", "--head arcface and --task regression contradict"),
        ("--task regression --cutmix 1", "--cutmix 1 and --task regression contradict"),
        ("--task multilabel --loss ce", "--loss ce and --task multilabel contradict; allowed: bce, asl, focal"),
        ("--loss corn", "--loss corn and --task single contradict"),
        ("--metric mAP", "--metric mAP and --task single contradict"),
        ("--task ordinal --loss corn --mixup 0.2", "--mixup 0.2 and --task ordinal --loss corn contradict"),
        ("--task ordinal --loss mse --mixup 0.2", "--mixup 0.2 and --task ordinal --loss mse contradict"),
        ("--task ordinal --loss l1 --smooth 0.1", "--smooth 0.1 and --task ordinal --loss l1 contradict"),
        ("--task multilabel --teacher x.pt", "--teacher x.pt and --task multilabel contradict"),
        ("--task multilabel --balance sqrt", "--balance sqrt and --task multilabel contradict"),
    ],
)
def test_task_and_flags_that_do_not_fit_it_are_refused(words, problem, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_train(["--tag", "x", "--model", "ResNet18", *words.split()])
    assert stop.value.code == 2 and problem in capsys.readouterr().err


def test_task_defaults_follow_unless_given():
    assert parse_train(["--task", "regression"]).loss == "huber"
    assert parse_train(["--task", "regression"]).metric == "mae"
    assert parse_train(["--task", "ordinal", "--loss", "corn"]).loss == "corn"
    assert parse_train(["--task", "multilabel", "--metric", "macro_f1"]).metric == "macro_f1"
    assert (parse_train([]).loss, parse_train([]).metric) == ("ce", "top1")


def test_corn_of_five_classes_has_a_row_per_logit_and_its_saved_probabilities_keep_the_task(colours, script: Script):
    """ResNet18 has no width that five divides: a checkpoint is whole if it has four rows for five classes."""
    flags = (
        "--model ResNet18 --no-pretrained --preset original --scale 32 -b 6 -w 0 --gpu -1 --precision fp32 --epochs 1"
    )
    root = colours / "ordinal"
    words = ["--task", "ordinal", "--loss", "corn", "--num_classes", 5, "--data_root", root, *flags.split()]
    assert script("train.py", "--tag", "five", *words).code == 0
    load = ["--load", "checkpoints/five/last.pt", "--gpu", "-1", "-w", "0", "--save_probs"]
    result = script("eval.py", "--tag", "five", *load)
    assert result.code == 0 and "qwk" in result.out, result.err
    result = script("eval.py", "--tag", "saved", "--load", "results/five/1/probs.npz", "--val_list", root / "val.txt")
    assert result.code == 0 and "qwk" in result.out, result.err


def test_resumed_regression_keeps_the_units_of_its_first_list(colours, script: Script, small, tmp_path):
    shutil.copytree(colours, tmp_path / "moved")
    words = ["--task", "regression", "--data_root", tmp_path / "moved/regression", *small]
    assert script("train.py", "--tag", "r", *words, "--epochs", "1").code == 0
    before = checkpoint.load(Path("checkpoints/r/last.pt"))["data"]
    listed = tmp_path / "moved/regression/train.txt"
    listed.write_text("\n".join(listed.read_text().splitlines()[:12]) + "\n")
    result = script("train.py", "--tag", "r", "--resume", "--gpu", "-1", "--epochs", "2", "--metric", "mae")
    assert result.code == 0, result.err
    after = checkpoint.load(Path("checkpoints/r/last.pt"))["data"]
    assert (after["target_mean"], after["target_std"]) == (before["target_mean"], before["target_std"])
    result = script("train.py", "--tag", "r", "--resume", "--gpu", "-1", "--epochs", "3", "--cutmix", "1")
    assert result.code == 2 and "--cutmix 1 and --task regression contradict" in result.err


def loaded(script: Script, small, root: Path, path: Path, task: str = "regression"):
    """Train an epoch that changes no weight, from the weights of `path`; return what was printed and the checkpoint."""
    flags = [word for word in small if word != "--no-pretrained"]
    words = ["--task", task, "--data_root", root, *flags, "--lr", "0", "--freeze_bn", "--epochs", "1", "--load", path]
    result = script("train.py", "--tag", "loaded", *words)
    assert result.code == 0, result.err
    return result.out + result.err, checkpoint.load(Path("checkpoints/loaded/last.pt"))


def test_loaded_regression_predicts_the_same_numbers_beside_another_list_in_another_order(
    colours, task_checkpoint, script: Script, small, tmp_path
):
    """With the units of the new list, the loaded last layer predicted other numbers."""
    path = task_checkpoint("regression")
    before = checkpoint.load(path)
    root = Path(shutil.copytree(colours, tmp_path / "moved")) / "regression"
    for name in ("train", "val"):
        pairs = [line.split() for line in (root / f"{name}.txt").read_text().splitlines()]
        swapped = [f"{image} {','.join(reversed(numbers.split(',')))}\n" for image, numbers in pairs]
        (root / f"{name}.txt").write_text("".join(swapped[: 12 if name == "train" else None]))
    (root / "classes.txt").write_text("greenness\nredness\n")
    printed, after = loaded(script, small, root, path)
    assert f"in the units of {path}" in printed and "start at random, and 0 of" in printed
    for name in ("target_mean", "target_std"):
        assert after["data"][name] == before["data"][name][::-1]
    for name in ("mae", "rmse", "r2", "spearman"):
        assert after["history"][0][f"val_{name}"] == pytest.approx(before["history"][0][f"val_{name}"], rel=1e-5)


def test_loaded_regression_of_another_unit_starts_its_last_layer_at_random(
    colours, task_checkpoint, script: Script, small, tmp_path
):
    path = task_checkpoint("regression")
    root = Path(shutil.copytree(colours, tmp_path / "moved")) / "regression"
    pairs = [line.split() for line in (root / "train.txt").read_text().splitlines()]
    numbers = [[float(one) for one in of.split(",")] for _, of in pairs]
    (root / "train.txt").write_text(
        "".join(f"{image} {red},{1000 * green}\n" for (image, _), (red, green) in zip(pairs, numbers, strict=True))
    )
    printed, after = loaded(script, small, root, path)
    assert "number greenness with the mean 0." in printed and "as of another unit" in printed
    assert "so the new one starts at random; left out: fc.weight, fc.bias" in printed
    assert after["data"]["target_mean"][1] == pytest.approx(np.mean(numbers, axis=0)[1] * 1000)


def test_loaded_classifier_of_a_task_whose_rows_mean_something_else_starts_at_random(
    colours, task_checkpoint, script: Script, small, tmp_path
):
    """Without names, the rows of two numbers passed for those of two labels."""
    root = Path(shutil.copytree(colours, tmp_path / "moved")) / "multilabel"
    (root / "classes.txt").unlink()
    printed, _ = loaded(script, small, root, task_checkpoint("regression"), "multilabel")
    assert "so the new one starts at random; left out: fc.weight, fc.bias" in printed
    printed, _ = loaded(script, [*small, "--overwrite"], root, task_checkpoint("multilabel"), "multilabel")
    assert "left out" not in printed


@pytest.mark.parametrize("words", ["--probabilities", "--threshold 0.3"])
def test_submit_flags_of_labels_are_refused_for_classes(words, colours, script: Script, small):
    flags = ["--task", "ordinal", "--data_root", colours / "ordinal", *small, "--epochs", "1"]
    assert script("train.py", "--tag", "o", *flags).code == 0
    result = script("submit.py", "--tag", "o", "--load", "checkpoints/o/last.pt", "--gpu", "-1", *words.split())
    assert result.code == 2 and f"{words.split()[0]} is for several labels per image" in result.err


def test_resume_with_another_task_is_refused(colours, script: Script, small):
    words = ["--task", "ordinal", "--data_root", colours / "ordinal", *small, "--epochs", "1"]
    assert script("train.py", "--tag", "o", *words).code == 0
    result = script("train.py", "--tag", "o", "--resume", "--gpu", "-1", "--task", "single")
    assert result.code == 2 and "was trained with --task ordinal" in result.err
