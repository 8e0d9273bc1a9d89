"""Images that are too large, cut short, damaged or no files at all, through the real loader and the scripts."""

import csv
import io
import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest

import dataloader
from conftest import ROOT
from dataloader import decode
from dataloader.file_list import read_list
from forked import Forked
from options import parse_eval, parse_train, shared_flags
from tools.doctor import command as doctor
from utils.errors import ImageError
from utils.preprocess import Preprocess

WAY = Preprocess(32, "squash", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LOADING = {"here": ("-w", "0"), "threads": ("-w", "2"), "processes": ("-w", "2", "--loader", "process")}


# ------------------------------------------------------------------------ --max_pixels


@pytest.fixture(scope="module")
def sizes(photos, tmp_path_factory) -> Path:
    """Images of 40, 50, 60, … 110 px squared, labels 0 and 1: odd ones as PNG."""
    folder = tmp_path_factory.mktemp("sizes")
    lines = []
    for k in range(8):
        path = folder / f"{k}.{'png' if k % 2 else 'jpg'}"
        cv2.imwrite(str(path), photos[k % 3][: 40 + 10 * k, : 40 + 10 * k, ::-1])
        lines.append(f"{path} {k % 2}\n")
    for name in ("train", "val", "test"):
        (folder / f"{name}.txt").write_text(
            "".join(line if name != "test" else line.split()[0] + "\n" for line in lines)
        )
    return folder


def test_max_pixels_of_flag_and_decoder_are_equal():
    assert parse_train([]).max_pixels == shared_flags.MAX_PIXELS == decode.MAX_PIXELS


@pytest.mark.parametrize("how", LOADING)
@pytest.mark.parametrize("cache", ["none", "ram"])
def test_max_pixels_in_loader_workers_is_obeyed(sizes, how, cache):
    words = [*"-b 4 --epochs 1 --gpu -1 --transform none --max_pixels 8100 --cache".split(), cache, *LOADING[how]]
    files = read_list(sizes / "train.txt")
    batches = list(dataloader.train_loader(parse_train(words), files, WAY).batches(1))
    assert {index for batch in batches for index, _ in batch.bad} == {6, 7}
    opt = parse_eval(
        ["--load", "x.pt", "-b", "4", "--gpu", "-1", "--max_pixels", "8100", "--cache", cache, *LOADING[how]]
    )
    bad = dict(pair for batch in dataloader.eval_loader(opt, files, (WAY,)) for pair in batch.bad)
    assert set(bad) == {6, 7}
    assert "6.jpg: 100x100 is over 8100 pixels" in bad[6]
    assert "train.txt, line 8" in bad[7]


def test_max_pixels_changed_after_caching_is_obeyed(sizes, tmp_path):
    def bad(limit):
        words = [*"--load x.pt --gpu -1 -w 0 --max_pixels".split(), str(limit), "--cache", f"disk:{tmp_path}/c"]
        batches = dataloader.eval_loader(parse_eval(words), read_list(sizes / "val.txt"), (WAY,))
        return [index for batch in batches for index, _ in batch.bad]

    assert [bad(limit) for limit in (8100, 10**6, 4900)] == [[6, 7], [], [4, 5, 6, 7]]


def test_max_pixels_in_scripts_and_doctor_is_obeyed(script, sizes, small, tmp_path):
    words = ["--data_root", sizes, "--gpu", -1, "-w", 0, "-b", 4, "--max_pixels", 8100]
    result = script(
        "train.py", *small, *words, "--epochs", 1, "--max_bad", 1, "--tag", "big", "--model", "timm:test_resnet"
    )
    assert result.code == 0, result.err
    with open("logs/big/bad_images.csv") as file:
        assert {int(row["index"]) for row in csv.DictReader(file)} == {6, 7}
    assert script("eval.py", *words, "--load", "checkpoints/big/best.pt").code == 0
    metrics = json.loads(Path("results/cache/big_1/metrics.json").read_text())
    assert (metrics["count"], metrics["unreadable"]) == (6, 2)
    assert "2 of 8 images could not be read" in script("submit.py", *words, "--load", "checkpoints/big/best.pt").out
    assert script("train.py", *small, "--max_pixels", 400_000_000).code == 2
    for limit, found in (
        ("8100", ["6.jpg", "7.png"]),
        ("178956970", []),
        ("8100", ["6.jpg", "7.png"]),
    ):  # what it keeps knows the limit
        doctor.main([str(sizes / "train.txt"), "--out", str(tmp_path / "out"), "--near", "-1", "--max_pixels", limit])
        with open(tmp_path / "out/doctor.csv") as file:
            assert [Path(row["path"]).name for row in csv.DictReader(file) if row["problem"] == "too_large"] == found
    assert doctor.main([str(sizes / "train.txt"), "--max_pixels", "0"]) == 2


# ------------------------------------------------------------------------ a set of damaged files

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
LONGEST = {"WEBP": 16_383}  # of one side; elsewhere 65,500 will do
SECONDS = 150  # a run that takes longer hangs


def encoded(image: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def damaged(photo: np.ndarray, kind: str) -> dict[str, bytes]:
    """What is wrong -> the bytes; names that begin with "good" are whole images."""
    rng = np.random.default_rng(0)
    data, suffix = encoded(photo, kind), FORMATS[kind]
    files = {f"cut at {k} tenths.{suffix}": data[: len(data) * k // 10] for k in range(10)}
    for k in range(8):
        changed = np.frombuffer(data, np.uint8).copy()
        places = rng.integers(20 if k % 2 else len(data) // 4, len(data), 3)
        changed[places] ^= rng.integers(1, 256, 3).astype(np.uint8)
        files[f"changed {k}.{suffix}"] = changed.tobytes()
    middle = slice(len(data) // 2, len(data) // 2 + 200)
    files[f"zeros within.{suffix}"] = data[: middle.start] + bytes(200) + data[middle.stop :]
    files[f"zeros from the half.{suffix}"] = data[: middle.start] + bytes(len(data) - middle.start)
    files[f"zeros alone.{suffix}"] = bytes(1000)
    long = LONGEST.get(kind, 65_500)
    files[f"good, wrong extension.{'png' if kind == 'JPEG' else 'jpg'}"] = data
    files[f"good, 1x1.{suffix}"] = encoded(photo[:1, :1], kind)
    files[f"good, wide.{suffix}"] = encoded(np.resize(photo[:1], (1, long, 3)), kind)
    files[f"good, high.{suffix}"] = encoded(np.resize(photo[:1], (long, 1, 3)), kind)
    return files


@pytest.fixture(scope="module")
def corrupt(photos, tmp_path_factory):
    """A folder whose lists name good images and every kind of damage, a pipe, a folder, and a link to nothing."""
    folder = tmp_path_factory.mktemp("corrupt")
    names = []
    for number, kind in enumerate(FORMATS):
        (folder / kind).mkdir()
        for name, data in damaged(photos[number % 3][40:140, 60:190], kind).items():
            names.append(f"{kind}/{name}".replace(" ", "_"))
            (folder / names[-1]).write_bytes(data)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "link.jpg").symlink_to(folder / "nothing")
    names += ["pipe.jpg", "folder.jpg", "link.jpg"]
    for k in range(12 - len(names) % 12):  # whole batches: every image is drawn in every epoch
        names.append(f"good_{k}.jpg")
        (folder / names[-1]).write_bytes(encoded(photos[k % 3][k:90, k:99], "JPEG"))
    for name in ("train", "val"):
        (folder / f"{name}.txt").write_text("".join(f"{image} {k % 3}\n" for k, image in enumerate(names)))
    return folder


def pillow(path: str) -> np.ndarray | None:
    """The picture by Pillow, or None: it cannot be read, or not as a plain one."""
    if not os.path.isfile(path):
        return None
    try:
        image = PIL.Image.open(path)
        image.load()
    except Exception:
        return None
    return (
        np.array(image.convert("RGB")) if image.mode in ("L", "P", "RGB") and not image.has_transparency_data else None
    )


@pytest.mark.filterwarnings("ignore")  # Pillow's of damaged TIFF directories
def test_eval_loader_damaged_file_equals_pillow_or_is_reported(corrupt):
    files = read_list(corrupt / "val.txt")
    opt = parse_eval(["--load", "x.pt", "-b", "9", "--gpu", "-1", "-w", "2"])
    read = np.concatenate([batch.readable.numpy() for batch in dataloader.eval_loader(opt, files, (WAY,))])
    compared, neither = 0, []
    for index in range(len(files)):
        path, wanted = files.path(index), pillow(files.path(index))
        good = Path(path).name.startswith("good")
        assert not good or (read[index] and wanted is not None), path
        if wanted is None:
            neither.append(path) if read[index] else None
        elif read[index]:
            compared += 1
            assert np.abs(decode.read_image(path)[0].astype(int) - wanted).mean() < 1, path
    assert neither == []
    assert compared >= 6 * 4 + 1  # the whole ones, at least
    assert not read[
        [k for k in range(len(files)) if "cut_at_5" in files.path(k) and not files.path(k).endswith("gif")]
    ].any()


RUN = """
import sys; sys.path.insert(0, {root!r})
import eval, train
from utils.run import run_command
words, loading, data = {words!r}, {loading!r}, {data!r}
def go(name, *flags):
    sys.argv = [name + ".py", *words, *loading, "--data_root", data, "--no-check_files", *flags]
    module = sys.modules[name]
    return run_command(getattr(module, "parse_" + name), module.main)
code = go("train", *{training!r})
sys.exit(code or go("eval", "--load", "checkpoints/bad/last.pt"))
"""
TRAINING = (
    "--model timm:test_resnet --no-pretrained --preset original "
    "--epochs 2 --max_bad 1 --transform light --num_classes 3 --precision fp32"
)


@pytest.mark.parametrize("how", ["threads", "processes"])
def test_train_and_eval_on_damaged_files_finish(corrupt, tmp_path, how):
    """Training and evaluation in a process of their own, which can be killed if they hang."""
    words = ["--tag", "bad", "--scale", "32", "-b", "12", "--gpu", "-1"]
    code = RUN.format(root=str(ROOT), words=words, loading=LOADING[how], data=str(corrupt), training=TRAINING.split())
    (tmp_path / "run.py").write_text(code)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = Forked(tmp_path, tmp_path / "shown", tmp_path / "run.py", environment=environment)
    ended = process.wait(SECONDS)
    text = (tmp_path / "shown").read_text()
    assert ended == 0, text[-3000:]
    assert not re.search("Traceback|libpng", text)

    files = read_list(corrupt / "train.txt")
    bad = {index for index in range(len(files)) if refused(files.path(index))}
    assert {Path(files.path(index)).name for index in bad} >= {"pipe.jpg", "folder.jpg", "link.jpg"}
    with open(tmp_path / "logs/bad/bad_images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["index"]) for row in rows) == sorted(bad)  # once each, of two epochs
    assert all(files.path(int(row["index"])) in row["reason"] for row in rows)
    metrics = json.loads((tmp_path / "results/bad/2/metrics.json").read_text())
    assert (metrics["count"], metrics["unreadable"]) == (len(files) - len(bad), len(bad))


def refused(path: str) -> bool:
    try:
        decode.read_image(path)
    except ImageError:
        return True
    return False
