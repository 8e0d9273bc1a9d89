"""--metric says which epoch is the best, and --patience ends a run that finds no better one."""

import csv
import shutil
from pathlib import Path

import pytest

from conftest import Script
from evaluation.ranking import best_row, is_constant, merit, scores_text
from options import choices
from tools.compare.runs import read_run
from training.state import RunState
from utils import checkpoint

# A network without batch norm: at this rate its scores stay the same.
STILL = (
    "--model timm:test_vit --no-pretrained --preset original "
    "--scale 160 -b 12 --gpu -1 --lr 1e-30 --min_lr 0 --optimizer sgd"
)
WORDS = [*STILL.split(), *"-w 0 --precision fp32 --transform none".split()]


def state(metric, *values):
    history = [{"epoch": epoch, f"val_{metric}": value} for epoch, value in enumerate(values, 1) if value is not None]
    return RunState(epochs_done=len(values), history=history, metric=metric)


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("metric", "values", "best", "patience"),
    [
        ("top1", (0.5, 0.7, 0.7, 0.6), 2, 2),
        ("log_loss", (0.5, 0.3, 0.4, 0.3), 2, 2),
        ("macro_f1", (0.1, None, 0.2, None), 3, 0),  # --val_freq 2
    ],
)
def test_run_state_best_is_first_of_equals_and_patience_counts_validations(metric, values, best, patience):
    found = state(metric, *values)
    assert found.best()["epoch"] == best
    assert [found.is_out_of_patience(n) for n in (1, 2, 3)] == [patience >= n for n in (1, 2, 3)]
    assert not found.is_out_of_patience(0)


def test_run_state_without_validation_has_no_best_and_patience():
    assert RunState().best() is None
    assert not RunState().is_out_of_patience(1)


def test_best_row_after_the_images_changed_is_of_the_last_ones_alone():
    history = [{"epoch": epoch, "val_top1": value} for epoch, value in enumerate((0.9, 0.8, 0.5, 0.6), 1)]
    history[1] |= {"scored_from": 2}
    assert best_row(history, "top1")["epoch"] == 2
    history[2] |= {"scored_from": 3}
    history[3] |= {"scored_from": 3}
    assert best_row(iter(history), "top1")["epoch"] == 4
    history.append({"epoch": 5, "scored_from": 5})  # --val_freq 2: not validated yet
    assert best_row(history, "top1") is None


def test_run_state_marks_the_rows_of_an_earlier_version_and_keeps_theirs():
    history = [{"epoch": epoch, "val_top1": 1 / epoch} for epoch in (1, 2, 3)]
    found = RunState()
    found.load_state_dict({"epoch": 3, "history": history, "scored_from": 2})
    assert found.best()["epoch"] == best_row(found.history, "top1")["epoch"] == 2
    assert "scored_from" not in found.history[0] and "scored_from" not in history[1]


def test_run_state_counts_the_best_from_the_first_validation_of_other_images_after_a_resume():
    """Images that are unreadable for a while within a run change nothing: each epoch would replace the best."""
    found = RunState()
    for epoch, count in enumerate((24, 23, 24), 1):
        found.add_epoch(epoch, {"val_top1": 1 / epoch, "val_count": count})
    assert found.best()["epoch"] == 1 and "scored_from" not in found.state_dict()
    again = RunState()
    again.load_state_dict(found.state_dict())
    again.add_epoch(4, {"val_top1": 0.1, "val_count": 24})
    again.add_epoch(5, {"val_top1": 0.1, "val_count": 20})
    assert again.best()["epoch"] == 1
    again.load_state_dict(again.state_dict())
    again.add_epoch(6, {"train_loss": 1.0})
    again.add_epoch(7, {"val_top1": 0.2, "val_count": 24})
    assert again.scored_from == again.best()["epoch"] == best_row(again.history, "top1")["epoch"] == 7
    assert again.history[-1]["scored_from"] == 7 and "scored_from" not in again.history[-2]


def test_merit_of_loss_is_higher_where_it_is_lower():
    assert merit({"log_loss": 0.1}, "log_loss") > merit({"log_loss": 0.2}, "log_loss")
    assert merit({"val_top1": 0.1}, "top1", "val_") < merit({"val_top1": 0.2}, "top1", "val_")
    assert scores_text({"val_top1": 0.5, "val_log_loss": 1}, "log_loss", "val_") == "log_loss 1.000000  top1 0.500000"


