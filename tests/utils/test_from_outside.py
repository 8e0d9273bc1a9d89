"""What happens to a command from outside: Ctrl-C, a deleted working folder, a full disk, a closed output."""

import subprocess
import sys

import pytest

import options
from conftest import ROOT
from utils.run import run_command, run_tool

PRESSED = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from utils import run, run_lock

def press(*_):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)

if {again}:
    run_lock.release_all = press
sys.exit(run.run_tool(lambda: None, press))
"""


@pytest.mark.parametrize("again", [False, True])
def test_second_interrupt_while_the_first_is_answered_ends_without_a_traceback(again):
    words = [sys.executable, "-c", PRESSED.format(root=str(ROOT), again=again)]
    done = subprocess.run(words, timeout=600, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "\ninterrupted\n")


def test_command_in_a_deleted_folder_says_so(tmp_path, monkeypatch, capsys):
    """torch ended such a process with a line about a library that cannot be loaded."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert run_tool(lambda: None, lambda _: 0) == 2
    assert capsys.readouterr().err.startswith("\nerror: The working folder is gone")


@pytest.mark.parametrize(
    ("name", "words", "flags"),
    [
        ("train", [], ": --checkpoint_dir, --log_dir."),
        ("eval", ["--load", "x.pt"], ": --result_dir."),
        ("submit", ["--load", "x.pt"], ": --result_dir, --out."),
        ("clear", ["--tag", "x"], ": --checkpoint_dir, --log_dir, --result_dir."),
    ],
)
def test_full_disk_advises_the_flags_that_the_script_has(name, words, flags, tmp_path, monkeypatch, capsys):
    """submit.py advised --log_dir, which it has not, and left out --out."""

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    assert run_command(getattr(options, f"parse_{name}"), full) == 2
    assert capsys.readouterr().err.endswith(f"Free some space (`df -h`), or write elsewhere{flags}\n")


def test_full_disk_advises_no_flag_where_there_is_none(capsys):
    def full(_):
        raise OSError(28, "No space left on device")

    assert run_tool(lambda: None, full) == 2
    assert capsys.readouterr().err.endswith("Free some space (`df -h`).\n")


def test_answers_for_a_closed_output_are_refused_before_the_work(tmp_path, monkeypatch, capsys):
    """It ended in a traceback after all images were predicted."""
    import submit

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["submit.py", "--load", "x.pt", "--images", "a.png"])
    monkeypatch.setattr(sys, "stdout", None)
    assert run_command(submit.parse_submit, submit.main) == 2
    assert "standard output is closed. Try: --out FILE" in capsys.readouterr().err
