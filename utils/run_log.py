"""`run_log.txt`: a line a command, where the command ran: time, process id, tag, how it ended, the command as typed."""

import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from utils.files import atomic_write, locked
from utils.text import say

FILE = "run_log.txt"


@dataclass
class Entry:
    """One line of the log; `state` is `running`, `done in 53 s`, `exit 2`, `interrupted` or `killed`."""

    time: str
    pid: int
    tag: str
    state: str
    command: str

    def line(self) -> str:
        return f"{self.time}\tpid {self.pid}\ttag {self.tag}\t{self.state}\t{self.command}"

    @staticmethod
    def parse(line: str) -> "Entry | None":
        """The entry that a line holds; None for a line that somebody else wrote."""
        fields = line.split("\t", 4)
        if len(fields) != 5 or not re.fullmatch("pid [0-9]{1,10}", fields[1]) or not fields[2].startswith("tag "):
            return None
        return Entry(fields[0], int(fields[1][4:]), fields[2][4:], fields[3], fields[4])


def begin(tag: str) -> Entry:
    """Write this command's line, and mark those as killed that say `running` but whose process is gone."""
    command = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in shlex.join(["python", *sys.argv]))
    entry = Entry(time.strftime("%Y-%m-%d %H:%M:%S"), os.getpid(), tag, "running", command)

    def change(lines: list[str]) -> list[str]:
        return [_mark_killed(line) for line in lines] + [entry.line()]

    _record(change)
    return entry


def end(entry: Entry, state: str) -> None:
    """Write how the command of `entry` ended."""
    before = entry.line()
    entry.state = state
    _record(lambda lines: [entry.line() if line == before else line for line in lines])


def take(tag: str, keep: Callable[[list[str]], None] = lambda _: None) -> list[str]:
    """Remove and return the lines of exactly `tag`, but for the line of this very command.

    `keep` is given them before they are removed, to write them elsewhere: a command that is killed loses none.
    """
    taken: list[str] = []

    def change(lines: list[str]) -> list[str]:
        kept: list[str] = []
        for line in lines:
            entry = Entry.parse(line)
            this = entry is not None and entry.state == "running" and entry.pid == os.getpid()
            (taken if entry is not None and entry.tag == tag and not this else kept).append(line)
        keep(taken)
        return kept

    _rewrite(change)
    return taken


def put_back(lines: list[str]) -> None:
    """Add lines that `take` gave, but for those that are there, in the order of time."""

    def change(present: list[str]) -> list[str]:
        return sorted(
            [*present, *(line for line in lines if line not in present)], key=lambda line: line.split("\t", 1)[0]
        )

    _rewrite(change)


def _mark_killed(line: str) -> str:
    """The line, as `killed` where its process is gone, or has our own id: in a container every command is process 1."""
    entry = Entry.parse(line)
    if entry is None or entry.state != "running" or not Path("/proc/self").exists():
        return line
    if entry.pid != os.getpid() and Path(f"/proc/{entry.pid}").exists():
        return line
    entry.state = "killed"
    return entry.line()


def _record(change: Callable[[list[str]], list[str]]) -> None:
    """Rewrite the log; a full disk is said, and keeps no command from running, nor from saying how it ended."""
    try:
        _rewrite(change)
    except OSError as error:
        say(f"warning: {FILE} cannot be written: {error.strerror}")


def read(path: Path) -> list[str]:
    """Return the lines of a run_log.txt, somebody else's as they are, to the byte: no other sign than a line feed ends one."""
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    return text.removesuffix("\n").split("\n") if text else []


def _rewrite(change: Callable[[list[str]], list[str]]) -> None:
    with locked(FILE + ".lock"):
        path = Path(FILE)
        lines = read(path) if path.exists() else []
        with atomic_write(path, "wb") as file:
            file.write("".join(line + "\n" for line in change(lines)).encode("utf-8", errors="surrogateescape"))