def test_train_patience_ends_run_and_resume_continues_with_more(tmp_path, photo_set, script: Script):
    words = ["--tag", "p", *WORDS, "--data_root", photo_set]
    result = script("train.py", *words, "--epochs", "9", "--metric", "macro_f1", "--patience", "2")
    assert result.code == 0, result.err
    assert "Stopped after epoch 3 of 9: --patience 2 validations brought no better macro_f1." in result.out
    assert "best: epoch 1, macro_f1 " in result.out
    history = rows(tmp_path / "logs/p")
    assert [row["epoch"] for row in history] == ["1", "2", "3"]
    assert all(float(row[f"val_{name}"]) >= 0 for row in history for name in choices.SINGLE_METRICS)
    assert checkpoint.load(tmp_path / "checkpoints/p/best.pt")["epoch"] == 1

    result = script("train.py", "--tag", "p", "--resume", "--gpu", "-1")
    assert result.code == 0 and "it stopped after epoch 3 by --patience 2" in result.out, result.err
    result = script("train.py", "--tag", "p", "--resume", "--gpu", "-1", "--patience", "3")
    assert result.code == 0, result.err
    assert [row["epoch"] for row in rows(tmp_path / "logs/p")] == ["1", "2", "3", "4"]
    result = script("train.py", "--tag", "p", "--resume", "--gpu", "-1", "--fit", "pad", "--epochs", "5")
    assert result.code == 0, result.err
    assert "The best epoch and --patience count from epoch 5 on" in result.out + result.err
    assert [row["epoch"] for row in rows(tmp_path / "logs/p")] == ["1", "2", "3", "4", "5"]

    result = script("train.py", "--tag", "p", "--resume", "--gpu", "-1", "--metric", "top1")
    assert result.code == 2 and "was trained with --metric macro_f1" in result.err

    result = script(
        "eval.py", "--load", "checkpoints/p/best.pt", "--data_root", photo_set, "--gpu", "-1", "--no-report"
    )
    assert result.code == 0, result.err
    assert "macro_f1 " in result.out and result.out.index("macro_f1 ") < result.out.index("top1 ")


def test_train_metric_decides_best_checkpoint(tmp_path, photo_set, script: Script):
    words = ["--tag", "m", *WORDS, "--lr", "0.01", "--data_root", photo_set, "--epochs", "3", "--metric", "log_loss"]
    assert script("train.py", *words).code == 0
    losses = {int(row["epoch"]): float(row["val_log_loss"]) for row in rows(tmp_path / "logs/m")}
    assert checkpoint.load(tmp_path / "checkpoints/m/best.pt")["epoch"] == min(losses, key=losses.get)


def test_train_top5_of_few_classes_is_refused_and_a_resumed_run_warns(tmp_path, photo_set, script: Script):
    """It is 1 for every network of three classes: best.pt was the first epoch, and --patience ended the run."""
    words = ["--tag", "t", *WORDS, "--data_root", photo_set, "--epochs", "1"]
    result = script("train.py", *words, "--metric", "top5")
    assert result.code == 2 and "--metric top5 is 1 for every network of 3 classes" in result.err
    assert "it cannot choose the best epoch" in result.err and "Try: --metric top1" in result.err
    assert not (tmp_path / "checkpoints/t").exists()

    assert script("train.py", *words, "--overwrite").code == 0
    content = checkpoint.load("checkpoints/t/last.pt")
    content["opt"]["metric"] = "top5"  # as earlier versions accepted it
    checkpoint.save(tmp_path / "checkpoints/t/last.pt", content)
    result = script("train.py", "--tag", "t", "--resume", "--gpu", "-1", "--epochs", "2")
    assert result.code == 0 and "the best epoch stays the first, and --patience counts from it" in result.out
    load = ["--load", "checkpoints/t/last.pt", "checkpoints/t/best.pt"]
    result = script("eval.py", *load, "--blend", "greedy", "--data_root", photo_set, "--gpu", "-1")
    assert result.code == 2 and "cannot choose the weights of --blend greedy" in result.err, result.out


@pytest.mark.parametrize(("metric", "classes", "constant"), [("top5", 5, True), ("top5", 6, False), ("top1", 2, False)])
def test_is_constant_of_top5_up_to_five_classes(metric, classes, constant):
    assert is_constant(metric, classes) == constant


