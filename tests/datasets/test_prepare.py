"""`datasets/prepare.py`: lists from folders, CSV and JSON; classes, splits, groups, folds; what a mistake is told."""

import collections
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import unicodedata
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from conftest import ROOT
from dataloader.file_list import read_list


class Made(NamedTuple):
    """How a call ended, what it said, and the lists that lie in the folder out/ then: {path below tmp_path: label}."""

    code: int
    said: str
    train: dict
    val: dict
    test: list
    classes: list


@pytest.fixture
def make(prepare, tmp_path, monkeypatch, capfd):
    """`make("folder", "photos")` runs prepare.py in tmp_path, with --out out."""
    monkeypatch.chdir(tmp_path)

    def run(*words, out="out"):
        capfd.readouterr()
        try:
            code = prepare.main([*map(str, words), "--out", out])
        except SystemExit as stop:
            code = stop.code
        said = "".join(capfd.readouterr())
        assert "Traceback" not in said
        lists = {
            name: listed(tmp_path / out / f"{name}.txt", tmp_path, name != "test") for name in ("train", "val", "test")
        }
        classes = tmp_path / out / "classes.txt"
        names = classes.read_text(encoding="utf-8").splitlines() if classes.is_file() else []
        return Made(code, said, lists["train"], lists["val"], list(lists["test"]), names)

    return run


def listed(path, below, labelled):
    if not path.is_file():
        return {}
    files = read_list(path, labelled)
    found = {os.path.relpath(files.path(k), below): int(files.label[k]) for k in range(len(files))}
    assert len(found) == len(files), "a path stands twice"
    return found


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def photos_of(tmp_path, sizes, root="photos"):
    """A folder of class folders, of so many (empty) images."""
    touch(tmp_path / root, *(f"{name}/{name}_{k:03}.jpg" for name, size in sizes.items() for k in range(size)))


