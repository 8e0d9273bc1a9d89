"""Lists that are missing or unreadable: the message names the likeliest reason and a command that works."""

import os
import re
import shlex
import shutil
import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dataloader
from dataloader import list_checks
from dataloader.file_list import read_list
from options import parse_submit, parse_train
from utils.errors import UserError
from utils.logger import start_logging

NFC, NFD = (unicodedata.normalize(form, "été.jpg") for form in ("NFC", "NFD"))


@pytest.fixture
def here(tmp_path, monkeypatch, photo_set):
    """The current folder: photographs in `set/`, and three files there that are none."""
    monkeypatch.chdir(tmp_path)
    photos = read_list(photo_set / "train.txt")
    for k, name in enumerate(("a b.jpg", "c.jpg", NFD, "sub/d.jpg", "e 3", "twice.jpg", "twice.png")):
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(photos.path(k), tmp_path / "set" / name)
    (tmp_path / "set/lfs.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "set/web.jpg").write_text("\n<!DOCTYPE html><html>")
    (tmp_path / "set/empty.jpg").write_text("")
    return tmp_path


def opened(folder, name):
    parse, words = (parse_submit, ["--load", "x.pt"]) if name == "test" else (parse_train, [])
    return dataloader.open_list(parse([*words, "--data_root", str(folder)]), name, drop_missing=True)


LABELLED, BARE = "train", "test"
CASES = {
    "labels": (BARE, "a b.jpg 0\nc.jpg 1\n", "end in labels: .*a b.jpg' is there"),
    "no labels": (LABELLED, "e 3\n", "have no labels"),
    "endings": (BARE, "a b\nc\n", "a b.jpg' without its ending: 'a b'"),
    "labelled endings": (LABELLED, "a b 0\nc  1\n", "without its ending: 'a b'"),
    "several endings": (BARE, "twice\n", r"has no ending; there are .*twice\.jpg', .*twice\.png'"),
    "form": (LABELLED, f"{NFC} 0\n", "in another Unicode form"),
    "form of another ending": (LABELLED, f"{NFC[:-4]} 0\n", "without its ending"),
    "backslashes": (LABELLED, "sub\\d.jpg 0\n", "with backslashes"),
    "capitals": (LABELLED, "A B.JPG 0\n", "with another case"),
    "from here": (LABELLED, "set/c.jpg 0\n", "is there from .*, but a relative path starts at the list's folder"),
    "moved": (LABELLED, "/no/such/place/c.jpg 0\n", "The folder '/no' is not there"),
    "windows": (LABELLED, "C:\\photos\\c.jpg 0\n", "a Windows path"),
    "mixed line ends": (LABELLED, "c.jpg 0\rx/c.jpg 0\n", "mixes line ends"),
    "spaces": (LABELLED, "c.jpg 1, 2\nc.jpg 0, 1, 2\n", "'c.jpg' and numbers.*\n.*`1,2`, not `1, 2`"),
    "quotes": (LABELLED, '"c.jpg" 0\n', "is in quotes"),
    "git": (LABELLED, "lfs.jpg 0\n", "Git LFS pointer.*\n.*git lfs pull"),
    "web": (LABELLED, "web.jpg 0\n", "is a web page"),
    "empty": (LABELLED, "empty.jpg 0\n", "'empty.jpg' is empty"),
    "folder": (LABELLED, "sub 0\n", "sub' is not a file"),
}


@pytest.mark.parametrize("case", CASES)
def test_open_list_nothing_readable_names_reason_and_working_command(case, here, prepare):
    name, text, said = CASES[case]
    (here / f"set/{name}.txt").write_text(text)
    with pytest.raises(UserError, match=said) as error:
        opened("set", name)
    assert re.match(r"No image of .*\.txt is there|None of the \d+ images of .*\.txt can be read", str(error.value))
    command = re.search(r"Try: python datasets/prepare.py (.*)", str(error.value))
    assert bool(command) == (
        case in ("labels", "endings", "labelled endings", "several endings", "backslashes", "from here")
        or "form" in case
    )
    if command is not None:
        words, then = shlex.split(command[1]), re.search(rf"\nThen give --{name}_list (.*)\.$", str(error.value))[1]
        assert prepare.main(words) == 0
        assert then == f"{words[-1]}/{name}.txt" and len(opened(words[-1], name)) == text.count("\n")


def test_open_list_wrong_val_list_gets_command_for_it(here, prepare):
    (here / "set/val.txt").write_text("a b 1\n")
    for names in ("", "x\ny\n"):
        (here / "set/classes.txt").write_text(names) if names else None
        with pytest.raises(UserError) as error:
            opened("set", "val")
        words = shlex.split(str(error.value).split("Try: python datasets/prepare.py ")[1].splitlines()[0])
        then = str(error.value).split("Then give --val_list ")[1][:-1]
        assert prepare.main(words) == 0 and read_list(then).label.tolist() == [1]
        assert then == f"set/corrected/{'val' if names else 'train'}.txt"


def test_open_list_over_half_missing_is_warned(here, capsys):
    (here / "set/train.txt").write_text("c.jpg 0\na b.jpg 1\nempty.jpg 1\nlfs.jpg 1\nweb.jpg 0\n" + "gone.jpg 0\n" * 6)
    start_logging()
    files = dataloader.open_list(parse_train(["--data_root", "set", "--on_bad_image", "skip"]), "train")
    assert len(files) == 11
    said = capsys.readouterr()
    said = said.out + said.err
    assert "6 of 11 images of set/train.txt are not there, over half of them" in said
    assert "3 of 5 images, spread over the list, of set/train.txt cannot be read, over half of them" in said


# ------------------------------------------------------------------------ no list


@pytest.mark.parametrize("layout", ["classes", "parts", "deeper"])
def test_open_list_of_class_folders_gets_prepare_command(here, photo_set, prepare, layout):
    photos = read_list(photo_set / "train.txt")
    roots = {
        "classes": ["my photos"],
        "parts": ["my photos/train", "my photos/val"],
        "deeper": ["my photos/images"],
    }[layout]
    for place, root in enumerate(roots):
        for k in range(40):
            target = here / root / f"class {photos.label[k % 36]}/{place} {k}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(photos.path(k % 36), target)
    with pytest.raises(
        UserError, match="There is no list my photos/train.txt.*holds (class folders|the folders train, val)"
    ) as error:
        opened("my photos", "train")
    assert prepare.main(shlex.split(str(error.value).split("Try: ")[1].splitlines()[0])[2:]) == 0
    assert len(opened("my photos", "train")) == (40 if layout == "parts" else 36)


def test_open_list_of_missing_folder_is_refused(here):
    with pytest.raises(UserError, match="The folder nowhere does not exist.*\n.*--data_root DIR.*\n.*prepare.py"):
        opened("nowhere", "train")
    with pytest.raises(UserError, match="c.jpg is a file, not a folder"):
        opened("set/c.jpg", "train")
    with pytest.raises(UserError, match=r"There is no list set/holdout.txt.*\n.*\nSay where it is\.$"):
        read_list("set/holdout.txt")  # of no flag called --holdout_list
    (here / "tables").mkdir()
    (here / "tables/all.csv").write_text("image,label\n")
    with pytest.raises(UserError, match="python datasets/prepare.py csv tables/all.csv --out tables"):
        opened("tables", "train")
    (here / "tables/train.txt").write_text("image,label\nc.jpg,0\n")
    with pytest.raises(UserError, match="line 1 has no label.*\n.*python datasets/prepare.py csv tables/train.txt"):
        opened("tables", "train")


# ------------------------------------------------------------------------ listed twice

PIECE = st.sampled_from(["a", "b.jpg", "../", "./", "/", "//", "..", "sub/", "é", " "])


@settings(max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    paths=st.lists(st.tuples(st.booleans(), st.lists(PIECE, min_size=1, max_size=5)), min_size=2, max_size=12),
    cut=st.integers(1, 11),
    size=st.sampled_from([4, 1 << 20]),
)
def test_shared_images_in_any_spelling_are_found(tmp_path, monkeypatch, paths, cut, size):
    monkeypatch.setattr(list_checks, "HASH_CHUNK_BYTES", size)
    (tmp_path / "sub").mkdir(exist_ok=True)
    rows = [(f"{tmp_path}/" if absolute else "") + "".join(pieces) for absolute, pieces in paths]
    rows = [row for row in rows if row.strip()]
    parts = [("train.txt", rows[:cut]), ("sub/val.txt", rows[cut:])]
    if not all(part for _, part in parts):
        return
    for name, part in parts:
        (tmp_path / name).write_text("".join(f"{row} 0\n" for row in part))
    train, val = (read_list(tmp_path / name) for name, _ in parts)
    known = {os.path.abspath(train.path(k)) for k in range(len(train))}
    assert list_checks.shared_images(train, val).tolist() == [
        k for k in range(len(val)) if os.path.abspath(val.path(k)) in known
    ]
    assert list_checks.path_hashes(val).dtype == np.uint64
    paths = [os.path.abspath(train.path(k)) for k in range(len(train))]
    again, first = list_checks.repeated_images(train)
    assert dict(zip(again.tolist(), first.tolist(), strict=True)) == {
        k: paths.index(path) for k, path in enumerate(paths) if paths.index(path) < k
    }
    assert again.tolist() == sorted(again)


def test_path_hashes_of_names_without_folder_at_the_end_of_a_chunk(tmp_path, monkeypatch):
    (tmp_path / "train.txt").write_text("a 0\nb 0\na 0\n")
    files = read_list(tmp_path / "train.txt")
    hashes = list_checks.path_hashes(files)
    monkeypatch.setattr(list_checks, "HASH_CHUNK_BYTES", 4)  # a line's length: the second folder, "", begins at its end
    assert list_checks.path_hashes(files).tolist() == hashes.tolist() == [hashes[0], hashes[1], hashes[0]]
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize("check", ["--check_files", "--no-check_files"])
@pytest.mark.parametrize("name", ["train", "val"])
def test_open_list_repeated_images_are_warned_of_once_per_list(here, prepare, caplog, check, name):
    lines = f"c.jpg 0\na b.jpg 1\n\nsub/../c.jpg 0\n{here}/set/c.jpg 1\nsub/d.jpg 1\na b.jpg 1\n"
    (here / f"set/{name}.txt").write_text(lines)
    assert len(dataloader.open_list(parse_train(["--data_root", "set", check]), name)) == 6
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"3 of 6 lines of set/{name}.txt name an image that an earlier line names" in said
    assert "the first: set/c.jpg (lines 1 and 4)." in said
    assert "1 of them give it another label, the first: set/c.jpg (lines 1 and 5): 0 and 1." in said
    words = shlex.split(said.split("Try: python datasets/prepare.py ")[1].splitlines()[0])
    assert prepare.main(words) == 0
    kept = read_list(said.split(f"Then give --{name}_list ")[1][:-1])
    assert sorted(os.path.basename(kept.path(k)) for k in range(len(kept))) == ["a b.jpg", "d.jpg"]


def test_images_in_a_folder_and_in_a_link_to_it_are_the_same(tmp_path):
    """A training list that names the folder and a validation list that names the link shared images, without a word."""
    (tmp_path / "data/a").mkdir(parents=True)
    (tmp_path / "data/b").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "short").symlink_to("link/a")
    train, val = tmp_path / "train.txt", tmp_path / "val.txt"
    train.write_text(f"data/a/1.png 0\n{tmp_path}/data/b/2.png 1\nshort/1.png 0\n{tmp_path}/link/b/../b/3.png 0\n")
    val.write_text(f"other/1.png 0\n{tmp_path}/link/a/1.png 0\nshort/2.png 0\nlink/b/2.png 1\ndata/b/3.png 0\n")
    train, val = read_list(train), read_list(val)
    assert list_checks.shared_images(train, val).tolist() == [1, 3, 4]
    assert list_checks.shared_images(val, train).tolist() == [0, 1, 2, 3]
    assert [found.tolist() for found in list_checks.repeated_images(train)] == [[2], [0]]
    link = (tmp_path / "link").rename(tmp_path / "away")
    before = list_checks.path_hashes(val)
    link.rename(tmp_path / "link")
    assert (list_checks.path_hashes(val) != before).tolist() == [False, True, True, True, False]


def test_open_list_repeated_images_with_sets_of_labels_are_warned_of(here, caplog):
    (here / "set/train.txt").write_text("c.jpg 0,1\nsub/d.jpg -\nc.jpg 1,0\nsub/d.jpg 1\n")
    dataloader.open_list(parse_train(["--data_root", "set"]), "train", task="multilabel")
    assert "2 of 4 lines of set/train.txt name an image that an earlier line names" in caplog.text
    assert "1 of them give it another label, the first: set/sub/d.jpg (lines 2 and 4): - and 1." in caplog.text
    assert "Keep one line per image." in caplog.text and "prepare.py" not in caplog.text


def test_open_list_of_single_images_warns_of_none(here, caplog):
    (here / "set/train.txt").write_text("c.jpg 0\nsub/d.jpg 1\n")
    (here / "set/test.txt").write_text("c.jpg\nc.jpg\n")
    for name in ("train", "test"):
        opened("set", name)
    assert not caplog.records
