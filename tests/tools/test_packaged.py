"""Sets that a package holds: elpv, openclipart, stamps. The packages are made here; no network, nothing installed."""

import csv
import os
import zipfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from dataloader.file_list import read_list
from tools.prepare import drawings, elpv, packages
from tools.prepare.alike import alike_groups, sketch


@pytest.fixture
def make(prepare, tmp_path, monkeypatch, capfd):
    """`make("elpv", ...)` runs prepare.py with --out out; it returns the exit code and what was printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        capfd.readouterr()
        code = prepare.main([*map(str, words), "--out", "out"])
        said = "".join(capfd.readouterr())
        assert "Traceback" not in said
        return code, said

    return run


def labels_of(name):
    """{path below out/images: label} of out/name.txt; empty where there is none."""
    if not Path(f"out/{name}.txt").is_file():
        return {}
    files = read_list(f"out/{name}.txt")
    return {
        os.path.relpath(files.path(k), Path("out/images").resolve()): int(files.label[k]) for k in range(len(files))
    }


def left_out():
    with open("out/left_out.csv", encoding="utf-8", newline="") as file:
        return {row["path"]: (row["reason"], row["detail"]) for row in csv.DictReader(file)}


def picture(seed, side=20):
    """Coarse noise, unlike that of any other seed; uint8 (side, side, 3)."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return cv2.resize(noise, (side, side), interpolation=cv2.INTER_NEAREST)


def draw(root, name, image):
    path = Path(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


# ------------------------------------------------------------------------ elpv


@pytest.fixture
def cells(tmp_path):
    """A folder like that of elpv_dataset: 24 cells, every probability with every type."""
    lines = []
    for k in range(24):
        draw(tmp_path / "cells", f"images/cell{k:04}.png", picture(k)[..., 0])
        lines.append(f"images/cell{k:04}.png  {(0.0, 1 / 3, 2 / 3, 1.0)[k % 4]}   {('mono', 'poly')[k % 3 % 2]}")
    (tmp_path / "cells/labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "cells"


def test_elpv_cells_certainly_functional_are_class_0(make, cells):
    code, said = make("elpv", "--source", cells, "--any_version", "--val", 0.25)
    assert code == 0 and "CC BY-NC-SA" in said and "does not tell the modules" in said
    train, val = labels_of("train"), labels_of("val")
    assert not set(train) & set(val) and len(val) == 6
    assert train | val == {f"cell{k:04}.png": int(k % 4 > 0) for k in range(24)}
    assert Path("out/classes.txt").read_text() == "functional\ndefective\n"
    assert Path("out/images/cell0003.png").read_bytes() == (cells / "images/cell0003.png").read_bytes()


def test_elpv_target_type_labels_by_crystal(make, cells):
    assert make("elpv", "--source", cells, "--any_version", "--target", "type", "--val", 0)[0] == 0
    assert labels_of("train") == {f"cell{k:04}.png": k % 3 % 2 for k in range(24)}
    assert Path("out/classes.txt").read_text() == "monocrystalline\npolycrystalline\n"


def test_elpv_folds_hold_out_each_cell_once(make, cells):
    held = Counter()
    for fold in range(1, 5):
        assert make("elpv", "--source", cells, "--any_version", "--folds", 4, "--fold", fold)[0] == 0
        held.update(list(labels_of("val")))
        assert not set(labels_of("val")) & set(labels_of("train"))
    assert held == {f"cell{k:04}.png": 1 for k in range(24)}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("images/cell0000.png 0.5", "expected a path"),
        ("images/cell0000.png zero mono", "expected a path"),
        ("images/cell0000.png 0.0 thin", "expected a path"),
        ("images/none.png 0.0 mono", "no file of"),
        ("images/cell0001.png 0.0 mono", "named twice"),
    ],
)
def test_elpv_wrong_line_is_refused(make, cells, line, message):
    first, rest = (cells / "labels.csv").read_text().split("\n", 1)
    (cells / "labels.csv").write_text(f"{first}\n{first.replace('0000', '0001')}\n{line}\n")
    code, said = make("elpv", "--source", cells, "--any_version")
    assert code == 2 and "labels.csv, line 3" in said and message in said and rest
    assert not Path("out/train.txt").exists()


