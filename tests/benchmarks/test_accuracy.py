"""Accuracy at equal wall time: choice of epochs, order of the runs, table and plot; without real training."""

import contextlib
import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.accuracy import command, plan, report, trainers
from benchmarks.accuracy.plan import Timing
from benchmarks.accuracy.report import Result
from conftest import wait_for
from options import parse_train

START, EPOCH = 10.0, 20.0  # seconds of the trainer that tests pretend to have


@pytest.mark.parametrize(
    "timings, expected",
    [
        ([Timing(1, 30), Timing(2, 50)], (10, 20)),
        ([Timing(1, 30), Timing(2, 50), Timing(4, 90)], (10, 20)),
        ([Timing(2, 50), Timing(2, 54)], (0, 26)),  # one length alone says nothing of the start
        ([Timing(1, 30), Timing(2, 28)], (0, 22)),  # a line that falls makes no sense
        ([Timing(1, 30), Timing(2, 70)], (0, 32.5)),  # nor does a start that takes less than nothing
    ],
)
def test_estimate_fits_start_and_epoch(timings, expected):
    assert plan.estimate(timings) == pytest.approx(expected)


@pytest.mark.parametrize("budget, expected", [(29, 0), (30, 1), (49.9, 1), (50, 2), (200, 9)])
def test_epochs_within_budget_is_the_largest_number(budget, expected):
    assert plan.epochs_within(budget + 1e-6, [Timing(1, 30), Timing(2, 50)]) == expected


def settled(budget, seconds, known):
    """What `settle` chooses for a trainer whose run of n epochs takes `seconds(n)`, and which runs it made."""
    history, made = [Timing(epochs, seconds(epochs)) for epochs in known], []

    def timed(epochs):
        made.append(epochs)
        history.append(Timing(epochs, seconds(epochs)))
        return seconds(epochs)

    return plan.settle(budget, lambda: history, timed), made


def test_settle_takes_fewer_epochs_after_a_late_run():
    assert settled(112, lambda epochs: START + EPOCH * epochs + (epochs > 4) * 5, [1, 2]) == (4, [5, 4])


def test_settle_takes_more_epochs_where_much_time_is_left():
    assert settled(215, lambda epochs: START + EPOCH * epochs, [1]) == (10, [7, 10])


def test_settle_falls_by_as_many_epochs_as_the_late_run_tells():
    assert settled(215, lambda epochs: START + EPOCH * epochs * (1.2 if epochs > 5 else 1), [1, 2]) == (8, [10, 8])


def test_settle_without_time_for_one_epoch_runs_nothing():
    assert settled(25, lambda epochs: START + EPOCH * epochs, [1, 2]) == (0, [])


def test_settle_tries_one_epoch_that_a_prediction_alone_excludes():
    seconds = {1: 30.0, 2: 60.0, 3: 70.0}  # the line says 33.3 for one epoch
    assert settled(32, seconds.__getitem__, [1, 2, 3]) == (1, [1])


RESULTS = {
    "ours": {30.0: Result(2, [25.0, 26.0, 27.0], [0.85, 0.86, 0.84]), 60.0: Result(5, [58.0, 61.0], [0.9, 0.88], 1)},
    "slow": {30.0: Result(0, [], []), 60.0: Result(1, [50.0, 51.0, 52.0], [0.5, 0.6, 0.55])},
}


def test_markdown_names_medians_spread_and_what_was_not_measured():
    table = report.markdown(RESULTS, {"gone": "not installed"}, {"ours": "a", "slow": "b"}, ["Machine."])
    lines = table.splitlines()
    assert lines[0] == "Machine."
    assert lines[2:4] == ["| trainer | 30 s | 60 s |", "|---|---|---|"]
    late = "89.0 (88.0–90.0); 5 epochs, 60 s, 2 of 3 over time"
    assert lines[4] == f"| ours | 85.0 (84.0–86.0); 2 epochs, 26 s | {late} |"
    assert lines[5] == "| slow | not finished | 55.0 (50.0–60.0); 1 epoch, 51 s |"
    assert "- gone was not measured: not installed" in lines