def table(tmp_path, text, name="list.csv"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return name


COLUMNS = ("--path_column", "image", "--label_column", "label")


def wrong(made, *parts):
    """The call was refused: exit code 2, one message that holds `parts`, nothing written."""
    assert made.code == 2, made.said
    assert made.said.count("error:") == 1
    assert not made.train and not made.val and not made.classes
    for part in parts:
        assert part in made.said, made.said


# ------------------------------------------------------------------------ folders


def test_prepare_folder_writes_stratified_lists(make, tmp_path):
    photos_of(tmp_path, {"shoe": 10, "bag": 20, "一 双, 鞋": 30})
    made = make("folder", "photos", "--val", 0.1)
    assert made.code == 0 and made.classes == ["bag", "shoe", "一 双, 鞋"]
    assert sorted(collections.Counter(made.val.values()).items()) == [(0, 2), (1, 1), (2, 3)]
    assert len(made.train) == 54 and not set(made.train) & set(made.val)
    assert all(made.classes[label] == path.split("/")[1] for path, label in {**made.train, **made.val}.items())
    assert "54 images of 3 classes, from 9 ('shoe') to 27 ('一 双, 鞋') per class" in made.said


def test_prepare_val_0_writes_no_val_list(make, tmp_path):
    photos_of(tmp_path, {"a": 3, "b": 3})
    made = make("folder", "photos", "--val", 0)
    assert made.code == 0 and not (tmp_path / "out/val.txt").exists() and "val.txt was written" in made.said
    (tmp_path / "out/val.txt").write_text("/a.jpg 0\n")
    assert "of an earlier run" in make("folder", "photos", "--val", 0).said


def test_prepare_warns_of_old_lists_that_share_images_with_the_new_ones(make, tmp_path):
    """The old test.txt stayed, and its images were in the new train.txt."""
    photos_of(tmp_path, {"a": 10, "b": 10})
    photos_of(tmp_path, {"c": 2}, root="new")
    assert "of an earlier run" not in make("folder", "photos", "--val", 0.2, "--test", "new").said
    said = make("folder", "photos", "--val", 0.2).said
    assert f"{tmp_path}/out/test.txt is of an earlier run. Delete it if" in said and "images are in" not in said
    assert "of an earlier run" not in make("folder", "photos", "--val", 0.2, "--test", "photos/a").said
    said = make("folder", "photos", "--val", 0).said
    assert "test.txt is of an earlier run, and 10 of its 10 images are in the new lists too" in said
    assert "val.txt is of an earlier run, and 4 of its 4 images are in the new lists too" in said
    (tmp_path / "out/test.txt").unlink()
    rows = "".join(f"{path.relative_to(tmp_path)},a\n" for path in sorted((tmp_path / "photos/a").iterdir()))
    said = make("csv", table(tmp_path, f"image,label\n{rows}"), *COLUMNS, "--part", "test").said
    assert "train.txt is of an earlier run, and 10 of its 20 images are in the new lists too" in said


def test_prepare_non_images_are_skipped_and_counted(make, tmp_path):
    touch(
        tmp_path / "photos",
        ".DS_Store",
        "a/.DS_Store",
        "a/._x.jpg",
        "a/Thumbs.db",
        ".git/x.jpg",
        "b/.cache/y.jpg",
        "readme.md",
        "loose.jpg",
    )
    touch(
        tmp_path / "photos",
        "a/UPPER.JPG",
        "a/deep/er/x y.Jpeg",
        "a/notes.txt",
        "b/b.png",
        "b/line\nbreak.png",
        "empty/x.doc",
    )
    touch(tmp_path / "elsewhere", "linked.webp", "dir/in_linked_folder.bmp")
    (tmp_path / "photos/b/link.webp").symlink_to(tmp_path / "elsewhere/linked.webp")
    (tmp_path / "photos/b/nowhere.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "photos/b/round").symlink_to(tmp_path / "photos/b")
    (tmp_path / "photos/b/itself").symlink_to("itself")
    (tmp_path / "photos/c").symlink_to(tmp_path / "elsewhere/dir")
    made = make("folder", "photos", "--val", 0)
    images = ["a/UPPER.JPG", "a/deep/er/x y.Jpeg", "b/b.png", "b/link.webp", "c/in_linked_folder.bmp"]
    assert list(made.train) == [f"photos/{name}" for name in images]
    assert made.classes == ["a", "b", "c", "empty"]
    assert "holds no image" in made.said
    assert "1 of 4 classes have no image" in made.said
    for text in (
        "6 hidden",
        "2 file(s) skipped, which are in no class folder",
        "lead nowhere",
        "1 path(s) left out",
        "a second time",
    ):
        assert text in made.said, text
    assert "3 file(s) skipped, which are not images by their suffix" in made.said


def test_prepare_val_root_uses_training_labels(make, tmp_path):
    photos_of(tmp_path, {"a": 2, "b": 2, "c": 2})
    photos_of(tmp_path, {"b": 1, "c": 2}, "held")
    made = make("folder", "photos", "--val_root", "held")
    assert made.val == {"held/b/b_000.jpg": 1, "held/c/c_000.jpg": 2, "held/c/c_001.jpg": 2} and len(made.train) == 6
    photos_of(tmp_path, {"bb": 1}, "held")
    wrong(
        make("folder", "photos", "--val_root", "held", out="out2"), "'bb'", "held/bb", "Did you mean b", "training root"
    )
    wrong(make("folder", "photos", "--val_root", "photos", out="out3"), "6 image(s) are in training and in validation")


def test_prepare_test_folder_writes_test_list(make, tmp_path):
    photos_of(tmp_path, {"a": 2, "b": 2})
    touch(tmp_path / "new", "b.jpg", "a/z 1.PNG", ".x.jpg", "c.txt")
    made = make("folder", "photos", "--test", "new")
    assert made.test == ["new/a/z 1.PNG", "new/b.jpg"] and made.train
    (tmp_path / "none").mkdir()
    wrong(make("folder", "photos", "--test", "none", out="out2"), "holds no image")
    wrong(make("folder", "photos", "--test", "nowhere", out="out3"), "nowhere is not there")


def test_prepare_classes_file_sets_labels(make, tmp_path):
    photos_of(tmp_path, {"a": 2, "b": 2})
    table(tmp_path, "c\nb\na\n", "classes.txt")
    made = make("folder", "photos", "--classes", "classes.txt", "--val", 0)
    assert set(made.train.items()) >= {("photos/a/a_000.jpg", 2), ("photos/b/b_000.jpg", 1)}
    assert made.classes == ["c", "b", "a"]
    (tmp_path / "out/classes.txt").write_bytes(b"\xef\xbb\xbfc\r\nb\r\na\r\n")
    made = make("folder", "photos", "--classes", "out/classes.txt", "--val", 0)
    # what is read is not replaced
    assert made.code == 0 and (tmp_path / "out/classes.txt").read_bytes().startswith(b"\xef")
    assert "held 3 other names before" in make("folder", "photos", "--val", 0).said
    for text, said in (
        ("a\nx\n", "'b'"),
        ("a\nb\na\n", "line 3 names 'a' again"),
        ("a\n\nb\n", "line 2 is blank"),
        ("\n", "holds no name"),
    ):
        wrong(make("folder", "photos", "--classes", table(tmp_path, text, "c.txt"), out="out2"), said)
    wrong(make("folder", "photos", "--classes", "none.txt", out="out2"), "none.txt cannot be read")


def test_prepare_numeric_folders_sort_as_numbers(make, tmp_path):
    photos_of(tmp_path, {"10": 1, "9": 1, "2": 1, "007": 1})
    assert make("folder", "photos", "--val", 0).classes == ["2", "007", "9", "10"]
    rows = "".join(f"{k}.jpg,{label}\n" for k, label in enumerate(("10", "9", "2", "007", "9" * 5000)))
    made = make("csv", table(tmp_path, f"image,label\n{rows}"), *COLUMNS, "--val", 0)
    assert made.classes == ["2", "007", "9", "10", "9" * 5000]


def test_prepare_labels_that_are_numbers_sort_by_value(make, tmp_path):
    labels = ("10.0", "-2", "0.5", "2", "1e-1", "+1", "-2.0")
    rows = "".join(f"{k}.jpg,{label}\n" for k, label in enumerate(labels))
    made = make("csv", table(tmp_path, f"image,label\n{rows}"), *COLUMNS, "--val", 0)
    assert made.classes == ["-2", "-2.0", "1e-1", "0.5", "+1", "2", "10.0"]
    assert "The labels '-2' and '-2.0' are one number and two classes." in made.said


def test_prepare_warns_of_labels_and_groups_that_may_be_missing_or_differ_in_case(make, tmp_path):
    """pandas writes nan into an empty cell; all such images became a class, or one group."""
    rows = "".join(f"{k}.jpg,{'cat Cat nan N/A dog'.split()[k % 5]},{'nan p1 P1'.split()[k % 3]}\n" for k in range(30))
    made = make("csv", table(tmp_path, f"image,label,site\n{rows}"), *COLUMNS, "--val", 0, "--group_column", "site")
    assert made.code == 0 and len(made.classes) == 5
    assert (
        "12 value(s) of column 'label' are 'N/A', 'nan', which often means that there is none (the first: " in made.said
    )
    assert "line 4); each such name becomes a class" in made.said
    assert "10 value(s) of column 'site' are 'nan', which often" in made.said
    assert "1 label(s) are written with upper and lower case, the first: 'Cat' and 'cat'. They stay" in made.said
    assert "1 group(s) of column 'site' are written with upper and lower case, the first: 'P1' and 'p1'" in made.said
    text = "image,label,site\na.jpg,None,x\nb.jpg,red,y\n"
    made = make("csv", table(tmp_path, text), *COLUMNS, "--val", 0, "--label_separator", "|", out="sets")
    assert made.code == 0 and "1 value(s) of column 'label' are 'None'" in made.said
    (tmp_path / "names.txt").write_text("None\nred\n")
    more = ("--label_separator", "|", "--group_column", "site", "--classes", "names.txt")
    made = make("csv", table(tmp_path, text), *COLUMNS, "--val", 0, *more, out="given")
    assert made.code == 0 and "there is none" not in made.said and "case" not in made.said


@pytest.mark.parametrize(
    ("labels", "warned"), [(("1.0", "2.0", "3.5"), True), (("-1", "1"), False), (("1.0", "2.0"), False)]
)
def test_prepare_warns_of_fractions_as_classes_however_often_each_occurs(make, tmp_path, labels, warned):
    rows = "".join(f"{k}.jpg,{labels[k % len(labels)]}\n" for k in range(30))
    made = make("csv", table(tmp_path, f"image,label\n{rows}"), *COLUMNS)
    assert made.code == 0 and made.classes == list(labels)
    assert (f"has {len(labels)} different numbers in 30 rows" in made.said) is warned
    assert ("Try: --target_columns label, to predict the number" in made.said) is warned


def test_prepare_warns_of_numbers_as_classes_and_of_labelled_images_to_predict(make, tmp_path):
    photos_of(tmp_path, {"a": 3, "b": 3})
    rows = "".join(f"{path.relative_to(tmp_path)},{k / 3}\n" for k, path in enumerate(tmp_path.rglob("*.jpg")))
    said = make("csv", table(tmp_path, f"image,label\n{rows}"), *COLUMNS, "--val", 0, "--test", "photos").said
    assert "'label' has 6 different numbers in 6 rows" in said and "Try: --target_columns label" in said
    assert "6 of the 6 images of test.txt are labelled in another list too." in said
    assert "no folder here" not in said
    rows = rows.replace(".", "_").replace("_jpg", ".jpg").replace("0_0", "0_5")
    made = make("csv", table(tmp_path, f"image,label\n{rows}"), *COLUMNS, "--val", 0, "--root", "photo")
    assert made.code == 0 and "--root photo is no folder here, so no listed image can be read. Did you" in made.said
    assert "different numbers" not in make("csv", table(tmp_path, f"image,label\n{rows}"), *COLUMNS, "--val", 0).said


def test_prepare_whose_images_are_in_a_folder_beside_the_table_names_it(make, prepare, tmp_path):
    """The command that it prints for a table has no --root: run, it listed files that do not exist, silently."""
    touch(tmp_path, "train images/a/x1.jpg", "train images/a/x2.jpg", "other/a/y.jpg")
    text = "id,label\na\\x1,cap\na\\x2,shoe\n"
    command = make("csv", table(tmp_path, text)).said.partition("Try: ")[2]
    made = make(*shlex.split(command)[2:-2], "--val", 0)
    assert made.code == 0
    assert "None of the first 2 listed images is there, such as" in made.said
    assert f"relative paths start at {tmp_path}/.\nTry: python datasets/prepare.py csv list.csv" in made.said
    command = made.said.partition("\nTry: ")[2].splitlines()[0]
    made = make(*shlex.split(command)[2:])
    assert list(made.train) == ["train images/a/x1.jpg", "train images/a/x2.jpg"] and "None of" not in made.said
    said = make(
        "csv", table(tmp_path, "id,label\n/none/x.jpg,cap\n"), *COLUMNS[:1], "id", *COLUMNS[2:], "--val", 0
    ).said
    assert "None of the first 1 listed image is there, such as '/none/x.jpg'.\n" in said and "Try:" not in said


def test_prepare_takes_every_suffix_of_the_decoder(make, tmp_path, photos):
    import PIL.Image

    from dataloader.decode import image_suffixes, read_image

    read = []
    small = PIL.Image.fromarray(photos[0][:32, :48])
    for suffix in image_suffixes():
        path = tmp_path / f"photos/a/x{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = PIL.Image.registered_extensions()[suffix]
        if kind in PIL.Image.SAVE:
            for mode in ("RGB", "P", "1"):
                try:
                    small.convert(mode).save(path)
                    break
                except (OSError, ValueError):
                    continue
            assert read_image(str(path))[0].shape[2] == 3
            read.append(f"photos/a/x{suffix}")
        else:
            path.write_bytes(b"")
    assert len(read) >= 40 and {"photos/a/x.avif", "photos/a/x.jfif", "photos/a/x.jp2", "photos/a/x.tga"} <= set(read)
    assert set(make("folder", "photos", "--val", 0).train) == {f"photos/a/x{suffix}" for suffix in image_suffixes()}


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ("train/a train/b test", "folder {0}/train --test {0}/test"),  # the layout of most competitions
        ("train/a train/b val", "folder {0}/train"),
        ("train/a train/b val/a val/b test", "folder {0}/train --val_root {0}/val --test {0}/test"),
        ("training/a training/b testing/a testing/b", "folder {0}/training --test {0}/testing"),
        ("train/a train/b eval/a eval/b", "folder {0}/train --val_root {0}/eval"),
        ("train2017/a train2017/b val2017/a val2017/b", "folder {0}/train2017 --val_root {0}/val2017"),
        ("Images_Train/a Images_Train/b", "folder {0}/Images_Train"),
        ("only/a only/b", "folder {0}/only"),
        ("train_images test_images", "csv TABLE --root {0}"),  # flat: a table holds the labels
        ("train/a train/b val/a val/b __MACOSX/train", "folder {0}/train --val_root {0}/val"),  # zipped on a Mac
        ("only/a only/b __MACOSX/only/a", "folder {0}/only"),
        ("train/a train/b val/a val/b high/train/a figures", "folder {0}/train --val_root {0}/val"),
        (
            "s_train/s_train/a s_train/s_train/b s_test/s_test/a s_test/s_test/b s_pred",
            "folder {0}/s_train/s_train --test {0}/s_test/s_test",
        ),
        ("s_train/a s_train/b s_test", "folder {0}/s_train --test {0}/s_test"),
        (
            "train/images/a train/images/b val/images/a val/images/b",
            "folder {0}/train/images --val_root {0}/val/images",
        ),
    ],
)
def test_prepare_folder_above_the_classes_is_refused_with_the_right_command(make, tmp_path, parts, words):
    for part in parts.split():
        touch(tmp_path / "high", *(f"{part}/{k}.jpg" for k in range(12)))
    (tmp_path / "high/notes").mkdir()
    made = make("folder", "high")
    wrong(made, "Try: python datasets/prepare.py " + words.format(tmp_path / "high") + " --out out")
    command = made.said.split("Try: ")[1].splitlines()[0]
    if "TABLE" not in command:
        made = make(*shlex.split(command)[2:-2])
        assert made.code == 0 and made.classes == ["a", "b"]
        assert {path.split("/")[-2] for path in (*made.train, *made.val)} == {"a", "b"}
    names = sorted(path.name for path in (tmp_path / "high").iterdir() if path.name != "notes")
    (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in [*names, "more"]))
    (tmp_path / "high/notes").rmdir()
    assert make("folder", "high", "--classes", "names.txt").code == 0  # a person who says so may


