"""tools.doctor of lists that hold sets of labels, numbers, or ordered classes."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dataloader.targets import LabelSets, joined
from tools.doctor import command as doctor
from tools.doctor.targets import label_pairs


@pytest.fixture
def examine(colours, tmp_path, capfd):
    """`examine("multilabel", train, val, names)` checks lists of these targets over the pictures of `colours`."""

    def run(task: str, train: list[str], val: list[str], names: str = "") -> SimpleNamespace:
        (tmp_path / "classes.txt").unlink(missing_ok=True)
        if names:
            (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in names.split()))
        pictures = [str(colours / f"{k % 30}.png") for k in range(len(train) + len(val))]
        lines = [f"{path} {target}" for path, target in zip(pictures, [*train, *val], strict=True)]
        paths = []
        for name, part in (("train", lines[: len(train)]), ("val", lines[len(train) :])):
            paths.append(tmp_path / f"{name}.txt")
            paths[-1].write_text("\n".join(part) + "\n")
        words = [*map(str, paths), "--task", task, "--out", str(tmp_path / "out"), "--near", "-1", "--workers", "1"]
        capfd.readouterr()
        code = doctor.main(words)
        out, err = capfd.readouterr()
        summary = json.loads((tmp_path / "out/doctor.json").read_text()) if code < 2 else {}
        rows = Path(tmp_path / "out/doctor.csv").read_text().splitlines() if code < 2 else []
        page = (tmp_path / "out/doctor.html").read_text() if code < 2 else ""
        return SimpleNamespace(code=code, out=out, err=err, summary=summary, text="\n".join(rows), page=page)

    return run


def test_label_pairs_equal_a_count_of_all_pairs():
    rng = np.random.default_rng(0)
    present = rng.random((40, 6)) < 0.3
    found = joined("multilabel", [np.flatnonzero(row).tolist() for row in present])
    pairs, images = label_pairs(LabelSets(found.start, found.label, 6))
    both = present.T.astype(int) @ present
    wanted = {(a, b): both[a, b] for a in range(6) for b in range(a + 1, 6) if both[a, b]}
    assert dict(zip(map(tuple, pairs.tolist()), images.tolist(), strict=True)) == wanted


def test_doctor_of_labels_finds_rare_missing_empty_and_inseparable_ones(examine):
    # 0 on every image; 1 and 2 always together; 3 has one image; 4 in val alone; 5 nowhere, though it has a name
    train = ["0,1,2"] * 4 + ["0,3"] + ["0"] * 9
    done = examine("multilabel", train, ["0,1", "-", "4"], "all a b one late never")
    found = {name: problem["count"] for name, problem in done.summary["problems"].items()}
    assert found == {
        "always_present": 1,
        "always_together": 1,
        "rare_label": 2,
        "single_image": 1,
        "no_label": 1,
        "class_not_in_train": 1,
        "class_not_scored": 2,
        "label_gap": 1,
        "class_names": 1,
    }
    assert "labels 1 (a) and 2 (b) are on the same 4 images" in done.text
    assert "label 0 (all) is on all 14 images" in done.text and "label 1 (a) has 4 images" in done.text
    assert "1 of 3 images have no label (-)" in done.text and "class 5 (never)" in done.text
    first, second = done.summary["lists"]
    assert first["per_image"] == [1, round(23 / 14, 4), 3] and first["without_label"] == 0
    assert first["pairs"][:3] == [["0 (all)", "1 (a)", 4], ["0 (all)", "2 (b)", 4], ["1 (a)", "2 (b)", 4]]
    assert first["classes"]["classes"] == 4 and second["without_label"] == 1
    assert "1 to 3 labels per image" in done.out and "most often together: 0 (all) + 1 (a) (4)" in done.page
    assert done.code == 0


def test_doctor_of_labels_compares_sets_of_copies(examine):
    """The pictures repeat after 30: image 0 is in train with 0,1, and in val with the same set, then with another."""
    train = [("0,1", "0", "1")[k % 3] for k in range(30)]
    same = examine("multilabel", train, ["0,1"])
    assert same.summary["problems"]["leak"]["count"] == 1 and "conflicting_labels" not in same.summary["problems"]
    other = examine("multilabel", train, ["1"])
    assert other.summary["problems"]["conflicting_labels"]["count"] == 1 and "label 0,1 there, 1 here" in other.text
    named = examine("multilabel", train, ["-"], "x y")
    assert "labels x, y<" in named.page and "labels none<" in named.page


def test_doctor_of_numbers_finds_constant_outlying_and_foreign_ones(examine):
    rng = np.random.default_rng(1)
    train = [f"{value:.3f},7,{other:.3f}" for value, other in rng.normal(0, 1, (27, 2))]
    train[4] = "99,7,0"
    val = [f"{value:.3f},7,{value:.3f}" for value in rng.normal(50, 1, 3)]
    done = examine("regression", train, val, "size flat other")
    found = {name: problem["count"] for name, problem in done.summary["problems"].items()}
    assert found == {"constant_number": 1, "outlying_number": 1, "beyond_train": 1}
    assert "flat is 7 for all 27 images" in done.text and "size is 99; half of the images" in done.text
    assert "other: 3 image(s) are outside" in done.text
    numbers = done.summary["lists"][0]["numbers"]
    assert [one["name"] for one in numbers] == ["size", "flat", "other"] and numbers[0]["max"] == 99
    assert "train.txt: flat from 7 to 7" in done.out and "3 number(s)" in done.page
    heads, line = done.out.splitlines()[1:3]
    assert heads.split() == ["list", "images", "errors", "warnings", "numbers"] and line.split()[-1] == "3"
    assert '<th colspan="4">Numbers</th>' in done.page and "Images per class" not in done.page


def test_doctor_of_numbers_with_a_long_tail_or_another_count_says_so(examine):
    values = [*np.linspace(0, 1, 22), 30, 40, 50, 60, 70, 80]
    done = examine("regression", [f"{value:.3f}" for value in values], ["1,2"])
    assert "number 0: 6 of 28 images are below" in done.text
    assert done.summary["problems"]["long_tail"]["count"] == 1 and "outlying_number" not in done.summary["problems"]
    assert "2 number(s) per image; train.txt has 1" in done.text and done.code == 1


def test_doctor_of_ordered_classes_is_that_of_classes(examine):
    train, val = [str(k % 3) for k in range(24)], ["0", "1", "2"]
    assert examine("ordinal", train, val).text == examine("single", train, val).text


def test_doctor_of_ordered_classes_logs_their_order(examine):
    labels = [str(k % 3) for k in range(24)]
    done = examine("ordinal", labels, ["0", "1", "2"], "high low medium")
    assert "classes.txt: high < low < medium" in done.out and "order of the alphabet" in done.out + done.err
    done = examine("ordinal", labels, ["0", "1", "2"], "low medium high")
    assert "classes.txt: low < medium < high" in done.out and "order of the alphabet" not in done.out + done.err
    assert "classes.txt:" not in examine("single", labels, ["0", "1", "2"], "high low medium").out


def test_doctor_without_the_task_names_it(examine):
    done = examine("single", ["0,1", "-"], ["0"])
    assert done.code == 2 and "--task multilabel" in done.err
