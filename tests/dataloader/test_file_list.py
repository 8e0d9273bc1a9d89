"""List files: what a line may look like, and what is said of one that is wrong."""

import logging
import os
import shutil
import subprocess
import time

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dataloader
from dataloader import classes, file_list, list_checks
from dataloader.classes import Classes, check_labels, find_classes
from dataloader.decode import read_image
from dataloader.file_list import missing_files, read_class_names, read_lines, read_list
from options import parse_eval, parse_train
from utils.errors import ImageError, UserError
from utils.logger import start_logging


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
        "/a b/图 片.jpg 3\r/c.jpg 0\r",
        "/a b/图 片.jpg  3\n/c.jpg \t 0\n",
    ],
    ids=["plain", "crlf", "bom-no-last-newline", "blank-lines-and-tabs", "cr", "two-blanks"],
)
def test_read_list_every_notation_is_equal(tmp_path, content):
    files = read_list(write(tmp_path, content))
    assert [files.path(k) for k in range(len(files))] == ["/a b/图 片.jpg", "/c.jpg"]
    assert files.label.tolist() == [3, 0]
    assert files.label.dtype == np.int32


def test_read_list_non_utf8_names_and_relative_paths_are_kept(tmp_path):
    files = read_list(write(tmp_path, b"/x\xff.jpg 1\nsub/y.jpg 2\n"))
    assert os.fsencode(files.path(0)) == b"/x\xff.jpg"
    assert files.path(1) == str(tmp_path / "sub/y.jpg")


def test_read_list_unlabelled_takes_whole_line(tmp_path):
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
        ("/a.jpg 1,2\n", "Several labels per image are for the networks of: train.py --task multilabel"),
        ("/a.jpg 99999999999\n", "the label is '99999999999'"),
        ("\n \n", "holds no image"),
        ("", "holds no image"),
    ],
)
def test_read_list_wrong_line_is_named(tmp_path, content, said):
    with pytest.raises(UserError) as error:
        read_list(write(tmp_path, content))
    assert said in str(error.value)
    assert "train.txt" in str(error.value)


def test_read_list_missing_names_lists_nearby(tmp_path):
    (tmp_path / "val.txt").write_text("")
    with pytest.raises(UserError, match="There is no list .*train.txt.*val.txt") as error:
        read_list(tmp_path / "train.txt")
    assert "prepare.py" in str(error.value)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_read_list_in_chunks_equals_naive_reader(tmp_path, monkeypatch, chunk):
    rng = np.random.default_rng(chunk)
    lines = [
        f"/d{rng.integers(99)}/{'x' * rng.integers(1, 30)} {k}.jpg {rng.integers(50030)}" if rng.random() < 0.9 else ""
        for k in range(300)
    ]
    monkeypatch.setattr(file_list, "PARSE_CHUNK_BYTES", chunk)
    files = read_list(write(tmp_path, "\r\n".join(lines)))
    wanted = [(line.rsplit(" ", 1), number) for number, line in enumerate(lines, 1) if line]
    got = [([files.path(k), str(files.label[k])], int(files.line[k])) for k in range(len(files))]
    assert got == wanted


def test_file_list_select_keeps_locations(tmp_path):
    files = read_list(write(tmp_path, "/a 0\n/b 1\n/c 2\n")).select(np.array([True, False, True]))
    assert [files.path(k) for k in range(2)] == ["/a", "/c"]
    assert files.location(1) == f"{tmp_path}/train.txt, line 3"


def test_missing_files_marks_absent_paths(tmp_path):
    (tmp_path / "here.jpg").write_text("")
    assert missing_files(read_list(write(tmp_path, "here.jpg 0\ngone.jpg 1\n"))).tolist() == [False, True]


def test_read_class_names_with_bom_and_crlf_gives_names(tmp_path):
    assert read_class_names(tmp_path) is None
    (tmp_path / "classes.txt").write_bytes("\ufeff鞋\r\nbag\n".encode())
    assert read_class_names(tmp_path) == ["鞋", "bag"]


