"""tools.lr_find and tools.sweep: a rate is found, a sweep is killed and goes on; TensorBoard's points are there once each."""

import csv
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from options import parse_train
from tools import lr_find

ROOT = Path(__file__).resolve().parent.parent
CODE = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def tiny(photo_set) -> list[str]:
    """Flags for a run of a third of a second: 373,000 parameters, epochs of three batches."""
    words = "--model timm:test_resnet --no-pretrained --scale 32 -b 12 -w 0 --gpu -1 --lr 0.01 --optimizer sgd"
    return [*words.split(), "--transform", "light", "--precision", "fp32", "--data_root", str(photo_set)]


# ------------------------------------------------------------------------------------------------ lr_find


def test_the_steepest_fall_of_a_known_curve_is_found():
    rates = np.logspace(-6, 1, 200)
    losses = 1 + 1 / (1 + (rates / 1e-2) ** 2) + np.where(rates > 1, rates, 0)  # falls fastest at 1e-2, in log(rate)
    found = lr_find.suggest(rates, losses)
    assert 0.7e-2 <= found <= 1.4e-2
    assert lr_find.suggest(rates, np.linspace(1, 2, 200)) is None


def test_a_range_test_touches_nothing_and_its_command_parses(tmp_path, monkeypatch, tiny, capfd, photo_set):
    monkeypatch.chdir(tmp_path)
    words = [*tiny, "--high", "100", "--low=1e-5", "--steps", "60", "--out", "found/rates.png", "--accumulate", "2"]
    code = lr_find.main(words)
    shown = capfd.readouterr()
    assert code == 0, shown.err
    assert {path.name for path in tmp_path.iterdir()} == {"found"}
    with open("found/rates.csv", newline="") as file:
        rows = [(float(row["lr"]), float(row["loss"])) for row in csv.DictReader(file)]
    factor = (100 / 1e-5) ** (1 / 59)
    assert rows[0][0] == pytest.approx(1e-5) and rows[5][0] / rows[4][0] == pytest.approx(factor)
    assert len(rows) < 60 and "exploded" in shown.out  # a rate of 100 blows every network up
    line = shown.out.strip().splitlines()[-1].split()
    assert line[:2] == ["python", "train.py"]
    monkeypatch.setattr(sys, "argv", line[1:])
    opt = parse_train()
    assert 1e-5 < opt.lr < 100 and opt.model == "timm:test_resnet" and opt.accumulate == 2


@pytest.mark.parametrize("words, part", [(["--low", "1", "--high", "0.1"], "--low 1 is not below"), (["--resume"], "--resume goes on")])
def test_a_range_test_that_cannot_be(tiny, capfd, tmp_path, monkeypatch, words, part):
    monkeypatch.chdir(tmp_path)
    assert lr_find.main([*tiny, *words]) == 2
    assert part in capfd.readouterr().err
