"""Classes are compared by name wherever a checkpoint meets a list.

Checkpoints remember their lists, and printed commands run as printed.
"""

import csv
import json
import logging
import re
import shlex
import shutil
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dataloader import Classes, align_labels, check_numbering, known_list, lists_of
from dataloader.file_list import read_list
from evaluation import label_issues
from inference import session
from network import get_model
from network.loading import load_weights
from options import after_evaluation, command, parse_eval, parse_submit, parse_train
from tools import best_scale, embed, long_tail
from training import resuming
from utils import checkpoint
from utils.classes import counted, describe_difference, match_names, names_agree
from utils.errors import UserError

HEADS = [("timm:test_resnet", head) for head in ("linear", "cosine", "arcface", "subcenter")]
HEADS += [("iResNet50", "linear"), ("timm:deit_tiny_distilled_patch16_224", "linear")]
QUIET = ["--gpu", -1, "-w", 0, "--resamples", 0, "--no-report"]


@pytest.fixture
def small(small):
    """As everywhere, but with a network of a few thousand weights."""
    return ["--model", "timm:test_resnet", *small[2:]]


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("classifier"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


def renumbered(source: Path, folder: Path, names: list[str]) -> Path:
    """The lists of `source` in `folder`, numbered by `names`."""
    folder.mkdir()
    old = (source / "classes.txt").read_text().split()
    for part in ("train", "val"):
        rows = [line.rsplit(" ", 1) for line in (source / f"{part}.txt").read_text().splitlines()]
        numbers = {str(k): names.index(name) if name in names else k for k, name in enumerate(old)}
        (folder / f"{part}.txt").write_text("".join(f"{path} {numbers[label]}\n" for path, label in rows))
    shutil.copy(source / "test.txt", folder)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    return folder


def printed(result, what="Next"):
    """The words of the command that a script printed, without `python`."""
    words = shlex.split(re.search(rf"{what}: (python .*)", result.out)[1])
    assert words.pop(0) == "python"
    return words


# ------------------------------------------------------------------------ names


def test_match_names_in_other_accent_forms_are_equal():
    assert names_agree(["café", "b"], ["cafe\u0301", "b"]) and names_agree(None, ["a"]) and names_agree(["a"], [])
    assert not names_agree(["a", "b"], ["b", "a"]) and not names_agree(["a"], ["a", "b"])
    assert match_names(["b", "new", "cafe\u0301"], ["café", "a", "b"]).tolist() == [2, -1, 0]
    # two of a name, or none, say nothing
    found = match_names(["a", "b", "b", " "], ["b", " ", "a"])
    assert found.tolist() == [2, -1, -1, -1]
    assert match_names(["a"], ["a", "a"]).tolist() == [-1]


def test_align_labels_warns_where_the_list_alone_has_names(tmp_path, said):
    (tmp_path / "val.txt").write_text("x.jpg 0\ny.jpg 1\n")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    files = read_list(tmp_path / "val.txt")
    align_labels(files, Classes(2, ["dog", "cat"]), "the training list")
    assert "has no names" not in said.text
    align_labels(files, Classes(2), "the training list")
    assert f"{tmp_path}/classes.txt names the classes, and the training list has no names" in said.text


def test_submission_names_of_a_checkpoint_without_names_are_refused():
    opt = parse_submit(["--load", "x.pt", "--labels", "name"])
    assert session._labels(opt, Classes(2, ["dog", "cat"])) == "name"
    with pytest.raises(UserError, match="no names of its classes.*\n?.*Try: --labels number"):
        session._labels(opt, Classes(2))


def test_submission_of_numbers_that_are_named_by_numbers_speaks_of_no_classes(said):
    opt = parse_submit(["--load", "x.pt"])
    assert session._labels(opt, Classes(2, ["5", "7"], task="regression")) == "number" and not said.text
    assert session._labels(opt, Classes(2, ["5", "7"], task="multilabel")) == "name"
    assert "The labels are named by other numbers than their own (label 0 is 5)" in said.text


def test_resume_with_other_names_speaks_of_what_the_task_predicts():
    data = {"class_names": ["width"], "task": "regression"}
    with pytest.raises(UserError, match="other numbers than x/classes.txt .*number 0 is 'width' .*keeps the numbers"):
        resuming.check_classes({"data": data}, "a.pt", ["height"], Path("x/train.txt"))


def test_pseudo_labels_beside_other_class_names_are_refused(tmp_path):
    check_numbering(tmp_path, Classes(2, ["dog", "cat"]), pseudo=True, numbers=True)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    check_numbering(tmp_path, Classes(2, ["cat", "dog"]), pseudo=True, numbers=True)
    with pytest.raises(UserError, match="--pseudo_label would not fit"):
        check_numbering(tmp_path, Classes(2, ["dog", "cat"]), pseudo=True, numbers=True)


def test_align_labels_of_other_numbering_follow_names(tmp_path, said):
    for name, content in (("list.txt", "x.jpg 0\ny.jpg 1\nz.jpg 1\n"), ("classes.txt", "dog\ncat\n\n")):
        (tmp_path / name).write_text(content)
    files = read_list(tmp_path / "list.txt")
    found = align_labels(files, Classes(3, ["cat", "cow", "dog"]), "the checkpoint")
    assert found.label.tolist() == [2, 0, 0] and found.label.dtype == np.int32
    assert [found.file_label(label) for label in range(3)] == [1, -1, 0]
    assert "matched by name (2 of 3 classes, 2 of them" in said.text
    issues = label_issues.Issues(np.array([0, 1]), np.array([0.1, 0.2], np.float32), np.array([0, 1]), "")
    predictions = SimpleNamespace(label=found.label, index=np.arange(3))
    label_issues.write(tmp_path / "issues.csv", issues, (predictions, found, Classes(3, ["cat", "cow", "dog"])))
    with open(tmp_path / "issues.csv") as file:  # clean.py edits the list, by its own numbers; it has none for a cow
        rows = [
            (row["label"], row["new_label"], row["label_name"], row["suggested_name"]) for row in csv.DictReader(file)
        ]
    assert rows == [("0", "1", "dog", "cat"), ("1", "", "cat", "cow")]
    assert align_labels(files, Classes(2, ["dog", "cat"]), "x") is files is align_labels(files, Classes(2), "x")
    for names in (["cat", "cow", "pig"], ["cat", "dog", "dog"]):
        with pytest.raises(
            UserError, match=r"1 of its 2 names are unknown to the checkpoint, or not unique \(the first: 'dog'\)"
        ):
            align_labels(files, Classes(3, names), "the checkpoint")
    with pytest.raises(UserError, match=r"line 2: the label is 1; allowed: 0 to 0"):
        align_labels(files, Classes(1), "the checkpoint")


@pytest.mark.parametrize(("name", "head"), HEADS, ids=lambda value: value)
def test_load_weights_of_other_classes_move_classifier_rows_by_name(name, head, said):
    """From classes a, b, c to c, d, a: every tensor of every classifier, a class's centres together.

    The rows are those of the average that is shown, not of the raw weights.
    """

    def build(count):
        opt = parse_train(["--model", name, "--no-pretrained", "--head", head])
        return get_model(name)(Namespace(**{**vars(opt), "num_classes": count, "rebuilt": True}))

    old, new = build(3), build(3)
    own = {key: value.clone() for key, value in new.net.state_dict().items()}
    raw = old.net.state_dict()
    ema = {key: value + 1 if value.is_floating_point() else value for key, value in raw.items()}
    data = {"class_names": ["a", "b", "c"]}
    content = {"format": 1, "model": name, "weights": raw, "ema": ema, "showing": "ema", "data": data}
    load_weights(new, content, "old.pt", names=["c", "d", "a"])
    per_class = [
        key
        for key, value in own.items()
        if value.ndim and value.shape[0] in (3, 9) and not key.startswith(("conv", "stem"))
    ]
    assert len(per_class) == {"linear": 2, "cosine": 1, "arcface": 1, "subcenter": 1}[head] * (
        2 if "distilled" in name else 1
    )
    for key, value in new.net.state_dict().items():
        if key not in per_class:
            assert torch.equal(value, ema[key])
            continue
        value, before, given = (tensor.unflatten(0, (3, -1)) for tensor in (value, own[key], ema[key]))
        assert all(torch.equal(one, other) for one, other in zip(value, (given[2], before[1], given[0]), strict=True))
    assert "keeps 2 of 3 classes, by name; 1 start at random, and 1 of the checkpoint's are left out" in said.text
    if head == "linear" and name == HEADS[0][0]:
        same, none = build(3), build(3)
        load_weights(same, content, "old.pt", names=["a", "b", "c"])
        assert all(torch.equal(value, ema[key]) for key, value in same.net.state_dict().items())
        before = {key: none.net.state_dict()[key].clone() for key in per_class}
        load_weights(none, content, "old.pt", names=["x", "y", "z"])
        assert all(torch.equal(none.net.state_dict()[key], value) for key, value in before.items())
        assert "has other classes or another size, so the new one starts at random" in said.text


@pytest.mark.slow
def test_scripts_with_list_of_other_numbering_score_by_name(script, photo_set, small, tmp_path):
    assert script("train.py", "--tag", "run", "--data_root", photo_set, "--epochs", 4, *small).code == 0
    load = ["--load", "checkpoints/run/last.pt"]
    turned = renumbered(photo_set, tmp_path / "turned", ["hopper", "flower", "china"])
    other = renumbered(photo_set, tmp_path / "other", ["china", "flower", "cat"])
    scores = []
    for folder in (photo_set, turned):
        result = script("eval.py", "--tag", folder.name, *load, "--data_root", folder, *QUIET)
        assert result.code == 0, result.err
        metrics = json.loads(next(Path(f"results/{folder.name}").glob("*/metrics.json")).read_text())
        scores.append({key: metrics[key] for key in ("top1", "loss", "macro_f1", "mean_class_accuracy")})
    assert "matched by name (3 of 3 classes, 2 of them" in result.out
    assert scores[0] == scores[1]
    refused = [script("eval.py", *load, "--data_root", other, *QUIET)]
    refused += [script("submit.py", *load, "--data_root", turned, "--gpu", -1, "--pseudo_label", 0.1)]
    before = Path("checkpoints/run/last.pt").read_bytes()
    for folder in (turned, other):
        refused += [script("train.py", "--tag", "run", "--resume", "--epochs", 5, "--data_root", folder, "--gpu", -1)]
    assert Path("checkpoints/run/last.pt").read_bytes() == before
    for result, text in zip(
        refused,
        ["unknown to the checkpoint", "--pseudo_label would not fit", "class 0 is 'china' there", "class 2 is"],
        strict=True,
    ):
        assert result.code == 2 and text in result.err, result.err
    assert not Path("results/cache").exists()
    result = script("submit.py", *load, "--data_root", turned, "--gpu", -1)
    assert result.code == 0 and "uses the checkpoint's numbers; --labels name" in result.out

    result = script("train.py", "--tag", "on", *load, "--epochs", 1, "--data_root", turned, *small, "--lr", 0)
    assert result.code == 0 and "keeps 3 of 3 classes, by name" in result.out
    one, two = (checkpoint.load(f"checkpoints/{tag}/last.pt") for tag in ("run", "on"))
    assert torch.equal(one["weights"]["fc.weight"].flip(0), two["weights"]["fc.weight"])
    assert two["data"]["class_names"] == ["hopper", "flower", "china"]


@pytest.mark.slow
def test_tools_with_list_of_other_numbering_score_by_name(script, photo_set, small, tmp_path, capfd):
    assert script("train.py", "--tag", "run", "--data_root", photo_set, "--epochs", 1, *small).code == 0
    turned = renumbered(photo_set, tmp_path / "turned", ["hopper", "flower", "china"])
    other = renumbered(photo_set, tmp_path / "other", ["china", "flower", "cat"])
    shown = []
    for folder in (photo_set, turned, other):
        common = ["--load", "checkpoints/run/last.pt", "--list", f"{folder}/val.txt", "--gpu", "-1", "-w", "0"]
        out = ["--out", f"out/{folder.name}"]
        among = ["--among", f"{folder}/train.txt", "--neighbours", "3"]
        codes = [
            best_scale.main([*common, *out, "--scales", "32"]),
            long_tail.main(common),
            embed.main([*common, *out, *among]),
        ]
        assert codes == ([2] * 3 if folder == other else [0] * 3)
        shown.append([line for line in capfd.readouterr().out.splitlines() if re.search(r"\d\.\d{6}", line)])
    assert shown[0] == shown[1] and len(shown[0]) >= 3


# ------------------------------------------------------------------------ lists, commands


def test_lists_of_options_are_absolute_and_found_again():
    opt = parse_train(["--data_root", "a b"])
    here = Path.cwd()
    assert lists_of(opt) == {"data_root": f"{here}/a b"} | {
        name: f"{here}/a b/{name}.txt" for name in ("train", "val", "test")
    }
    opt = parse_train(["--train_list", "/x/fold.txt", "--val_list", "y.txt"])
    assert lists_of(opt) == {"data_root": "/x", "train": "/x/fold.txt", "val": f"{here}/y.txt", "test": "/x/test.txt"}
    plain, given = parse_train([]), parse_train(["--data_root", "datasets"])
    known = {"a.pt": {"val": "/x/val.txt"}, "b.pt": None, "c.pt": {"val": "/x/../x/val.txt", "test": 3}}
    assert known_list(plain, "val", known) == (Path("/x/val.txt"), "a.pt and c.pt")
    assert known_list(parse_submit(["--load", "a.pt"]), "test", known) == known_list(given, "val", known) == (None, "")
    with pytest.raises(
        UserError,
        match=r"different validation lists:\n  a.pt: /x/val.txt\n  c.pt: .*\n  d.pt: /y.txt\n.*--val_list FILE.*\n"
        r"One network may have learned from",
    ):
        known_list(plain, "val", known | {"d.pt": {"val": "/y.txt"}})


def test_command_with_odd_values_is_complete_and_quoted(monkeypatch):
    opt = {
        "load": ["a b.pt", "c;d.pt"],
        "weights": [2.0, 1],
        "report": False,
        "gpu": -1,
        "tag": "cache",
        "out": "-x.csv",
        "lr": 3,
    }
    monkeypatch.setattr("sys.argv", ["/my code/train.py"])
    assert (
        command("eval", opt)
        == "python '/my code/eval.py' --gpu -1 --load 'a b.pt' 'c;d.pt' --weights 2.0 1 --no-report"
    )
    monkeypatch.setattr("sys.argv", ["/x/pytest"])
    assert command("submit", {"out": "-x.csv", "debug": True}) == "python submit.py --debug --out=-x.csv"
    # the default, which overrides the list that x.pt remembers
    typed = parse_eval(["--load", "x.pt", "--data_root", "datasets"])
    assert after_evaluation(typed) == "python submit.py --data_root datasets --load x.pt"
    assert after_evaluation(parse_eval(["--load", "x.pt"])) == "python submit.py --load x.pt"


@pytest.mark.slow
def test_eval_printed_command_beside_another_list_runs_as_printed(script, photo_set, small, tmp_path):
    """Another project's lists are in datasets/, where eval.py used to look: its labels would give wrong scores."""
    (tmp_path / "datasets").mkdir()
    for name in ("val", "test"):
        rows = [line.split(" ") for line in (photo_set / f"{name}.txt").read_text().splitlines()]
        text = "".join(" ".join([row[0], *["0" for _ in row[1:]]]) + "\n" for row in rows[:2])
        (tmp_path / "datasets" / f"{name}.txt").write_text(text)
    own = tmp_path / "my lists"
    own.mkdir()
    for name in ("train.txt", "val.txt", "test.txt", "classes.txt"):
        shutil.copy(photo_set / name, own)
    words = [*small, "--data_root", "my lists", "--epochs", 2, "--max_pixels", 1_000_000]
    trained = script("train.py", "--tag", "a_run", *words)
    assert trained.code == 0, trained.err
    with open("logs/a_run/metrics.csv") as file:
        best = max(float(row["val_top1"]) for row in csv.DictReader(file))
    evaluated = script(*printed(trained))
    assert evaluated.code == 0, evaluated.err
    assert {"--max_pixels", "1000000", "--data_root", "my lists"} <= set(printed(trained))
    (metrics,) = Path("results").rglob("metrics.json")
    found = json.loads(metrics.read_text())
    assert (found["count"], found["top1"]) == (12, pytest.approx(best, abs=1e-6))
    submitted = script(*printed(evaluated))
    assert submitted.code == 0, submitted.err
    (submission,) = Path("results").rglob("submission.csv")
    assert len(submission.read_text().splitlines()) == 7

    load = ["--load", "checkpoints/a_run/best.pt", *QUIET]
    bare = script("eval.py", *load)
    assert bare.code == 0
    assert f"The validation list is {own}/val.txt, as checkpoints/a_run/best.pt recorded;" in bare.out
    assert f"top1 {best:.6f}" in bare.out and "(12 images)" in bare.out
    assert "(2 images)" in script("eval.py", *load, "--data_root", "datasets").out
    assert "(12 images)" in script("eval.py", *load, "--val_list", photo_set / "val.txt").out
    assert len(script("submit.py", *load[:-3]).out.split(f"{own}/test.txt")) == 2
    content = checkpoint.load("checkpoints/a_run/best.pt")
    del content["data"]["lists"]  # as an older version wrote it
    checkpoint.save(tmp_path / "old.pt", content)
    old = script("eval.py", "--load", "old.pt", *QUIET)
    assert "The validation list is datasets/val.txt: no checkpoint says" in old.out and "(2 images)" in old.out
    own.rename(tmp_path / "away")
    gone = script("eval.py", *load)
    assert gone.code == 2
    assert f"There is no list {own}/val.txt, the validation list that checkpoints/a_run/best.pt recorded" in gone.err


@pytest.mark.slow
def test_resume_under_another_tag_prints_existing_checkpoint(script, photo_set, small, monkeypatch):
    from training.run import TrainingRun

    real = TrainingRun.end_epoch
    monkeypatch.setattr(  # the first epoch stays the best
        TrainingRun, "end_epoch", lambda self, epoch, scores: real(self, epoch, scores | {"val_top1": 1 / epoch})
    )
    assert script("train.py", "--tag", "one", "--data_root", photo_set, "--epochs", 2, *small).code == 0
    for tag, there in (("two", "best.pt"), ("three", "last.pt")):
        result = script(
            "train.py", "--tag", tag, "--resume", "--load", "checkpoints/one/last.pt", "--epochs", 3, "--gpu", -1
        )
        assert result.code == 0, result.err
        assert f"checkpoints/{tag}/{there}" in printed(result)
        if there == "best.pt":
            assert checkpoint.load("checkpoints/two/best.pt")["epoch"] == 1
            Path("checkpoints/one/best.pt").unlink()
        else:
            assert "has no checkpoint of epoch 1" in result.out


def test_counted_and_described_by_what_the_task_predicts():
    assert [counted(count, task) for count, task in ((1, "regression"), (2, "regression"), (3, "single"))] == [
        "1 number",
        "2 numbers",
        "3 classes",
    ]
    assert counted(2, "multilabel") == "2 labels" and counted(4, "ordinal") == "4 ordered classes"
    assert describe_difference(["a"], ["a", "b"], "there", "regression") == "it names 1 number, there 2"
    assert describe_difference(["a", "c"], ["a", "b"], "x", "multilabel") == "label 1 is 'c' there and 'b' in x"