def test_train_resume_with_another_validation_list_begins_best_and_patience_anew(tmp_path, photo_set, script: Script):
    """The scores of two lists were compared: best.pt stayed that of the easier list, and --patience ended the run."""
    val = tmp_path / "val.txt"
    shutil.copy(photo_set / "val.txt", val)
    words = ["--tag", "v", *WORDS, "--data_root", photo_set, "--val_list", val, "--epochs", "2"]
    assert script("train.py", *words).code == 0
    labels = {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in val.read_text().splitlines()}
    before = checkpoint.load("checkpoints/v/last.pt")
    wrong = "".join(f"{path} {(int(label) + 1) % 3}\n" for path, label in labels.items())
    for words in (["--epochs", "3", "--patience", "2"], ["--epochs", "4"]):
        val.write_text(wrong)
        result = script("train.py", "--tag", "v", "--resume", "--gpu", "-1", *words)
        assert result.code == 0, result.err
        changed = "3" in words
        assert ("count from epoch 3 on" in result.out) == changed
        assert "best: epoch 3" in result.out, "the later epoch is as good, and the earlier ones are of another list"
        assert checkpoint.load("checkpoints/v/best.pt")["epoch"] == 3
    assert checkpoint.load("checkpoints/v/last.pt")["scored_from"] == 3
    assert "scored_from" not in before
    assert [row["scored_from"] for row in rows(tmp_path / "logs/v")] == ["", "", "3", "3"]
    assert read_run(Path("logs"), "v").best("top1")[1] == 3, "for who reads metrics.csv alone, it is the same epoch"

    content = checkpoint.load("checkpoints/v/last.pt")
    del content["data"]["val_list"], content["scored_from"]  # as an earlier version wrote it
    checkpoint.save(tmp_path / "checkpoints/v/last.pt", content)
    result = script("train.py", "--tag", "v", "--resume", "--gpu", "-1", "--epochs", "5", "--patience", "9")
    assert result.code == 0 and "The validation list" not in result.out


def test_train_resume_without_debug_begins_best_and_patience_anew(tmp_path, photo_set, script: Script, small):
    """The score of six images stayed the best of the run, best.pt was of --debug, and --patience counted on."""
    words = ["--tag", "d", *small, "-b", "2", "--data_root", photo_set, "--patience", "1"]
    assert script("train.py", *words, "--lr", "1e-30", "--epochs", "2", "--debug").code == 0
    assert [row["val_count"] for row in rows(tmp_path / "logs/d")] == ["6", "6"]
    result = script("train.py", "--tag", "d", "--resume", "--gpu", "-1", "--epochs", "3")
    assert result.code == 0 and "best: epoch 3" in result.out, result.out
    assert "was scored on 6 images of the validation list, which now gives 12" in result.out
    assert checkpoint.load("checkpoints/d/best.pt")["epoch"] == 3
    assert read_run(Path("logs"), "d").best("top1")[1] == 3


def test_train_resume_after_validation_images_vanished_begins_best_anew(tmp_path, photo_set, script: Script, small):
    lists = tmp_path / "lists"
    shutil.copytree(photo_set, lists)
    for name in ("train", "val"):
        (lists / f"{name}.txt").write_text((photo_set / f"{name}.txt").read_text().replace(str(photo_set), str(lists)))
    words = ["--tag", "g", *small, "--data_root", lists, "--on_bad_image", "skip"]
    assert script("train.py", *words, "--epochs", "1").code == 0
    for path in lists.glob("val_hopper_*"):
        path.unlink()
    for epoch in ("2", "3"):
        result = script("train.py", "--tag", "g", "--resume", "--gpu", "-1", "--epochs", epoch)
        assert result.code == 0, result.err
        warned = "Epoch 2 was validated on 8 images, the one before on 12." in result.out + result.err
        assert warned == (epoch == "2"), result.out
    assert [row["scored_from"] for row in rows(tmp_path / "logs/g")] == ["", "2", "2"]
    assert checkpoint.load("checkpoints/g/best.pt")["epoch"] in (2, 3)


@pytest.mark.parametrize("more", [("--swa", "2"), ("--val_freq", "0")])
def test_train_patience_with_contradicting_flag_is_refused(script: Script, more):
    result = script("train.py", "--tag", "x", *WORDS, "--patience", "2", *more)
    assert result.code == 2 and "--patience" in result.err and "leave one out" in result.err
