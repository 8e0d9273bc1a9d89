"""The trash: entries that hold the folders of a tag, and go back to where these were, whenever a command was killed.

An entry .trash/<time>_<tag>/ holds origin.json (where its folders belong), the folders, and run_log.txt. While its folders are on
the way, in either direction, it holds journal.json too: what each folder was when the move began. So a repeated command knows
the folders that it has to move from those that came later under the same name. A folder is moved by one rename; to another file
system it is copied under another name, renamed, and deleted at its old place.
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
ORIGIN, JOURNAL = "origin.json", "journal.json"
NAME = re.compile(r"(\d{8}-\d{6}\+*)_(.+)")


class Entry(NamedTuple):
    """One entry: its folder, its tag, and where each of the folders in it belongs."""

    path: Path
    tag: str
    origin: dict[str, Path]

    @property
    def unfinished(self) -> bool:
        """Whether a command was killed while it moved the folders of this entry."""
        return (self.path / JOURNAL).exists()


def entries(tag: str | None = None) -> tuple[list[Entry], list[Path]]:
    """The entries of a tag, or of all, oldest first; and what is named like one, but has no valid origin.json."""
    found, others = [], []
    for path in (
        sorted(TRASH.iterdir(), key=lambda path: path.name.split("_")[0]) if TRASH.is_dir() else ()
    ):  # "_" sorts after "+"
        match = NAME.fullmatch(path.name)
        if match is None or tag not in (None, match[2]):
            continue
        origin = _read_origin(path, match[2])
        if origin:
            found.append(Entry(path, match[2], origin))
        else:
            others.append(path)
    return found, others


def _read_origin(path: Path, tag: str) -> dict[str, Path]:
    """Where the folders of the entry at `path` belong; nothing where origin.json does not say so."""
    if path.is_symlink():
        return {}
    content = _read_json(path / ORIGIN)
    origin = {name: Path(where) for name, where in content.items() if name in KINDS and isinstance(where, str)}
    valid = len(origin) == len(content) and all(where.name == tag for where in origin.values())
    return origin if valid else {}


def put(tag: str, present: dict[str, Path]) -> Entry:
    """Move the folders `present` and the run_log lines of `tag` to a new entry."""
    path = TRASH / f"{time.strftime('%Y%m%d-%H%M%S')}_{tag}"
    while os.path.lexists(path):
        path = path.with_name(path.name.replace("_", "+_", 1))  # a second one within a second
    new = name_beside(TRASH / tag, "new")
    new.mkdir(parents=True)
    write_json(new / ORIGIN, {name: str(where) for name, where in present.items()})
    write_json(new / JOURNAL, {name: {"source": _state(where)} for name, where in present.items()})
    new.rename(path)  # from here on it is an entry
    entry = Entry(path, tag, present)
    finish(entry)
    return entry


def finish(entry: Entry) -> dict[str, Path]:
    """Go on with an entry whose move was cut: into the trash. Returns the folders that were moved now.

    A folder that came into being under an old name since then is not touched.
    """
    journal = _read_json(entry.path / JOURNAL)
    moved = {}
    for name, where in entry.origin.items():
        if journal.get(name, {}).get("source") == (_state(where) or ()):
            _carry(entry, name, where, entry.path / name)
            moved[name] = where

    def keep(lines: list[str]) -> None:
        held = _lines(entry)
        with atomic_write(entry.path / run_log.FILE, "w") as file:
            file.writelines(f"{line}\n" for line in [*held, *(line for line in lines if line not in held)])

    run_log.pop(entry.tag, keep)
    (entry.path / JOURNAL).unlink()
    return moved


def bring_back(entry: Entry) -> None:
    """Move the folders and lines of an entry back to where they were, then delete it.

    Raises:
        UserError: something else is in a folder's place by now; nothing was moved then.
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
        raise UserError(f"Nothing was restored: {', '.join(taken)} exist(s) again. Move that away first: {first}")
    write_json(entry.path / JOURNAL, {name: {"source": _state(path)} for name, path in inside.items()} | journal)
    for name, path in inside.items():
        _carry(entry, name, path, entry.origin[name])
    run_log.restore(_lines(entry))
    discard(entry.path, entry.tag)


def _taken(journal: dict[str, Any], inside: Path, where: Path) -> bool:
    """Whether something is at `where`, and it is neither a whole copy of `inside` nor what `inside` was copied from."""
    there = _state(where)
    if there is None or journal.get("copy") is None:
        return there is not None
    return journal["copy"] != there and (journal["copy"] != _state(inside) or journal["source"] != there)


def _carry(entry: Entry, name: str, source: Path, target: Path) -> None:
    """Move `source` to `target`; where `target` is a whole copy already, delete `source`."""
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
    """Delete a folder or a link: it loses its name at once, then its content. A link's target is left alone."""
    gone = name_beside(path.with_name(tag), "gone")
    path.rename(gone)
    _delete(gone)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def sweep(tag: str, folders: Iterable[Path]) -> int:
    """Delete what killed commands have left beside the `folders` of `tag` and in its entries: half copies, and halves of what was
    being deleted. Returns how many there were.
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
    """What tells a folder from another one under the same name, and from itself after a change: device, inode, time."""
    with contextlib.suppress(OSError):
        state = path.lstat()
        return [state.st_dev, state.st_ino, state.st_mtime_ns]
    return None


def _lines(entry: Entry) -> list[str]:
    """The run_log lines that an entry holds."""
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
