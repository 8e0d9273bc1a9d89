"""What happens to a run: kills, signals, numbers that go wrong, cards that are too small."""

import contextlib
import csv
import fcntl
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
import types
import weakref
from pathlib import Path

import pytest
import torch

import processes
from benchmarks import crash_test
from conftest import ROOT, gated, wait_for
from evaluation.step_points import read_table
from forked import Forked
from network import BaseModel, get_model
from network.precision import fastest_for_training, pick_fastest
from options import parse_train
from training.checkpoint_writer import AsyncCheckpointWriter, RetentionPolicy, snapshot
from training.engine import Engine
from training.guard import Diverged
from training.memory import largest_batch, out_of_memory
from training.setup import build_engine, step_settings
from utils import checkpoint
from utils.batch import Batch
from utils.signals import RunInterrupted, SignalHandler, raising_sigterm

TINY = (
    "--model timm:test_resnet --no-pretrained --preset original "
    "--scale 32 -b 12 --gpu -1 --lr 0.01 --optimizer sgd --precision fp32"
)
TINY += " --num_classes 3"


def batch_of(count=6, step=0, scale=32):
    image = torch.randint(
        0, 256, (count, 3, scale, scale), dtype=torch.uint8, generator=torch.Generator().manual_seed(step)
    )
    image = image.contiguous(memory_format=torch.channels_last)
    return Batch(image, torch.arange(count) % 3, torch.arange(count) + 100, 1, step, ())


def engine_for(*words, batches=100):
    opt = parse_train([*TINY.split(), *map(str, words)])
    torch.manual_seed(0)
    model = get_model(opt.model)(opt)
    model.to_device(torch.device("cpu"))
    return build_engine(opt, model, batches)


# ------------------------------------------------------------------------ fp16 and its scaler


def half_engine(*words):
    opt = parse_train([*TINY.replace("fp32", "fp16").split(), *words])
    torch.manual_seed(0)
    model = get_model(opt.model)(opt)
    model.to_device(torch.device("cpu"))
    assert model.set_precision(opt.precision)[0] == "fp16"
    return build_engine(opt, model, 100)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)  # which also fills new memory with NaN
    yield
    torch.use_deterministic_algorithms(False)


def test_fp16_scale_too_large_is_lowered_and_resumed():
    """On the CPU, where it is slow, all is as on a card: too large a scale skips steps, and that is no divergence."""
    engine = half_engine("--max_nan", "2")
    net = engine.model.net
    engine.scaler.load_state_dict(engine.scaler.state_dict() | {"scale": 2.0**30})
    before = [parameter.detach().clone() for parameter in net.parameters()]
    scales = []
    for step in range(40):
        engine.train_step(batch_of(4, step))
        scales.append(engine.scaler.get_scale())
        moved = not all(map(torch.equal, before, net.parameters()))
        assert moved == (step > 0 and scales[-1] == scales[-2])  # a step is taken, or the scale halved
        if moved:
            break
    assert 3 < len(scales) < 40 and scales[:3] == [2.0**29, 2.0**28, 2.0**27]
    engine.settle()
    assert engine.guard.skipped == engine.guard.in_row == 0 and engine.step_count == len(scales)
    again = half_engine("--max_nan", "2")
    content = snapshot(engine.state_dict())
    again.model.net.load_state_dict(content["weights"])
    again.load_state_dict(content)
    assert again.scaler.state_dict() == engine.scaler.state_dict() and again.scaler.get_scale() == scales[-1]
    assert torch.equal(engine.train_step(batch_of(4, 50)).loss, again.train_step(batch_of(4, 50)).loss)
    assert all(map(torch.equal, net.parameters(), again.model.net.parameters()))


def test_fp16_nan_weight_raises_diverged():
    engine = half_engine("--max_nan", "2")
    engine.scaler.load_state_dict(engine.scaler.state_dict() | {"scale": 4.0})
    with torch.no_grad():
        engine.model.net.fc.weight[0, 0] = float("nan")
    with pytest.raises(Diverged, match="fc.weight holds NaN"):
        for step in range(4):  # down to a scale of 1 in two steps, then as often as --max_nan says
            engine.train_step(batch_of(4, step))
            engine.settle()
    assert step == 3 and engine.guard.skipped == 2


