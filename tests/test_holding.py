"""A tag that a run holds: a second run and clear.py keep off; a run that was killed holds nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from utils import holding
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
FLAGS = "--model timm:test_resnet --no-pretrained --scale 32 -b 12 --gpu -1 --lr 0.01 --optimizer sgd --precision fp32 --transform light"


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_running_tag_is_left_alone_and_a_killed_one_is_not_blocked(script, photo_set, tmp_path, monkeypatch):
    """With --loader process, workers that outlive the killed run for a moment have inherited its open files."""
    monkeypatch.setattr(holding, "PATIENCE", 0.2)
    words = [*FLAGS.split(), "--data_root", str(photo_set), "-w", "1", "--loader", "process", "--keep", "0", "--save_minutes", "0"]
    command = [sys.executable, str(ROOT / "train.py"), "--tag", "busy", *words, "--epochs", "5000"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        for line in run.stdout:
            if line.startswith("epoch 3/"):  # so that the end of epoch 1 is written
                break
        os.kill(run.pid, signal.SIGSTOP)  # so that its records stand still
        time.sleep(0.1)
        before = files(tmp_path / "logs")
        for refused in (
            ("train.py", "--tag", "busy", *words),
            ("train.py", "--tag", "busy", "--resume", "--data_root", photo_set),
            ("clear.py", "--tag", "busy"),
            ("clear.py", "--tag", "busy", "--rm"),
        ):
            result = script(*refused)
            assert result.code == 2, refused
            assert f"A run of tag 'busy' is going on (process {run.pid} on " in result.err and "--tag busy" in result.err
            assert "give another --tag" in result.err
        assert files(tmp_path / "logs") == before and not (tmp_path / ".trash").exists()
        run.kill()
        result = script("train.py", "--tag", "busy", "--resume", "--epochs", "1", "--data_root", photo_set)
        assert result.code == 0 and "is complete" in result.out, result.err
    assert script("clear.py", "--tag", "busy").code == 0
    assert not (tmp_path / "logs/busy").exists()


def test_a_file_system_without_locks_keeps_nobody_off(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(holding.fcntl, "lockf", refuse)
    holding.hold(tmp_path / "t", "t")
    assert f"process {os.getpid()} on" in (tmp_path / "t" / holding.FILE).read_text()
    holding.check_free(tmp_path / "t", "t")
    holding.check_free(tmp_path / "none", "none")
    assert not (tmp_path / "none").exists()
    holding.let_go()


def test_a_command_that_ended_holds_nothing_though_its_process_lives(script, photo_set, tmp_path):
    result = script("train.py", "--tag", "over", *FLAGS.split(), "--data_root", photo_set, "--train_list", "none.txt")
    assert result.code == 2 and (tmp_path / "logs/over" / holding.FILE).exists(), result.err
    look = f"import pathlib; from utils.holding import check_free; check_free(pathlib.Path({str(tmp_path / 'logs/over')!r}), 'over')"
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_error_names_who(tmp_path):
    (tmp_path / holding.FILE).write_text("process 7 on here\n")
    error = holding.in_use(os.open(tmp_path / holding.FILE, os.O_RDONLY), "t")
    assert isinstance(error, UserError) and "(process 7 on here)" in str(error)