@pytest.mark.pictures
def test_plot_is_drawn_where_a_run_ended(tmp_path):
    assert report.plot(tmp_path / "a.png", RESULTS, "title")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert not report.plot(tmp_path / "b.png", {"slow": {30.0: Result(0, [], [])}}, "title")
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize(("last", "scale"), [(100.0, "linear"), (600.0, "log")])
def test_plot_of_very_different_times_has_a_logarithmic_axis(last, scale, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(report.figures, "save", lambda figure, _: drawn.append(figure.axes[0]))
    report.plot(tmp_path / "a.png", {"ours": {60.0: Result(1, [50.0], [0.8]), 600.0: Result(9, [last], [0.9])}}, "")
    assert [axis.get_xscale() for axis in drawn] == [scale]
    assert scale == "linear" or [label.get_text() for label in drawn[0].get_xticklabels()] == [
        "60",
        "120",
        "300",
        "600",
    ]
    assert not (tmp_path / "b.png").exists()


def test_our_flags_are_data_model_size_and_epochs(tmp_path):
    """A flag more would no longer be our defaults."""
    task = trainers.Task("", str(tmp_path / "net.pth"), "", 10, 64, 0, 0, 2, "cpu", "", False)
    job = trainers.Job((tmp_path / "a.txt", tmp_path / "b.txt"), task, "ResNet18", None, tmp_path, tmp_path)
    opt = parse_train(trainers.our_flags(job, 3, 43))
    allowed = {"tag", "train_list", "val_list", "model", "scale", "epochs", "seed", "weights_dir"}
    assert set(opt.given) == allowed
    assert (opt.model, opt.scale, opt.epochs, opt.seed) == ("ResNet18", 64, 3, 43)


@pytest.fixture
def lists(photo_set, tmp_path, monkeypatch):
    """A folder of lists whose validation list lacks a class; the weights are not built."""
    lines = (photo_set / "train.txt").read_text().splitlines(keepends=True)
    paths = [line.rsplit(" ", 1) for line in lines]
    absolute = [f"{(photo_set / path).resolve()} {label}" for path, label in paths]
    root = tmp_path / "lists"
    root.mkdir()
    (root / "train.txt").write_text("".join(absolute))
    (root / "val.txt").write_text("".join(line for line in absolute if not line.endswith(" 1\n")))
    monkeypatch.setattr(command, "export_weights", lambda model, folder: (folder / "net.pth", "resnet18"))
    return root


@pytest.fixture
def pretended(monkeypatch):
    """Trainers that take START and EPOCH seconds, and what was called: (trainer, epochs, seed)."""
    calls = []
    names = {trainer: name for name, trainer in trainers.TRAINERS.items()}

    def train(trainer, job, epochs, seed, limit):
        calls.append((names[trainer], epochs, seed))
        if names[trainer] == "fastai":
            raise trainers.Failed("no such layer")
        slow = 3 if names[trainer] == "timm" else 1
        seconds = (START + EPOCH * epochs) * slow
        return (limit, None) if seconds > limit else (seconds, 0.5 + epochs / 100 + seed / 10000)

    def check(trainer, job):
        if names[trainer] == "AutoGluon":
            raise trainers.Failed("not installed")
        return {"torch": "2"}

    monkeypatch.setattr(trainers, "train", train)
    monkeypatch.setattr(trainers, "check", check)
    return calls


WORDS = "--budgets 30 95 --seeds 2 --only ours timm fastai AutoGluon --gpu -1".split()


def test_accuracy_benchmark_runs_trainers_in_turn_and_writes_its_files(lists, pretended, tmp_path, capsys):
    out = tmp_path / "out"
    assert command.main(["--data_root", str(lists), "--out", str(out), *WORDS]) == 0
    first = [("ours", 1, 42), ("timm", 1, 42), ("fastai", 1, 42), ("ours", 2, 42)]
    assert pretended == [*first, ("ours", 4, 42), ("ours", 1, 43), ("ours", 4, 43), ("timm", 1, 43)]
    found = json.loads((out / "accuracy.json").read_text())
    assert found["absent"] == {"fastai": "no such layer", "AutoGluon": "not installed"}
    assert found["results"]["ours"]["30"]["epochs"] == 1
    assert found["results"]["ours"]["95"] == {
        "epochs": 4,
        "seconds": [90, 90],
        "top1": [pytest.approx(0.5442), pytest.approx(0.5443)],
        "stopped": 0,
    }
    assert found["results"]["timm"]["30"]["epochs"] == 0
    assert found["results"]["timm"]["95"]["epochs"] == 1
    assert "| timm | not finished | " in (out / "accuracy.md").read_text()
    assert (out / "accuracy.png").is_file()
    assert not (out / "accuracy.runs.json").exists()
    assert "fastai was not measured: no such layer" in capsys.readouterr().out


def test_accuracy_benchmark_of_equal_epochs_gives_each_trainer_as_many(lists, pretended, tmp_path):
    out = tmp_path / "out"
    words = "--epochs 3 1 --seeds 2 --only ours timm --gpu -1".split()
    assert command.main(["--data_root", str(lists), "--out", str(out), *words]) == 0
    each = [("ours", 1), ("ours", 3), ("timm", 1), ("timm", 3)]
    assert pretended == [(name, epochs, seed) for seed in (42, 43) for name, epochs in each]
    table = (out / "accuracy.md").read_text()
    assert "| trainer | 1 epoch | 3 epochs |" in table and "; 3 epochs, 210 s |" in table
    assert json.loads((out / "accuracy.json").read_text())["results"]["timm"]["3"]["seconds"] == [210, 210]


def test_images_of_rivals_are_links_in_a_folder_per_class(lists, pretended, tmp_path):
    assert command.main(["--data_root", str(lists), "--out", str(tmp_path / "out"), *WORDS]) == 0
    folder = tmp_path / "out/accuracy/images"
    assert sorted(path.name for path in (folder / "val").iterdir()) == ["000000", "000001", "000002"]
    assert list((folder / "val/000001").iterdir()) == []
    listed = [line.rsplit(" ", 1) for line in (lists / "train.txt").read_text().splitlines()]
    linked = {(str(path.resolve()), int(path.parent.name)) for path in (folder / "train").glob("*/*")}
    assert linked == {(path, int(label)) for path, label in listed}


def test_accuracy_benchmark_interrupted_resumes_without_repeating_runs(lists, pretended, tmp_path, monkeypatch, capsys):
    words = ["--data_root", str(lists), "--out", str(tmp_path / "out"), *WORDS]
    train = trainers.train

    def interrupted(trainer, job, epochs, seed, limit):
        if seed == 43:
            raise KeyboardInterrupt
        return train(trainer, job, epochs, seed, limit)

    monkeypatch.setattr(trainers, "train", interrupted)
    assert command.main(words) == 130
    monkeypatch.setattr(trainers, "train", train)
    before = len(pretended)
    assert command.main([*words, "--scale", "32", "--resume"]) == 2
    assert "made with other --scale" in capsys.readouterr().err
    assert command.main([*words, "--resume"]) == 0
    left = [("ours", 1, 43), ("ours", 4, 43), ("timm", 1, 43)]
    assert [call for call in pretended[before:] if call[0] != "fastai"] == left
    before = len(pretended)
    assert command.main([*words, "--seeds", "3", "--resume"]) == 0  # a seed more, to what has ended
    more = [("ours", 1, 44), ("ours", 4, 44), ("timm", 1, 44)]
    assert [call for call in pretended[before:] if call[0] != "fastai"] == more


def test_run_stopped_for_a_small_budget_is_repeated_for_a_larger_one(lists, pretended, tmp_path):
    opt = command.option_parser().parse_args(["--out", str(tmp_path)])
    runs = command.Runs(opt, None, {"timm": trainers.TRAINERS["timm"]}, {})
    assert runs.run("timm", 2, 42, budget=50) == 75  # stopped at one and a half
    assert runs.run("timm", 2, 42, budget=60) == 75  # it took more, that is enough to know
    assert runs.run("timm", 2, 42, budget=150) == 150
    assert len(runs.done) == 1 and runs.done[0]["top1"] is not None
    assert len(pretended) == 2


@pytest.mark.parametrize(
    "words, message",
    [
        (["--only", "keras"], "no trainer is called 'keras'"),
        (["--seeds", "0"], "--seeds 0"),
        (["--budgets", "0"], "--budgets 0"),
        (["--epochs", "0"], "--epochs 0"),
        (["--resume"], "there is no"),
    ],
)
def test_accuracy_benchmark_wrong_flag_is_refused(words, message, lists, pretended, tmp_path, capsys):
    assert command.main(["--data_root", str(lists), "--out", str(tmp_path / "out"), "--gpu", "-1", *words]) == 2
    assert message in capsys.readouterr().err


def test_rival_that_is_not_installed_or_fails_is_named(tmp_path):
    job = trainers.Job((tmp_path, tmp_path), trainers.Task(*[""] * 11), "", None, tmp_path, tmp_path / "work")
    with pytest.raises(trainers.Failed, match=r"not installed: no \.venv-fastai"):
        trainers.check(trainers.TRAINERS["fastai"], job)
    python = tmp_path / ".venv-fastai/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho first >&2; echo 'ImportError: no wheel' >&2; exit 1\n")
    python.chmod(0o755)
    with pytest.raises(trainers.Failed, match="^ImportError: no wheel$"):
        trainers.check(trainers.TRAINERS["fastai"], job)
    with pytest.raises(trainers.Failed, match="^ImportError: no wheel$"):
        trainers.train(trainers.TRAINERS["fastai"], job, 1, 42, 60)


