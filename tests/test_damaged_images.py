"""Images that are too large, cut short, damaged or no files at all, through the real loader and the scripts."""

import csv
import json
from pathlib import Path

import cv2
import pytest

import dataloader
from dataloader import decode
from dataloader.file_list import read_list
from options import parse_eval, parse_train, shared_flags
from tools import doctor
from utils.preprocess import Preprocess

WAY = Preprocess(32, "squash", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LOADING = {"here": ("-w", "0"), "threads": ("-w", "2"), "processes": ("-w", "2", "--loader", "process")}


# ------------------------------------------------------------------------------------------------ --max_pixels


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
        (folder / f"{name}.txt").write_text("".join(line if name != "test" else line.split()[0] + "\n" for line in lines))
    return folder


def test_the_flag_and_the_decoder_have_one_default():
    assert parse_train([]).max_pixels == shared_flags.MAX_PIXELS == decode.MAX_PIXELS


@pytest.mark.parametrize("how", LOADING)
@pytest.mark.parametrize("cache", ["none", "ram"])
def test_the_limit_reaches_the_workers(sizes, how, cache):
    words = ["-b", "4", "--epochs", "1", "--gpu", "-1", "--transform", "none", "--max_pixels", "8100", "--cache", cache, *LOADING[how]]
    files = read_list(sizes / "train.txt")
    batches = list(dataloader.train_loader(parse_train(words), files, WAY).batches(1))
    assert {index for batch in batches for index, _ in batch.bad} == {6, 7}
    opt = parse_eval(["--load", "x.pt", "-b", "4", "--gpu", "-1", "--max_pixels", "8100", "--cache", cache, *LOADING[how]])
    bad = dict(pair for batch in dataloader.eval_loader(opt, files, (WAY,)) for pair in batch.bad)
    assert set(bad) == {6, 7}
    assert "6.jpg: 100x100 is over 8100 pixels" in bad[6]
    assert "train.txt, line 8" in bad[7]


def test_a_cache_built_under_another_limit_hides_no_bomb_and_no_image(sizes, tmp_path):
    def bad(limit):
        words = ["--load", "x.pt", "--gpu", "-1", "-w", "0", "--max_pixels", str(limit), "--cache", f"disk:{tmp_path}/c"]
        batches = dataloader.eval_loader(parse_eval(words), read_list(sizes / "val.txt"), (WAY,))
        return [index for batch in batches for index, _ in batch.bad]

    assert [bad(limit) for limit in (8100, 10**6, 4900)] == [[6, 7], [], [4, 5, 6, 7]]


def test_the_scripts_and_the_doctor_take_it(script, sizes, small, tmp_path):
    words = ["--data_root", sizes, "--gpu", -1, "-w", 0, "-b", 4, "--max_pixels", 8100]
    result = script("train.py", *small, *words, "--epochs", 1, "--max_bad", 1, "--tag", "big", "--model", "timm:test_resnet")
    assert result.code == 0, result.err
    with open("logs/big/bad_images.csv") as file:
        assert {int(row["index"]) for row in csv.DictReader(file)} == {6, 7}
    assert script("eval.py", *words, "--load", "checkpoints/big/best.pt").code == 0
    metrics = json.loads(Path("results/cache/1/metrics.json").read_text())
    assert (metrics["count"], metrics["unreadable"]) == (6, 2)
    assert "2 of 8 images could not be read" in script("submit.py", *words, "--load", "checkpoints/big/best.pt").out
    assert script("train.py", *small, "--max_pixels", 400_000_000).code == 2
    for limit, found in (("8100", ["6.jpg", "7.png"]), ("178956970", []), ("8100", ["6.jpg", "7.png"])):  # what it keeps knows the limit
        doctor.main([str(sizes / "train.txt"), "--out", str(tmp_path / "out"), "--near", "-1", "--max_pixels", limit])
        with open(tmp_path / "out/doctor.csv") as file:
            assert [Path(row["path"]).name for row in csv.DictReader(file) if row["problem"] == "too_large"] == found
    assert doctor.main([str(sizes / "train.txt"), "--max_pixels", "0"]) == 2