def test_fp16_after_divergence_continues_from_checkpoint():
    """The step that is given up has unscaled its gradients, and the scaler does not do so twice."""
    engine = half_engine("--max_nan", "1")
    engine.scaler.load_state_dict(engine.scaler.state_dict() | {"scale": 1.0})
    content = snapshot(engine.state_dict())
    net = engine.model.net
    with torch.no_grad():
        net.fc.weight[0, 0] = float("nan")
    with pytest.raises(Diverged):
        engine.train_step(batch_of(4, 0))
        engine.settle()
    net.load_state_dict(content["weights"])
    engine.load_state_dict(content)
    assert engine.scaler.get_scale() == 1.0
    engine.train_step(batch_of(4, 1))
    assert any(not torch.equal(content["weights"][name], tensor) for name, tensor in net.state_dict().items())


def test_fp16_resume_of_another_precision_continues():
    """Its scaler is empty: a new one finds its scale. And the other way round."""
    for before, after in ((engine_for(), half_engine()), (half_engine(), engine_for())):
        before.train_step(batch_of(4, 0))
        content = snapshot(before.state_dict())
        after.model.net.load_state_dict(content["weights"])
        after.load_state_dict(content)
        after.train_step(batch_of(4, 1))
        assert bool(after.state_dict()["training"]["scaler"]) == after.scaler.is_enabled()


def test_fp16_overflow_in_first_step_leaves_no_momentum(deterministic):
    """Without --max_nan's look the fused optimizer itself skips the step; memory that nobody wrote to is NaN here."""
    engine = half_engine("--max_nan", "0")
    content = snapshot(engine.state_dict())  # without a momentum, as checkpoints of before the first step are
    for _ in range(2):
        engine.scaler.load_state_dict(engine.scaler.state_dict() | {"scale": 2.0**60})
        engine.train_step(batch_of(4, 0))
        assert engine.scaler.get_scale() == 2.0**59
        state = engine.optimizer.state_dict()["state"].values()
        assert len(state) and all(not one["momentum_buffer"].any() for one in state)
        engine.load_state_dict(content)


# ------------------------------------------------------------------------ top-1 of the training batches


@pytest.mark.parametrize("words", [[], ["--cutmix", "1"], ["--sam", "0.05"]], ids=" ".join)
def test_train_step_top1_equals_hand_count(words):
    """By hand, of the logits and targets of the batch's first pass; of blended samples the larger share counts."""
    engine = engine_for(*words)
    seen = []
    ran, prepared = engine.model.net.forward, engine.prepare
    engine.model.net.forward = lambda images: seen.append(ran(images)) or seen[-1]
    engine.prepare = lambda batch: seen.append(prepared(batch)) or seen[-1]
    for step in range(4):
        seen.clear()
        result = engine.train_step(batch_of(12, step))
        (_, targets), logits = seen[:2]
        right = targets
        if targets.ndim == 2:
            right = torch.tensor([max(range(3), key=lambda k, row=row: row[k]) for row in targets.tolist()])
        assert result.top1.item() == pytest.approx(sum(logits.detach().max(dim=1).indices == right).item() / 12)
        assert result.top1.device == result.loss.device and not result.top1.requires_grad


@pytest.mark.parametrize("shape", [(12, 3), (6, 3, 5), (6,)], ids=str)
def test_train_step_logits_of_other_shape_have_no_top1(shape):
    engine = engine_for()
    real = engine.model.update
    # as of two views of an image, or of each place in it
    engine.model.update = lambda *given: (
        real(*given)[0],
        torch.zeros(shape),
    )
    assert engine.train_step(batch_of()).top1 is None


# ------------------------------------------------------------------------ kills and signals


def test_crash_test_killed_runs_equal_undisturbed_run(photo_set, tmp_path, monkeypatch):
    """Three runs, with 0, 1 and 3 workers, each killed until it is done; `python -m benchmarks.crash_test` does 30."""
    watched = tmp_path / "watched.py"
    watched.write_text(crash_test.WATCHED)

    def train(out, tag, flags):
        stacks = out / f"{tag}.stacks"
        stacks.unlink(missing_ok=True)
        return Forked(out, out / f"{tag}.log", watched, stacks, ROOT / "train.py", "--tag", tag, *flags, session=True)

    monkeypatch.setattr(crash_test, "train", train)
    # the server is there: a run takes a second
    assert Forked(tmp_path, tmp_path / "help", ROOT / "train.py", "--help").wait() == 0
    flags = f"{crash_test.RUN} --epochs 6"
    words = ["--runs", "3", "--data_root", str(photo_set), "--out", str(tmp_path), "--train", flags, "--seed", "1"]
    assert crash_test.main(words) == 0
    assert "true" not in (tmp_path / "crash_test.json").read_text()
    assert all(run["kills"] for run in json.loads((tmp_path / "crash_test.json").read_text())["results"])


