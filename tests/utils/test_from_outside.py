"""What happens to a command from outside: Ctrl-C, however often it is pressed; its working folder is deleted."""

import subprocess
import sys

import pytest

from conftest import ROOT
from utils.run import run_tool

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
