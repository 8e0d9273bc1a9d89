"""--hours ends a run with the time: by clocks that count work, so that no test waits for one."""

import os
import re
import shutil
import signal
from datetime import datetime
from itertools import pairwise

import pytest
import torch

from benchmarks import crash_test
from conftest import Script
from options import parse_train
from scheduler import Span
from ticking import tick
from training.engine import Engine
from training.hours import TimedLength, end_text
from utils import checkpoint, clock
from utils.batch import Batch
from utils.errors import UserError

LIMIT = 180.0  # seconds
STEPS = 32  # images per step
WORDS = "--model timm:test_vit --no-pretrained --scale 32 -b 12 -w 0 --gpu -1 --lr 1e-30 --optimizer sgd"
WORDS = [*WORDS.split(), *"--preset original --transform none --precision fp32".split()]


class Machine:
    """Runs a TimedLength on a clock of its own; `step` and `validation` are seconds, or functions of the time."""

    def __init__(
        self, monkeypatch, step, validation=2.0, per_epoch=100, every=1, scheduler="cos", warmup=0, start=3.0, stage=1
    ):
        self.time, self.step_seconds, self.validation_seconds = 0.0, step, validation
        monkeypatch.setattr(clock, "now", lambda: self.time)
        self.watch = clock.Stopwatch()
        self.length = TimedLength(LIMIT / 3600, per_epoch, scheduler, Span(0, per_epoch, warmup), every, stage)
        self.per_epoch, self.every, self.start = per_epoch, every, start
        self.rates, self.validated, self.epochs = [], [], 0

    def spend(self, seconds):
        self.time += seconds(self.time) if callable(seconds) else seconds

    def run(self):
        length = self.length
        self.spend(self.start)
        length.begin(self.watch, self.per_epoch * STEPS, self.per_epoch * STEPS // 5 if self.every else 0)
        while not length.is_over(self.epochs):
            self.epochs += 1
            length.epoch_began()
            for _ in range(self.per_epoch):
                self.rates.append(length.factor(len(self.rates)))
                self.spend(self.step_seconds)
                if length.step_done(len(self.rates)):
                    break
            length.training_ended(self.epochs, len(self.rates))
            if self.every and length.validates(self.epochs, self.every):
                self.spend(self.validation_seconds)
                self.validated.append(self.epochs)
            length.epoch_ended(len(self.rates))
        return self


def after(second, before, then):
    return lambda now: before if now < second else then


@pytest.mark.parametrize(
    "settings",
    [
        {"step": 0.1},
        {"step": after(90, 0.1, 0.25), "validation": after(90, 2.0, 5.0)},
        {"step": after(90, 0.25, 0.1), "validation": after(90, 5.0, 2.0)},
        {"step": after(160, 0.1, 0.3), "validation": after(160, 2.0, 6.0)},
        {"step": after(4, 40.0, 0.1)},  # --compile
        {"step": 0.1, "per_epoch": 1500, "validation": 10.0},  # an epoch of most of the time
        {"step": 0.1, "per_epoch": 6000, "validation": 40.0},  # an epoch longer than the time
        {"step": 0.1, "per_epoch": 300, "validation": 30.0},  # a validation as long as an epoch
        {"step": 0.1, "per_epoch": 100, "validation": 60.0},
        {"step": 0.1, "per_epoch": 5, "validation": 0.5},
        {"step": 0.1, "every": 3, "validation": 4.0},
        {"step": 0.1, "every": 0},
        {"step": 0.1, "warmup": 300},
        {"step": 8.0, "per_epoch": 5, "validation": 3.0},
    ],
    ids=lambda settings: str({name: value for name, value in settings.items() if not callable(value)}),
)
def test_hours_machine_of_any_speed_ends_with_the_time(settings, monkeypatch):
    done = Machine(monkeypatch, **settings).run()
    assert abs(done.time - LIMIT) < 0.03 * LIMIT
    assert done.rates[-1] < 0.02  # the floor, but for the last step
    assert done.length.epochs == done.epochs
    if done.every:
        assert done.validated[-1] == done.epochs


def test_hours_uniform_speed_gives_the_schedule_of_as_many_steps(monkeypatch):
    from scheduler import get_schedule

    done = Machine(monkeypatch, step=0.1, warmup=50).run()
    whole = get_schedule("cos", Span(len(done.rates), 100, 50))
    assert done.rates == pytest.approx([whole(step) for step in range(len(done.rates))], abs=0.01)


def test_hours_slower_machine_lowers_the_rate_without_a_jump(monkeypatch):
    done = Machine(monkeypatch, step=after(90, 0.1, 0.3), validation=after(90, 2.0, 6.0)).run()
    assert max(abs(later - earlier) for earlier, later in pairwise(done.rates)) < 0.02


def test_hours_table_is_stretched_over_the_time(monkeypatch):
    done = Machine(monkeypatch, step=0.1, every=0, scheduler="2x").run()
    drops = [place / len(done.rates) for place, (one, two) in enumerate(pairwise(done.rates), 1) if two < one]
    assert drops == pytest.approx([14 / 24, 20 / 24], abs=0.01)


def test_hours_is_before_follows_the_time_not_the_epochs(monkeypatch):
    length = Machine(monkeypatch, step=0.1).length
    length.share = 0.5
    batch = Batch(torch.zeros(1), torch.zeros(1), torch.zeros(1), 3, 0, ())
    assert length.is_before(0.6, batch) and not length.is_before(0.4, batch)


def test_hours_without_time_for_two_validations_validates_once(monkeypatch):
    """The first epoch ends with 15 of 180 seconds left, where a validation takes 10."""
    done = Machine(monkeypatch, step=0.1, per_epoch=1550, validation=10.0).run()
    assert done.validated == [2]


def test_hours_too_short_for_the_last_size_is_warned_of(monkeypatch, caplog):
    """The number of epochs is known after a hundred steps."""
    done = Machine(monkeypatch, step=0.1, stage=1000).run()
    assert "has a size from epoch 1000 on, which this run does not reach" in caplog.text
    caplog.clear()
    Machine(monkeypatch, step=0.1, stage=done.epochs).run()
    assert "--scale_schedule" not in caplog.text


def test_hours_start_longer_than_the_time_is_refused(monkeypatch):
    with pytest.raises(UserError, match="is 3 min 00 s, and starting alone took 3 min 20 s. Try: --hours"):
        Machine(monkeypatch, step=0.1, start=200.0).run()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--epochs 3", "--epochs and --hours contradict: both say how long to train"),
        ("--swa 2", "--hours and --swa contradict: --swa averages from a given epoch"),
    ],
)
def test_parse_hours_beside_what_counts_epochs_is_refused(words, problem, capsys):
    with pytest.raises(SystemExit):
        parse_train(["--tag", "x", "--hours", "1", *words.split()])
    assert problem in capsys.readouterr().err