def test_crash_test_differences_finds_another_seed(script, photo_set, tmp_path):
    for tag, more in (("whole", []), ("seed", ["--seed", "1"]), ("again", [])):
        done = script("train.py", *TINY.split(), "--data_root", photo_set, "-w", 0, "--epochs", 1, "--tag", tag, *more)
        assert done.code == 0
    assert crash_test.differences(tmp_path, "whole", "again") == []
    assert len(crash_test.differences(tmp_path, "whole", "seed")) > 50


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda number: signal.Signals(number).name
)
def test_train_signal_saves_and_prints_resume_command(photo_set, tmp_path, number):
    words = [*TINY.split(), "--data_root", photo_set, "-w", "1", "--epochs", "4", "--val_freq", "4", "--keep", "0"]
    process = gated(tmp_path, 1, "--tag", "cut", *words)
    process.send_signal(number)
    code = process.wait()
    err = (tmp_path / "out").read_text()
    assert code == 128 + number, err
    assert "Traceback" not in err
    content = checkpoint.load(tmp_path / "checkpoints/cut/last.pt")
    assert content["epoch"] == 1
    command = shlex.split(re.search(r"To continue:\n +(.*)", err)[1])
    assert [command[0], Path(command[1]).name, *command[2:]] == (
        ["python", "train.py", "--tag", "cut", "--gpu", "-1", "--workers", "1", "--resume"]
    )
    assert f"interrupted ({signal.Signals(number).name})" in (tmp_path / "run_log.txt").read_text()


def test_train_terminal_closed_saves(photo_set, tmp_path):
    """The kernel sends SIGHUP, and what is printed from then on meets EIO."""
    words = [*TINY.split(), "--data_root", photo_set, *"-w 0 --epochs 2000 --val_freq 0 --keep 0 --tag cut".split()]
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)

    def begin() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def saved() -> bool:
        with contextlib.suppress(BlockingIOError):  # nobody else reads what the terminal shows
            while os.read(ours, 65536):
                pass
        return (tmp_path / "checkpoints/cut/last.pt").exists()

    command = [sys.executable, ROOT / "train.py", *map(str, words)]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=begin
    )
    os.close(theirs)
    wait_for(saved)
    os.close(ours)
    assert process.wait() == 128 + signal.SIGHUP
    assert "interrupted (SIGHUP)" in (tmp_path / "run_log.txt").read_text()
    assert 0 < checkpoint.load(tmp_path / "checkpoints/cut/last.pt")["epoch"] < 2000


