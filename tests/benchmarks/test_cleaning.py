"""What cleaning regains: which labels are changed, which lists are trained on, and the arithmetic of the table."""

import json
import os
from pathlib import Path

import pytest

from benchmarks import cleaning, harness
from dataloader.file_list import read_list
from utils.errors import UserError

TRUE = [0, 1, 2, 3] * 25
PAIRS = [[0, 1], [2, 3]]


def test_changed_labels_are_a_share_of_the_list_and_stay_in_their_group():
    changed = cleaning.changed_labels(TRUE, PAIRS, 0.2, 1)
    places = [place for place in range(100) if changed[place] != TRUE[place]]
    assert len(places) == 20
    assert all({changed[place], TRUE[place]} in ({0, 1}, {2, 3}) for place in places)
    assert changed == cleaning.changed_labels(TRUE, PAIRS, 0.2, 1) != cleaning.changed_labels(TRUE, PAIRS, 0.2, 2)
    alone = cleaning.changed_labels(TRUE, [[0, 1]], 0.5, 1)
    assert alone.count(2) == alone.count(3) == 25 and sum(map(int.__ne__, alone, TRUE)) == 50
    with pytest.raises(UserError, match="is 60 images, the groups have 50"):
        cleaning.changed_labels(TRUE, [[0, 1]], 0.6, 1)


@pytest.mark.parametrize("words", ["0", "0,1 1,2", "0,9", "0,cat", ""])
def test_groups_that_are_none_are_refused(words):
    with pytest.raises(UserError, match="--groups"):
        cleaning.read_groups(words.split(), 4)


def test_groups_default_is_all_classes():
    assert cleaning.read_groups(None, 3) == [[0, 1, 2]]
    assert cleaning.read_groups(["0,1", "2,3"], 4) == PAIRS


@pytest.fixture
def root(tmp_path):
    """A folder of lists whose images are never read."""
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "train.txt").write_text("".join(f"images/{k}.png {label}\n" for k, label in enumerate(TRUE)))
    (folder / "val.txt").write_text("images/v.png 1\n")
    return folder


@pytest.fixture
def scripts(monkeypatch):
    """What was run. A training scores the share of its labels that are true; folds find labels 0 to 29."""
    calls = []

    def run_script(words, folder, environ=None):
        calls.append(words)
        tag, lists = (words[words.index(flag) + 1] for flag in ("--tag", "--data_root"))
        files = read_list(Path(lists) / "train.txt")
        names = [files.path(place) for place in range(len(files))]
        if words[0] == "train.py":
            right = sum(TRUE[int(Path(name).stem)] == label for name, label in zip(names, files.label, strict=True))
            (folder / "logs" / tag).mkdir(parents=True)
            (folder / "logs" / tag / "metrics.csv").write_text(f"epoch,val_top1\n0,0\n1,{right / 100}\n")
            return
        found = folder / "results" / tag / "oof"
        found.mkdir(parents=True)
        (found / "label_issues.csv").write_text("path\n" + "".join(f"{name}\n" for name in names[:30]))

    monkeypatch.setattr(harness, "run_script", run_script)
    return calls


def test_cleaning_trains_on_four_lists_per_seed_and_resumes(root, scripts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--data_root", "lists", "--gpu", "-1", "--top", "10", "--share", "0.2", "--groups", "0,1", "2,3"]
    assert cleaning.main([*words, "--seeds", "1"]) == 0
    assert [call[0] for call in scripts] == ["train.py", "train.py", "-m", "train.py", "train.py"]
    changed = cleaning.changed_labels(TRUE, PAIRS, 0.2, 1)
    wrong = [place for place in range(100) if changed[place] != TRUE[place]]
    found = json.loads((tmp_path / "results/cleaning/cleaning.json").read_text())["seeds"]["1"]
    hit = sum(place < 30 for place in wrong)
    assert (found["true"], found["changed"], found["corrected"]) == (1.0, 0.8, pytest.approx(0.8 + hit / 100))
    assert found["dropped"] == pytest.approx((80 - 10 + sum(place < 10 for place in wrong)) / 100)
    assert (found["found"], found["precision"], found["recall"]) == (30, hit / 30, hit / 20)
    lists = tmp_path / "results/cleaning/seed1/lists"
    assert len((lists / "dropped/train.txt").read_text().splitlines()) == 90
    assert read_list(lists / "true/train.txt").path(3) == os.path.abspath(root / "images/3.png")
    assert cleaning.main([*words, "--seeds", "2"]) == 2 and "Try: --resume" in capsys.readouterr().err
    assert cleaning.main([*words, "--seeds", "2", "--resume", "--scale", "64"]) == 2
    assert "measured with another scale. Try: another --out" in capsys.readouterr().err
    before = len(scripts)
    assert cleaning.main([*words, "--seeds", "2", "--resume"]) == 0
    assert len(scripts) == before + 5
    table = (tmp_path / "results/cleaning/cleaning.md").read_text()
    assert "| true, top-1 | 100.00 (100.00–100.00) |  |" in table and "2 seeds" in table


def test_markdown_gives_what_each_list_regains():
    one = {"true": 0.9, "changed": 0.8, "corrected": 0.88, "dropped": 0.82, "precision": 0.5, "recall": 0.7}
    two = {**one, "corrected": 0.84}
    about = {"model": "m", "scale": 32, "epochs": 1, "folds": 3, "device": "cpu", "share": 0.1, "groups": None}
    table = cleaning.markdown({"1": one, "2": two}, about)
    assert "| corrected, top-1 | 86.00 (84.00–88.00) | 60% |" in table
    assert "| dropped, top-1 | 82.00 (82.00–82.00) | 20% |" in table
    assert "groups: all classes" in table and "| recall of the errors found, % | 70.0 (70.0–70.0) | |" in table


def test_run_script_that_fails_gives_the_end_of_its_output(tmp_path):
    (tmp_path / "bad.py").write_text("print('the reason'); raise SystemExit(3)")
    with pytest.raises(UserError, match=r"bad\.py --tag x failed:\nthe reason"):
        harness.run_script([str(tmp_path / "bad.py"), "--tag", "x"], tmp_path)