# ------------------------------------------------------------------------ packages


def test_package_of_other_content_is_refused_or_warned_of(make, cells):
    code, said = make("elpv", "--source", cells)
    assert code == 2 and "does not hold elpv-dataset 1.0.0.post1" in said and "--any_version" in said
    assert "expected 2,625 files" in said and "found 25" in said and not Path("out").exists()
    code, said = make("elpv", "--source", cells, "--any_version")
    assert code == 0 and "warning: " in said and "do not compare" in said


def test_package_of_expected_content_gives_no_warning(make, cells, monkeypatch):
    package = elpv.PACKAGE
    found = packages.content_hash(cells, package.paths(cells))
    monkeypatch.setattr(elpv, "PACKAGE", packages.Package(package.name, "1", package.patterns, 25, found, "none"))
    code, said = make("elpv", "--source", cells)
    assert code == 0 and "warning" not in said
    (cells / "images/cell0000.png").rename(cells / "images/cell9999.png")  # names count, not contents alone
    assert packages.content_hash(cells, package.paths(cells)) != found


def test_package_elpv_missing_without_network_tells_what_to_install(make, monkeypatch):
    monkeypatch.setattr(packages, "_installed", lambda _: None)
    monkeypatch.setattr(packages, "_quietly", lambda _: False)
    code, said = make("elpv")
    assert code == 2 and "python -m pip install elpv-dataset==1.0.0.post1" in said and "--source" in said


def test_package_elpv_wheel_is_read_without_installing(make, cells, monkeypatch):
    asked = []

    def download(command):
        asked.append(command)
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1], "elpv_dataset-1.whl"), "w") as wheel:
            for path in elpv.PACKAGE.paths(cells):
                wheel.write(path, f"{elpv.DATA}/{path.relative_to(cells)}")
        return True

    monkeypatch.setattr(packages, "_installed", lambda _: None)
    monkeypatch.setattr(packages, "_quietly", download)
    assert make("elpv", "--any_version")[0] == 0
    assert len(labels_of("train") | labels_of("val")) == 24
    assert [words[1:4] for words in asked] == [["-m", "pip", "download"]]


def test_package_installed_is_found_without_import(tmp_path, monkeypatch):
    (tmp_path / "made_up_cells/data").mkdir(parents=True)
    (tmp_path / "made_up_cells/__init__.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert packages._installed("made_up_cells/data") == (tmp_path / "made_up_cells/data").resolve()
    assert packages._installed("made_up_cells/other") is None
    assert packages._installed("no_such_package_here/data") is None


@pytest.mark.parametrize("kind", drawings.COLLECTIONS)
def test_package_of_debian_missing_tells_what_to_install(make, tmp_path, monkeypatch, kind):
    wanted = drawings.COLLECTIONS[kind]
    monkeypatch.setattr(packages, "_quietly", lambda _: False)
    monkeypatch.setitem(
        drawings.COLLECTIONS, kind, drawings.Collection(wanted.package, tmp_path / "none", wanted.min_images)
    )
    code, said = make(kind)
    assert code == 2 and f"apt-get install {wanted.package.name}" in said and "--source" in said


def test_package_folder_that_another_package_fills_too(make, clips, tmp_path, monkeypatch):
    """Tux Paint itself, which apt recommends with its stamps, adds drawings to their folder."""
    wanted = drawings.COLLECTIONS["stamps"].package
    own = wanted.paths(clips)
    found = packages.content_hash(clips, own)
    package = packages.Package(wanted.name, "1", wanted.patterns, len(own), found, "none")
    monkeypatch.setitem(drawings.COLLECTIONS, "stamps", drawings.Collection(package, clips, {"top": 1, "leaf": 1}))
    draw(clips, "animals/of_the_other_package.png", picture(99))
    listing = tmp_path / "listing"
    listing.write_text("".join(f"{path}\n" for path in [clips.parent, clips, *own]))
    fake = tmp_path / "bin/dpkg-query"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\n[ "$2" = {wanted.name} ] && cat {listing}\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent), prepend=os.pathsep)
    code, said = make("stamps", "--val", 0)
    assert code == 0 and "do not compare" not in said
    assert labels_of("train") and not any("other_package" in name for name in [*labels_of("train"), *left_out()])
    code, said = make("stamps", "--val", 0, "--source", clips)  # a folder that was given is taken whole
    assert code == 2 and f"expected {len(own)} files" in said and f"found {len(own) + 1}" in said


