"""Points by step: what each holds, that they stay few, and that a resumed run has the same ones."""

import csv
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evaluation.step_points import MAX_VALIDATIONS, read_table, rows_of
from training import epoch, step_curves
from training.earlier import remove_earlier
from training.engine import Engine
from training.epoch import EpochTracker
from training.length import RunLength
from training.state import RunState
from training.step_curves import MAX_POINTS, NUM_SUMS, StepCurves
from utils import checkpoint_schema

CPU = torch.device("cpu")


def batches(steps, accumulate=1):
    """What each batch of `steps` optimizer steps adds: (step, sums, learning rate)."""
    rng = np.random.default_rng(0)
    for step in range(1, steps + 1):
        for place in range(accumulate):
            norm = (rng.random(), 1) if place == accumulate - 1 else (0, 0)
            yield step, torch.tensor([rng.normal(), 1, *norm, rng.random(), 1], dtype=torch.float32), 1 / step


def filled(steps, accumulate=1, per_epoch=100):
    curves = StepCurves(CPU, per_epoch)
    for batch in batches(steps, accumulate):
        curves.add(*batch)
    return curves


@pytest.mark.parametrize(
    ("steps", "stride"), [(1, 1), (MAX_POINTS, 1), (MAX_POINTS + 1, 2), (2 * MAX_POINTS, 2), (7001, 4)]
)
def test_points_are_means_over_equal_stretches_and_few(steps, stride):
    curves = filled(steps, accumulate=2)
    rows = rows_of(curves.state_dict(within_epoch=False), [])
    assert curves.stride == stride and len(rows) == math.ceil(steps / stride) <= MAX_POINTS
    added = np.array([[step, *sums.tolist()] for step, sums, _ in batches(steps, accumulate=2)])
    for row in (rows[0], rows[len(rows) // 2], rows[-1]):
        first = (row["step"] - 1) // stride * stride + 1
        part = added[(added[:, 0] >= first) & (added[:, 0] <= row["step"])]
        means = [part[:, place].sum() / part[:, place + 1].sum() for place in (1, 3, 5)]
        assert [row["train_loss"], row["grad_norm"], row["train_top1"]] == pytest.approx(means, rel=1e-4, abs=1e-5)
        assert row["lr"] == 1 / row["step"] and row["epoch"] == pytest.approx(row["step"] / 100)
    assert rows[-1]["step"] == steps


@pytest.mark.parametrize("cuts", [(1,), (1999, 2000), (2001, 5000)])
def test_load_state_dict_continues_to_the_same_bits(cuts):
    whole, curves = filled(7001), StepCurves(CPU, 100)
    for batch in batches(7001):
        curves.add(*batch)
        if batch[0] in cuts:
            state = curves.state_dict(within_epoch=True)
            assert checkpoint_schema._curves(state) == state and max(map(len, state["sums"])) <= MAX_POINTS
            curves = StepCurves(CPU, 100)
            curves.load_state_dict(state, batch[0] // 100, within_epoch=True)
    assert torch.equal(whole.sums, curves.sums)
    assert [whole.step, whole.stride, repr(whole.lr)] == [curves.step, curves.stride, repr(curves.lr)]


def test_load_state_dict_of_older_checkpoint_begins_with_next_step():
    curves = StepCurves(CPU, 100)
    curves.load_state_dict(None, 50, within_epoch=False)
    curves.add(5001, torch.ones(NUM_SUMS), 0.5)
    rows = rows_of(curves.state_dict(within_epoch=False), [{"epoch": 50, "val_loss": 2.0, "val_top1": 0.5}])
    assert rows == [
        {"step": 5000, "epoch": 50, "val_loss": 2.0, "val_top1": 0.5},
        {"step": 5001, "epoch": 50.01, "lr": 0.5, "train_loss": 1.0, "train_top1": 1.0, "grad_norm": 1.0},
    ]


def test_load_state_dict_drops_an_epoch_that_begins_again():
    state = filled(250).state_dict(within_epoch=True)
    curves = StepCurves(CPU, 100)
    curves.load_state_dict(state, 2, within_epoch=False)
    assert curves.step == 200 and torch.equal(curves.sums, filled(200).sums)


@pytest.mark.parametrize(("per_epoch", "ends"), [(50, 100), (300, 600)])
def test_load_state_dict_keeps_places_within_epochs_of_another_length(per_epoch, ends):
    before = filled(200)
    curves = StepCurves(CPU, per_epoch)
    curves.load_state_dict(before.state_dict(within_epoch=False), 2, within_epoch=False)
    rows = rows_of(curves.state_dict(within_epoch=False), [])
    assert curves.step == ends and (rows[-1]["step"], rows[-1]["epoch"]) == (ends, 2)
    assert [row["step"] for row in rows] == list(range(max(1, per_epoch // 100), ends + 1, max(1, per_epoch // 100)))
    assert curves.sums.sum(0).tolist() == pytest.approx(before.sums.sum(0).tolist(), rel=1e-5)


def test_processes_keep_their_own_sums_and_share_the_mean(monkeypatch):
    curves = filled(10)
    monkeypatch.setattr(step_curves.distributed, "all_gather_object", lambda own: [own, own + 2])
    state = curves.state_dict(within_epoch=True)
    mine = state["sums"][0]
    assert rows_of(state, [])[0]["train_loss"] == pytest.approx(float((mine[0, 0] + 1) / (mine[0, 1] + 1)), rel=1e-6)
    monkeypatch.setattr(step_curves.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(step_curves.distributed, "rank", lambda: 1)
    curves.load_state_dict(state, 0, within_epoch=True)
    assert torch.equal(curves.sums[:10], mine + 2)
    monkeypatch.setattr(step_curves.distributed, "world_size", lambda: 1)
    curves.load_state_dict(state, 0, within_epoch=True)
    assert torch.equal(curves.sums[:10], torch.stack([mine, mine + 2]).mean(0))


def test_rows_leave_out_what_no_step_gave():
    curves = StepCurves(CPU, 4)
    curves.add(1, torch.tensor([2.0, 1, 3, 1, 0, 0]), 0.1)  # logits without a top-1
    curves.add(2, torch.zeros(NUM_SUMS), 0.1)  # skipped
    assert rows_of(curves.state_dict(within_epoch=False), []) == [
        {"step": 1, "epoch": 0.25, "lr": 0.1, "train_loss": 2.0, "grad_norm": 3.0}
    ]


def test_rows_of_many_validations_are_thinned_from_the_newest():
    history = [{"epoch": epoch, "val_loss": 1.0} for epoch in range(1, 2 * MAX_VALIDATIONS + 4)]
    rows = rows_of(StepCurves(CPU, 3).state_dict(within_epoch=False), history)
    assert len(rows) <= MAX_VALIDATIONS and rows[-1]["epoch"] == history[-1]["epoch"]
    assert {later["epoch"] - row["epoch"] for row, later in itertools.pairwise(rows)} == {4}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", 11),
        ("stride", 0),
        ("stride", 2),
        ("sums", []),
        ("sums", [torch.zeros(10, 5)]),
        ("lr", torch.zeros(10)),
        ("lr", torch.zeros(9).double()),
    ],
)
def test_damaged_points_are_a_problem_of_the_checkpoint(key, value):
    content = {"format": 1, "weights": {"a": torch.zeros(1)}, "curves": filled(10).state_dict(within_epoch=False)}
    assert checkpoint_schema.problems(content) == []
    content["curves"][key] = value
    (problem,) = checkpoint_schema.problems(content)
    assert problem.startswith("curves")


def test_tracker_adds_batches_to_the_step_in_progress():
    """Of accumulated batches the norm is seen at the step alone, and a batch that is not finite counts for nothing."""
    engine = SimpleNamespace(
        model=SimpleNamespace(device=CPU),
        settings=SimpleNamespace(batches_per_epoch=6),
        length=RunLength(1, 6, lambda step: 1.0),
        guard=SimpleNamespace(on=True),
        is_step_boundary=lambda done: done % 2 == 0,
        grad_norm=torch.tensor(3.0),
        step_count=0,
    )
    run = SimpleNamespace(state=RunState(), recorder=None, curves=StepCurves(CPU, 3))
    with EpochTracker(run, 1, engine) as tracker:
        tracker.batch, tracker.lr = SimpleNamespace(label=[0, 1]), 0.1
        for done, loss in enumerate((1.0, 2.0, math.nan, 4.0), 1):
            engine.step_count = done // 2
            tracker.update(SimpleNamespace(loss=torch.tensor(loss), top1=torch.tensor(0.5)))
    assert run.curves.sums[:3].tolist() == [[3, 2, 3, 1, 1, 2], [4, 1, 3, 1, 0.5, 1], [0] * 6]
    assert tracker.total.tolist() == [7, 3, 6, 2, 1.5, 3]


def test_steps_csv_of_a_run_agrees_with_metrics_csv(script, photo_set, small, tmp_path):
    words = [*small, "--data_root", photo_set, "--epochs", 2, "-b", 5, "--val_freq", 2]
    assert script("train.py", "--tag", "a", *words).code == 0
    rows, notes = read_table(tmp_path / "logs/a/steps.csv", ("step", "epoch"))
    with open(tmp_path / "logs/a/metrics.csv") as file:
        epochs = list(csv.DictReader(file))
    assert notes == [] and [row["step"] for row in rows] == list(range(1, 15))
    for place, scores in enumerate(epochs):
        part = rows[7 * place : 7 * place + 7]
        for name in ("train_loss", "train_top1", "grad_norm"):
            assert np.mean([row[name] for row in part]) == pytest.approx(float(scores[name]), rel=1e-5)
        assert part[-1]["lr"] == float(scores["lr"]) and part[-1]["epoch"] == float(scores["epoch"])
    assert rows[-1]["val_top1"] == float(epochs[1]["val_top1"]) and rows[-1]["val_loss"] == float(epochs[1]["val_loss"])
    assert all("val_loss" not in row for row in rows[:-1])
    assert (tmp_path / "logs/a/curves.png").is_file()
    remove_earlier(tmp_path / "checkpoints/a", tmp_path / "logs/a")
    assert not (tmp_path / "logs/a/steps.csv").exists()


def test_speed_of_an_epoch_leaves_out_the_statistics_of_swa(script, photo_set, small, tmp_path, monkeypatch):
    """The pass over the training images after the last epoch of --swa counted as time of training."""
    seconds, train_step, end_epoch = [0.0], Engine.train_step, Engine.end_epoch

    def step(engine, batch):
        seconds[0] += 1
        return train_step(engine, batch)

    def end(engine, *about):
        seconds[0] += 1000
        end_epoch(engine, *about)

    monkeypatch.setattr(Engine, "train_step", step)
    monkeypatch.setattr(Engine, "end_epoch", end)
    monkeypatch.setattr(epoch, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    words = [*small, "--data_root", photo_set, "--epochs", 1, "--swa", 1, "--scheduler", "none"]
    assert script("train.py", "--tag", "a", *words).code == 0
    (row,), _ = read_table(tmp_path / "logs/a/metrics.csv", ("epoch", "images_per_second"))
    assert row["images_per_second"] == 12 and row["data_wait"] == 0  # three steps of 12 images