def naive(content, labelled):
    """What a list says, by the plainest reading: (path, label, line) each."""
    found = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n" if b"\n" in content else b"\r"), 1):
        line = line.rstrip(b" \t\r")
        if line:
            at = max(line.rfind(b" "), line.rfind(b"\t")) if labelled else len(line)
            found.append((line[:at].rstrip(b" \t\r"), int(line[at + 1 :]) if labelled else -1, number))
    return found


NAME = st.lists(
    st.sampled_from([b"a", b"/", b".jpg", b" ", b"\t", b"7", "图".encode(), b"\xff", b"\r", b"\xef\xbb\xbf"]),
    max_size=8,
)
LINE = st.tuples(
    NAME, st.sampled_from([b" ", b"\t"]), st.integers(0, 999_999_999), st.sampled_from([b"", b" ", b"\r", b" \t\r"])
)
BETWEEN = st.sampled_from([b"\n", b"     \t \r \r\n", b"\r\n", b"\n\n", b"\n  \r\n", b"\n\t\n"])


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    begin=st.sampled_from([b"", b"\xef\xbb\xbf", b"\n", b"\xef\xbb\xbf\r\n"]),
    lines=st.lists(st.tuples(LINE, BETWEEN), min_size=1, max_size=12),
    last=st.booleans(),
    labelled=st.booleans(),
    chunk=st.sampled_from([1, 5, 17, 64, 1 << 24]),
    cr=st.booleans(),
)
def test_read_list_generated_equals_naive_reader(tmp_path, monkeypatch, begin, lines, last, labelled, chunk, cr):
    monkeypatch.setattr(file_list, "PARSE_CHUNK_BYTES", chunk)
    rows = [
        (b"/" + b"".join(name) + (gap + str(label).encode() if labelled else b"") + end, stop)
        for (name, gap, label, end), stop in lines
    ]
    content = begin + b"".join(row + stop for row, stop in rows[:-1]) + rows[-1][0] + (b"\n" if last else b"")
    if cr or b"\n" not in content:
        content = content.replace(b"\r", b"").replace(b"\n", b"\r")
    files = read_list(write(tmp_path, content), labelled)
    got = [(os.fsencode(files.path(k)), int(files.label[k]), int(files.line[k])) for k in range(len(files))]
    assert got == naive(content, labelled)


@pytest.mark.parametrize("chunk", [1, 20, 1 << 24])
@pytest.mark.parametrize(
    ("wrong", "said"), [("/x.jpg", "line 42 has no label: '/x.jpg'"), ("/x.jpg seven", "line 42: the label is 'seven'")]
)
def test_read_list_error_after_blank_lines_names_right_line(tmp_path, monkeypatch, chunk, wrong, said):
    monkeypatch.setattr(file_list, "PARSE_CHUNK_BYTES", chunk)
    lines = [f"/{k}.jpg {k}" if k % 3 else "" for k in range(1, 60)]
    lines[41] = wrong
    with pytest.raises(UserError, match=said):
        read_list(write(tmp_path, "\r\n".join(lines)))


@pytest.mark.parametrize("label", ["1_000", "+1", "0x1", "１", "1e3", "nan", "1000000000", "--", "1,"])
def test_read_list_label_not_digits_is_refused(tmp_path, label):
    with pytest.raises(UserError, match=r"train\.txt, line 1: the label is "):
        read_list(write(tmp_path, f"/a.jpg {label}\n"))


def test_read_list_extreme_labels_are_kept(tmp_path):
    files = read_list(write(tmp_path, "/a 0\n/b 007\n/c 999999999\n"))
    assert files.label.tolist() == [0, 7, 999_999_999]


