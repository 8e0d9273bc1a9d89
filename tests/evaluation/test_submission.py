"""Submissions: every line once and in order, in the form asked for, whole or absent, with where they came from."""

import argparse
import csv
import hashlib
import json

import numpy as np
import pytest

from dataloader import Classes
from dataloader.file_list import read_list
from evaluation import submission, submission_files
from evaluation.metrics import Predictions
from evaluation.results import Scored
from options import parse_submit
from utils.errors import UserError


@pytest.fixture
def scored(tmp_path):
    """Four images, the third unreadable; three classes, of which the second is the commonest."""
    (tmp_path / "test.txt").write_text("a/one.jpg\na/two words.jpg\na/three,x.jpg\nb/one.jpg\n")
    files = read_list(tmp_path / "test.txt", labelled=False)
    top = np.array([[2, 0, 1], [0, 1, 2], [2, 1, 0], [1, 2, 0]])
    probability = np.array([[0.9, 0.1, 0], [0.6, 0.3, 0.1], [1, 0, 0], [0.95, 0.04, 0.01]], np.float32)
    readable = np.array([True, True, False, True])
    predictions = Predictions(np.arange(4), np.full(4, -1), top, probability, probability[:, 0], readable)
    return Scored(predictions, files, Classes(3, ["cat", 'big "dog"', "old, fox"], [5, 9, 6]))


def flags(*words) -> argparse.Namespace:
    return parse_submit(["--load", "x.pt", *words])


def test_submission_default_is_id_and_predicted(scored, tmp_path):
    submission.write(tmp_path / "s.csv", scored, flags())
    assert (tmp_path / "s.csv").read_text() == 'id,predicted\none.jpg,2\ntwo words.jpg,0\n"three,x.jpg",1\none.jpg,1\n'


def test_summary_names_what_an_unreadable_row_holds(scored, tmp_path, caplog):
    """An average of networks of different lists has no count of training images, so no commonest class."""
    submission.log_summary(tmp_path / "s.csv", scored)
    assert "their rows hold the commonest training class." in caplog.text
    caplog.clear()
    unknown = scored._replace(classes=Classes(3, ["cat", "dog", "eel"], None))
    submission.write(tmp_path / "s.csv", unknown, flags("--labels", "name"))
    submission.log_summary(tmp_path / "s.csv", unknown)
    assert '"three,x.jpg",cat' in (tmp_path / "s.csv").read_text()
    assert "1 of 4 images could not be read; their rows hold class 'cat', or equal probabilities" in caplog.text


@pytest.mark.parametrize(
    "words", [["--columns", "a", "b"], ["--no-header"], ["--separator", "tab"], ["--joiner", "|"]], ids=str
)
def test_submission_json_with_csv_flags_is_refused(words, capsys):
    with pytest.raises(SystemExit) as stop:
        flags("--format", "json", *words)
    assert stop.value.code == 2
    assert "--format json contradict" in capsys.readouterr().err


def test_submission_of_any_form_holds_the_predictions(scored, tmp_path):
    words = "--columns image label --separator tab --id stem --labels name --top_k 2 --joiner |".split()
    submission.write(tmp_path / "s.tsv", scored, flags(*words))
    with open(tmp_path / "s.tsv", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    common = 'big "dog"|old, fox'
    assert rows == [
        ["image", "label"],
        ["one", "old, fox|cat"],
        ["two words", 'cat|big "dog"'],
        ["three,x", common],
        ["one", 'big "dog"|old, fox'],
    ]
    submission.write(tmp_path / "s.txt", scored, flags("--no-header", "--separator", " ", "--id", "path"))
    assert (tmp_path / "s.txt").read_text().splitlines() == [
        "a/one.jpg 2",
        '"a/two words.jpg" 0',
        "a/three,x.jpg 1",
        "b/one.jpg 1",
    ]
    submission.write(tmp_path / "s.json", scored, flags("--format", "json"))
    assert json.loads((tmp_path / "s.json").read_text())[2] == {"id": "three,x.jpg", "predicted": 1}
    submission.write(tmp_path / "s.json", scored, flags("--format", "json", "--top_k", "3"))
    assert json.loads((tmp_path / "s.json").read_text())[0] == {"id": "one.jpg", "predicted": [2, 0, 1]}


@pytest.mark.parametrize("how", ["file", "path"])
def test_submission_ids_that_occur_twice_name_what_helps(scored, tmp_path, caplog, how):
    submission.write(tmp_path / "s.csv", scored, flags("--id", how))
    unique = "1 id in more than one row (the first: one.jpg). --id path makes them unique."
    assert caplog.messages == ([unique] if how == "file" else [])
    caplog.clear()
    (tmp_path / "test.txt").write_text("a/one.jpg\n\na/two.jpg\na/one.jpg\nb/two.jpg\n")
    scored = scored._replace(files=read_list(tmp_path / "test.txt", labelled=False))
    submission.write(tmp_path / "s.csv", scored, flags("--id", how))
    (said,) = caplog.messages
    assert "test.txt has 1 path in more than one line (the first: a/one.jpg, lines 1, 4). Keep one line" in said
    assert "makes them unique" not in said
    assert ("--id path makes the ids of different paths unique." in said) is (how == "file")


def test_submission_ambiguous_is_refused_and_old_file_kept(scored, tmp_path, monkeypatch):
    path = tmp_path / "s.csv"
    path.write_text("old")
    with pytest.raises(UserError, match="old, fox"):
        submission.write(path, scored, flags("--labels", "name", "--top_k", "2", "--joiner", ", "))
    with pytest.raises(UserError, match="--top_k is 5; allowed: 1 to 3"):
        submission.write(path, scored, flags("--top_k", "5"))
    short = scored._replace(
        predictions=Predictions(*(getattr(scored.predictions, name)[1:] for name in list(vars(scored.predictions))[:6]))
    )
    with pytest.raises(AssertionError, match="3 predictions for 4 lines"):
        submission.write(path, short, flags())
    lossy = submission._write_csv
    monkeypatch.setattr(submission, "_write_csv", lambda file, rows, opt: lossy(file, rows[:-1], opt))
    with pytest.raises(AssertionError, match="does not read back"):
        submission.write(path, scored, flags())
    assert path.read_text() == "old" and not list(tmp_path.glob(".s*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--labels", "name"], "'old, fox' contains --joiner ' ', which .* Try: another --joiner, or --labels number$"),
        (["--joiner", "1"], "The class '1' contains --joiner '1', which separates several in a row. Try: another"),
    ],
)
def test_joiner_within_a_class_is_refused_before_the_networks_run(words, said):
    """Whether the file can be written must not hang on the classes that come out hours later."""
    classes = Classes(3, ["cat", "dog", "old, fox"])
    with pytest.raises(UserError, match=said):
        submission.check_joiner(flags("--top_k", "2", *words), classes)
    submission.check_joiner(flags("--top_k", "2", "--format", "json", "--labels", "name"), classes)
    submission.check_joiner(flags(*words), classes)
    with pytest.raises(UserError, match="The label 'old, fox' contains --joiner ', '"):
        submission.check_joiner(
            flags("--joiner", ", ", "--labels", "name"), Classes(3, classes.names, task="multilabel")
        )