def test_signal_handler_ignored_hangup_stays_ignored():
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalHandler() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with SignalHandler() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received == signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: signal.Signals(number).name)
def test_train_signal_to_group_keeps_workers_alive(photo_set, tmp_path, number):
    """As batch systems send it, and a terminal: not to the main process alone."""
    words = [*TINY.split(), "--data_root", photo_set, *"-w 2 --loader process --epochs 4 --val_freq 0 --keep 0".split()]
    process = gated(tmp_path, 1, "--tag", "cut", *words, session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    os.killpg(process.pid, number)
    assert process.wait() == 128 + number, (tmp_path / "out").read_text()
    assert f"{signal.Signals(number).name}: the run ends here" in (tmp_path / "out").read_text()
    wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def test_resume_after_signals_anywhere_equals_undisturbed_run(script, photo_set, tmp_path, monkeypatch):
    """Signals at chosen moments: after batch 2 of epoch 1, while epoch 2 is validated, at the end of epoch 3."""
    from inference import evaluating
    from training.run import TrainingRun

    words = [*TINY.split(), "--data_root", photo_set]
    words += "-w 0 --epochs 4 --mixup 0.2 --accumulate 2 -b 6 --swa 2".split()
    assert script("train.py", "--tag", "whole", *words).code == 0
    real_boundary, real_evaluate, real_save = Engine.is_step_boundary, evaluating.evaluate, TrainingRun._save_epoch
    sent = []

    def send(moment):
        if moment not in sent:
            sent.append(moment)
            os.kill(os.getpid(), signal.SIGTERM)

    def is_step_boundary(self, done):
        if done == 2 and self.step_count == 1:
            send("step")
        return real_boundary(self, done)

    def evaluate(*arguments):
        if len(sent) == 1 and (tmp_path / "checkpoints/cut/1_timm-test_resnet.pt").exists():
            send("validation")
        return real_evaluate(*arguments)

    def save_epoch(self, epoch):
        if epoch == 3:
            send("save")
        return real_save(self, epoch)

    monkeypatch.setattr(Engine, "is_step_boundary", is_step_boundary)
    monkeypatch.setattr(evaluating, "evaluate", evaluate)
    monkeypatch.setattr(TrainingRun, "_save_epoch", save_epoch)
    codes, within = [], []
    for resume in ([], ["--resume"], ["--resume"], ["--resume"]):
        codes.append(script("train.py", "--tag", "cut", *words, *resume).code)
        within.append(checkpoint.load(tmp_path / "checkpoints/cut/last.pt")["within"])
    assert codes == [143, 143, 143, 0]
    assert (within[0]["done"], within[0]["ended"]) == (2, False)
    assert (within[1]["done"], within[1]["ended"]) == (6, True)
    assert within[2:] == [None, None]
    assert crash_test.differences(tmp_path, "whole", "cut") == []


def rates(tag):
    with open(f"logs/{tag}/metrics.csv") as file:
        return [float(row["lr"]) for row in csv.DictReader(file)]


def test_resume_with_another_batch_keeps_schedule(script, photo_set):
    """Its epochs have another number of steps; the rate is that of a run which had it from the beginning."""
    words = [*TINY.split(), "--data_root", photo_set, "-w", "0", "--epochs", 4, "--keep", 4]
    for tag, batch in (("six", 6), ("twelve", 12)):
        assert script("train.py", *words, "-b", batch, "--tag", tag).code == 0
    load = ["--load", "checkpoints/six/2_timm-test_resnet.pt", "--resume", "-b", 12, "--tag", "changed"]
    assert script("train.py", *load).code == 0
    assert rates("changed") == rates("six")[:2] + rates("twelve")[2:]
    assert rates("changed")[2] > 0.001
    rows, notes = read_table(Path("logs/changed/steps.csv"), ("step", "epoch", "train_loss"))
    assert notes == [] and [row["step"] for row in rows] == list(range(1, 13))  # those of epochs 1 and 2 in pairs
    assert [row["epoch"] for row in rows[2::3]] == [1, 2, 3, 4]


def test_resume_with_changed_list_restarts_the_epoch(script, photo_set, tmp_path, monkeypatch):
    """The same images elsewhere are the same list; with another list the epoch restarts, and the schedule is kept."""
    lines = (photo_set / "train.txt").read_text().splitlines(keepends=True)
    moved = tmp_path / "moved"
    shutil.copytree(photo_set, moved)
    (moved / "train.txt").write_text("".join(lines).replace(str(photo_set), str(moved)))
    words = [*TINY.split(), "-w", "0", "--epochs", 3, "--save_minutes", 0, "--val_list", photo_set / "val.txt"]
    assert script("train.py", *words, "--train_list", photo_set / "train.txt", "--tag", "whole").code == 0
    real = Engine.is_step_boundary

    def is_step_boundary(self, done):
        if done == 2 and self.step_count == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, done)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "is_step_boundary", is_step_boundary)
        assert script("train.py", *words, "--train_list", photo_set / "train.txt", "--tag", "cut").code == 143
    for tag in ("longer", "moved", "seeded"):
        for room in ("checkpoints", "logs"):
            shutil.copytree(f"{room}/cut", f"{room}/{tag}")
    result = script("train.py", "--tag", "moved", "--resume", "--train_list", moved / "train.txt", "--gpu", -1)
    assert result.code == 0 and "The training list is not" not in result.out
    assert [what for what in crash_test.differences(tmp_path, "whole", "moved") if "/opt/train_list" not in what] == []
    (tmp_path / "longer.txt").write_text("".join(lines + lines[:12]))
    result = script("train.py", "--tag", "longer", "--resume", "--train_list", tmp_path / "longer.txt")
    assert result.code == 0, result.err
    assert (
        "The training list is not the one that checkpoints/longer/last.pt was trained on: epoch 2 begins again"
        in result.out
    )
    assert script("train.py", *words, "--train_list", tmp_path / "longer.txt", "--tag", "all_longer").code == 0
    assert rates("longer")[1:] == rates("all_longer")[1:]
    result = script("train.py", "--tag", "seeded", "--resume", "--seed", 7)  # the images come in another order
    assert result.code == 0 and "was saved in epoch 2, which begins again" in result.out
    assert "Resuming checkpoints/seeded/last.pt after epoch 1" in result.out