@pytest.mark.parametrize("train", ["train", "train/steam"])
@pytest.mark.parametrize("other", ["bus", "car/old"])
def test_prepare_parts_beside_other_images_are_classes_by_the_users_word_alone(make, tmp_path, train, other):
    touch(tmp_path / "things", *(f"{name}/{k}.jpg" for name in (train, "test", other) for k in range(9)))
    names = sorted(["train", "test", other.split("/")[0]])
    made = make("folder", "things")
    if "/" in train:
        command = f"folder {tmp_path}/things/train --test {tmp_path}/things/test --out out"
        wrong(made, f"{command}\n", f"in no list: {names[0]}\n")
    else:
        wrong(made, f"csv TABLE --root {tmp_path}/things --out out\n")
    (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in names))
    made = make("folder", "things", "--classes", "names.txt")
    assert made.code == 0 and made.classes == names


@pytest.mark.parametrize("name", ["train", "test", "dev/deep"])
def test_prepare_class_that_is_named_like_a_part_is_a_class(make, tmp_path, name):
    touch(tmp_path / "things", *(f"{one}/{k}.jpg" for one in (name, "bus", "car") for k in range(9)))
    made = make("folder", "things")
    assert made.code == 0 and made.classes == sorted(["bus", "car", name.split("/")[0]])


def test_prepare_warns_of_folders_that_several_classes_have(make, tmp_path):
    for name in ("first", "second"):
        touch(tmp_path / "things", *(f"{name}/{inner}/{k}.jpg" for inner in ("cat", "dog") for k in range(9)))
    made = make("folder", "things")
    assert made.code == 0 and made.classes == ["first", "second"] and "cat and dog in first" in made.said
    touch(tmp_path / "things", "first/own.jpg")
    said = make("folder", "things").said
    assert "cat and dog" not in said and f"give the one that holds them: {tmp_path}/things/second" in said
    touch(tmp_path / "things", "second/own.jpg")
    assert "holds them" not in make("folder", "things").said


def test_prepare_wrong_folder_is_refused(make, tmp_path):
    wrong(make("folder", "none"), "none is not there")
    touch(tmp_path, "loose/a.jpg", "file.jpg")
    wrong(make("folder", "file.jpg"), "is a file")
    wrong(make("folder", "loose"), "not in class folders")
    photos_of(tmp_path, {"a": 2, "b": 2}, "high/train")
    photos_of(tmp_path, {"a": 2, "b": 2}, "high/val")
    wrong(make("folder", "high"), f"folder {tmp_path}/high/train --val_root {tmp_path}/high/val")
    for name in ("a\nb", "a\n", "a\r"):
        photos_of(tmp_path, {name: 1}, repr(name))
        wrong(make("folder", repr(name)), "line break")
    wrong(make("folder", "high", out="my lists"), "--out 'my lists'")
    photos_of(tmp_path, {os.fsdecode(b"caf\xe9"): 1}, "latin")
    wrong(make("folder", "latin"), "not UTF-8")
    photos_of(tmp_path, {"a": 2})
    wrong(make("folder", "photos", out="file.jpg/deeper"), "--out DIR")


