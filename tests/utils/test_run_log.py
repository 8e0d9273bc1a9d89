"""run_log.txt: a line a command, however it ends and however many run at once."""

import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import ROOT

COMMAND = """\
import argparse, sys, time
sys.path.insert(0, {root!r})
from utils.run import run_command
from utils.errors import UserError


def main(opt):
    if "wait" in sys.argv:
        print("started", flush=True)
        time.sleep(60)
    if "wrong" in sys.argv:
        raise UserError("a mistake")
    if "broken" in sys.argv:
        raise ZeroDivisionError


sys.exit(run_command(lambda argv: argparse.Namespace(tag=sys.argv[1]), main))
"""
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\tpid (\d+)\ttag ([^\t]*)\t([^\t]+)\tpython (.*)")


@pytest.fixture
def command(tmp_path, monkeypatch) -> Path:
    """A script of our kind that imports no torch: `command.py TAG [wait|wrong|broken]`."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "command.py"
    path.write_text(COMMAND.format(root=str(ROOT)))
    return path


def start(command: Path, *words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, command.name, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def entries() -> list[tuple[str, ...]]:
    """(pid, tag, state, command) of each line."""
    matches = [LINE.fullmatch(line) for line in Path("run_log.txt").read_text(encoding="utf-8").splitlines()]
    assert all(matches)
    return [match.groups() for match in matches]


@pytest.mark.parametrize(
    "words, code, state",
    [(["a"], 0, r"done in \d+ s"), (["a", "wrong"], 2, "exit 2"), (["a", "broken"], 1, "exit 1")],
    ids=["done", "a user's mistake", "a fault"],
)
def test_run_log_line_holds_pid_tag_state_and_command(command, words, code, state):
    began = time.strftime("%Y-%m-%d %H:%M:%S")
    process = start(command, *words)
    process.communicate()
    assert process.returncode == code
    (line,) = entries()
    assert line[:2] == (str(process.pid), "a")
    assert re.fullmatch(state, line[2])
    assert line[3] == shlex.join(["command.py", *words])
    assert began <= Path("run_log.txt").read_text()[:19] <= time.strftime("%Y-%m-%d %H:%M:%S")


def test_run_log_command_can_be_pasted(command):
    words = ["标签", "two words", "it's", "$HOME", "*"]
    start(command, *words).communicate()
    assert shlex.split(entries()[0][3]) == ["command.py", *words]


def test_run_log_odd_words_stay_on_one_line(command):
    start(command, "a", "x\ny\u2028z\r", "\tq").communicate()
    start(command, "b").communicate()
    assert [(tag, state[:4]) for _, tag, state, _ in entries()] == [("a", "done"), ("b", "done")]


def test_run_log_interrupt_is_recorded(command):
    process = start(command, "a", "wait")
    assert process.stdout.readline() == "started\n"
    assert entries()[0][2] == "running"
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert entries()[0][2] == "interrupted (SIGINT)"


def test_run_log_killed_command_is_marked_by_the_next(command):
    killed, living = start(command, "killed", "wait"), start(command, "living", "wait")
    for process in (killed, living):
        assert process.stdout.readline() == "started\n"
    try:
        killed.kill()
        killed.communicate()
        start(command, "next").communicate()
        assert {tag: state[:7] for _, tag, state, _ in entries()} == {
            "killed": "killed",
            "living": "running",
            "next": "done in",
        }
    finally:
        living.kill()
        living.communicate()


def test_run_log_killed_command_of_same_pid_is_marked(command, monkeypatch):
    from utils import run_log

    monkeypatch.setattr(sys, "argv", ["first.py"])
    run_log.begin("first")
    monkeypatch.setattr(sys, "argv", ["second.py"])
    run_log.end(run_log.begin("second"), "done in 0 s")
    assert [state for _, _, state, _ in entries()] == ["killed", "done in 0 s"]


def test_run_log_of_concurrent_commands_loses_no_line(command):
    processes = [start(command, f"tag{k}") for k in range(16)]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert sorted((pid, tag) for pid, tag, _, _ in entries()) == sorted(
        (str(p.pid), f"tag{k}") for k, p in enumerate(processes)
    )
    assert all(state.startswith("done in") for _, _, state, _ in entries())


def test_run_log_of_concurrent_clears_loses_no_other_line(command):
    for k in range(4):
        start(command, f"tag{k}").communicate()
        Path(f"logs/tag{k}").mkdir(parents=True)
    clears = [
        subprocess.Popen([sys.executable, ROOT / "clear.py", "--tag", f"tag{k}"], stdout=subprocess.DEVNULL)
        for k in range(3)
    ]
    others = [start(command, f"other{k}") for k in range(3)]
    for process in (*clears, *others):
        assert process.wait() == 0
    ran = [tag for _, tag, _, typed in entries() if "clear.py" not in typed]
    assert sorted(ran) == ["other0", "other1", "other2", "tag3"]
    assert sorted(tag for _, tag, _, typed in entries() if "clear.py" in typed) == ["tag0", "tag1", "tag2"]


def test_run_log_refused_command_is_recorded(script):
    for words in (["--no_such_flag", "1"], ["--lr", "fast"], ["--tag", "a/b"]):
        assert script("train.py", *words).code == 2
    assert [(tag, state, typed) for _, tag, state, typed in entries()] == [
        ("-", "exit 2", "train.py --no_such_flag 1"),
        ("-", "exit 2", "train.py --lr fast"),
        ("-", "exit 2", "train.py --tag a/b"),
    ]


@pytest.mark.parametrize("name", ["train.py", "eval.py", "submit.py", "clear.py"])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_run_log_help_is_not_recorded(script, tmp_path, name, flag):
    result = script(name, flag)
    assert result.code == 0
    assert "--tag" in result.out
    assert list(tmp_path.iterdir()) == []


def test_run_log_foreign_lines_are_kept(script, tmp_path):
    foreign = [
        b"my own note",
        b"\xff\xfe bytes\x00\x0c\x1d and \xc2\x85 what other programs end a line with\r",
        b"now\tpid 12x\ttag a\trunning\tno number",
        "now\tpid ²\ttag a\trunning\ta digit to str.isdigit, and to no int".encode(),
        b"now\tpid 99999999999999999999999\ttag a\trunning\tno process",
        b"the last, without an end",
    ]
    (tmp_path / "logs/a").mkdir(parents=True)
    Path("run_log.txt").write_bytes(b"\n".join(foreign))
    assert script("clear.py", "--tag", "a").code == 0
    assert script("clear.py", "--tag", "a", "--restore").code == 0
    lines = Path("run_log.txt").read_bytes().removesuffix(b"\n").split(b"\n")
    assert set(foreign) <= set(lines)
    assert len(lines) == 8


def test_run_log_not_writable_lets_command_run(script, monkeypatch, tmp_path):
    (tmp_path / "run_log.txt").mkdir()
    result = script("clear.py", "--tag", "x")
    assert result.code == 2
    assert "no records of tag 'x'" in result.err
    assert "run_log.txt cannot be written" in result.err
    assert "Traceback" not in result.err
