"""List files: what a line may look like, and what is said of one that is wrong."""

import os

import numpy as np
import pytest

from dataloader import file_list
from dataloader.file_list import missing_files, read_class_names, read_list
from utils.errors import UserError


def write(folder, content):
    path = folder / "train.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        "/a b/图 片.jpg 3\n/c.jpg 0\n",
        "/a b/图 片.jpg 3\r\n/c.jpg 0\r\n",
        "\ufeff/a b/图 片.jpg 3\n/c.jpg 0",
        "\n/a b/图 片.jpg 3  \n\n/c.jpg\t0\n\n",
    ],
    ids=["plain", "crlf", "bom-no-last-newline", "blank-lines-and-tabs"],
)
def test_every_way_to_write_a_list(tmp_path, content):
    files = read_list(write(tmp_path, content))
    assert [files.path(k) for k in range(len(files))] == ["/a b/图 片.jpg", "/c.jpg"]
    assert files.label.tolist() == [3, 0]
    assert files.label.dtype == np.int32


def test_names_of_other_bytes_and_relative_paths(tmp_path):
    files = read_list(write(tmp_path, b"/x\xff.jpg 1\nsub/y.jpg 2\n"))
    assert os.fsencode(files.path(0)) == b"/x\xff.jpg"
    assert files.path(1) == str(tmp_path / "sub/y.jpg")


def test_a_list_without_labels_takes_the_whole_line(tmp_path):
    files = read_list(write(tmp_path, "/a 1.jpg\n/b 2\n"), labelled=False)
    assert [files.path(k) for k in range(2)] == ["/a 1.jpg", "/b 2"]
    assert files.label.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("/a.jpg 1\n\n/b.jpg\n", "line 3 has no label: '/b.jpg'"),
        ("/a.jpg 1\n/b.jpg x\n", "line 2: the label is 'x'"),
        ("/a.jpg -1\n", "the label is '-1'"),
        ("/a.jpg 1.5\n", "the label is '1.5'"),
        ("/a.jpg 99999999999\n", "the label is '99999999999'"),
        ("\n \n", "holds no image"),
        ("", "holds no image"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, content, said):
    with pytest.raises(UserError) as error:
        read_list(write(tmp_path, content))
    assert said in str(error.value)
    assert "train.txt" in str(error.value)


def test_a_missing_list_says_what_is_there(tmp_path):
    (tmp_path / "val.txt").write_text("")
    with pytest.raises(UserError, match="There is no list .*train.txt.*val.txt") as error:
        read_list(tmp_path / "train.txt")
    assert "prepare.py" in str(error.value)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunks_give_what_a_naive_reader_gives(tmp_path, monkeypatch, chunk):
    rng = np.random.default_rng(chunk)
    lines = [
        f"/d{rng.integers(99)}/{'x' * rng.integers(1, 30)} {k}.jpg {rng.integers(50030)}" if rng.random() < 0.9 else "" for k in range(300)
    ]
    monkeypatch.setattr(file_list, "CHUNK", chunk)
    files = read_list(write(tmp_path, "\r\n".join(lines)))
    wanted = [(line.rsplit(" ", 1), number) for number, line in enumerate(lines, 1) if line]
    got = [([files.path(k), str(files.label[k])], int(files.line[k])) for k in range(len(files))]
    assert got == wanted


def test_select_and_where(tmp_path):
    files = read_list(write(tmp_path, "/a 0\n/b 1\n/c 2\n")).select(np.array([True, False, True]))
    assert [files.path(k) for k in range(2)] == ["/a", "/c"]
    assert files.where(1) == f"{tmp_path}/train.txt, line 3"


def test_missing_files(tmp_path):
    (tmp_path / "here.jpg").write_text("")
    assert missing_files(read_list(write(tmp_path, "here.jpg 0\ngone.jpg 1\n"))).tolist() == [False, True]


def test_class_names(tmp_path):
    assert read_class_names(tmp_path) is None
    (tmp_path / "classes.txt").write_bytes("\ufeff鞋\r\nbag\n".encode())
    assert read_class_names(tmp_path) == ["鞋", "bag"]