def test_flags_of_the_form_that_change_nothing_are_named(scored, tmp_path, caplog, capsys):
    submission_files.write(tmp_path / "s.csv", scored, flags("--joiner", "|"))
    assert "--joiner has no effect, as each row holds one class. Try: leave it out, or --top_k 2" in caplog.messages
    with pytest.raises(SystemExit):
        flags("--columns", "image", "label", "--no-header")
    assert "--columns and --no-header contradict" in capsys.readouterr().err


def test_pseudo_labels_read_back_as_training_list(scored, tmp_path):
    submission.write_pseudo_labels(tmp_path / "deep" / "p.txt", scored, 0.9)
    files = read_list(tmp_path / "deep" / "p.txt")
    assert files.label.tolist() == [2, 1]
    assert [files.path(k) for k in range(2)] == [str(tmp_path / "a/one.jpg"), str(tmp_path / "b/one.jpg")]
    submission.write_pseudo_labels(tmp_path / "deep" / "p.txt", scored, 0.99)
    assert not (tmp_path / "deep" / "p.txt").exists()


@pytest.mark.parametrize("words", [["--separator", "ab"], ["--separator", '"'], ["--joiner", "", "--top_k", "2"]])
def test_submission_unreadable_form_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        flags(*words)
    assert words[0] in capsys.readouterr().err


def test_submit_writes_provenance_and_pseudo_labels(script, photo_set, small, tmp_path):
    assert script("train.py", "--tag", "run", "--data_root", photo_set, "--epochs", 1, *small).code == 0
    words = "--tag run --load checkpoints/run/last.pt --gpu -1 -w 0 --pseudo_label 0.01".split()
    words += ["--data_root", photo_set]
    assert script("submit.py", *words).code == 0
    found = json.loads((tmp_path / "results/run/submission.provenance.json").read_text())
    for entry, path in (
        (found["members"][0], "checkpoints/run/last.pt"),
        (found["submission"], "results/run/submission.csv"),
    ):
        assert entry["sha256"] == hashlib.sha256((tmp_path / path).read_bytes()).hexdigest()
    assert found["list"]["images"] == found["submission"]["rows"] == 6
    assert found["options"]["tta"] == "none" and found["versions"]["torch"]
    assert found["options"]["precision_used"] == ["fp32"]
    pseudo = tmp_path / "results/run/submission.pseudo.txt"
    assert len(pseudo.read_text().splitlines()) == 6
    again = ["--train_list", pseudo, "--data_root", photo_set, "--num_classes", 3]
    assert script("train.py", "--tag", "next", "--epochs", 1, *again, *small, "-b", 6).code == 0


@pytest.mark.parametrize(
    ("names", "words", "named", "told"),
    [
        ("5 7 9", [], True, True),
        ("1 2 0", [], True, True),
        ("5 7 9", ["--labels", "number"], False, False),
        ("0 1 2", [], False, False),
        ("-1 0 1", [], True, True),
        ("0.5 1.0 10.0", [], True, True),
        ("00 01 02", [], True, True),
        ("5 7 9", ["--labels", "name"], True, False),
        ("5 7 cat", [], False, False),
    ],
)
def test_submit_of_classes_named_by_other_numbers_writes_the_names(
    names, words, named, told, script, photo_set, small, tmp_path
):
    """Class numbers would look like the table's labels, and be wrong."""
    for name in ("train.txt", "val.txt", "test.txt"):
        (tmp_path / name).write_text((photo_set / name).read_text())
    (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in names.split()))
    assert script("train.py", "--tag", "run", "--data_root", tmp_path, "--epochs", 1, *small).code == 0
    common = ["--load", "checkpoints/run/last.pt", "--gpu", -1, "-w", 0]
    columns = []
    for tag, flags in (("own", words), ("numbers", ["--labels", "number"])):
        result = script("submit.py", "--tag", tag, *common, *flags)
        assert result.code == 0, result.err
        with open(f"results/{tag}/submission.csv", newline="") as file:
            columns.append([row["predicted"] for row in csv.DictReader(file)])
        assert ("the submission has the names" in result.out) == (told and tag == "own")
    assert columns[0] == [names.split()[int(number)] if named else number for number in columns[1]]
