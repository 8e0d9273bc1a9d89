"""run_log.txt in the working folder: one line per command, with time, process id, tag, status and the words typed."""

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
    """One line of the log; `status` is `running`, `done in 53 s`, `exit 2`, `interrupted (SIGTERM)` or `killed`."""

    time: str
    pid: int
    tag: str
    status: str
    command: str

    def line(self) -> str:
        """Return the entry as a line without its line feed."""
        return f"{self.time}\tpid {self.pid}\ttag {self.tag}\t{self.status}\t{self.command}"

    @staticmethod
    def parse(line: str) -> "Entry | None":
        """Return the entry of a line; None for a line that another program wrote."""
        fields = line.split("\t", 4)
        if len(fields) != 5 or not re.fullmatch("pid [0-9]{1,10}", fields[1]) or not fields[2].startswith("tag "):
            return None
        return Entry(fields[0], int(fields[1][4:]), fields[2][4:], fields[3], fields[4])


def begin(tag: str) -> Entry:
    """Write the line of this command and return its entry; mark the lines of processes that have ended as killed."""
    command = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in shlex.join(["python", *sys.argv]))
    entry = Entry(time.strftime("%Y-%m-%d %H:%M:%S"), os.getpid(), tag, "running", command)
    _record(lambda lines: [*map(_mark_killed, lines), entry.line()])
    return entry


def end(entry: Entry, status: str) -> None:
    """Write how the command of `entry` ended."""
    before = entry.line()
    entry.status = status
    _record(lambda lines: [entry.line() if line == before else line for line in lines])


def pop(tag: str, keep: Callable[[list[str]], None] = lambda _: None) -> list[str]:
    """Remove and return the lines of exactly `tag`, except the line of this command.

    Args:
        tag: the tag.
        keep: gets the lines before they are removed, to write them elsewhere: a command that is killed loses none.
    """
    popped: list[str] = []

    def change(lines: list[str]) -> list[str]:
        kept: list[str] = []
        for line in lines:
            entry = Entry.parse(line)
            this = entry is not None and entry.status == "running" and entry.pid == os.getpid()
            (popped if entry is not None and entry.tag == tag and not this else kept).append(line)
        keep(popped)
        return kept

    _rewrite(change)
    return popped


def restore(lines: list[str]) -> None:
    """Add lines that `pop` returned, in order of time, except those already there."""

    def change(present: list[str]) -> list[str]:
        missing = [line for line in lines if line not in present]
        return sorted([*present, *missing], key=lambda line: line.split("\t", 1)[0])

    _rewrite(change)


def _mark_killed(line: str) -> str:
    """Return the line, `killed` if its process has ended or has our own id, as in containers (process 1)."""
    entry = Entry.parse(line)
    if entry is None or entry.status != "running" or not Path("/proc/self").exists():
        return line
    if entry.pid != os.getpid() and Path(f"/proc/{entry.pid}").exists():
        return line
    entry.status = "killed"
    return entry.line()


def _record(change: Callable[[list[str]], list[str]]) -> None:
    """Rewrite the log. A full disk causes a warning: it must not keep a command from running."""
    try:
        _rewrite(change)
    except OSError as error:
        say(f"warning: {FILE} cannot be written: {error.strerror}")


def read(path: Path) -> list[str]:
    """Return the lines of a run_log.txt byte for byte (surrogateescape); only a line feed ends a line."""
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    return text.removesuffix("\n").split("\n") if text else []


def _rewrite(change: Callable[[list[str]], list[str]]) -> None:
    with locked(FILE + ".lock"):
        path = Path(FILE)
        lines = read(path) if path.exists() else []
        with atomic_write(path, "wb") as file:
            file.write("".join(line + "\n" for line in change(lines)).encode("utf-8", errors="surrogateescape"))