def test_run_beyond_its_limit_is_ended_with_its_children(tmp_path):
    code = "import subprocess, sys; subprocess.Popen(['sleep', '600']).wait()"
    seconds, exit_code, _ = trainers._timed([sys.executable, "-c", code], tmp_path, {}, 0.5, tmp_path / "log.txt")
    assert exit_code is None and seconds >= 0.5


def test_trainer_ends_with_a_killed_benchmark(tmp_path):
    """The trainer holds a lock for as long as it lives."""
    child = "import fcntl, os, time; file = open('lock', 'w'); fcntl.flock(file, fcntl.LOCK_EX); "
    child += "os.mkdir('held'); time.sleep(3600)"
    call = (
        "import math, os, sys; from pathlib import Path; from benchmarks.accuracy import trainers; "
        "folder = Path(sys.argv[1]); "
        f"trainers._timed([sys.executable, '-c', {child!r}], folder, os.environ, math.inf, folder / 'log')"
    )
    with subprocess.Popen([sys.executable, "-c", call, tmp_path], cwd=Path(command.__file__).parents[2]) as benchmark:
        wait_for((tmp_path / "held").exists)
        benchmark.kill()
    with open(tmp_path / "lock") as file:
        wait_for(lambda: _lock(file))


def _lock(file):
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True


def test_rivals_import_standard_library_alone():
    """Their environments do not have the packages of this project."""
    code = "import sys; from benchmarks.accuracy.rivals import common; sys.exit('numpy' in sys.modules)"
    python = [sys.executable, "-S", "-c", code]
    assert subprocess.run(python, cwd=Path(command.__file__).parents[2]).returncode == 0