# ------------------------------------------------------------------------ splits


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_share_of_classes_keeps_a_training_image_each(prepare, share, seed):
    from dataloader.listing.splits import share_of_classes

    sizes = [1, 1, 2, 3, 3, 3, 3, 3, 10, 100, 1000]
    labels = np.repeat(np.arange(len(sizes)), sizes)
    held = share_of_classes(labels, share, seed)
    val = np.bincount(labels[held], minlength=len(sizes))
    assert (np.bincount(labels[~held], minlength=len(sizes)) >= 1).all()
    for size, count in zip(sizes, val, strict=True):
        assert count == min(size - 1, count) and (abs(count - size * share) <= 1 or count == size - 1)
    assert not np.array_equal(held, share_of_classes(labels, share, seed + 10))


def test_share_of_classes_holds_out_small_classes_too(prepare):
    from dataloader.listing.splits import share_of_classes

    labels = np.repeat(np.arange(1000), 3)  # rounded each by itself, a tenth of three is none
    assert share_of_classes(labels, 0.1, 0).sum() == 300


def rows_of(count=90, classes=3, per_group=5):
    return [f"img {k}.jpg,class {k // per_group % classes},product {k // per_group}" for k in range(count)]


@pytest.mark.parametrize(
    "way", [("--val", 0.2), ("--folds", 3, "--fold", 2), ("--val", 0.2, "--group_column", "product")], ids=str
)
def test_prepare_split_ignores_row_order(make, tmp_path, way):
    rows = rows_of()
    made = []
    for k, order in enumerate((rows, rows[::-1], rows[40:] + rows[:40])):
        made.append(
            make("csv", table(tmp_path, "\n".join(["image,label,product", *order])), *COLUMNS, *way, out=f"out{k}")
        )
    assert made[0].val and made[0].val == made[1].val == made[2].val and made[0].train == made[1].train
    other = make("csv", "list.csv", *COLUMNS, *way, "--seed", 7, out="other")
    assert other.val != made[0].val


@pytest.mark.parametrize("grouped", [(), ("--group_column", "product"), ("--group_by", r"p(\d+)_")], ids=str)
@pytest.mark.parametrize("limit", [10**9, 0], ids=["exact", "large"])
def test_prepare_folds_partition_the_data(make, tmp_path, monkeypatch, grouped, limit):
    from dataloader.listing import splits

    monkeypatch.setattr(splits, "MAX_TABLE_CELLS", limit)
    rows = [f"p{k // 4}_{k}.jpg,{k // 4 % 3},{k // 4}" for k in range(96)]
    table(tmp_path, "\n".join(["image,label,product", *rows]))
    seen = collections.Counter()
    for fold in (1, 2, 3, 4):
        made = make("csv", "list.csv", *COLUMNS, "--folds", 4, "--fold", fold, *grouped)
        assert made.code == 0 and set(made.train) | set(made.val) == {row.split(",")[0] for row in rows}
        assert collections.Counter(made.val.values()) == {0: 8, 1: 8, 2: 8}
        if grouped:
            assert not {path.split("_")[0] for path in made.train} & {path.split("_")[0] for path in made.val}
        seen.update(list(made.val))
    assert len(seen) == 96 and set(seen.values()) == {1}


@pytest.mark.parametrize("seed", range(4))
def test_prepare_groups_never_straddle_the_split(make, tmp_path, seed):
    rng = np.random.default_rng(seed)
    for k, size in enumerate(rng.integers(1, 9, 60)):
        touch(tmp_path / "photos", *(f"c{k % 4}/item{k}_{view}.jpg" for view in range(size)))
    touch(tmp_path / "photos", *(f"lonely/only1_{view}.jpg" for view in range(6)), "c0/other.jpg")
    made = make("folder", "photos", "--val", 0.25, "--group_by", r"(\w+\d+)_", "--seed", seed)
    sides = [{path.split("_")[0] for path in side} for side in (made.train, made.val)]
    assert not sides[0] & sides[1]
    assert set(made.train.values()) == {0, 1, 2, 3, 4}, "a class of a single group stays in training"
    assert 0.1 < len(made.val) / (len(made.train) + len(made.val)) < 0.35
    assert "not found in 1 of" in made.said


def test_prepare_empty_group_is_one_per_image(make, tmp_path):
    rows = [f"{k}.jpg,{k % 2}," for k in range(40)]
    path = table(tmp_path, "\n".join(["image,label,product", *rows]))
    made = make("csv", path, *COLUMNS, "--val", 0.25, "--group_column", "product")
    assert collections.Counter(made.val.values()) == {0: 5, 1: 5}


def test_prepare_impossible_split_is_refused(make, tmp_path):
    photos_of(tmp_path, {"a": 1, "b": 1})
    made = make("folder", "photos", "--val", 0.5)
    assert made.code == 0 and not made.val and "too few" in made.said
    wrong(make("folder", "photos", "--folds", 3, "--fold", 1, out="o"), "for 2 images; allowed: 2 to 2")
    made = make("folder", "photos", "--folds", 2, "--fold", 1)
    assert made.code == 0 and "none in training" in made.said
    wrong(make("folder", "photos", "--group_by", "zzz", out="o"), "found in no path")
    wrong(
        make("folder", "photos", "--group_by", ".", "--val", 0.1, "--folds", 3, "--fold", 1, out="o"),
        "--val and --folds",
    )
    touch(tmp_path / "photos", "a/x_1.jpg", "b/x_2.jpg")
    wrong(make("folder", "photos", "--group_by", r"jpg", out="o"), "one group")
    wrong(
        make("folder", "photos", "--group_by", r"jpg", "--folds", 2, "--fold", 1, out="o"),
        "for 1 group; that cannot be divided",
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("folder p --val 1", "--val is 1.0"),
        ("folder p --val -0.1", "--val is -0.1"),
        ("folder p --val nan", "--val is nan"),
        ("folder p --folds 5", "go together"),
        ("folder p --folds 5 --fold 6", "--fold is 6"),
        ("folder p --folds 1 --fold 1", "2 or more folds"),
        ("folder p --group_by (", "not a regular expression"),
        ("folder p --seed -1", "--seed is -1"),
        ("folder p --val_root q --val 0.1", "--val_root says"),
        ("csv f --path_column a --label_column b --split_column c --folds 2 --fold 1", "--split_column says"),
        ("csv f --path_column a --label_column b --delimiter ab", "--delimiter is 'ab'"),
        ("csv f --path_column a --label_column b --group_column c --group_by d", "belongs together"),
        ("csv f --path_column a --label_column b --suffix jpg", "--suffix is 'jpg'"),
        ("coco f --part val --val 0.1", "--part val says"),
        ("coco f --part test --test d", "both make test.txt"),
        ("coco f --part val", "Make train.txt first"),
        ("fashion-mnist --train 0", "--train is 0"),
        ("fashion-mnist --test -1", "--test is -1"),
    ],
)
def test_prepare_wrong_flag_is_refused(make, words, said):
    wrong(make(*words.split()), said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("foldr p", "'foldr'. Did you mean folder?"),
        (
            "csv f --path_column a --label_colum b",
            "prepare.py csv: there is no option --label_colum. Did you mean --label_column",
        ),
        ("coco f --part trian", "'trian'. Did you mean train?"),
    ],
)
def test_prepare_typo_suggests_near_word(make, words, said):
    made = make(*words.split())
    assert made.code == 2 and said in made.said and "usage:" not in made.said


def test_prepare_all_wrong_flags_are_reported_at_once(make):
    wrong(
        make("folder", "p", "--val", 2, "--seed", -1, "--folds", 3),
        "--val is 2",
        "--seed is -1",
        "go together",
        "folder --help",
    )


# ------------------------------------------------------------------------ CSV