@pytest.mark.parametrize("line", [" 3", "\t3", "3", "3 "])
def test_read_list_line_of_label_alone_is_refused(tmp_path, line):
    with pytest.raises(UserError, match="line 2 has no label"):
        read_list(write(tmp_path, f"/a 1\n{line}\n"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("labelled", [True, False])
def test_read_list_utf16_is_refused(tmp_path, encoding, labelled):
    """As PowerShell's `>` writes it."""
    with pytest.raises(UserError, match=r"train\.txt is not UTF-8.*UTF-16"):
        read_list(write(tmp_path, "/a.jpg 1\r\n/图 片/b.jpg 2\r\n".encode(encoding)), labelled)


@pytest.mark.skipif(not shutil.which("iconv"), reason="no iconv")
@pytest.mark.parametrize("name", ["my list.txt", "classes.txt"])
def test_utf16_file_message_has_a_command_that_converts_it(tmp_path, name):
    path = tmp_path / name
    path.write_text("/图 片/b.jpg 2\n", encoding="utf-16")
    read = read_lines if name == "classes.txt" else read_list
    with pytest.raises(UserError, match="Try: iconv") as caught:
        read(path)
    subprocess.run(str(caught.value).split("Try: ")[1], shell=True, check=True)
    assert len(read(path.with_name(f"{path.stem}_utf8.txt"))) == 1


@pytest.mark.parametrize("labelled", [True, False])
def test_read_list_binary_file_is_refused_by_kind(tmp_path, photo_set, photos, labelled):
    photo = read_list(photo_set / "train.txt").path(0)
    cv2.imwrite(str(tmp_path / "x.png"), photos[0])
    np.savez(tmp_path / "x.npz", a=np.arange(9))
    for path, kind in (
        (photo, "a JPEG image"),
        (tmp_path / "x.png", "a PNG image"),
        (tmp_path / "x.npz", "a ZIP archive"),
    ):
        with pytest.raises(UserError, match=f"{path} is {kind}, .*not a list"):
            read_list(path, labelled)
    with pytest.raises(UserError, match=r"train\.txt, line 2 holds a zero byte"):
        read_list(write(tmp_path, b"/c.jpg 2\n/a\0b.jpg 1\n"), labelled)


def test_read_list_million_blanks_take_linear_time(tmp_path):
    """A round over all lines for each blank took a minute."""
    began = time.process_time()
    content = b"/a.jpg 1" + b" \t" * 1_000_000 + b"\n/b.jpg" + b" " * 1_000_000 + b"2\n"
    files = read_list(write(tmp_path, content))
    assert [files.path(k) for k in range(2)] == ["/a.jpg", "/b.jpg"] and files.label.tolist() == [1, 2]
    assert time.process_time() - began < 5


def test_read_image_null_byte_in_path_is_image_error(tmp_path):
    """open() answers it with ValueError."""
    with pytest.raises(ImageError, match="null (byte|character)"):
        read_image("/a\0b.jpg")


def test_read_list_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_list(tmp_path)


def test_read_image_non_utf8_name_opens(tmp_path, photo_set):
    photo = read_list(photo_set / "train.txt").path(0)
    shutil.copy(photo, os.fsencode(tmp_path) + b"/\xff\xe9 \xb0.jpg")
    files = read_list(write(tmp_path, b"\xff\xe9 \xb0.jpg 1\n\xff.jpg 1\n"))
    assert missing_files(files).tolist() == [False, True]
    assert np.array_equal(read_image(files.path(0))[0], read_image(photo)[0])
    with pytest.raises(ImageError, match="No such file"):
        read_image(files.path(1))


def test_read_list_relative_paths_start_at_the_list(tmp_path, monkeypatch):
    (tmp_path / "lists").mkdir()
    (tmp_path / "here.jpg").write_text("")
    write(tmp_path / "lists", "../here.jpg 0\nhere.jpg 0\n")
    monkeypatch.chdir(tmp_path)
    assert missing_files(read_list("lists/train.txt")).tolist() == [False, True]


def test_missing_files_of_thousands_keep_order(tmp_path):
    present = {0, 17, 4095, 4096, 8191, 8192, 9000}
    for k in present:
        (tmp_path / f"{k}").write_text("")
    gone = missing_files(read_list(write(tmp_path, "".join(f"{k} 0\n" for k in range(9001)))))
    assert set(np.flatnonzero(~gone).tolist()) == present


# ------------------------------------------------------------------------ classes


def listing(folder, labels, names=None):
    if names is not None:
        (folder / "classes.txt").write_text(names, encoding="utf-8")
    return read_list(write(folder, "".join(f"/{k}.jpg {label}\n" for k, label in enumerate(labels))))


def test_read_class_names_odd_separators_stay_in_names(tmp_path):
    (tmp_path / "classes.txt").write_text("a\u2028b\n\x0bc\nd\n\n \n", encoding="utf-8")
    assert read_class_names(tmp_path) == ["a\u2028b", "\x0bc", "d"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a\n\nb\n", "line 2 is blank"),
        ("a\nb\n \na\n\n", "line 3 is blank"),
        ("a\nb\na", "line 3 names 'a' again, after line 1"),
    ],
)
def test_read_class_names_blank_or_double_is_refused(tmp_path, content, said):
    (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(UserError, match=rf"classes\.txt, {said}"):
        read_class_names(tmp_path)


def test_read_class_names_other_encoding_is_refused(tmp_path):
    (tmp_path / "classes.txt").write_bytes("鞋\n包\n".encode("gbk"))
    with pytest.raises(UserError, match=r"classes\.txt is not UTF-8"):
        read_class_names(tmp_path)


@pytest.mark.parametrize(
    ("names", "given", "count", "kept"),
    [
        (None, None, 3, None),
        (None, 5, 5, None),
        ("x\ny\nz\n", None, 3, ["x", "y", "z"]),
        ("x\ny\nz\n", 3, 3, ["x", "y", "z"]),
        ("x\ny\nz\nw", None, 4, ["x", "y", "z", "w"]),
        ("x\ny\nz\n\n  \n", None, 3, ["x", "y", "z"]),  # blank lines at the end name nothing
        ("", None, 3, None),
    ],
)
def test_find_classes_prefers_given_then_named_then_seen(tmp_path, names, given, count, kept):
    found = find_classes(listing(tmp_path, [0, 2, 2, 1], names), given)
    assert (found.count, found.names) == (count, kept)
    assert found.train_counts == [1, 1, 2, 0, 0][:count]
    assert Classes.from_dict(found.as_dict()) == found
    assert [found.name(label) for label in (-1, 0, 2)] == (["?", kept[0], kept[2]] if kept else ["?", "0", "2"])


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        ("high low medium", True),
        ("grade1 grade10 grade2", True),
        ("Mild Moderate No_DR", True),
        ("low medium high", False),
        ("grade1 grade2 grade10", False),
        ("grade1 grade2 grade3", False),
        ("-1 0.5 10", False),
        ("no yes", False),
    ],
)
def test_find_classes_logs_the_order_and_warns_of_the_alphabet(tmp_path, capfd, names, warned):
    start_logging()
    files = listing(tmp_path, [0, 1, 2][: len(names.split())], "\n".join(names.split()))
    find_classes(files, None, "ordinal")
    said = "".join(capfd.readouterr())
    assert f"from {tmp_path}/classes.txt: {' < '.join(names.split())}" in said
    assert ("order of the alphabet" in said and "--classes FILE" in said) == warned
    find_classes(files, None)
    assert "order" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("labels", "names", "given", "said"),
    [
        ([0, 1, 5], "x\ny\n", None, r"line 3: the label is 5; allowed: 0 to 1 \(2 classes, by classes.txt\). 1 line"),
        ([0, 3, 2], None, 2, r"line 2: the label is 3; allowed: 0 to 1 \(2 classes, by --num_classes\). 2 line"),
        ([0, 1], "x\ny\n", 3, r"classes\.txt names 2 classes, --num_classes is 3"),
        ([0, 0], None, None, "All 2 images of .* are of class 0.*two or more classes"),
        ([4, 4], None, None, "All 2 images of .* are of class 4"),
        ([0, 0], "", None, "All 2 images of .* are of class 0"),
        ([0, 0], "x\n", None, "All 2 images of .* are of class 0"),
        ([0, 0], None, 1, "All 2 images of .* are of class 0"),
        (
            [0, 999_999_999],
            None,
            None,
            r"line 2: the label is 999999999, which makes 1000000000 classes.*\n.*--num_classes",
        ),
    ],
)
def test_find_classes_impossible_labels_are_refused(tmp_path, labels, names, given, said):
    with pytest.raises(UserError, match=said):
        find_classes(listing(tmp_path, labels, names), given)


