"""tools.doctor: every kind of bad file, copies, leaks, classes; a second run, a kill, the page."""

import csv
import html.parser
import json
import os
import signal
import subprocess
import sys
import time
import unicodedata
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from conftest import ROOT, wait_for
from tools.doctor import command as doctor
from tools.doctor import duplicates, findings, inspection, page

FILE_ERRORS = {"missing", "dangling_link", "not_a_file", "empty", "truncated", "unreadable", "too_large"}


def jpeg(image: np.ndarray, quality: int = 90) -> bytes:
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[
        1
    ].tobytes()


def cut(photos, number: int, side: int = 200) -> np.ndarray:
    """Cut `number`, one of 18 that share no pixel."""
    photo, place = photos[number % 3], number // 3
    row, column = divmod(place, photo.shape[1] // side)
    top, left = side * row, side * column
    return photo[top : top + side, left : left + side]


def listed(folder: Path, name: str, lines: list[str]) -> Path:
    path = folder / name
    path.write_bytes(b"".join(os.fsencode(f"{line}\n") for line in lines))
    return path


def examine(folder: Path, *words: object) -> SimpleNamespace:
    """Run the doctor; the code, doctor.json, and of doctor.csv the rows and {file name: problems}."""
    out = folder / "out"
    code = doctor.main([*map(str, words), "--out", str(out), "--workers", "2"])
    rows = (
        list(csv.DictReader(open(out / "doctor.csv", encoding="utf-8", errors="surrogateescape"))) if code < 2 else []
    )
    problems = defaultdict(set)
    for row in rows:
        problems[Path(row["path"]).name].add(row["problem"])
    summary = json.loads((out / "doctor.json").read_text()) if code < 2 else {}
    return SimpleNamespace(code=code, rows=rows, problems=problems, summary=summary, out=out)


@pytest.fixture
def clean(photos, tmp_path) -> Path:
    """Lists that nothing is wrong with: 6 training images, 3 validation, 2 without labels; JPEG and PNG."""
    for name, numbers in (("train", range(6)), ("val", range(6, 9)), ("test", range(9, 11))):
        lines = []
        for number in numbers:
            path = tmp_path / f"{name}_{number}.{'png' if number % 2 else 'jpg'}"
            cv2.imwrite(str(path), cv2.cvtColor(cut(photos, number), cv2.COLOR_RGB2BGR))
            lines.append(path.name if name == "test" else f"{path.name} {number % 3}")
        listed(tmp_path, f"{name}.txt", lines)
    return tmp_path


def all_lists(folder: Path) -> list[Path]:
    return [folder / f"{name}.txt" for name in ("train", "val", "test")]


# ------------------------------------------------------------------------ files


def test_inspect_file_names_a_git_lfs_pointer(tmp_path):
    (tmp_path / "a.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    found = inspection.inspect_file(str(tmp_path / "a.png"))
    assert found.flags == findings.MASKS["unreadable"] and "a Git LFS pointer" in found.detail


def test_doctor_healthy_lists_exit_0_without_findings(clean, capfd):
    done = examine(clean, *all_lists(clean))
    assert (done.code, done.rows) == (0, [])
    assert [entry["labelled"] for entry in done.summary["lists"]] == [True, True, False]
    assert done.summary["lists"][0]["classes"] == {
        "classes": 3,
        "min": 2,
        "median": 2.0,
        "max": 2,
        "ratio": 1.0,
        "gini": 0.0,
    }
    assert "No problems were found" in capfd.readouterr().out


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif", "bmp"])
def test_doctor_cut_images_are_truncated(photos, tmp_path, suffix):
    path = tmp_path / f"whole.{suffix}"
    if suffix == "gif":
        import PIL.Image

        PIL.Image.fromarray(cut(photos, 0)).save(path)
    else:
        cv2.imwrite(str(path), cut(photos, 0))
    data = path.read_bytes()
    for tenth in range(1, 10):
        (tmp_path / f"cut{tenth}.{suffix}").write_bytes(data[: len(data) * tenth // 10])
    train = listed(tmp_path, "train.txt", [f"whole.{suffix} 0", *(f"cut{tenth}.{suffix} 1" for tenth in range(1, 10))])
    done = examine(tmp_path, train)
    assert not done.problems[f"whole.{suffix}"] & FILE_ERRORS
    for tenth in range(1, 10):
        found = done.problems[f"cut{tenth}.{suffix}"] & FILE_ERRORS
        assert found and found <= {"truncated", "unreadable"}, (tenth, found)
        assert found == {"truncated"} or suffix not in ("jpg", "png", "webp"), (tenth, found)
    assert done.code == 1


def test_doctor_jpeg_without_end_marker_is_truncated(photos, tmp_path):
    data = jpeg(cut(photos, 0))
    (tmp_path / "no_end.jpg").write_bytes(data[:-2])
    (tmp_path / "zeros.jpg").write_bytes(data[: len(data) // 2] + bytes(len(data) // 2))
    (tmp_path / "trailer.jpg").write_bytes(data + b"\0\0camera")
    done = examine(tmp_path, listed(tmp_path, "train.txt", ["no_end.jpg 0", "zeros.jpg 0", "trailer.jpg 0"]))
    assert done.problems["no_end.jpg"] >= {"truncated"} and done.problems["zeros.jpg"] >= {"truncated"}
    assert not done.problems["trailer.jpg"] & FILE_ERRORS


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_doctor_flipped_bytes_are_judged_as_in_training(photos, tmp_path, suffix):
    from dataloader.decode import decode
    from utils.errors import ImageError

    data = cv2.imencode(suffix, cut(photos, 0))[1].tobytes()
    rng = np.random.default_rng(0)
    unreadable = 0
    for _ in range(30):
        bad = bytearray(data)
        for at in rng.integers(len(data), size=3):
            bad[at] ^= int(rng.integers(1, 256))
        path = tmp_path / f"flipped{suffix}"
        path.write_bytes(bad)
        flags = inspection.inspect_file(str(path)).flags
        named = {name for name in FILE_ERRORS if flags & findings.MASKS[name]}
        try:
            decode(bytes(bad))
        except ImageError:
            assert named, "training cannot read it"
        else:
            assert not named
        unreadable += bool(named)
    assert unreadable


def test_doctor_odd_files_have_their_own_findings(photos, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    picture = jpeg(cut(photos, 0))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_bytes(b"<html>404</html>")
    (folder / "zeros.jpg").write_bytes(bytes(5000))
    (folder / "really.png").write_bytes(picture)
    (folder / "UPPER.JPG").write_bytes(jpeg(cut(photos, 1)))
    (folder / "no_suffix").write_bytes(jpeg(cut(photos, 2)))
    cv2.imwrite(str(folder / "one.png"), np.full((1, 1, 3), 9, np.uint8))
    cv2.imwrite(str(folder / "line.jpg"), np.arange(65500, dtype=np.uint8).reshape(1, -1))
    cv2.imwrite(str(folder / "white.jpg"), np.full((300, 300, 3), 255, np.uint8))
    board = (np.indices((300, 300)).sum(0) % 2 * 255).astype(np.uint8)  # of one colour at an eighth, not in full
    cv2.imwrite(str(folder / "board.jpg"), board, [cv2.IMWRITE_JPEG_QUALITY, 100])
    (folder / "folder.jpg").mkdir()
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    bomb = bytearray(cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes())
    bomb[16:24] = (60000).to_bytes(4, "big") * 2
    bomb[29:33] = __import__("zlib").crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    (folder / "bomb.png").write_bytes(bomb)
    names = sorted([path.name for path in folder.iterdir()] + ["gone.jpg", "x" * 300 + ".jpg"])
    done = examine(tmp_path, listed(folder, "train.txt", [f"{name} {k % 2}" for k, name in enumerate(names)]))
    expected = {
        "empty.jpg": {"empty"}, "text.jpg": {"unreadable"}, "zeros.jpg": {"unreadable"}, "bomb.png": {"too_large"},
        "UPPER.JPG": set(), "no_suffix": set(), "board.jpg": set(), "really.png": {"wrong_extension"},
        "white.jpg": {"one_colour"}, "one.png": {"tiny", "one_colour"}, "line.jpg": {"tiny", "extreme_aspect"},
        "folder.jpg": {"not_a_file"}, "device.jpg": {"not_a_file"}, "pipe.jpg": {"not_a_file"},
        "dangling.jpg": {"dangling_link"}, "loop.jpg": {"dangling_link"},
        "gone.jpg": {"missing"}, "x" * 300 + ".jpg": {"missing"},
    }  # fmt: skip
    assert {name: done.problems[name] for name in expected} == expected
    lines = {Path(row["path"]).name: int(row["line"]) for row in done.rows if row["path"]}
    assert lines["pipe.jpg"] == names.index("pipe.jpg") + 1
    assert done.code == 1


def test_inspect_file_of_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "late.jpg")
    assert inspection.inspect_file(str(tmp_path / "late.jpg")).flags == findings.MASKS["unreadable"]


# ------------------------------------------------------------------------ copies


def altered(image: np.ndarray) -> dict[str, bytes]:
    resized = cv2.resize(image, None, fx=0.9, fy=0.9, interpolation=cv2.INTER_AREA)
    return {
        "quality": jpeg(image, 50),
        "resized": jpeg(resized),
        "brighter": jpeg(cv2.convertScaleAbs(image, beta=12)),
        "png": cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes(),
    }


def test_doctor_near_copies_are_found_and_other_cuts_are_not(photos, tmp_path):
    train, val = [], []
    for number in range(9):
        image = cut(photos, number)
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(image))
        train.append(f"{number}.jpg {number % 3}")
        for name, data in altered(image).items():
            (tmp_path / f"{number}_{name}.{'png' if name == 'png' else 'jpg'}").write_bytes(data)
            val.append(f"{number}_{name}.{'png' if name == 'png' else 'jpg'} {number % 3}")
    done = examine(tmp_path, listed(tmp_path, "train.txt", train), listed(tmp_path, "val.txt", val))
    leaks = {
        (Path(row["path"]).stem, Path(row["detail"].split(": ")[1].split(",")[0]).stem)
        for row in done.rows
        if row["problem"] == "near_leak"
    }
    assert all(copy.split("_")[0] == original for copy, original in leaks), "other photographs"
    assert len(leaks) >= 34, "of 36"
    assert {row["problem"] for row in done.rows} == {"near_leak", "near_duplicate"}
    assert done.code == 1
    assert examine(tmp_path, tmp_path / "train.txt", tmp_path / "val.txt", "--near", -1).code == 0


def test_doctor_other_colour_is_no_copy(photos, tmp_path):
    image = cut(photos, 1)
    (tmp_path / "one.jpg").write_bytes(jpeg(image))
    (tmp_path / "two.jpg").write_bytes(jpeg(np.ascontiguousarray(image[:, :, ::-1])))
    assert not examine(tmp_path, listed(tmp_path, "train.txt", ["one.jpg 0", "two.jpg 0"])).rows


def test_doctor_equal_hash_alone_is_no_copy(photos, tmp_path):
    grey = cv2.cvtColor(cut(photos, 1), cv2.COLOR_RGB2GRAY)
    plain, red = np.stack([grey] * 3, axis=2), np.stack([grey, grey // 2, grey // 2], axis=2)
    hashes = np.array([inspection.fingerprint(image)[0] for image in (plain, red)])
    assert (int(hashes[0]) ^ int(hashes[1])).bit_count() <= 4
    for name, image in (("plain", plain), ("red", red)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), image)
    assert not examine(tmp_path, listed(tmp_path, "train.txt", ["plain.png 0", "red.png 0"])).rows


def test_doctor_small_images_are_copies_only_if_nearly_equal(photos, tmp_path):
    small = cv2.resize(cut(photos, 1), (28, 28), interpolation=cv2.INTER_AREA)
    changed = small.copy()
    changed[4:8, 4:20] = changed[4:8, 4:20] * 0.6
    hashes, sketches = zip(*(inspection.fingerprint(image) for image in (small, changed)), strict=True)
    assert (int(hashes[0]) ^ int(hashes[1])).bit_count() <= 4
    assert (
        inspection.similarity(*(np.frombuffer(sketch, np.uint8)[None] for sketch in sketches))[0]
        > duplicates.MIN_SIMILARITY
    )
    for name, image in (("one", small), ("changed", changed)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), image)
    (tmp_path / "copy.jpg").write_bytes(jpeg(np.ascontiguousarray(small[:, :, ::-1]), 95))
    done = examine(tmp_path, listed(tmp_path, "train.txt", ["one.png 0", "copy.jpg 0", "changed.png 0"]))
    assert done.problems["copy.jpg"] == {"near_duplicate"} and not done.problems["changed.png"]


def test_doctor_exact_copies_leaks_and_conflicts_are_found(clean):
    picture = (clean / "train_0.jpg").read_bytes()
    for name in ("again", "other", "leaked", "tested"):
        (clean / f"{name}.jpg").write_bytes(picture)
    for name, lines in (
        ("train", "again.jpg 0\nother.jpg 2\ntrain_2.jpg 2\n"),
        ("val", "leaked.jpg 1\n"),
        ("test", "tested.jpg\n"),
    ):
        with open(clean / f"{name}.txt", "a") as file:
            file.write(lines)
    done = examine(clean, *all_lists(clean))
    assert done.problems["again.jpg"] == {"duplicate"} and done.problems["other.jpg"] == {"conflicting_labels"}
    assert done.problems["leaked.jpg"] == {"leak", "conflicting_labels"} and done.problems["tested.jpg"] == {"leak"}
    assert [Path(row["list"]).name for row in done.rows if row["problem"] == "leak"] == [
        "val.txt",
        "test.txt",
        "test.txt",
    ]
    (conflict,) = [
        row for row in done.rows if row["path"].endswith("leaked.jpg") and row["problem"] == "conflicting_labels"
    ]
    assert conflict["detail"] == f"as train.txt, line 1: {clean}/train_0.jpg; label 0 there, 1 here"
    assert "the same path" in next(row["detail"] for row in done.rows if row["path"].endswith("train_2.jpg"))
    assert done.code == 1 and done.rows[0]["problem"] == "leak", "the headline"


@pytest.mark.parametrize("bits", [0, 2, 4, 8])
def test_close_hashes_equals_all_pairs(bits):
    rng = np.random.default_rng(bits)
    seeds = rng.integers(0, 2**64, 300, dtype=np.uint64)
    hashes = np.concatenate([seeds, *(seeds ^ _flips(rng, len(seeds), bits + 2) for _ in range(3)), seeds[:20]])
    hashes[:40] = 0
    distance = np.array([[(one ^ two).bit_count() for two in hashes.tolist()] for one in hashes.tolist()])
    expected = {(int(i), int(j)) for i, j in zip(*np.nonzero(np.triu(distance <= bits, 1)), strict=True)}
    found = [
        tuple(sorted(pair))
        for one, two, _ in duplicates.close_hashes(hashes, bits)
        for pair in zip(one.tolist(), two.tolist(), strict=True)
    ]
    assert len(found) == len(set(found)), "each once"
    assert set(found) == expected


def _flips(rng, count: int, most: int) -> np.ndarray:
    flips = np.zeros(count, np.uint64)
    for _ in range(most):
        flips |= np.where(
            rng.random(count) < 0.6, np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64), np.uint64(0)
        )
    return flips


def test_close_hashes_of_100000_are_fast():
    hashes = np.random.default_rng(0).integers(0, 2**64, 100_000, dtype=np.uint64)
    hashes[1000:2000] = hashes[:1000] ^ np.uint64(0b1011)
    began = time.process_time()  # of this process alone, whatever else runs
    assert sum(len(one) for one, _, _ in duplicates.close_hashes(hashes, 4)) == 1000
    assert time.process_time() - began < 20


# ------------------------------------------------------------------------ classes


def classes_of(clean: Path, train: str, val: str, names: str | None = None) -> SimpleNamespace:
    listed(
        clean, "train.txt", [f"train_{k}.{'png' if k % 2 else 'jpg'} {label}" for k, label in enumerate(train.split())]
    )
    listed(clean, "val.txt", [f"val_{k}.{'png' if k % 2 else 'jpg'} {label}" for k, label in enumerate(val.split(), 6)])
    if names is not None:
        (clean / "classes.txt").write_text(names)
    done = examine(clean, *all_lists(clean)[:2])
    return SimpleNamespace(
        code=done.code, summary=done.summary, details=[(row["problem"], row["detail"]) for row in done.rows]
    )


def test_doctor_missing_and_unused_classes_are_found(clean):
    done = classes_of(clean, "0 0 0 1 1 4", "0 2 2")
    assert set(done.details) == {
        ("class_not_in_train", "class 2: 2 image(s) here, none in train.txt"),
        ("class_not_scored", "class 1: 2 image(s) in train.txt, none here"),
        ("class_not_scored", "class 4: 1 image(s) in train.txt, none here"),
        ("single_image", "class 4 has one image"),
        ("label_gap", "no list has an image of class 3"),
    }
    assert done.summary["lists"][0]["classes"] == {
        "classes": 3,
        "min": 1,
        "median": 2.0,
        "max": 3,
        "ratio": 3.0,
        "gini": 0.2222,
    }
    assert done.code == 0


def test_doctor_wrong_count_of_class_names_is_found(clean):
    few = classes_of(clean, "0 1 2 0 1 2", "0 1 2", "shoe\nhat\n")
    assert ("label_out_of_range", "label 2; classes.txt names 0 to 1; 2 line(s)") in few.details
    assert any(problem == "class_names" and "too few" in detail for problem, detail in few.details)
    assert few.code == 1
    many = classes_of(clean, "0 1 2 0 1 2", "0 1 2", "shoe\nhat\nbag\nshoe\n\n")
    assert {problem for problem, _ in many.details} == {"class_names", "class_name_unusable", "label_gap"}
    assert ("class_name_unusable", "'shoe' names class 0 and class 3") in many.details  # training refuses it
    assert any("too many" in detail for _, detail in many.details) and many.code == 1


def test_doctor_class_names_that_look_alike_are_found(clean):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    done = classes_of(clean, "0 1 2 0 1 2", "0 1 2", f"{composed}\ntea\n{decomposed}\n")
    text = f"{decomposed!r} names class 0 and class 2"
    assert done.details == [("class_name_unusable", text)] and done.code == 1


def test_doctor_huge_label_takes_no_memory(clean):
    done = classes_of(clean, "0 1 2 0 1 999999999", "0 1 2")
    assert any(problem == "label_gap" and "999999999" in detail for problem, detail in done.details)


# ------------------------------------------------------------------------ again


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Names of the files that are read and decoded, also for thumbnails."""
    names: list[str] = []
    for module, name in ((inspection, "inspect_file"), (page, "thumbnail")):
        real = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda path, real=real, **limit: (names.append(Path(path).name), real(path, **limit))[1]
        )
    return names


def test_doctor_second_run_reads_only_changed_files(clean, photos, read):
    (clean / "val_6.jpg").write_bytes((clean / "train_0.jpg").read_bytes())
    first = examine(clean, *all_lists(clean))
    assert len(read) == 11 + 2, "11 files, and 2 thumbnails"
    read.clear()
    second = examine(clean, *all_lists(clean))
    assert read == [] and second.rows == first.rows and second.summary["run"]["known"] == 11
    (clean / "val_6.jpg").write_bytes(jpeg(cut(photos, 6)))
    third = examine(clean, *all_lists(clean))
    assert read == ["val_6.jpg"] and third.rows == [] and (first.code, third.code) == (1, 0)


def test_doctor_file_with_other_mtime_is_read_again(clean, read):
    examine(clean, *all_lists(clean))
    read.clear()
    os.utime(clean / "val_6.jpg", ns=(1, 1))
    examine(clean, *all_lists(clean))
    assert read == ["val_6.jpg"]


def test_doctor_file_that_comes_and_goes_is_followed(clean):
    moved = (clean / "train_0.jpg").rename(clean / "away.jpg")
    assert examine(clean, *all_lists(clean)).problems["train_0.jpg"] == {"missing"}
    moved.rename(clean / "train_0.jpg")
    assert examine(clean, *all_lists(clean)).code == 0


def test_doctor_killed_half_way_resumes(photos, tmp_path):
    names = []
    for number in range(1500):
        image = cut(photos, number % 12)
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(image, 30 + number % 60)[: None if number % 97 else 900])
        names.append(f"{number}.jpg {number % 3}")
    train = listed(tmp_path, "train.txt", names)
    out = tmp_path / "out"
    held = """
import os, sys, time
from pathlib import Path
from tools.doctor import command as doctor
from tools.doctor import inspection
real, scan, test = inspection.inspect_file, os.getpid(), os.getppid()
def look(path, **limit):
    while int(Path(path).stem) >= 1200 and os.getppid() in (scan, test):  # as long as the scan lives
        time.sleep(0.01)
    return real(path, **limit)
inspection.inspect_file = look
sys.exit(doctor.main())
"""
    command = [sys.executable, "-c", held, str(train), "--out", str(out), "--workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_for(lambda: process.poll() is not None or _kept(out / "doctor.sqlite"))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done before it was killed"
    kept = _kept(out / "doctor.sqlite")
    assert 0 < kept < 1500 and not (out / "doctor.csv").exists()
    resumed = examine(tmp_path, train)
    assert resumed.summary["run"]["files_read"] == 1500 - kept
    whole = tmp_path / "whole"
    assert doctor.main([str(train), "--out", str(whole)]) == resumed.code == 1
    assert (whole / "doctor.csv").read_bytes() == (out / "doctor.csv").read_bytes()


def _kept(path: Path) -> int:
    import sqlite3

    if not path.exists():
        return 0
    try:
        base = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        return base.execute("SELECT count(*) FROM looks").fetchone()[0]
    except sqlite3.Error:
        return 0
    finally:
        base.close()


# ------------------------------------------------------------------------ the page, and mistakes


class Tags(html.parser.HTMLParser):
    """Checks that tags close in order; keeps what there is."""

    VOID = {"meta", "img", "br"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text = ""
        self.images: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.images += [value for name, value in attributes if tag == "img" and name == "src"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_doctor_page_is_well_formed_escaped_and_bounded(photos, tmp_path):
    nasty = tmp_path / "<script>alert(1)<" / '"><img src=x onerror=alert(1)>&amp;.jpg'
    nasty.parent.mkdir()
    lines = []
    rng = np.random.default_rng(0)
    for number in range(260):  # noise: the largest thumbnails there are
        noise = rng.integers(0, 256, (220, 220, 3), dtype=np.uint8)
        for copy in "ab":
            path = tmp_path / f"{number}{copy}.jpg" if number else nasty.with_name(f"{copy}{nasty.name}")
            path.write_bytes(jpeg(noise))
            lines.append(f"{path} {number % 2 if copy == 'a' else number % 3}")
    lines += [f"{tmp_path}/gone_\udcff.jpg 0"]
    (tmp_path / "classes.txt").write_text("<script>alert(2)</script>\n{{ 7 * 7 }}\nbag & shoe\n")
    done = examine(tmp_path, listed(tmp_path, "train.txt", lines))
    raw = (done.out / "doctor.html").read_bytes()
    page = Tags(raw.decode())
    assert "script" not in page.seen
    assert "<script>alert(2)</script>" in page.text
    assert "onerror" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert 100 < len(page.images) <= 200 and all(source.startswith("data:image/jpeg;base64,") for source in page.images)
    assert len(raw) <= 5_000_000
    assert b"prefers-color-scheme: dark" in raw and b'name="viewport"' in raw and b"http" not in raw
    assert any("gone_\udcff" in row["path"] for row in done.rows), "names of other bytes than UTF-8 stay whole"


def test_doctor_unlabelled_list_needs_its_flag(clean, capfd):
    bare = listed(clean, "unknown.txt", ["test_9.png"])
    assert examine(clean, clean / "train.txt", bare).code == 2
    assert "--unlabelled" in capfd.readouterr().err
    for words in ((bare, "--unlabelled", bare), ("--unlabelled", bare)):
        assert examine(clean, clean / "train.txt", *words).code == 0
    labelled_test = listed(clean, "test_with_labels.txt", ["test_9.png 1"])
    assert examine(clean, clean / "train.txt", labelled_test).summary["lists"][1]["labelled"]


def test_doctor_user_mistake_is_one_message(clean, capfd):
    train = clean / "train.txt"
    os.mkfifo(clean / "pipe.txt")
    (clean / "file").write_text("")
    (clean / "bad").mkdir()
    (clean / "bad" / "doctor.sqlite").write_bytes(b"no database" * 1000)
    listed(clean, "nothing.txt", [])
    mistakes = (
        ([clean / "none.txt"], "does not exist"),
        ([clean / "pipe.txt"], "no regular file"),
        ([clean / "nothing.txt"], "no image"),
        ([train, train], "the same list"),
        ([train, "--workers", 0], "--workers is 0"),
        ([train, "--near", 9], "allowed: 0 to 8"),
        ([train, "--out", clean / "file"], "file is a file, not a folder. Give another name."),
        ([train, "--out", clean / "bad"], "delete it"),
    )
    for words, expected in mistakes:
        capfd.readouterr()
        assert doctor.main([str(word) for word in (*words, *([] if "--out" in words else ["--out", clean / "o"]))]) == 2
        error = capfd.readouterr().err
        assert expected in error and "Traceback" not in error and error.lstrip().startswith("error: ")