def test_prepare_csv_odd_names_are_kept(make, tmp_path):
    text = 'image,label,price\r\n"a, b.jpg","鞋, 红色",1\r\nsub/c d.jpg,Bag big,2\r\n\r\n/abs/e.jpg,"say ""hi""",3\r\n'
    (tmp_path / "lists").mkdir()
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "lists/x.csv").write_text(text, encoding=encoding)
        made = make("csv", "lists/x.csv", *COLUMNS, "--val", 0)
        assert made.classes == ["Bag big", 'say "hi"', "鞋, 红色"]
        absolute = os.path.relpath("/abs/e.jpg", tmp_path)
        assert made.train == {"lists/a, b.jpg": 2, "lists/sub/c d.jpg": 0, absolute: 1}
    assert "pictures/sub/c d.jpg" in make("csv", "lists/x.csv", *COLUMNS, "--val", 0, "--root", "pictures").train


@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
def test_prepare_csv_delimiter_is_detected(make, tmp_path, sign):
    text = "".join(
        sign.join(row) + "\n"
        for row in (
            ("note, more" if sign != "," else "note", "image", "label"),
            ("a", "x.jpg", "b"),
            ("", "y.jpg", "c"),
        )
    )
    assert make("csv", table(tmp_path, text), *COLUMNS, "--val", 0).classes == ["b", "c"]
    given = "tab" if sign == "\t" else sign
    assert make("csv", "list.csv", *COLUMNS, "--val", 0, "--delimiter", given, out="given").classes == ["b", "c"]


def test_prepare_csv_numeric_labels_sort_as_numbers(make, tmp_path):
    table(tmp_path, "image,label\na.jpg,10\nb.jpg,9\nc.jpg,300\n")
    made = make("csv", "list.csv", *COLUMNS, "--val", 0)
    assert made.classes == ["9", "10", "300"] and made.train == {"a.jpg": 1, "b.jpg": 0, "c.jpg": 2}


def test_prepare_keep_labels_keeps_numbers(make, tmp_path):
    table(tmp_path, "image,label\na.jpg,3\nb.jpg,0\nc.jpg,1\n")
    made = make("csv", "list.csv", *COLUMNS, "--val", 0, "--keep_labels")
    assert made.train == {"a.jpg": 3, "b.jpg": 0, "c.jpg": 1}
    assert made.classes == list("0123")
    assert "the first: 2" in made.said
    table(tmp_path, "w\nx\ny\nz\n", "names.txt")
    made = make("csv", "list.csv", *COLUMNS, "--val", 0, "--keep_labels", "--classes", "names.txt")
    assert made.classes == list("wxyz")
    table(tmp_path, "w\nx\ny\n", "names.txt")
    wrong(
        make("csv", "list.csv", *COLUMNS, "--keep_labels", "--classes", "names.txt", out="o"), "line 2", "'3'", "0 to 2"
    )
    for label in ("shoe", "-1", "1.0", "99999999"):
        table(tmp_path, f"image,label\na.jpg,0\nb.jpg,{label}\n")
        wrong(make("csv", "list.csv", *COLUMNS, "--keep_labels", out="o"), "line 3", f"'{label}'")


def test_prepare_keep_labels_far_above_the_rows_needs_names(make, tmp_path):
    rows = "".join(f"{k}.jpg,{k % 2}\n" for k in range(30))
    words = ("csv", table(tmp_path, f"image,label\n{rows}x.jpg,3000\n"), *COLUMNS, "--keep_labels", "--val", 0)
    wrong(
        make(*words),
        "line 32: the label is '3000'; allowed with --keep_labels: a whole number from 0 to 999",
        "--classes",
    )
    (tmp_path / "names.txt").write_text("".join(f"{k}\n" for k in range(3001)))
    assert len(make(*words, "--classes", "names.txt").classes) == 3001


def test_prepare_split_column_makes_the_parts(make, tmp_path):
    rows = "a.jpg,x,train\nb.jpg,y,Train\nc.jpg,y,valid\nz.jpg,,test\nd.jpg,,test\n"
    made = make("csv", table(tmp_path, f"image,label,part\n{rows}"), *COLUMNS, "--split_column", "part")
    assert (made.train, made.val, made.test) == ({"a.jpg": 0, "b.jpg": 1}, {"c.jpg": 1}, ["z.jpg", "d.jpg"])
    for row, said in (
        ("e.jpg,w,val", "'w'"),
        ("e.jpg,x,extra", "'extra'"),
        ("e.jpg,,val", "no label"),
        ("a.jpg,x,val", "and in validation"),
    ):
        made = make(
            "csv", table(tmp_path, f"image,label,part\n{rows}{row}\n"), *COLUMNS, "--split_column", "part", out="o"
        )
        wrong(made, said, *(["line 7"] if "a.jpg" not in row else []))
    wrong(
        make("csv", table(tmp_path, "image,label,part\na.jpg,x,val\n"), *COLUMNS, "--split_column", "part", out="o"),
        "no training row",
    )


def test_prepare_part_from_its_own_csv_uses_same_labels(make, tmp_path):
    assert make("csv", table(tmp_path, "image,label\na.jpg,x\nb.jpg,y\n"), *COLUMNS, "--val", 0).code == 0
    made = make("csv", table(tmp_path, "image,label\nc.jpg,y\n"), *COLUMNS, "--part", "val")
    assert made.val == {"c.jpg": 1} and len(made.train) == 2
    made = make("csv", table(tmp_path, "image\nz.jpg\ny.jpg\nz.jpg\n"), "--path_column", "image", "--part", "test")
    assert made.test == ["z.jpg", "y.jpg"] and made.classes == ["x", "y"] and "1 repetition" in made.said
    made = make("csv", table(tmp_path, "image,label\nc.jpg,new\n"), *COLUMNS, "--part", "val")
    assert made.code == 2 and "list.csv, line 2: There is no class 'new'" in made.said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,lable\na.jpg,x\n", ("'label'", "Did you mean lable?", "There are: image, lable", "header")),
        ("a.jpg,x\nb.jpg,y\n", ("no column 'image'", "header")),
        ("image,label,label\na,b,c\n", ("2 columns are called 'label'",)),
        ("image,label\na.jpg,x\nb.jpg,\n", ("line 3 has no label",)),
        ("image,label\na.jpg,x\n,y\n", ("line 3 has no path",)),
        ("image,label\na.jpg,x,extra\n", ("line 2 has 3 fields, the header 2", "quotes")),
        ("image,label\na.jpg\n", ("line 2 has 1 field,",)),
        ("image,label\n", ("no row",)),
        ("", ("no column 'image'",)),
        ('image,label\na.jpg,"x\ny"\n', ("line break",)),
    ],
)
def test_prepare_wrong_csv_is_refused(make, tmp_path, text, said):
    wrong(make("csv", table(tmp_path, text), *COLUMNS), *said)


NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def test_prepare_csv_labels_that_differ_in_unicode_form_are_one_class(make, tmp_path):
    text = f"image,label,site\na.png,{NFC},{NFC}\nb.png,{NFD},{NFD}\nc.png,tea,x\nd.png,{NFD},y\n"
    made = make("csv", table(tmp_path, text), *COLUMNS, "--val", 0)
    assert made.classes == [NFC, "tea"] and made.train == {"a.png": 0, "b.png": 0, "c.png": 1, "d.png": 0}
    assert "1 label(s) are written in several Unicode forms" in made.said
    made = make("csv", table(tmp_path, text.replace(NFC, NFD)), *COLUMNS, "--val", 0, out="same")
    assert made.classes == [NFD, "tea"] and "Unicode" not in made.said  # as it is written
    (tmp_path / "names.txt").write_text(f"tea\n{NFC}\n")
    made = make("csv", table(tmp_path, text), *COLUMNS, "--val", 0, "--classes", "names.txt", out="given")
    assert made.train == {"a.png": 1, "b.png": 1, "c.png": 0, "d.png": 1}
    made = make("csv", table(tmp_path, text), *COLUMNS, "--val", 0.5, "--group_column", "site", out="groups")
    assert made.code == 0 and len({"a.png", "b.png"} & set(made.train)) != 1
    made = make("csv", table(tmp_path, text), *COLUMNS, "--val", 0, "--label_separator", "|", out="sets")
    assert made.code == 0 and made.classes == [NFC, "tea"]


def test_prepare_folders_that_differ_in_unicode_form_are_refused(make, tmp_path):
    photos_of(tmp_path, {NFC: 3, NFD: 3})
    wrong(make("folder", "photos", "--val", 0), "is there 2 times", "Rename all but one")


def rows_with(notes):
    """Ten rows, with the given notes by their row's number."""
    rows = (f"p{k}.png,{'ab'[k % 2]},{notes.get(k, '')}" for k in range(1, 11))
    return "\n".join(["image,label,note", *rows, ""])


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        ({1: '"scratched', 4: '"torn', 8: '"no end'}, ("line 2", "line 5", "Close it")),
        ({8: '"no end'}, ("line 9", "line 11")),
        ({1: '"scratched', 4: '6"'}, ("line 2", "line 5", "line 3 looks like a row: 'p2.png,a,'")),
        ({3: '"a "wide" frame"'}, ("line 4", "not CSV")),
    ],
)
def test_prepare_a_quotation_mark_out_of_place_is_refused(make, tmp_path, notes, said):
    wrong(make("csv", table(tmp_path, rows_with(notes)), *COLUMNS), *said)


def test_prepare_a_header_with_an_open_quotation_mark_is_refused(make, tmp_path):
    text = rows_with({4: 'torn"'}).replace("note", '"note', 1)
    wrong(make("csv", table(tmp_path, text), *COLUMNS), "line 1", "looks like a row")


def test_prepare_a_quoted_field_of_several_lines_is_read(make, tmp_path):
    notes = {2: '"A bag, brown,\nof 6"" and,\r\nstrictly, ""as new"""', 5: '"in Paris,\n\nFrance"'}
    made = make("csv", table(tmp_path, rows_with(notes)), *COLUMNS, "--val", 0)
    assert made.code == 0 and len(made.train) == 10 and "quoted field" not in made.said


def test_prepare_paths_without_ending_in_a_quoted_field_cause_a_warning(make, tmp_path):
    text = rows_with({1: '"scratched', 4: '6"'}).replace(".png", "")
    made = make("csv", table(tmp_path, text), *COLUMNS, "--val", 0)
    assert made.code == 0 and len(made.train) == 7 and "1 row(s) have a quoted field of several lines" in made.said
    assert "the first is in line 2" in made.said


def test_prepare_not_a_csv_is_refused(make, tmp_path):
    wrong(make("csv", "none.csv", *COLUMNS), "none.csv cannot be read")
    (tmp_path / "latin.csv").write_bytes("image,label\na.jpg,café\n".encode("latin-1"))
    wrong(make("csv", "latin.csv", *COLUMNS), "not UTF-8")
    wrong(make("csv", table(tmp_path, f"image,label\na.jpg,{'x' * 200_000}\n"), *COLUMNS), "line 2 is not CSV")


def test_prepare_repeated_and_conflicting_rows_are_counted(make, tmp_path):
    made = make(
        "csv", table(tmp_path, "image,label\na.jpg,x\n./a.jpg,x\nb.jpg,x\nb.jpg,y\nc.jpg,y\n"), *COLUMNS, "--val", 0
    )
    assert made.train == {"a.jpg": 0, "c.jpg": 1}
    assert "1 repetition(s)" in made.said and "1 image(s) left out, which have two different labels" in made.said
    wrong(
        make("csv", table(tmp_path, "image,label\nb.jpg,x\nb.jpg,y\n"), *COLUMNS, "--val", 0, out="o"),
        "No image is left",
    )


@pytest.mark.parametrize(
    ("words", "missing", "then"),
    [
        ("", "--path_column and --label_column", "--path_column 'Image file' --label_column label --out o"),
        ("--label_column note", "--path_column", "--path_column 'Image file' --label_column note --out o"),
        ("--part test", "--path_column", "--path_column 'Image file' --part test --out o"),
    ],
)
def test_prepare_missing_column_flags_get_working_command(make, tmp_path, words, missing, then):
    made = make("csv", table(tmp_path, "note,Image file,label\nq,a.jpg,x\nr,b.jpg,y\n"), *words.split(), out="o")
    wrong(made, f"{missing} missing", "the columns note, Image file, label")
    command = made.said.split("Try: ")[1].strip().splitlines()[0]
    assert command == f"python datasets/prepare.py csv list.csv {then}"
    assert make(*shlex.split(command)[2:-2], out="o").code == 0


def test_prepare_csv_names_without_suffix_find_files(make, tmp_path):
    touch(
        tmp_path,
        "a.jpg",
        "b.PNG",
        "sub/v1.2.webp",
        "both.jpg",
        "both.png",
        "c",
        "café.jpg",
        f"{unicodedata.normalize('NFD', 'schöne')}.gif",
    )
    rows = ["a,x", "b,x", "sub/v1.2,y", "sub\\v1.2,y", "c,x", "gone,y", "schöne.gif,x", "schöne,x"]
    text = "image,label\n" + "".join(f"{row}\n" for row in rows)
    made = make("csv", table(tmp_path, text), *COLUMNS, "--val", 0)
    found = {"a.jpg", "b.PNG", "sub/v1.2.webp", "c", "gone", f"{unicodedata.normalize('NFD', 'schöne')}.gif"}
    assert set(made.train) == found
    for said in (
        "4 path(s) got the ending",
        "1 path(s) got the Unicode form",
        "1 path(s) had backslashes",
        "1 path(s) have no",
        "gone",
    ):
        assert said in made.said, made.said
    wrong(
        make("csv", table(tmp_path, "image,label\nboth,x\n"), *COLUMNS, out="o"),
        "there as both.jpg, both.png",
        "--suffix .jpg",
    )
    made = make(
        "csv", table(tmp_path, "image,label\nboth,x\na.jpg,y\n"), *COLUMNS, "--suffix", ".png", "--val", 0, out="o"
    )
    assert set(made.train) == {"both.png", "a.jpg.png"}


# ------------------------------------------------------------------------ JSON