def test_find_classes_above_inferred_limit_needs_a_count(tmp_path, monkeypatch):
    monkeypatch.setattr(classes, "MAX_INFERRED_CLASSES", 50)
    assert find_classes(listing(tmp_path, [0, 49]), None).count == 50
    assert find_classes(listing(tmp_path, [0, 99]), 100).count == 100
    with pytest.raises(UserError, match="line 2: the label is 50"):
        find_classes(listing(tmp_path, [0, 50]), None)


@pytest.mark.parametrize(("images", "largest"), [(2, 999), (100, 999), (101, 1009), (1000, 9999)])
def test_find_classes_far_more_than_images_need_a_count_or_names(tmp_path, images, largest):
    labels = [k % 2 for k in range(images)]
    assert find_classes(listing(tmp_path, [*labels[1:], largest]), None).count == largest + 1
    mistyped = listing(tmp_path, [*labels[1:], largest + 1])
    said = f"line {images}: the label is {largest + 1}, which makes {largest + 2} classes for {images} image"
    with pytest.raises(UserError, match=rf"{said}(.|\n)*--num_classes N, or a classes\.txt"):
        find_classes(mistyped, None)
    assert find_classes(mistyped, largest + 2).count == largest + 2
    named = listing(tmp_path, [*labels[1:], largest + 1], "\n".join(map(str, range(largest + 2))))
    assert find_classes(named, None).count == largest + 2