def test_signal_handler_second_interrupt_raises():
    with SignalHandler() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: signals.received == signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            wait_for(lambda: False)
    with SignalHandler() as signals, pytest.raises(RunInterrupted), signals.immediate():
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: False)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signal_handler_ignores_sigterm_afterwards_where_asked():
    """In a process of torchrun, which ends the others once one has stopped: it would replace the message."""
    with pytest.raises(RunInterrupted, match="saved"), raising_sigterm("SIGTERM: another process has ended"):
        try:
            with SignalHandler() as signals:
                signals.ignore_sigterm_afterwards()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            raise RunInterrupted(signal.SIGUSR1, "saved")
    assert signal.signal(signal.SIGTERM, signal.SIG_DFL) == signal.SIG_IGN


# ------------------------------------------------------------------------ saving


def test_checkpoint_writer_saves_state_at_call(tmp_path):
    weights = torch.zeros(1000, 1000)
    saver = AsyncCheckpointWriter()
    saver.save(tmp_path / "last.pt", {"epoch": 1, "weights": {"w": weights}})
    weights += 1
    saver.wait()
    assert float(checkpoint.load(tmp_path / "last.pt")["weights"]["w"].sum()) == 0
    assert snapshot({"a": [weights, (1, "x")]})["a"][1] == (1, "x")


def test_checkpoint_writer_marker_stays_until_saved(tmp_path):
    """What a restart of torchrun goes by: an earlier run's last.pt lies there until this one's takes its place."""
    marker = tmp_path / ".nothing_saved_yet"
    marker.touch()
    saver = AsyncCheckpointWriter(marker)
    (tmp_path / "file").touch()
    saver.save(tmp_path / "file" / "last.pt", {"epoch": 1})
    saver.wait()
    assert saver.error is not None and marker.exists()
    saver.save(tmp_path / "last.pt", {"epoch": 1})
    saver.wait()
    assert (tmp_path / "last.pt").exists() and not marker.exists()


@pytest.mark.parametrize(
    ("keep", "every", "always", "left"),
    [
        (3, 10, {12}, [10, 11, 12]),
        (2, 4, {5, 12}, [4, 5, 8, 11, 12]),
        (0, 5, {12}, [5, 10, 12]),
        (30, 1, set(), list(range(1, 13))),
    ],
)
def test_retention_policy_keeps_newest_and_every_nth(tmp_path, keep, every, always, left):
    for epoch in range(1, 13):
        (tmp_path / f"{epoch}_ResNet18.pt").touch()
    for name in ("13_ResNet18.pt", "1_ResNet50.pt", "best.pt", "last.pt", "notes.txt"):
        (tmp_path / name).touch()
    for path in RetentionPolicy("ResNet18", keep, every, always).expired(tmp_path, 12):
        path.unlink()
    numbers = sorted(int(path.name.split("_")[0]) for path in tmp_path.glob("*_ResNet18.pt"))
    assert numbers == [*left, 13]
    assert len(list(tmp_path.iterdir())) == len(left) + 5


# ------------------------------------------------------------------------ numbers that go wrong


def poison(engine, monkeypatch, steps):
    """Make the loss NaN in the given steps, by an infinite image value in the forward pass, as a broken layer would."""
    real, prepare = engine.model.net.forward, engine.prepare
    seen = []

    def forward(images):
        return real(images * float("inf") if seen[-1] in steps else images)

    monkeypatch.setattr(engine, "prepare", lambda batch: seen.append(batch.number) or prepare(batch))
    monkeypatch.setattr(engine.model.net, "forward", forward)


def test_train_step_non_finite_gradient_changes_nothing(monkeypatch, caplog):
    """Weights, statistics, momentum and averages; but the schedule goes on."""
    engine, clean = (engine_for("--ema", "0.9", "--scheduler", "none") for _ in range(2))
    poison(engine, monkeypatch, {2, 3})
    for step in range(6):
        engine.train_step(batch_of(step=step))
        if step not in (2, 3):
            clean.settle()
            clean.step_count = step  # what EMA's warm-up counts
            clean.train_step(batch_of(step=step))
    engine.settle()
    assert engine.guard.skipped == 2
    assert engine.step_count == 6
    for weights in ("raw", "ema"):
        for one, other in zip(
            engine.net(weights).state_dict().values(), clean.net(weights).state_dict().values(), strict=True
        ):
            assert torch.equal(one, other) or one.dtype == torch.int64  # how many batches batch norm has seen
    assert all(bool(value.isfinite().all()) for value in engine.net("ema").state_dict().values())


def test_train_step_skipped_after_reload_keeps_loaded_statistics(monkeypatch):
    engine = engine_for("--max_nan", "3")
    content = snapshot(engine.state_dict())
    for step in range(3):
        engine.train_step(batch_of(step=step))
    engine.model.net.load_state_dict(content["weights"])
    engine.load_state_dict(content)
    poison(engine, monkeypatch, {0})
    engine.train_step(batch_of())
    engine.settle()
    now = engine.model.net.state_dict()
    assert all(
        torch.equal(tensor, now[name]) for name, tensor in content["weights"].items() if tensor.is_floating_point()
    )


