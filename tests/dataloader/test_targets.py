"""Lists of labels and numbers: what a line may hold, and what becomes of it."""

import dataclasses
import logging

import numpy as np
import pytest

from dataloader.classes import align_labels, find_classes
from dataloader.file_list import read_list
from utils.errors import UserError


def write(folder, name, *lines, classes=()):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(f"{line}\n" for line in lines))
    if classes:
        (folder / "classes.txt").write_text("".join(f"{one}\n" for one in classes))
    return folder / name


def test_read_list_multilabel_reads_sets(tmp_path):
    files = read_list(write(tmp_path, "a.txt", "a b.jpg 3,17,4", "c.jpg -", "d.jpg\t0  "), task="multilabel")
    assert [files.as_written(k) for k in range(3)] == ["a b.jpg", "c.jpg", "d.jpg"]
    assert [files.targets.of(k).tolist() for k in range(3)] == [[3, 4, 17], [], [0]]
    assert files.label.tolist() == [-1] * 3  # no code for one class per image takes it for one
    part = files.select(np.array([False, True, True]))
    assert [part.targets.of(k).tolist() for k in range(2)] == [[], [0]]
    classes = find_classes(files, None, "multilabel")
    assert classes.count == 18 and classes.train_counts[17] == 1 and classes.task == "multilabel"
    rows = files.with_count(18).batch_targets(np.array([2, 0]))
    assert rows.dtype == np.uint8 and [np.flatnonzero(row).tolist() for row in rows] == [[0], [3, 4, 17]]


@pytest.mark.parametrize("token", ["3,", ",3", "3,3", "-1", "a", "3;4", "1.5", "3,-", "1_0"])
def test_read_list_multilabel_wrong_token_is_refused_with_its_line(tmp_path, token):
    path = write(tmp_path, "a.txt", "a.jpg 1,2", f"b.jpg {token}")
    with pytest.raises(UserError, match=r"a\.txt, line 2.*allowed with --task multilabel"):
        read_list(path, task="multilabel")


def test_read_list_regression_reads_numbers(tmp_path):
    files = read_list(write(tmp_path, "a.txt", "a.jpg 0.37,-12.5", "b.jpg 1e3,.5"), task="regression")
    assert files.targets.tolist() == [[0.37, -12.5], [1000, 0.5]]
    classes = find_classes(files, None, "regression")
    assert classes.count == 2 and classes.mean == [500.185, -6.0] and classes.train_counts is None
    assert files.batch_targets(np.array([1])).dtype == np.float32


@pytest.mark.parametrize("token", ["nan", "inf", "1_0", "1,", "0x1", "1e999", "--1", ""])
def test_read_list_regression_wrong_token_is_refused(tmp_path, token):
    with pytest.raises(UserError, match=r"line 2"):
        read_list(write(tmp_path, "a.txt", "a.jpg 1", f"b.jpg {token}"), task="regression")


def test_read_list_regression_another_count_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"line 2 has other targets than the first line: '1'; allowed: 2"):
        read_list(write(tmp_path, "a.txt", "a.jpg 1,2", "b.jpg 1"), task="regression")


@pytest.mark.parametrize(("token", "task"), [("3,17", "multilabel"), ("-", "multilabel"), ("0.5", "regression")])
def test_read_list_single_names_the_task_of_such_a_list(tmp_path, token, task):
    with pytest.raises(UserError, match=f"train.py --task {task}"):
        read_list(write(tmp_path, "a.txt", f"a.jpg {token}"))


def test_align_labels_multilabel_renumbers_by_name(tmp_path):
    train = read_list(write(tmp_path / "t", "train.txt", "a.jpg 0,1", classes=("x", "y", "z")), task="multilabel")
    classes = find_classes(train, None, "multilabel")
    val = read_list(
        write(tmp_path / "v", "val.txt", "b.jpg 0,2", "c.jpg -", classes=("z", "x", "y")), task="multilabel"
    )
    aligned = align_labels(val, classes, "the checkpoint")
    assert [aligned.targets.of(k).tolist() for k in range(2)] == [[1, 2], []] and aligned.targets.count == 3