def test_package_folder_is_never_written_to(make, cells, tmp_path):
    (tmp_path / "out").symlink_to(cells)
    before = {path: path.read_bytes() for path in cells.rglob("*") if path.is_file()}
    code, said = make("elpv", "--source", cells, "--any_version")
    assert code == 2 and "whose files are the source" in said
    assert {path: path.read_bytes() for path in cells.rglob("*") if path.is_file()} == before
    code, said = make("stamps", "--source", "none")
    assert code == 2 and "--source none is not a folder" in said
    (tmp_path / "void").mkdir()
    code, said = make("stamps", "--source", "void")
    assert code == 2 and "holds no file of tuxpaint-stamps-default" in said


# ------------------------------------------------------------------------ drawings


@pytest.fixture
def clips(tmp_path):
    """Three top folders, birds a folder below animals, and everything that a drawing may have wrong."""
    root = tmp_path / "clips"
    for folder, count in (("animals", 3), ("animals/birds", 4), ("food", 6), ("tools", 1)):
        for k in range(count):
            draw(root, f"{folder}/d{k}.png", picture(hash_of(folder) + k))
    for name in ("animals/birds/copy.png", "tools/link.png"):
        (root / name).symlink_to(root / "animals/d0.png")
    draw(root, "animals/birds/same.png", picture(hash_of("food")))  # the pixels of food/d0.png
    draw(root, "animals/white.png", np.full((9, 9, 4), (255, 255, 255, 0), np.uint8))
    (root / "food/broken.png").write_bytes((root / "food/d1.png").read_bytes()[:60])
    (root / "food/empty.png").write_bytes(b"")
    draw(root, "loose.png", picture(999))
    see_through = np.dstack([picture(7, 600), np.zeros((600, 600), np.uint8)])
    see_through[:300, ..., 3] = 255
    draw(root, "food/half.png", see_through)
    return root


def hash_of(folder):
    return sum(folder.encode()) * 100


def test_drawings_top_level_leaves_out_and_names_what_is_no_use(make, clips):
    code, said = make("openclipart", "--source", clips, "--any_version", "--val", 0, "--side", 64)
    assert code == 0 and "public domain" in said and "became white" in said
    assert Path("out/classes.txt").read_text().split() == ["animals", "food", "tools"]
    images = {f"animals/d{k}.png": 0 for k in (1, 2)} | {f"animals/birds/d{k}.png": 0 for k in range(4)}
    images |= {f"food/d{k}.png": 1 for k in range(1, 6)} | {"food/half.png": 1, "tools/d0.png": 2}
    assert labels_of("train") == images
    several, found = "the drawing is in several classes", left_out()
    assert {name: found[name] for name in found if found[name][0] == several} == {
        "animals/d0.png": (several, "animals, tools"),
        "animals/birds/copy.png": (several, "animals, tools"),
        "tools/link.png": (several, "animals, tools"),
        "animals/birds/same.png": (several, "animals, food"),
        "food/d0.png": (several, "animals, food"),
    }
    assert found["animals/white.png"][0] == "over white it is a single colour"
    assert found["food/empty.png"] == ("it cannot be read", "the file is empty")
    assert found["food/broken.png"][0] == "it cannot be read" and found["loose.png"][0] == "it is in no folder"
    assert len(found) == 9 and said.count("file(s) left out: ") == 4
    half = cv2.imread("out/images/food/half.png", cv2.IMREAD_UNCHANGED)
    assert half.shape == (64, 64, 3) and (half[33:] == 255).all() and not (half[:31] == 255).all()