def test_find_classes_labels_from_one_are_asked_about(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("classifier"), "propagate", True)
    asked = "Do the labels start at 1?"
    find_classes(listing(tmp_path, [1, 2, 3]), None)
    assert asked in caplog.text
    with pytest.raises(UserError, match=r"the label is 3; allowed: 0 to 2.*start at 1\?"):
        find_classes(listing(tmp_path, [1, 2, 3]), 3)
    with pytest.raises(UserError, match=r"the label is 3; allowed: 0 to 2.*out of range\.$"):
        find_classes(listing(tmp_path, [0, 2, 3]), 3)
    caplog.clear()
    find_classes(listing(tmp_path, [1, 2, 3], "w\nx\ny\nz\n"), None)
    find_classes(listing(tmp_path, [2, 3]), None)
    find_classes(listing(tmp_path, [0, 2]), None)
    assert asked not in caplog.text


def test_find_classes_without_images_are_counted_in_log(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("classifier"), "propagate", True)
    find_classes(listing(tmp_path, [0, 1, 4]), 6)
    assert "3 of 6 classes have no image" in caplog.text
    assert "(the first: 2)" in caplog.text
    caplog.clear()
    find_classes(listing(tmp_path, [0, 1]), None)
    assert caplog.text == ""


def test_check_labels_out_of_range_is_refused(tmp_path):
    check_labels(listing(tmp_path, [0, 2]), 3, "anything")
    check_labels(read_list(write(tmp_path, "/a\n/b\n"), labelled=False), 1, "anything")
    with pytest.raises(UserError, match=r"line 2.*allowed: 0 to 1 \(2 classes, by the checkpoint\)"):
        check_labels(listing(tmp_path, [0, 2]), 2, "the checkpoint")


# ------------------------------------------------------------------------ files that are not there


@pytest.fixture
def gappy(tmp_path, photo_set):
    """A folder with a train.txt of 15 lines, of which lines 2 to 14 name files that are not there."""
    for k in (1, 15):
        shutil.copy(read_list(photo_set / "train.txt").path(k), tmp_path / f"{k}.jpg")
    write(tmp_path, "".join(f"{k}.jpg {k % 2}\n" for k in range(1, 16)))
    (tmp_path / "val.txt").write_text((tmp_path / "train.txt").read_text())
    return tmp_path


def opened(folder, *words, **how):
    return dataloader.open_list(parse_train(["--data_root", str(folder), *words]), "train", **how)


def test_open_list_missing_files_stop_train_and_ten_are_named(gappy):
    with pytest.raises(UserError) as error:
        opened(gappy, drop_missing=True)
    text = str(error.value)
    assert f"13 of 15 images of {gappy}/train.txt are not there" in text
    assert f"  {gappy}/2.jpg ({gappy}/train.txt, line 2)" in text
    assert "line 11)" in text
    assert "line 12)" not in text
    assert "… and 3 more" in text
    assert "--on_bad_image skip" in text