def test_end_text_of_another_day_has_its_date():
    noon = datetime(2026, 11, 27, 12).timestamp()
    assert end_text(noon, noon + 3600) == "13:00" and end_text(noon, noon + 30 * 3600) == "2026-11-28 18:00"


# ------------------------------------------------------------------------ whole runs: 3 steps per epoch


def test_train_hours_cut_run_resumes_as_the_undisturbed_one(script: Script, small, photo_set, tmp_path, monkeypatch):
    """With the same readings of the clock, cut within an epoch and within the last validation; then with more time."""
    tick(monkeypatch.setattr)
    words = [*small, "--data_root", photo_set, "--hours", 53 / 3600, "--mixup", 0.2, "--mix_off", 0.3, "--tag"]
    whole = script("train.py", *words, "whole")
    assert whole.code == 0, whole.err
    assert "--hours 0.0147222: took 52 s, 98.1 % of it." in whole.out
    assert re.search(r"--hours 0.0147222: the run ends at about \d\d:\d\d", whole.out)
    saved = checkpoint.load(tmp_path / "checkpoints/whole/last.pt")
    steps = saved["training"]["step"]
    assert (saved["epoch"], saved["opt"]["epochs"]) == (-(-steps // 3),) * 2 and steps % 3
    assert "val_top1" in saved["history"][-1]

    real, train_step, moments = Engine.is_step_boundary, Engine.train_step, {11, steps}

    def is_step_boundary(self, done):
        if self.step_count in moments:
            moments.discard(self.step_count)
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, done)

    monkeypatch.setattr(Engine, "is_step_boundary", is_step_boundary)
    assert script("train.py", *words, "cut").code == 143
    within = checkpoint.load(tmp_path / "checkpoints/cut/last.pt")["within"]
    assert within["epoch"] == 4 and within["done"] == 2
    resume = ["train.py", "--tag", "cut", "--resume", "--gpu", -1]
    assert script(*resume).code == 143
    assert checkpoint.load(tmp_path / "checkpoints/cut/last.pt")["within"]["ended"]
    assert script(*resume).code == 0
    assert crash_test.differences(tmp_path, "whole", "cut") == []
    assert Engine.train_step is train_step

    assert "is complete: its --hours 0.0147222 ended with epoch" in script(*resume).out
    done = script(*resume, "--hours", 90 / 3600)
    assert done.code == 0 and "took 1 min 29 s, 98.9 % of it" in done.out, done.err
    assert checkpoint.load(tmp_path / "checkpoints/cut/last.pt")["epoch"] > saved["epoch"]
    shutil.copy("logs/cut/options.yaml", "again.yaml")
    assert parse_train(["--config", "again.yaml", "--tag", "y"]).hours == 90 / 3600
    epochs = checkpoint.load(tmp_path / "checkpoints/cut/last.pt")["epoch"] + 1
    done = script(*resume, "--epochs", epochs)
    assert done.code == 0 and checkpoint.load(tmp_path / "checkpoints/cut/last.pt")["epoch"] == epochs, done.err


def test_train_hours_and_patience_ends_early(script: Script, photo_set, monkeypatch):
    tick(monkeypatch.setattr)
    words = [*WORDS, "--data_root", photo_set, "--tag", "p", "--hours", 0.1, "--patience", 1]  # nothing changes
    done = script("train.py", *words)
    assert done.code == 0, done.err
    assert re.search(r"Stopped after epoch 2 of \d+: --patience 1 validations", done.out)
