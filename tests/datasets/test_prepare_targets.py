"""Lists of several labels and of numbers: from tables and packages, with splits that spread labels and numbers."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dataloader.listing.lists import ImageList
from dataloader.listing.splits import SplitPlan, split
from dataloader.listing.target_splits import iterative_folds, quantile_bins
from tools.prepare.drawings import Drawing, LeftOut, all_labels
from tools.prepare.elpv import read_labels
from tools.prepare.label_sets import find_label_sets


def lines(path: Path) -> list[tuple[str, str]]:
    return [
        (Path(one).name, target) for one, _, target in (line.rpartition(" ") for line in path.read_text().splitlines())
    ]


@pytest.fixture
def table(tmp_path) -> Path:
    rows = [
        f"{k}.jpg,{';'.join(names)},{k / 10},{k % 3}"
        for k, names in enumerate([["cat", "dog"], ["cat"], [], ["dog ", " owl"]] * 10)
    ]
    (tmp_path / "t.csv").write_text("file,tags,weight,height\n" + "\n".join(rows) + "\n")
    for k in range(40):
        (tmp_path / f"{k}.jpg").touch()
    return tmp_path / "t.csv"


def test_prepare_csv_label_separator_writes_sets(table, prepare):
    out = table.parent / "out"
    words = ["csv", str(table), "--path_column", "file", "--label_column", "tags", "--label_separator", ";"]
    assert prepare.main([*words, "--out", str(out), "--val", "0.25", "--check"]) == 0
    assert (out / "classes.txt").read_text() == "cat\ndog\nowl\n"
    found = dict(lines(out / "train.txt") + lines(out / "val.txt"))
    assert len(found) == 40 and [found[f"{k}.jpg"] for k in range(4)] == ["0,1", "0", "-", "1,2"]
    held = Counter(target for _, target in lines(out / "val.txt"))
    assert sum(held.values()) == 10 and all(2 <= held[target] <= 3 for target in ("0,1", "0", "-", "1,2"))


def test_prepare_csv_label_separator_that_separates_nothing_warns(table, prepare, capfd):
    words = ["csv", str(table), "--path_column", "file", "--label_column", "tags", "--out", str(table.parent / "out")]
    assert prepare.main([*words, "--label_separator", "|"]) == 0
    said = "".join(capfd.readouterr())
    assert "no row has two labels with --label_separator '|'" in said and "'tags' is 'cat;dog'" in said
    assert prepare.main([*words, "--label_separator", ";"]) == 0
    assert "no row has two labels" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        ("blue;bar blue bar red;blue box;red".split(), ";"),
        ("red;blue blue;green green;red red;blue;green".split(), ";"),  # no label is a cell
        ("a|b a b|c c a".split(), "|"),
        (["red; blue", "blue", "red;red"], ";"),
        (["cat, dog", "cat", "dog", "owl", "owl, cat"], ","),
        (["cat dog", "cat", "dog", "owl", "owl cat"], " "),
        (["Dress, red", "Dress, blue", "Shirt, red", "Shirt, blue", "Dress"], None),
        (["hot dog", "hot", "dog", "golden retriever"], None),
        (["ice cream", "ice", "cream"], None),  # one such name
        (["tench, Tinca tinca", "goldfish, Carassius auratus", "ray"], None),
        (["animal|cat", "animal|dog", "plant|oak"], None),  # a hierarchy
        (["a;", "a", ";b", "b"], None),
        (["0,5", "1,5", "2,5"], None),  # decimal commas
        ([], None),
    ],
)
def test_find_label_sets_tells_sets_from_names(cells, separator):
    found = find_label_sets(cells)
    assert (found and found.separator) == separator
    assert found is None or (separator in found.example and found.example in cells)


def test_prepare_csv_combinations_of_labels_as_classes_warn(table, prepare, capfd):
    words = ["csv", str(table), "--path_column", "file", "--label_column", "tags", "--out", str(table.parent / "out")]
    assert prepare.main(words) == 2
    said = "".join(capfd.readouterr())
    assert "line 4 has no label in column 'tags'" in said and "'cat;dog' seem to hold several labels" in said
    assert 'Try: --label_separator ";", for --task multilabel' in said
    table.write_text("".join(line for line in table.open() if ",," not in line).replace("dog ; owl", "dog"))
    assert prepare.main(words) == 0
    said = "".join(capfd.readouterr())
    assert "'tags' such as 'cat;dog' seem to hold several labels, and each combination becomes a class" in said
    assert ", 3 in all." in said and 'Try: --label_separator ";"' in said
    assert prepare.main([*words, "--label_separator", ";"]) == 0
    assert "seem to hold several" not in "".join(capfd.readouterr())


def test_prepare_csv_missing_label_of_a_single_column_mentions_the_separator(table, prepare, capfd):
    table.write_text("file,tags\n0.jpg,cat\n1.jpg,\n2.jpg,dog\n")
    words = ["csv", str(table), "--path_column", "file", "--label_column", "tags", "--out", str(table.parent / "out")]
    assert prepare.main(words) == 2
    said = "".join(capfd.readouterr())
    assert "line 3 has no label" in said and "or none, try: --label_separator SIGN" in said


def test_prepare_keep_labels_with_several_labels_names_the_separator(table, prepare, capfd):
    table.write_text("file,tags\n0.jpg,0|1\n1.jpg,0\n2.jpg,1\n")
    words = ["csv", str(table), "--path_column", "file", "--label_column", "tags", "--keep_labels"]
    assert prepare.main([*words, "--out", str(table.parent / "out")]) == 2
    assert 'Try: --label_separator "|"' in "".join(capfd.readouterr())


def test_prepare_csv_target_columns_writes_numbers(table, prepare):
    out = table.parent / "out"
    words = ["csv", str(table), "--path_column", "file", "--target_columns", "weight", "height"]
    assert prepare.main([*words, "--out", str(out), "--val", "0.25"]) == 0
    assert (out / "classes.txt").read_text() == "weight\nheight\n"
    found = dict(lines(out / "train.txt") + lines(out / "val.txt"))
    assert [found[f"{k}.jpg"] for k in (0, 17)] == ["0.0,0.0", "1.7,2.0"]
    held = sorted(float(target.split(",")[0]) for _, target in lines(out / "val.txt"))
    assert len(held) == 10 and held[0] < 1 and held[-1] > 3  # of all quantiles


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ("--target_columns weight --label_column tags", "--target_columns and --label_column contradict"),
        ("--target_columns tags", "line 2: 'cat;dog' is no finite number"),
        ("--label_column tags --label_separator ; --keep_labels", "does not go with --keep_labels"),
        ("--target_columns size", "size"),
    ],
)
def test_prepare_csv_targets_that_contradict_are_refused(table, prepare, capsys, flags, problem):
    words = ["csv", str(table), "--path_column", "file", *flags.split(), "--out", str(table.parent / "out")]
    try:
        code = prepare.main(words)
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and problem in capsys.readouterr().err
    assert not (table.parent / "out" / "train.txt").exists()


def test_prepare_csv_repeated_image_with_other_labels_is_left_out(tmp_path, prepare, capsys):
    (tmp_path / "t.csv").write_text("file,tags\na.jpg,x\na.jpg,x;y\nb.jpg,y\nc.jpg,x\n")
    words = [
        "csv",
        str(tmp_path / "t.csv"),
        "--path_column",
        "file",
        "--label_column",
        "tags",
        "--label_separator",
        ";",
    ]
    assert prepare.main([*words, "--val", "0", "--out", str(tmp_path)]) == 0
    assert lines(tmp_path / "train.txt") == [("b.jpg", "1"), ("c.jpg", "0")]
    assert "two different labels" in capsys.readouterr().out


def test_iterative_folds_spread_rare_labels_and_keep_groups():
    rng = np.random.default_rng(0)
    rates = np.array([0.5, 0.3, 0.1, 0.03, 0.015])
    present = rng.random((600, 5)) < rates
    sets = [np.flatnonzero(row).tolist() for row in present]
    alone = np.arange(600)
    fold = iterative_folds(sets, alone, [0.2] * 5, seed=1)
    assert np.bincount(fold).tolist() == pytest.approx([120] * 5, abs=6)
    for label in range(5):
        counts = np.bincount(fold[present[:, label]], minlength=5)
        assert counts.max() - counts.min() <= 1 + 0.1 * counts.mean(), (label, counts)
    assert (iterative_folds(sets, alone, [0.2] * 5, seed=1) == fold).all()
    assert (iterative_folds(sets, alone, [0.2] * 5, seed=2) != fold).any()
    groups = alone // 4
    fold = iterative_folds(sets, groups, [0.25, 0.75], seed=1)
    assert all(len(set(fold[groups == group])) == 1 for group in range(150))
    assert (fold == 0).sum() == pytest.approx(150, abs=12)


def test_split_regression_spreads_quantiles_and_keeps_groups():
    values = [[float(k)] for k in range(100)]
    assert np.bincount(quantile_bins(values)).tolist() == [10] * 10
    images = ImageList([f"/{k:03d}.jpg" for k in range(100)], None, values=values)
    held = split(images, SplitPlan(0.2, None, None, 3))["val"]
    assert np.bincount([int(value) // 10 for (value,) in held.values], minlength=10).tolist() == [2] * 10
    images.groups = [str(k // 5) for k in range(100)]
    parts = split(images, SplitPlan(0.2, None, None, 3))
    assert not {*parts["train"].groups} & {*parts["val"].groups}


def test_read_labels_elpv_severity_and_probability_have_four_degrees(tmp_path):
    (tmp_path / "images").mkdir()
    rows = [
        ("a", "0.0", "mono"),
        ("b", "0.3333333333333333", "poly"),
        ("c", "0.6666666666666666", "mono"),
        ("d", "1.0", "poly"),
    ]
    for name, _, _ in rows:
        (tmp_path / "images" / f"{name}.png").touch()
    (tmp_path / "labels.csv").write_text("".join(f"images/{name}.png {p} {kind}\n" for name, p, kind in rows))
    found = {
        target: list(read_labels(tmp_path / "labels.csv", target).values())
        for target in ("severity", "probability", "defect")
    }
    assert found == {"severity": [0, 1, 2, 3], "probability": [0, 1, 2, 3], "defect": [0, 1, 1, 1]}


def test_all_labels_of_drawings_are_the_folders_of_all_copies():
    def drawing(*names):
        return Drawing(list(names), b"", b"", np.zeros(1, np.float32), 1.0)

    left_out = LeftOut()
    drawings = [
        drawing("a/b/1.png", "c/1.png"),
        drawing("a/b/2.png"),
        drawing("a/3.png"),
        drawing("d/4.png"),
        drawing("5.png"),
    ]
    names, found = all_labels(drawings, 2, left_out)
    assert names == ["a", "a/b"]
    assert [(one.names[0], sorted(labels)) for one, labels in found] == [
        ("a/b/1.png", ["a", "a/b"]),
        ("a/b/2.png", ["a", "a/b"]),
        ("a/3.png", ["a"]),
    ]
    assert sorted(name for name, _, _ in left_out.rows) == ["5.png", "c/1.png", "d/4.png"]