def test_drawings_leaf_level_takes_the_lower_folder_and_large_classes(make, clips):
    (clips / "tools/link.png").unlink()
    words = ("openclipart", "--source", clips, "--any_version", "--level", "leaf")
    code, said = make(*words, "--val", 0, "--min_images", 2)
    assert code == 0 and Path("out/classes.txt").read_text().split() == ["animals", "animals/birds", "food"]
    train = labels_of("train")
    assert train["animals/birds/copy.png"] == 1 and "animals/d0.png" not in train and train["animals/d1.png"] == 0
    assert left_out()["animals/d0.png"] == ("it is a copy of a listed image", "animals/birds/copy.png")
    assert left_out()["tools/d0.png"] == ("its class has fewer than 2 drawings", "tools: 1")
    code, said = make(*words)
    assert code == 2 and "No class of" in said and "--min_images" in said  # the default of this level is 10


def test_drawings_every_file_is_listed_or_named(make, clips):
    for level in drawings.LEVELS:
        assert make("stamps", "--source", clips, "--any_version", "--level", level, "--min_images", 3)[0] == 0
        files = sorted(path.relative_to(clips).as_posix() for path in clips.rglob("*.png"))
        assert sorted([*labels_of("train"), *labels_of("val"), *left_out()]) == files


def test_drawings_that_look_alike_are_on_one_side(make, tmp_path):
    for k in range(20):
        draw(tmp_path / "twins", f"{'ab'[k % 2]}/d{k}.png", picture(k, 40))
        draw(tmp_path / "twins", f"{'ab'[k % 2]}/d{k}_mirror.png", picture(k, 60)[:, ::-1])
    for seed in range(3):
        code, said = make("stamps", "--source", "twins", "--any_version", "--val", 0.3, "--seed", seed)
        assert code == 0 and "40 drawings look like another one" in said and "20 groups" in said
        sides = [{Path(name).stem.removesuffix("_mirror") for name in labels_of(part)} for part in ("train", "val")]
        assert not sides[0] & sides[1] and len(sides[1]) == 6


def test_drawings_group_of_most_of_a_class_stays_in_training(make, tmp_path):
    for k in range(30):
        draw(tmp_path / "stars", f"a/star{k:02}.png", cv2.addWeighted(picture(0, 40), 1, picture(0, 40), 0, k))
        draw(tmp_path / "stars", f"{'ab'[k % 2]}/other{k:02}.png", picture(100 + k, 40))
    code, said = make("stamps", "--source", "stars", "--any_version", "--val", 0.4)
    assert code == 0 and "30 more images stay in training" in said
    assert len(labels_of("train")) == 48 and len(labels_of("val")) == 12
    assert not any("star" in name for name in labels_of("val"))


def test_alike_groups_join_mirror_images_sizes_and_chains_only():
    one, two = picture(1, 60), picture(2, 60)
    between = cv2.addWeighted(one, 0.5, two, 0.5, 0)
    plain = np.full((30, 30, 3), 200, np.uint8)
    images = [one, two, one[:, ::-1], cv2.resize(one, (20, 20)), between, one[:30], plain, plain]
    aspects = np.array([image.shape[0] / image.shape[1] for image in images])
    found = alike_groups(np.stack([sketch(image) for image in images]), aspects)
    assert found.tolist() == [0, 1, 0, 0, 4, 5, 6, 7]


@pytest.mark.parametrize(("flag", "value"), [("--side", 0), ("--min_images", 0), ("--val", 1), ("--folds", 3)])
def test_drawings_wrong_number_is_refused(make, flag, value):
    code, said = make("openclipart", flag, value)
    assert code == 2 and flag in said