def test_align_labels_regression_reorders_columns_by_name(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("classifier"), "propagate", True)
    caplog.set_level(logging.INFO)
    train = read_list(
        write(tmp_path / "t", "train.txt", "a.jpg 1,2", "b.jpg 3,5", classes=("w", "h")), task="regression"
    )
    classes = find_classes(train, None, "regression")
    val = read_list(write(tmp_path / "v", "val.txt", "c.jpg 7,8", classes=("h", "w")), task="regression")
    assert align_labels(val, classes, "the checkpoint").targets.tolist() == [[8, 7]]
    assert "has the numbers in another order than the checkpoint; they are matched by name (2 of 2" in caplog.text
    other = read_list(write(tmp_path / "o", "val.txt", "c.jpg 7,8", classes=("h", "depth")), task="regression")
    with pytest.raises(UserError, match="whose numbers are not those of the checkpoint: 1 of its 2 names"):
        align_labels(other, classes, "the checkpoint")
    align_labels(val, dataclasses.replace(classes, names=None), "the checkpoint")
    assert "classes" not in "".join(caplog.messages).replace("classes.txt", "")


def test_find_classes_multilabel_with_names_of_another_count_is_refused(tmp_path):
    files = read_list(write(tmp_path, "a.txt", "a.jpg 0,1", classes=("x", "y", "z")), task="multilabel")
    with pytest.raises(UserError, match="names 3 labels, --num_classes is 2.\nGive one line per label"):
        find_classes(files, 2, "multilabel")


def test_align_labels_label_out_of_range_is_refused_with_its_line(tmp_path):
    train = read_list(write(tmp_path / "t", "train.txt", "a.jpg 0,1"), task="multilabel")
    val = read_list(write(tmp_path / "v", "val.txt", "b.jpg 0", "c.jpg 1,5"), task="multilabel")
    with pytest.raises(UserError, match=r"val\.txt, line 2: the label is 5; allowed: 0 to 1"):
        align_labels(val, find_classes(train, None, "multilabel"), "the checkpoint")


def test_find_classes_constant_target_is_refused(tmp_path):
    files = read_list(write(tmp_path, "a.txt", "a.jpg 1,2", "b.jpg 1,3"), task="regression")
    with pytest.raises(UserError, match="Target 0 is 1 for all 2 images"):
        find_classes(files, None, "regression")


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([f"{k}.jpg 0.1" for k in range(7)], "Target 0 is 0.1 for all 7 images"),
        ([f"{k}.jpg {1e8 + k / 7}" for k in range(7)], "float32 does not hold that"),
    ],
)
def test_find_classes_number_that_float32_cannot_tell_apart_is_refused(tmp_path, lines, problem):
    files = read_list(write(tmp_path, "a.txt", *lines), task="regression")
    with pytest.raises(UserError, match=problem):
        find_classes(files, None, "regression")


@pytest.mark.parametrize("label", [1_000, 30_000_000])
def test_find_classes_mistyped_label_is_no_thousand_labels(tmp_path, label):
    files = read_list(write(tmp_path, "a.txt", "a.jpg 1,2", f"b.jpg 2,{label}"), task="multilabel")
    with pytest.raises(UserError, match=rf"line 2: the label is {label}, which makes {label + 1} labels for 2 image"):
        find_classes(files, None, "multilabel")
    assert find_classes(files, label + 1, "multilabel").count == label + 1


def test_find_classes_multilabel_from_one_is_asked_about(tmp_path, caplog):
    find_classes(read_list(write(tmp_path, "a.txt", "a.jpg 1,2", "b.jpg 3"), task="multilabel"), None, "multilabel")
    assert "1 of 4 labels have no image" in caplog.text and "Do the labels start at 1?" in caplog.text


@pytest.mark.parametrize(
    ("token", "said"), [("1 ,2", "Write no space beside the commas"), ("1,1234567890", "A label has at most 9 digits")]
)
def test_read_list_multilabel_names_the_fault_of_a_token(tmp_path, token, said):
    with pytest.raises(UserError, match=f"line 1: the target is .*{said}"):
        read_list(write(tmp_path, "a.txt", f"a.jpg {token}"), task="multilabel")


@pytest.mark.parametrize(("label", "said"), [("99999999999", ", at most 9 digits"), ("x", r"\.$")])
def test_read_list_label_of_too_many_digits_names_the_limit(tmp_path, label, said):
    with pytest.raises(UserError, match=f"line 1: the label is '{label}'; allowed: a whole number from 0{said}"):
        read_list(write(tmp_path, "a.txt", f"a.jpg {label}"))


def test_fingerprint_and_hash_change_with_the_targets(tmp_path):
    lists = [read_list(write(tmp_path, f"{k}.txt", f"a.jpg {k}", "b.jpg 1"), task="multilabel") for k in ("0", "1")]
    assert lists[0].fingerprint() != lists[1].fingerprint()
    assert lists[0].content_hash() != lists[1].content_hash()