def test_max_nan_reached_names_step_samples_and_layer(monkeypatch):
    engine = engine_for("--max_nan", "3")
    poison(engine, monkeypatch, {1, 2, 4, 5, 6})
    with pytest.raises(Diverged, match=r"epoch 1, batch 7, samples 100, 101, .* layer \w+") as error:
        for step in range(9):
            engine.train_step(batch_of(step=step))
    assert step == 7  # what became of a step is looked at in the next one
    assert "3 steps in a row" in str(error.value)


NAN_IN_PROCESS_1 = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
from test_engine import batch_of, engine_for
from utils import distributed
from utils.logger import start_logging
import torch

distributed.init(torch.device("cpu"))
start_logging()
engine, rank = engine_for("--accumulate", 2), distributed.rank()
real = engine.prepare
broken = lambda batch: rank == 1 and batch.number == 2
engine.prepare = lambda batch: (real(batch)[0] * (torch.nan if broken(batch) else 1), batch.label)
for step in range(4):
    batch = batch_of(step=step)
    engine.train_step(batch._replace(index=batch.index + 1000 * rank + 10 * step))
engine.settle()
distributed.shutdown()
"""


def test_skipped_step_of_two_processes_names_samples_of_the_broken_batch(tmp_path):
    """It named those of the first process, or those of the step's last batch, which were innocent."""
    (tmp_path / "nan.py").write_text(NAN_IN_PROCESS_1.format(root=str(ROOT)))
    assert processes.ranks(tmp_path, *[[tmp_path / "nan.py"]] * 2) == [0, 0], processes.logs(tmp_path)
    said = processes.logs(tmp_path)
    named = "batch 3, samples 1120, 1121, 1122, 1123, 1124, 1125 of the training list (from 0), the part of process 1"
    assert f"epoch 1, {named}: first seen in the output of layer" in said


@pytest.mark.parametrize("where", ["weight", "gradient"])
def test_diverged_names_where_it_arose(where):
    engine = engine_for("--max_nan", "1")
    name, parameter = list(engine.model.net.named_parameters())[20]
    if where == "weight":
        parameter.data.view(-1)[3] = float("nan")
    else:
        parameter.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(Diverged, match=re.escape(name)):
        engine.train_step(batch_of())
        engine.settle()


def test_train_divergence_reloads_once_then_stops(script, photo_set, tmp_path, monkeypatch):
    """A fault that passes is survived, by way of last.pt; one that lasts ends the run."""
    words = [*TINY.split(), "--data_root", photo_set, "-w", "0", "--epochs", 3, "--max_nan", 2, "-b", 12]
    assert script("train.py", "--tag", "whole", *words).code == 0
    # of 5, 3 are the epoch's steps, and 2 are of explaining the first and the second
    real, broken, faults = Engine.prepare, [], {"passing": 5, "lasting": 10**6}

    def prepare(self, batch):
        images, targets = real(self, batch)
        if batch.epoch == 2 and len(broken) < faults[self.model.opt.tag]:
            broken.append(batch.number)
            return images * float("nan"), targets
        return images, targets

    monkeypatch.setattr(Engine, "prepare", prepare)
    for tag, code in (("passing", 0), ("lasting", 2)):
        broken.clear()
        result = script("train.py", "--tag", tag, *words)
        assert result.code == code, result.err
        assert "goes back, once, to" in result.out
    assert "2 steps in a row" in result.err
    assert "Try a lower --lr" in result.err
    assert crash_test.differences(tmp_path, "whole", "passing") == []


def test_train_divergence_reloads_its_own_checkpoint(script, photo_set, tmp_path, monkeypatch):
    """Within the first epoch its own save; never the last.pt that an earlier run left under the tag."""
    words = [*TINY.split(), "--data_root", photo_set, "-w", "0", "--epochs", 1, "--max_nan", 1, "-b", 12, "--tag", "t"]
    assert script("train.py", *words, "--seed", 1).code == 0
    shutil.copy("checkpoints/t/last.pt", "earlier.pt")
    words += ["--overwrite"]
    assert script("train.py", *words, "--load", "earlier.pt").code == 0
    whole = checkpoint.load("checkpoints/t/last.pt")
    real, broken = Engine.prepare, []

    def prepare(self, batch):
        images, targets = real(self, batch)
        if batch.number == where and len(broken) < 2:  # the step, and once more to explain it
            broken.append(batch.number)
            return images * float("nan"), targets
        return images, targets

    monkeypatch.setattr(Engine, "prepare", prepare)
    where = 2
    result = script("train.py", *words, "--load", "earlier.pt", "--save_minutes", 0)
    assert result.code == 0, result.out
    assert re.search(r"goes back, once, to where it was after (1 step|2 steps)\.", result.out)
    assert "1 step was skipped" in result.out
    again = checkpoint.load("checkpoints/t/last.pt")
    assert all(torch.equal(tensor, again["weights"][name]) for name, tensor in whole["weights"].items())
    where = 0
    broken.clear()
    result = script("train.py", *words, "--load", "earlier.pt")
    assert result.code == 2 and "goes back" not in result.out