def as_json(tmp_path, content, name="x.json"):
    (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    return name


COCO = {
    "images": [{"id": k, "file_name": f"im {k}.jpg"} for k in (5, 3, 1, 9, 8)],
    "annotations": [
        {"image_id": k, "category_id": c} for k, c in ((5, 20), (3, 7), (1, 100), (9, 7), (9, 20), (5, 20), (77, 7))
    ],
    "categories": [{"id": 100, "name": "鞋"}, {"id": 7, "name": "bag, big"}, {"id": 20, "name": "cap"}],
}


def test_prepare_coco_writes_lists(make, tmp_path):
    made = make("coco", as_json(tmp_path, COCO), "--root", "photos", "--val", 0)
    assert made.classes == ["bag, big", "cap", "鞋"] and "annotations" in made.said
    assert made.train == {"photos/im 5.jpg": 1, "photos/im 3.jpg": 0, "photos/im 1.jpg": 2}
    for text in (
        "1 image(s) left out, which have two or more",
        "1 image(s) left out, which have no annotation",
        "that no image in the file has",
    ):
        assert text in made.said
    table(tmp_path, "鞋\nbag, big\ncap\n", "c.txt")
    assert make("coco", "x.json", "--val", 0, "--classes", "c.txt").train == {
        "im 1.jpg": 0,
        "im 3.jpg": 1,
        "im 5.jpg": 2,
    }
    table(tmp_path, "鞋\nbag\ncap\n", "c.txt")
    wrong(make("coco", "x.json", "--classes", "c.txt", out="o"), "category 7", "Did you mean bag")


def test_prepare_coco_equal_category_names_get_ids(make, tmp_path):
    twice = {**COCO, "categories": [{"id": 100, "name": "cap"}, {"id": 7, "name": "bag"}, {"id": 20, "name": "cap"}]}
    made = make("coco", as_json(tmp_path, twice), "--val", 0)
    assert made.classes == ["bag", "cap (20)", "cap (100)"] and "got their ids: cap" in made.said


def test_prepare_coco_category_names_that_look_alike_get_ids(make, tmp_path):
    names = {100: NFC, 7: "tea", 20: NFD}
    alike = {**COCO, "categories": [{"id": key, "name": name} for key, name in names.items()]}
    made = make("coco", as_json(tmp_path, alike), "--val", 0)
    assert made.classes == ["tea", f"{NFD} (20)", f"{NFC} (100)"] and "2 name(s) belong to several" in made.said


@pytest.mark.parametrize(("place", "key"), [("7", 7), ("00007", 7), ("00007", "00007"), ("", 7)])
def test_prepare_aliproducts_json_writes_lists(make, tmp_path, place, key):
    touch(tmp_path / "train" / place, "a.jpg")
    images = [{"image_id": "a.jpg", "class_id": key}, {"image_id": "b", "class_id": key}, {"image_id": "c.jpg"}]
    made = make("coco", as_json(tmp_path, {"images": images}), "--root", "train", "--val", 0, "--check")
    assert sorted(made.train.items()) == [(os.path.join("train", place, f"{name}.jpg"), 0) for name in "ab"]
    assert made.classes == [str(key)]
    assert "AliProducts" in made.said and "have no class_id" in made.said and "1 of 2 files are not there" in made.said
    made = make("coco", as_json(tmp_path, {"images": [{"image_id": "z.jpg"}, {"image_id": "y"}]}), "--root", "test")
    assert made.test == ["test/z.jpg", "test/y.jpg"] and "without labels" in made.said


def test_prepare_coco_groups_and_parts_are_obeyed(make, tmp_path):
    images = [{"image_id": f"p{k // 3}_{k}", "class_id": k // 3 % 4} for k in range(120)]
    made = make("coco", as_json(tmp_path, {"images": images}), "--val", 0.25, "--group_by", r"p\d+_")
    sides = [{path.split("_")[0] for path in side} for side in (made.train, made.val)]
    assert made.val and not sides[0] & sides[1] and made.classes == list("0123")
    made = make("coco", as_json(tmp_path, {"images": [{"image_id": "v", "class_id": 2}]}), "--part", "val")
    assert made.val == {"2/v.jpg": 2} and len(made.train) == len(images) - len(sides[1]) * 3
    assert make("coco", as_json(tmp_path, COCO), "--part", "test").test == [f"im {k}.jpg" for k in (5, 3, 1, 9, 8)]
    touch(tmp_path, "new/a.jpg")
    made = make("coco", as_json(tmp_path, {"images": [{"image_id": 1}]}), "--test", "new", out="o")
    wrong(made, "so does --test")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "a list"),
        ({"a": 1}, "the keys a"),
        ({"images": []}, "no list `images`"),
        ({"images": ["x"]}, "images[0]"),
        ({"images": [{"name": "x"}]}, "expected `file_name`"),
        ({"images": [{"file_name": "x"}], "annotations": [{"image_id": 1, "category_id": 1}]}, "expected `id`"),
        ({"images": [{"id": 1, "file_name": "x"}], "annotations": [{"image_id": 1}]}, "annotations[0]"),
        (
            {"images": [{"id": 1, "file_name": "x"}], "annotations": [{"image_id": 2, "category_id": 1}]},
            "no image has a category",
        ),
        ({**COCO, "categories": [{"id": 7}]}, "There is no class"),
        ({**COCO, "categories": [{"name": "x"}]}, "categories[0]"),
    ],
)
def test_prepare_wrong_json_is_refused(make, tmp_path, content, said):
    wrong(make("coco", as_json(tmp_path, content)), said)


def test_prepare_not_json_is_refused(make, tmp_path):
    wrong(make("coco", table(tmp_path, '{"images": [', "x.json")), "is not JSON", "line 1")
    wrong(make("coco", "none.json"), "none.json cannot be read")


# ------------------------------------------------------------------------ lists that are ready


def ready(tmp_path, names="cap\nshoe\nbag\n", count=60):
    """all.txt, of images of three classes with relative paths, and the names beside it."""
    touch(tmp_path, "raw/classes.txt", *(f"raw/{k}.jpg" for k in range(count)))
    (tmp_path / "raw/all.txt").write_text("".join(f"{k}.jpg {k % 3}\n" for k in range(count)))
    if names:
        (tmp_path / "raw/classes.txt").write_text(names)
    else:
        (tmp_path / "raw/classes.txt").unlink()


def test_prepare_ready_list_is_split_by_class(make, tmp_path):
    ready(tmp_path)
    made = make("list", "raw/all.txt", "--val", 0.2)
    assert made.classes == ["cap", "shoe", "bag"]
    assert sorted(collections.Counter(made.val.values()).items()) == [(0, 4), (1, 4), (2, 4)]
    together = {**made.train, **made.val}
    assert together == {f"raw/{k}.jpg": k % 3 for k in range(60)} and len(made.train) + len(made.val) == 60
    assert (
        make("list", "raw/all.txt", "--val", 0.2).val
        == made.val
        != make("list", "raw/all.txt", "--val", 0.2, "--seed", 1).val
    )
    (tmp_path / "raw/test.txt").write_text("3.jpg\n1.jpg\n")
    assert (
        make("list", "raw/test.txt", "--part", "test").test
        == make("list", "raw/all.txt", "--part", "test").test[3:0:-2]
        == ["raw/3.jpg", "raw/1.jpg"]
    )


def test_prepare_ready_list_with_classes_is_renumbered(make, tmp_path):
    ready(tmp_path)
    table(tmp_path, "bag\ncap\nhat\nshoe\n", "c.txt")
    made = make("list", "raw/all.txt", "--val", 0, "--classes", "c.txt")
    assert made.train == {f"raw/{k}.jpg": (1, 3, 0)[k % 3] for k in range(60)} and "renumbered by name" in made.said
    table(tmp_path, "bag\ncap\n", "c.txt")
    wrong(make("list", "raw/all.txt", "--classes", "c.txt", out="o"), "raw/classes.txt, line 2", "no class 'shoe'")
    ready(tmp_path, names=None)
    made = make("list", "raw/all.txt", "--val", 0.2, out="numbers")
    assert made.code == 0 and made.classes == [] and len(made.val) == 12
    (tmp_path / "numbers/classes.txt").write_text("a\nb\nc\n")
    assert "have no names" in make("list", "raw/all.txt", "--val", 0, out="numbers").said
    ready(tmp_path, names="cap\nshoe\n")
    wrong(make("list", "raw/all.txt", out="o"), "all.txt, line 3: the label is 2", "0 to 1")


