"""The trash of clear.py: entries that hold the folders of a tag, and that survive a kill at any moment.

An entry .trash/<time>_<tag>/ holds origin.json (where its folders belong, and when it was made), the folders, and
run_log.txt. While folders
move, in either direction, it also holds journal.json, the identity of each folder when the move began. With it a
repeated command tells the folders that it must move from later folders of the same name. A folder is moved by one
rename. To another file system it is copied under a temporary name, renamed, and deleted at its old place.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from options import command
from utils import run_log
from utils.errors import UserError
from utils.files import atomic_write, name_beside, write_json

TRASH = Path(".trash")
KINDS = ("checkpoint", "log", "result")
MADE_AT = "made_at"  # in origin.json: seconds since 1970, which no time zone and no summer time changes
ORIGIN, JOURNAL = "origin.json", "journal.json"
NAME = re.compile(r"(\d{8}-\d{6}\+*)_(.+)")


class Entry(NamedTuple):
    """An entry: its folder, its tag, the original path of each folder in it, and when it was made."""

    path: Path
    tag: str
    origin: dict[str, Path]
    made_at: float

    @property
    def time(self) -> str:
        """Return the time at which it was put into the trash, as its name begins: "20260101-100000"."""
        return self.path.name.split("_")[0]

    @property
    def unfinished(self) -> bool:
        """Return whether a command was killed while it moved the folders of this entry."""
        return (self.path / JOURNAL).exists()


def entries(tag: str | None = None) -> tuple[list[Entry], list[Path]]:
    """Return the entries of a tag (None: all), oldest first, and the folders named like one without valid origin."""
    found, others = [], []
    for path in sorted(TRASH.iterdir()) if TRASH.is_dir() else ():
        match = NAME.fullmatch(path.name)
        if match is None or tag not in (None, match[2]):
            continue
        entry = _read_entry(path, match[2])
        if entry is not None:
            found.append(entry)
        else:
            others.append(path)
    return sorted(found, key=lambda entry: (entry.made_at, entry.time)), others


def _read_entry(path: Path, tag: str) -> Entry | None:
    """Return the entry at `path`; None if origin.json is invalid."""
    if path.is_symlink():
        return None
    content = _read_json(path / ORIGIN)
    made_at = content.pop(MADE_AT, None)
    origin = {name: Path(where) for name, where in content.items() if name in KINDS and isinstance(where, str)}
    if not origin or len(origin) != len(content) or any(where.name != tag for where in origin.values()):
        return None
    if not isinstance(made_at, int | float):  # of an earlier version, which wrote the file when it made the entry
        made_at = (path / ORIGIN).stat().st_mtime
    return Entry(path, tag, origin, float(made_at))


def put(tag: str, present: dict[str, Path]) -> Entry:
    """Move the folders `present` and the run_log lines of `tag` to a new entry; return it."""
    made_at = time.time()
    path = TRASH / f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(made_at))}_{tag}"
    while os.path.lexists(path):
        path = path.with_name(path.name.replace("_", "+_", 1))  # a second entry within the same second
    new = name_beside(TRASH / tag, "new")
    new.mkdir(parents=True)
    write_json(new / ORIGIN, {name: str(where) for name, where in present.items()} | {MADE_AT: made_at})
    write_json(new / JOURNAL, {name: {"source": _state(where)} for name, where in present.items()})
    new.rename(path)  # now it is an entry
    entry = Entry(path, tag, present, made_at)
    finish(entry)
    return entry


def finish(entry: Entry) -> dict[str, Path]:
    """Finish an interrupted move into the trash. Return the folders that were moved now.

    A folder that was created under an old name since then stays.
    """
    journal = _read_json(entry.path / JOURNAL)
    moved = {}
    for name, where in entry.origin.items():
        if journal.get(name, {}).get("source") == (_state(where) or ()):
            _carry(entry, name, where, entry.path / name)
            moved[name] = where

    def keep(lines: list[str]) -> None:
        held = lines_of(entry)
        with atomic_write(entry.path / run_log.FILE, "w") as file:
            file.writelines(f"{line}\n" for line in [*held, *(line for line in lines if line not in held)])

    run_log.pop(entry.tag, keep)
    (entry.path / JOURNAL).unlink()
    return moved


def restore(entry: Entry) -> None:
    """Move the folders and run_log lines of an entry back to where they were, then delete it.

    Raises:
        UserError: another folder has the place of one of them; nothing is moved.
    """
    journal = _read_json(entry.path / JOURNAL)
    inside = {name: entry.path / name for name in entry.origin if os.path.lexists(entry.path / name)}
    taken = [
        str(entry.origin[name])
        for name, path in inside.items()
        if _taken(journal.get(name, {}), path, entry.origin[name])
    ]
    if taken:
        folders = {f"{name}_dir": str(path.parent) for name, path in entry.origin.items()}
        first = command("clear", {"tag": entry.tag, **folders})
        then = command("clear", {"tag": entry.tag, "restore": entry.time})
        raise UserError(
            f"Nothing was restored: {', '.join(taken)} exist(s) again. To put that into the trash too, and then "
            f"restore {entry.path}/, try: {first}\nThen: {then}"
        )
    write_json(entry.path / JOURNAL, {name: {"source": _state(path)} for name, path in inside.items()} | journal)
    for name, path in inside.items():
        _carry(entry, name, path, entry.origin[name])
    run_log.restore(lines_of(entry))
    discard(entry.path, entry.tag)


def _taken(journal: dict[str, Any], inside: Path, where: Path) -> bool:
    """Return whether `where` exists, and is neither a complete copy of `inside` nor the source of such a copy."""
    there = _state(where)
    if there is None or journal.get("copy") is None:
        return there is not None
    return journal["copy"] != there and (journal["copy"] != _state(inside) or journal["source"] != there)


def _carry(entry: Entry, name: str, source: Path, target: Path) -> None:
    """Move `source` to `target`; if `target` is a complete copy already, delete `source`."""
    if not os.path.lexists(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            source.rename(target)
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        part = name_beside(target, "part")
        if source.is_symlink():
            part.symlink_to(source.readlink())
        else:
            shutil.copytree(source, part, symlinks=True)
        journal = _read_json(entry.path / JOURNAL)
        journal[name] = {**journal.get(name, {}), "copy": _state(part)}
        write_json(entry.path / JOURNAL, journal)
        part.rename(target)
    discard(source, source.name)


def discard(path: Path, tag: str) -> None:
    """Delete a folder or a link: first its name, at once, then its content. The target of a link stays."""
    gone = name_beside(path.with_name(tag), "gone")
    path.rename(gone)
    _delete(gone)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def delete_leftovers(tag: str, folders: Iterable[Path]) -> int:
    """Delete leftovers of killed commands, such as partial copies, beside `folders` and in the entries of `tag`.

    Returns:
        The number of leftovers.
    """
    ours = dict.fromkeys((TRASH, *(folder.parent for folder in folders)), tag)
    inside = {entry.path: "|".join(KINDS) for entry in entries(tag)[0]}
    left = 0
    for folder, name in (ours | inside).items():
        pattern = re.compile(  # of name_beside
            rf"\.({name if folder in inside else re.escape(name)})\.[0-9a-f]{{16}}\.(new|part|gone)"
        )
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if pattern.fullmatch(path.name):
                _delete(path)
                left += 1
    return left


def _state(path: Path) -> list[int] | None:
    """Return device, inode and time of a folder, which change if it is changed or replaced; None if it is missing."""
    with contextlib.suppress(OSError):
        state = path.lstat()
        return [state.st_dev, state.st_ino, state.st_mtime_ns]
    return None


def lines_of(entry: Entry) -> list[str]:
    """Return the run_log lines of an entry."""
    try:
        return run_log.read(entry.path / run_log.FILE)
    except FileNotFoundError:
        return []


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
