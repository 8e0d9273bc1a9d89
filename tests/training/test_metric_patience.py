"""--metric says which epoch is the best, and --patience ends a run that finds no better one."""

import csv
import shutil

import pytest

from conftest import Script
from evaluation.ranking import merit, scores_text
from options import choices
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

    content = checkpoint.load("checkpoints/v/last.pt")
    del content["data"]["val_list"], content["scored_from"]  # as an earlier version wrote it
    checkpoint.save(tmp_path / "checkpoints/v/last.pt", content)
    result = script("train.py", "--tag", "v", "--resume", "--gpu", "-1", "--epochs", "5", "--patience", "9")
    assert result.code == 0 and "The validation list" not in result.out


@pytest.mark.parametrize("more", [("--swa", "2"), ("--val_freq", "0")])
def test_train_patience_with_contradicting_flag_is_refused(script: Script, more):
    result = script("train.py", "--tag", "x", *WORDS, "--patience", "2", *more)
    assert result.code == 2 and "--patience" in result.err and "leave one out" in result.err