def test_prepare_list_over_itself_is_refused(make, tmp_path):
    ready(tmp_path)
    (tmp_path / "raw/all.txt").rename(tmp_path / "raw/train.txt")
    before = (tmp_path / "raw/train.txt").read_text()
    made = make("list", "raw/train.txt", "--val", 0.2, "--seed", 7, out="raw")
    assert made.code == 2 and "would be replaced" in made.said and (tmp_path / "raw/train.txt").read_text() == before
    words = shlex.split(made.said.split("Try: ")[1])[2:]
    place = words.index("--out")
    again = make(*words[:place], *words[place + 2 :], out=words[place + 1])
    assert again.code == 0 and len(again.val) == 12 and "Split by seed 7" in again.said


# ------------------------------------------------------------------------ together


def test_prepare_killed_while_writing_keeps_old_lists(make, tmp_path):
    """The signal comes while the last file is on its way to the disk; the first one used to have its name by then."""
    # classes.txt stays as it is
    photos_of(tmp_path, {"a": 30, "b": 30})
    made = make("folder", "photos", "--val", 0.1)
    code = f"import os, stat, sys; sys.path.insert(0, {str(ROOT)!r})\n"
    code += "from tools.prepare import command as prepare\nreal, calls = os.fsync, []\n"
    code += "def fsync(handle):\n    stat.S_ISREG(os.fstat(handle).st_mode) and calls.append(handle)\n"
    code += f"    len(calls) == 2 and os.kill(os.getpid(), {int(signal.SIGKILL)})\n    real(handle)\n"
    code += "os.fsync = fsync\nprepare.main(['folder', 'photos', '--val', '0.5', '--out', 'out'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    for name in ("train", "val"):
        assert listed(tmp_path / f"out/{name}.txt", tmp_path, labelled=True) == getattr(made, name)


def test_prepare_check_counts_missing_files(make, tmp_path):
    touch(tmp_path, "here.jpg")
    rows = "".join(f"gone {k:02}.jpg,x\n" for k in range(12))
    made = make("csv", table(tmp_path, f"image,label\nhere.jpg,y\n{rows}"), *COLUMNS, "--val", 0, "--check")
    assert made.code == 0 and "12 of 13 files are not there, the first ten" in made.said
    assert "gone 09.jpg" in made.said and "gone 10.jpg" not in made.said
    photos_of(tmp_path, {"a": 1, "b": 1})
    assert "all 2 files are there" in make("folder", "photos", "--val", 0, "--check").said


def test_prepare_fashion_writes_images_and_lists(make, tmp_path, monkeypatch):
    from tools.prepare import fashion

    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)
    source = fashion.Source(
        "noise",
        (pixels, np.arange(60, dtype=np.uint8) % 10),
        (pixels[:20], np.arange(20, dtype=np.uint8) % 10),
        list("abcdefghij"),
    )
    monkeypatch.setattr(fashion, "_from_debian", lambda: source)
    made = make("fashion-mnist", "--train", 40, "--test", 10, "--val", 15)
    assert [len(part) for part in (made.train, made.val, made.test, made.classes)] == [40, 15, 10, 10]
    assert cv2.imread(str(tmp_path / made.test[0])).shape == (8, 8, 3)
    assert "60 training images" in make("fashion-mnist", "--train", 90, "--test", 30, "--val", 0, out="small").said
    assert not (tmp_path / "small/val.txt").exists()


def test_prepare_fashion_imbalance_cuts_classes_exponentially(make, monkeypatch):
    from tools.prepare import fashion

    pixels, labels = np.zeros((400, 8, 8), np.uint8), np.repeat(np.arange(4, dtype=np.uint8), 100)
    source = fashion.Source("noise", (pixels, labels), (pixels[:8], labels[::50]), list("abcd"))
    monkeypatch.setattr(fashion, "_from_debian", lambda: source)
    made = make("fashion-mnist", "--train", 400, "--test", 0, "--val", 8, "--imbalance", 1000)
    assert sorted(collections.Counter(made.train.values()).items()) == [(0, 100), (1, 10), (2, 1), (3, 1)]
    assert len(made.val) == 8 and "112 of 400 training images are kept" in made.said
    assert len(make("fashion-mnist", "--train", 400, "--test", 0, "--val", 8).train) == 400
    for value in (0.5, "nan", "inf"):
        wrong(make("fashion-mnist", "--imbalance", value, out="none"), "--imbalance is", "1 or more")


def test_fashion_long_tail_class_with_too_few_keeps_all():
    from tools.prepare.fashion import long_tail

    labels = np.array([0] * 50 + [1] * 3 + [2] * 50, np.uint8)
    assert np.bincount(labels[long_tail(labels, 10)]).tolist() == [50, 3, 5]
    assert long_tail(labels, 1).tolist() == list(range(103))


@pytest.mark.slow
def test_prepare_then_train_and_submit_succeeds(photos, tmp_path, script, small):
    for name, photo in zip(("temple, old", "花", "portrait"), photos, strict=True):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(10):
            cv2.imwrite(
                str(tmp_path / "photos" / name / f"view {k}.jpg"),
                cv2.cvtColor(photo[k * 20 : k * 20 + 150, :150], cv2.COLOR_RGB2BGR),
            )
    words = ["datasets/prepare.py", "folder", "photos", "--out", "lists", "--val", "0.2", "--test", "photos", "--check"]
    command = [sys.executable, str(ROOT / words[0]), *words[1:]]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "24 images of 3 classes, 8 of each" in done.stdout
    trained = script("train.py", "--tag", "made", "--data_root", "lists", "--epochs", 1, *small)
    assert trained.code == 0, trained.err
    predicted = script(
        "submit.py", *"--tag made --load checkpoints/made/last.pt --data_root lists -b 12 -w 0 --gpu -1".split()
    )
    assert predicted.code == 0, predicted.err
    bad = subprocess.run([*command[:3], "none"], cwd=tmp_path, capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stderr.startswith("\nerror: none is not there") and "Traceback" not in bad.stderr


def test_split_of_200000_images_is_fast(prepare):
    from dataloader.listing.lists import ImageList, normalise_list
    from dataloader.listing.splits import SplitPlan, split

    labels = np.random.default_rng(0).zipf(1.3, 200_000).clip(1, 10_000) - 1
    part = ImageList(
        [f"/d/{k:06}.jpg" for k in range(len(labels))], labels.tolist(), [f"={k // 3}" for k in range(len(labels))]
    )
    began = time.process_time()  # of this process alone, whatever else runs
    for groups in (None, part.groups):
        for plan in (SplitPlan(0.1, None, None, 0), SplitPlan(0.1, 5, 1, 0)):
            parts = split(normalise_list(ImageList(part.paths, part.labels, groups), "train"), plan)
            assert len(parts["train"].paths) + len(parts["val"].paths) == len(labels)
    assert time.process_time() - began < 60