def test_train_out_of_memory_names_batch_that_fits(script, photo_set, monkeypatch):
    real = BaseModel.normalise

    def normalise(self, images):
        if self.training and len(images) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return real(self, images)

    monkeypatch.setattr(BaseModel, "normalise", normalise)
    outputs, alive = [], []  # of the step that failed: its graph, which must be gone before a smaller step is tried
    watched = torch.nn.Conv2d.forward

    def forward(self, images):
        out = watched(self, images)
        if not alive:
            outputs.append(weakref.ref(out))
        return out

    def criterion(logits, targets):
        if len(logits) == 5:  # a library's own words
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return torch.nn.functional.cross_entropy(logits, targets)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", forward)
    monkeypatch.setattr("training.setup.get_task_loss", lambda *_: criterion)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(sum(one() is not None for one in outputs)))
    words = [*TINY.split(), "--data_root", photo_set, "-w", "0", "--epochs", 1]
    result = script("train.py", *words, "-b", 5)
    assert result.code == 2
    assert "no room for a batch of 5 at 32 px; the largest that fitted is 4" in result.err, result.err
    assert "-b 3 --accumulate 2" in result.err
    assert len(outputs) > 5 and not any(alive)


@pytest.mark.parametrize(
    ("world", "words", "advice"),
    [
        (1, [], "Give -b 4 --accumulate 3,"),
        (2, ["--accumulate", "2"], "Give -b 8 --accumulate 6,"),  # 4 of the 12 that each process has
        (1, ["--sam", "0.05"], "Give -b 4; --sam does not work with --accumulate"),
    ],
)
def test_out_of_memory_advice_keeps_images_per_step(monkeypatch, world, words, advice):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setattr("training.memory.largest_batch", lambda engine, batch: 5)
    engine = types.SimpleNamespace(settings=step_settings(parse_train(["-b", str(12 * world), *words]), 100))
    error = out_of_memory(engine, batch_of(12))
    assert "largest that fitted is 5" in str(error) and advice in str(error)


def held(engine):
    """Bytes of the gradients and of the optimizer's state."""
    tensors = [parameter.grad for parameter in engine.model.net.parameters() if parameter.grad is not None]
    tensors += [
        value for state in engine.optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    ]
    return sum(tensor.nbytes for tensor in tensors)


def test_out_of_memory_search_counts_gradients_and_state(monkeypatch):
    """In the first step neither is there; from the second on, and with --accumulate, both are."""
    engine = engine_for("--optimizer", "adam", "--ema", "0.9")
    weights = sum(parameter.nbytes for parameter in engine.model.net.parameters())
    real, averaged = BaseModel.normalise, []

    def normalise(self, images):
        if held(engine) + len(images) * weights / 4 > 4.6 * weights:  # 1 of gradients, 2 of Adam's, 6 images
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, images)

    monkeypatch.setattr(BaseModel, "normalise", normalise)
    monkeypatch.setattr(engine.averages, "update_ema", lambda *_: averaged.append(held(engine)))
    assert largest_batch(engine, batch_of(12)) == 6
    assert averaged and min(averaged) >= 3 * weights


