"""datasets/clean.py without a person: the likeliest label errors, the doctor's copies and leaks, and the record."""

import csv
from pathlib import Path

import cv2
import pytest

from dataloader.file_list import read_list
from tools.doctor import command as doctor
from tools.prepare import clean
from tools.prepare.clean_copies import read_copies
from utils.errors import UserError

ISSUES = [  # a person has decided on the second
    ("b.png", 1, "", 0, "0.200000"),
    ("c.png", 2, "keep", 1, "0.000001"),
    ("d.png", 0, "", 2, "0.010000"),
    ("e.png", 1, "", "", "0.300000"),
]


@pytest.fixture
def train(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("".join(f"{name}.png {label}\n" for name, label in zip("abcde", (0, 1, 2, 0, 1), strict=True)))
    return path


@pytest.fixture
def issues(tmp_path):
    path = tmp_path / "label_issues.csv"
    rows = [",".join(map(str, (tmp_path / row[0], *row[1:]))) for row in ISSUES]
    path.write_text("\n".join(["path,label,action,new_label,quality", *rows, ""]))
    return path


def cleaned(train, *words):
    """Clean the list; the code, and the new list."""
    out = train.parent / "new.txt"
    code = clean.main([str(train), "--out", str(out), *map(str, words)])
    return code, out.read_text().splitlines() if out.exists() else None


def record(folder) -> list[dict[str, str]]:
    with open(folder / "new.decisions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_clean_top_drops_the_likeliest_that_nobody_decided_on(train, issues, tmp_path):
    assert cleaned(train, "--decisions", issues, "--top", 2) == (0, ["a.png 0", "b.png 1", "c.png 2", "e.png 1"])
    found = record(tmp_path)
    assert [(Path(row["path"]).stem, row["action"], row["reason"]) for row in found] == [
        ("c", "keep", "decided by hand"),
        ("d", "drop", "likely label error 2 (quality 0.010000)"),
    ]


def test_clean_top_relabels_by_the_suggestion(train, issues, capsys):
    words = ["--decisions", issues, "--action", "relabel"]
    assert cleaned(train, *words, "--top", 3) == (0, ["a.png 0", "b.png 0", "c.png 2", "d.png 2", "e.png 1"])
    assert cleaned(train, *words, "--top", 9)[0] == 2  # the last has no suggestion
    assert "line 5: label '1', new_label ''" in capsys.readouterr().err


def test_clean_record_is_a_file_of_decisions(train, issues, tmp_path):
    _, first = cleaned(train, "--decisions", issues, "--top", 3, "--action", "relabel")
    again = tmp_path / "mine.csv"
    (tmp_path / "new.decisions.csv").rename(again)
    assert cleaned(train, "--decisions", again) == (0, first)
    assert not (tmp_path / "new.decisions.csv").exists()


def test_clean_into_another_folder_takes_the_class_names_along(train, issues, tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("1\n2\n3\n")
    out = tmp_path / "other/new.txt"
    words = [str(train), "--decisions", str(issues), "--top", "2", "--out", str(out)]
    for _ in range(2):
        assert clean.main(words) == 0 and (tmp_path / "other/classes.txt").read_text() == "1\n2\n3\n"
    before = out.read_bytes()
    (tmp_path / "other/classes.txt").write_text("a\nb\nc\n")
    assert clean.main(words) == 2 and "names other classes than" in capsys.readouterr().err
    (tmp_path / "classes.txt").unlink()
    assert clean.main(words) == 0 and "get the names in" in "".join(capsys.readouterr())
    assert out.read_bytes() == before and (tmp_path / "other/classes.txt").read_text() == "a\nb\nc\n"


def test_clean_does_not_write_a_list_over_class_names(train, issues, tmp_path, capsys):
    """`class 1` looks like a line of a list, so the names were replaced by one."""
    names = tmp_path / "classes.txt"
    names.write_text("class 1\nclass 2\nclass 3\n")
    for out in (names, tmp_path / "other/classes.txt"):
        words = [str(train), "--decisions", str(issues), "--top", "2", "--out", str(out), "--force"]
        assert clean.main(words) == 2
        assert f"Try: --out {out.with_name('train_clean.txt')}" in capsys.readouterr().err
    assert names.read_text() == "class 1\nclass 2\nclass 3\n" and not (tmp_path / "other").exists()
    (tmp_path / "link.txt").symlink_to(names)
    assert clean.main([*words[:-3], "--out", str(tmp_path / "link.txt")]) == 2
    assert "is the same file as" in capsys.readouterr().err and names.read_text().startswith("class 1")


@pytest.fixture
def twice(tmp_path):
    """A list that has one image in two lines, under two spellings of its path."""
    path = tmp_path / "train.txt"
    path.write_text(f"b.png 0\na.png 1\n{tmp_path}/./b.png 0\n")
    return path


@pytest.mark.parametrize(
    ("row", "expected"), [("drop,", ["a.png 1"]), ("relabel,1", ["b.png 1", "a.png 1", "{}/./b.png 1"])], ids=str
)
@pytest.mark.parametrize("top", [[], ["--top", 3]], ids=["by hand", "top"])
def test_clean_changes_every_line_of_an_image(twice, row, expected, top, tmp_path, capsys):
    """The last line was dropped or relabelled, and the others stayed."""
    action, new = row.split(",")
    head, tail = "path,label,action,new_label,quality", f"{tmp_path}/a.png,1,keep,,0.1"
    lines = [f"{tmp_path}/b.png,0,{'' if top else action},{new},0.{k}" for k in (1, 2)]  # one row per line of the list
    (tmp_path / "d.csv").write_text("\n".join([head, *lines, tail]))
    words = ["--decisions", tmp_path / "d.csv", *top, *(["--action", action] if top else [])]
    assert cleaned(twice, *words) == (0, [line.format(tmp_path) for line in expected])
    assert f"2 {'dropped' if action == 'drop' else 'relabelled'}" in capsys.readouterr().out


def test_clean_label_beyond_the_names_of_the_classes_is_refused(train, tmp_path, capsys):
    """It was written, and train.py refused the list."""
    (tmp_path / "classes.txt").write_text("x\ny\nz\n")
    (tmp_path / "d.csv").write_text(f"path,label,action,new_label\n{tmp_path}/a.png,0,relabel,3\n")
    assert cleaned(train, "--decisions", tmp_path / "d.csv") == (2, None)
    assert "a.png gets new_label 3, and" in (said := capsys.readouterr().err) and "allowed: 0 to 2" in said


def test_clean_of_an_image_with_two_labels_is_refused(twice, tmp_path, capsys):
    for second in ("b.png 0\nb.png 1\n", "b.png 1\nb.png 0\n"):
        twice.write_text(second)
        (tmp_path / "d.csv").write_text(f"path,label,action,new_label\n{tmp_path}/b.png,0,drop,\n")
        assert cleaned(twice, "--decisions", tmp_path / "d.csv") == (2, None)
        assert "the list has it with other labels too: 1 in" in capsys.readouterr().err


def test_clean_top_leaves_an_image_that_a_person_decided_on_in_another_row(twice, tmp_path):
    head = "path,label,action,new_label,quality"
    rows = [f"{tmp_path}/b.png,0,,1,0.1", f"{tmp_path}/b.png,0,keep,,0.1"]
    for order in (rows, rows[::-1]):
        (tmp_path / "d.csv").write_text("\n".join([head, *order]))
        code, lines = cleaned(twice, "--decisions", tmp_path / "d.csv", "--top", 2)
        assert code == 0 and len(lines) == 3


def test_clean_warns_of_a_record_of_an_earlier_run(train, issues, tmp_path, capsys):
    """It stayed beside a list that it does not explain."""
    cleaned(train, "--decisions", issues, "--top", 2)
    (tmp_path / "d.csv").write_text(f"path,label,action,new_label\n{tmp_path}/b.png,1,drop,\n")
    said = f"{tmp_path}/new.decisions.csv is of an earlier run"
    capsys.readouterr()
    assert cleaned(train, "--decisions", tmp_path / "d.csv")[0] == 0 and said in capsys.readouterr().out
    assert cleaned(train, "--decisions", tmp_path / "new.decisions.csv")[0] == 0 and said not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--decisions is needed"),
        (["--top", "3"], "--decisions is needed"),
        (["--doctor", "d.csv", "--top", "3"], "--top needs --decisions"),
        (["--decisions", "d.csv", "--top", "0"], "--top is 0; allowed: 1 or more"),
        (["--decisions", "d.csv", "--action", "drop"], "--action says what --top does"),
        (["--doctor", "none.csv"], "--doctor none.csv cannot be read"),
    ],
)
def test_clean_flags_that_do_not_fit_are_refused(train, words, said, capsys):
    assert cleaned(train, *words) == (2, None)
    assert said in capsys.readouterr().err


def test_clean_top_without_quality_is_refused(train, tmp_path, capsys):
    (tmp_path / "bare.csv").write_text(f"path,label,action,new_label\n{tmp_path}/b.png,1,,0\n")
    assert cleaned(train, "--decisions", tmp_path / "bare.csv", "--top", 1) == (2, None)
    assert "needed: path, label, action, new_label, quality" in capsys.readouterr().err


# ------------------------------------------------------------------------ the doctor's findings


@pytest.fixture
def checked(tmp_path, photos):
    """Write train.txt (a copy of image 0, one with another label, an image of val.txt) and the doctor's findings."""
    for name, photo in zip(("a", "b", "c", "copy", "twin", "v"), (0, 1, 2, 0, 1, 2), strict=True):
        cv2.imwrite(str(tmp_path / f"{name}.png"), photos[photo][:64, :64])
    (tmp_path / "train.txt").write_text("a.png 0\nb.png 1\nc.png 2\ncopy.png 0\ntwin.png 2\n")
    (tmp_path / "val.txt").write_text("v.png 2\n")
    words = [str(tmp_path / name) for name in ("train.txt", "val.txt")]
    assert doctor.main([*words, "--out", str(tmp_path / "out"), "--near", "-1"]) == 1
    return tmp_path / "train.txt"


def test_clean_doctor_drops_copies_and_leaks_and_marks_conflicts(checked, tmp_path, capsys):
    found = cleaned(checked, "--doctor", tmp_path / "out/doctor.csv")
    assert found == (0, ["a.png 0", "b.png 1", "twin.png 2"])
    rows = [(Path(row["path"]).stem, row["action"], row["reason"].partition(": /")[0]) for row in record(tmp_path)]
    assert rows == [
        ("b", "", "conflicting_labels: train.txt, line 5"),
        ("c", "drop", "leak: val.txt, line 1"),
        ("copy", "drop", "duplicate: train.txt, line 1"),
        ("twin", "", "conflicting_labels: train.txt, line 2"),
    ]
    assert "2 images with a copy of another label" in capsys.readouterr().out


def test_clean_person_decides_over_the_doctor_and_doctor_over_top(checked, tmp_path):
    rows = [("c.png", 2, "keep", "", "0.1"), ("copy.png", 0, "", 1, "0.2")]
    text = "\n".join(",".join(map(str, (tmp_path / name, *rest))) for name, *rest in rows)
    (tmp_path / "d.csv").write_text(f"path,label,action,new_label,quality\n{text}\n")
    words = ["--decisions", tmp_path / "d.csv", "--top", 2, "--action", "relabel"]
    found = cleaned(checked, *words, "--doctor", tmp_path / "out/doctor.csv")
    assert found == (0, ["a.png 0", "b.png 1", "c.png 2", "twin.png 2"])


def test_clean_doctor_of_a_changed_list_is_refused(checked, tmp_path):
    checked.write_text("b.png 1\na.png 0\nc.png 2\ncopy.png 0\ntwin.png 2\n")
    with pytest.raises(UserError, match="is no longer .*b.png. The list has changed since"):
        read_copies(tmp_path / "out/doctor.csv", read_list(checked))


def test_clean_a_table_with_an_open_quotation_mark_is_refused(checked, issues, tmp_path, capsys):
    for path, line, words in (
        (issues, 3, ("--decisions", issues)),
        (found := tmp_path / "out/doctor.csv", 2, ("--doctor", found)),
    ):
        rows = path.read_text().splitlines(keepends=True)
        path.write_text("".join([*rows[: line - 1], f'"{rows[line - 1]}', *rows[line:]]))
        assert cleaned(checked, *words)[0] == 2
        assert f"{path}, line {line} is not CSV" in capsys.readouterr().err


def test_clean_doctor_without_a_word_on_the_list_is_a_warning(checked, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text("a.png 0\n")
    assert clean.main([str(other), "--doctor", str(tmp_path / "out/doctor.csv"), "--out", str(tmp_path / "o.txt")]) == 0
    assert "has no finding about" in capsys.readouterr().out
