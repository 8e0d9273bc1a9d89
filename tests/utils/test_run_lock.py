"""Folders of a tag that a command is at work on: others keep off; a command that was killed holds nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import HOLD_FOLDER, ROOT, wait_for
from utils import run_lock
from utils.errors import UserError

FLAGS = (
    "--model timm:test_resnet --no-pretrained --preset original "
    "--scale 32 -b 12 --gpu -1 --lr 0.01 --optimizer sgd --precision fp32"
)
FLAGS += " --transform light"
# clear.py, which stops itself before its first rename of a folder of the tag
STOPPED = """
import os, signal, sys
import clear
from options import parse_clear
from utils.run import run_command
def watch(event, arguments):
    if event == "os.rename" and str(arguments[0]).endswith("checkpoints/busy"):
        os.kill(os.getpid(), signal.SIGSTOP)
sys.addaudithook(watch)
sys.exit(run_command(parse_clear, clear.main))
"""


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stopped(process):
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(run_lock, "TIMEOUT_SECONDS", 0.2)
    yield
    run_lock.release_all()


def test_lock_of_running_tag_refuses_and_of_killed_one_is_free(script, photo_set, tmp_path):
    """With --loader process, workers that outlive the killed run for a moment have inherited its open files."""
    words = [*FLAGS.split(), "--data_root", str(photo_set), *"-w 1 --loader process --keep 0 --save_minutes 0".split()]
    command = [sys.executable, str(ROOT / "train.py"), "--tag", "busy", *words, "--epochs", "5000"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        for line in run.stdout:
            if line.startswith("epoch 3/"):  # so that the end of epoch 1 is written
                break
        run.send_signal(signal.SIGSTOP)  # its records are still from now on
        wait_for(lambda: stopped(run))
        before = files(tmp_path)
        for folder, refused in (
            ("checkpoints/busy", ("train.py", "--tag", "busy", *words)),
            ("checkpoints/busy", ("train.py", "--tag", "busy", "--resume", "--data_root", photo_set)),
            ("checkpoints/busy", ("train.py", "--tag", "busy", *words, "--log_dir", "elsewhere")),
            ("logs/busy", ("train.py", "--tag", "busy", *words, "--checkpoint_dir", "elsewhere")),
            ("checkpoints/busy", ("clear.py", "--tag", "busy")),
            ("checkpoints/busy", ("clear.py", "--tag", "busy", "--log_dir", "elsewhere", "--result_dir", "elsewhere")),
            ("logs/busy", ("clear.py", "--tag", "busy", "--rm", "--checkpoint_dir", "elsewhere")),
        ):
            result = script(*refused)
            assert result.code == 2, refused
            assert f"{folder} is in use by another command (process {run.pid} on " in result.err
            assert "--tag busy" in result.err
            assert "give another --tag" in result.err
        after = {
            path: content
            for path, content in files(tmp_path).items()
            if path.name not in ("run_log.txt", "run_log.txt.lock")
        }
        assert after == {
            path: content for path, content in before.items() if path.name not in ("run_log.txt", "run_log.txt.lock")
        }
        run.kill()
        run.wait()  # on a busy machine a process takes seconds to die
        result = script("train.py", "--tag", "busy", "--resume", "--epochs", "1", "--data_root", photo_set)
        assert result.code == 0 and "is complete" in result.out, result.err
    assert script("clear.py", "--tag", "busy").code == 0
    assert not list(tmp_path.glob("*/busy")) and not list(tmp_path.glob("*/.*.lock"))


def test_clear_while_run_begins_moves_nothing(script, photo_set, tmp_path):
    for folder in ("checkpoints", "logs"):
        (tmp_path / folder / "busy").mkdir(parents=True)
        (tmp_path / folder / "busy/old").write_text("of the old run")
    words = [sys.executable, "-c", STOPPED, "--tag", "busy"]
    with subprocess.Popen(
        words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    ) as clear:
        wait_for(lambda: stopped(clear))
        result = script("train.py", "--tag", "busy", *FLAGS.split(), "--data_root", photo_set)
        assert result.code == 2 and "checkpoints/busy is in use by another command" in result.err, result.err
        clear.send_signal(signal.SIGCONT)
        assert clear.wait() == 0
    done = script("train.py", "--tag", "busy", *FLAGS.split(), "--data_root", photo_set, "--epochs", 1, "-w", 0)
    assert done.code == 0
    entry = next((tmp_path / ".trash").glob("2*_busy"))
    assert {str(path) for path in files(entry)} == {"origin.json", "run_log.txt", "checkpoint/old", "log/old"}
    assert (tmp_path / "checkpoints/busy/last.pt").exists()


@pytest.mark.parametrize("shared", [True, False])
def test_acquire_shared_admits_only_other_sharers(tmp_path, shared):
    folder = tmp_path / "results" / "t"
    words = [sys.executable, "-c", HOLD_FOLDER.format(shared=shared), folder]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        if shared:
            run_lock.acquire(folder, shared=True)
            run_lock.release_all()
        for wanted in [False] if shared else [False, True]:
            with pytest.raises(UserError, match="results/t is in use by another command"):
                run_lock.acquire(folder, wanted)
        folder.mkdir()
        link = tmp_path / "link"
        link.symlink_to(folder)
        with pytest.raises(UserError, match="link is in use by another command"):
            run_lock.acquire(link)
        run_lock.release_all()
        other.kill()
    assert run_lock.lock_path(folder).exists()
    run_lock.acquire(folder)
    run_lock.release_all()
    assert list(tmp_path.rglob("*.lock")) == []


def test_acquire_lock_file_deleted_meanwhile_tries_again(tmp_path, monkeypatch):
    real, numbers = run_lock._try_lock, []

    def locked(number, shared):
        if not numbers:  # between our open() and our lock its holder lets go
            run_lock.lock_path(tmp_path / "t").unlink()
        numbers.append(number)
        return real(number, shared)

    monkeypatch.setattr(run_lock, "_try_lock", locked)
    run_lock.acquire(tmp_path / "t")
    assert len(numbers) == 2 and run_lock.lock_path(tmp_path / "t").exists()


def test_acquire_without_lock_support_succeeds(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "lockf", refuse)
    run_lock.acquire(tmp_path / "t")
    assert f"process {os.getpid()} on" in run_lock.lock_path(tmp_path / "t").read_text()


def test_command_that_ended_in_living_process_holds_no_lock(script, photo_set, tmp_path):
    result = script("train.py", "--tag", "over", *FLAGS.split(), "--data_root", photo_set, "--train_list", "none.txt")
    assert result.code == 2 and (tmp_path / "logs/over/log.txt").exists(), result.err
    assert list(tmp_path.rglob(".over.lock")) == []
    words = [sys.executable, "-c", HOLD_FOLDER.format(shared=False), tmp_path / "logs/over"]
    done = subprocess.run(words, cwd=ROOT, input="\n", capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "held\n", done.stderr


def test_wait_until_free_waits_for_the_holder_and_takes_nothing(tmp_path):
    folder = tmp_path / "tag"
    assert run_lock.wait_until_free(folder, 0) and list(tmp_path.iterdir()) == []
    command = [sys.executable, "-c", HOLD_FOLDER.format(shared=False), str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        assert not run_lock.wait_until_free(folder, 0)
        holder.kill()
        assert run_lock.wait_until_free(folder, 60)
    run_lock.acquire(folder)