def test_open_list_missing_files_with_skip_are_dropped_and_logged(gappy, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("classifier"), "propagate", True)
    files = opened(gappy, "--on_bad_image", "skip", drop_missing=True)
    assert [files.path(k) for k in range(len(files))] == [f"{gappy}/1.jpg", f"{gappy}/15.jpg"]
    assert files.label.tolist() == [1, 1]
    assert files.location(1).endswith("train.txt, line 15")
    assert "13 of 15 images" in caplog.text
    assert "They are left out." in caplog.text


def test_open_list_missing_files_in_eval_count_as_unreadable(gappy, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("classifier"), "propagate", True)
    files = dataloader.open_list(parse_eval(["--data_root", str(gappy), "--load", "x.pt"]), "val")
    assert len(files) == 15
    assert "They count as unreadable." in caplog.text
    with pytest.raises(UserError, match="13 of 15"):
        dataloader.open_list(
            parse_eval(["--data_root", str(gappy), "--load", "x.pt", "--on_bad_image", "error"]), "val"
        )


def test_open_list_all_files_missing_is_refused(tmp_path):
    write(tmp_path, "a.jpg 0\nb.jpg 1\n")
    with pytest.raises(
        UserError, match=rf"(?s)No image of .*train\.txt is there, of 2:\n.*relative ones start at {tmp_path}/"
    ):
        opened(tmp_path, "--on_bad_image", "skip", drop_missing=True)


def test_open_list_no_check_files_looks_for_none(gappy, monkeypatch):
    monkeypatch.setattr(list_checks, "missing_files", None)
    assert len(opened(gappy, "--no-check_files", drop_missing=True)) == 15


def test_open_list_train_list_flag_is_used(gappy, tmp_path):
    other = tmp_path / "other name.list"
    other.write_text(f"{gappy}/1.jpg 0\n")
    assert opened("nowhere", "--train_list", str(other)).source == other


def test_fingerprint_depends_on_content_not_folder(tmp_path, monkeypatch):
    def mark(*lines):
        path = tmp_path / "list.txt"
        path.write_text("".join(f"{line}\n" for line in lines))
        return read_list(path).fingerprint()

    one = mark("/a/photos/0001.jpg 0", "/a/photos/0002.jpg 1", "x 2")
    assert mark("/other/place/photos/0001.jpg 0", "/other/place/photos/0002.jpg 1", "x 2") == one
    assert mark("/a/photos/0002.jpg 0", "/a/photos/0001.jpg 1", "x 2") != one  # another order
    assert mark("/a/photos/0001.jpg 0", "/a/photos/0002.jpg 0", "x 2") != one  # another label
    assert mark("/a/photos/0001.jpg 0", "/a/photos/0002.jpg 1") != one
    monkeypatch.setattr(file_list, "HASH_CHUNK_LINES", 2)
    assert mark("/a/photos/0001.jpg 0", "/a/photos/0002.jpg 1", "x 2") == one
    names = [f"/data/{k:07d}.jpg {k % 7}" for k in range(50)]
    assert len({mark(*names), mark(*names[::-1]), mark(*names[1:])}) == 3


def test_path_fingerprint_depends_on_folder_and_order_not_on_spelling(tmp_path, monkeypatch):
    def mark(*lines):
        path = tmp_path / "list.txt"
        path.write_text("".join(f"{line} 0\n" for line in lines))
        return list_checks.path_fingerprint(read_list(path))

    one = mark(f"{tmp_path}/a/photos/0001.jpg", f"{tmp_path}/a/photos/0002.jpg")
    assert mark("a/photos/0001.jpg", "./a//photos/0002.jpg") == one
    assert mark("a/photos/0002.jpg", "a/photos/0001.jpg") != one
    assert mark("b/photos/0001.jpg", "b/photos/0002.jpg") != one
    monkeypatch.chdir(tmp_path)
    assert list_checks.path_fingerprint(read_list("list.txt")) == mark("b/photos/0001.jpg", "b/photos/0002.jpg")