def test_out_of_memory_under_ddp_is_searched_alone(monkeypatch, tmp_path):
    """DistributedDataParallel's hooks wait for the others, and count each gradient once a step."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        monkeypatch.setattr(
            "training.setup.wrap_for_training", lambda net, *_: torch.nn.parallel.DistributedDataParallel(net)
        )
        engine = engine_for()
        parameter = list(engine.model.net.parameters())[5]

        def full(_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        hook = parameter.register_hook(full)
        with pytest.raises(torch.OutOfMemoryError):
            engine.train_step(batch_of(12))
        hook.remove()
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: pytest.fail("the others are asked"))
        assert largest_batch(engine, batch_of(12)) == 11  # all but the whole, which is known not to fit
    finally:
        torch.distributed.destroy_process_group()


# ------------------------------------------------------------------------ precision


def test_pick_fastest_takes_quicker_precision(monkeypatch):
    """By a clock that the steps themselves move."""
    slow, now = {"fp32": 0.02, "bf16": 0.001}, [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    best, why = pick_fastest(lambda name: now.append(now.pop() + slow[name]))
    assert best == "bf16"
    assert "fp32 20 ms, bf16 1 ms" in why


@pytest.mark.parametrize("hiccup, steps", [(0.0, 3), (0.05, 9)], ids=["clear", "overlapping"])
def test_pick_fastest_ends_early_where_no_times_overlap(monkeypatch, hiccup, steps):
    """One step of bf16 takes longer than those of fp32: the ranges overlap, and the medians of all steps decide."""
    slow, now, calls = {"fp32": 0.02, "bf16": 0.001}, [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def step(name):
        calls.append(name)
        now.append(now.pop() + slow[name] + (hiccup if calls.count("bf16") == 2 and name == "bf16" else 0))

    assert pick_fastest(step)[0] == "bf16"
    assert calls.count("fp32") == calls.count("bf16") == steps  # the first of them is not timed


def test_fastest_for_training_leaves_network_unchanged():
    model = engine_for().model
    before = snapshot(model.net.state_dict())
    name, why = fastest_for_training(model.net, 32, 6)
    assert name in ("fp32", "bf16")
    assert "of 6 images" in why
    assert all(torch.equal(before[key], value) for key, value in model.net.state_dict().items())
    assert all(parameter.grad is None for parameter in model.net.parameters())


def test_update_bypassing_the_wrapper_is_refused(monkeypatch):
    monkeypatch.setattr("training.setup.wrap_for_training", lambda *_: torch.nn.Identity())
    engine = engine_for()
    engine.model.forward = engine.model.net.forward
    with pytest.raises(Exception, match=r"self\(images\)"):
        engine.train_step(batch_of())


# ------------------------------------------------------------------------ --compile


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compile_run_resumed_and_evaluated_equals_plain(script, photo_set, tmp_path):
    """Its checkpoints have the keys of an uncompiled run and nearly its weights; eval.py gives the score it printed."""
    words = [*TINY.split(), "--data_root", photo_set, "-w", "0", "--ema", "0.9", "--epochs", "2"]
    assert script("train.py", "--tag", "plain", *words).code == 0
    cut = gated(tmp_path, 1, "--tag", "fast", *words, "--compile")
    cut.send_signal(signal.SIGTERM)
    assert cut.wait() == 128 + signal.SIGTERM, (tmp_path / "out").read_text()
    again = ["--tag", "fast", "--resume", "--data_root", photo_set, "--gpu", "-1"]
    assert Forked(tmp_path, tmp_path / "out", ROOT / "train.py", *again).wait() == 0, (tmp_path / "out").read_text()
    plain, fast = (checkpoint.load(tmp_path / f"checkpoints/{tag}/last.pt") for tag in ("plain", "fast"))
    assert fast["opt"]["compile"] and fast["epoch"] == 2
    for name in ("weights", "ema"):
        assert list(plain[name]) == list(fast[name])
        for key, tensor in plain[name].items():
            assert torch.allclose(tensor.float(), fast[name][key].float(), atol=2e-3), key
    assert script("eval.py", "--load", "checkpoints/fast/last.pt", "--data_root", photo_set, "--gpu", "-1").code == 0
    found = json.loads(next((tmp_path / "results").rglob("metrics.json")).read_text())
    assert found["top1"] == fast["history"][-1]["val_top1"]


def test_histograms_after_skipped_step_hold_own_gradients(monkeypatch, tmp_path):
    """To explain a skipped step computes it again, within the next one; what is recorded is the next one's own."""
    from training.recorder import RunRecorder

    engine, clean = engine_for(), engine_for()
    kept = {}
    for one, steps in ((engine, {1}), (clean, set())):
        poison(one, monkeypatch, steps)
        recorder = RunRecorder(tmp_path, None, histograms=True, first_epoch=1, metric="top1")
        for step in range(3):
            stop = recorder.watch_gradients(one) if step == 2 else lambda: None
            if step != 1 or one is engine:
                one.train_step(batch_of(step=step))
            stop()
        one.settle()
        recorder.close()
        kept[one] = recorder.gradients
    assert engine.guard.skipped == 1
    assert len(kept[engine]) == len(list(engine.model.net.parameters()))
    assert all(torch.equal(gradient, kept[clean][name]) for name, gradient in kept[engine].items())
