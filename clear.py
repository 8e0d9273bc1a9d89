"""Move one experiment's records to the trash: checkpoints, logs, results and run_log lines of exactly this tag.

python clear.py --tag resnest               move to .trash/<time>_resnest/
python clear.py --tag resnest --restore     move back the newest entry of the trash
python clear.py --tag resnest --restore 20260101-100000     move back the entry of that time
python clear.py --tag resnest --rm          delete permanently, including the tag's entries in the trash

If a command is killed, repeat it to finish, or undo it with --restore.
"""

import argparse
import os
import re
import sys
from pathlib import Path

from options import command, parse_clear
from options.choices import NEWEST
from options.near_names import did_you_mean, near_names
from options.wording import count_of
from utils import run_lock, run_log, trash
from utils.errors import UserError
from utils.run import run_command
from utils.text import say
from utils.trash import TRASH


def main(opt: argparse.Namespace) -> None:
    """Clear, restore or delete the records of opt.tag."""
    folders: dict[str, Path] = {}
    for name in trash.KINDS:  # two of the folders may be the same
        parent = Path(getattr(opt, f"{name}_dir"))
        if os.path.realpath(parent) not in [os.path.realpath(other.parent) for other in folders.values()]:
            folders[name] = parent / opt.tag
    origins = [where for entry in trash.entries(opt.tag)[0] for where in entry.origin.values()]
    for folder in [*folders.values(), *origins, TRASH / opt.tag]:
        if folder.parent.is_dir():
            run_lock.acquire(folder)
    for path in trash.entries(opt.tag)[1]:
        say(f"warning: {path}/ has no valid {trash.ORIGIN}; it is skipped.")
    left = trash.delete_leftovers(opt.tag, [*folders.values(), *origins])
    if opt.restore:
        restore(opt.tag, opt.restore)
    elif opt.rm:
        remove(opt.tag, folders, left)
    else:
        to_trash(opt.tag, folders)
    name_folds(opt, [folder.parent for folder in folders.values()])


def to_trash(tag: str, folders: dict[str, Path]) -> None:
    """Move the tag's folders and run_log lines to a new entry of the trash, after finishing an interrupted one."""
    unfinished = [entry for entry in trash.entries(tag)[0] if entry.unfinished]
    for entry in unfinished:
        moved = trash.finish(entry)
        say(
            f"Finished {entry.path}/, which a killed command had left incomplete: moved {_listed(moved)}.",
            sys.stdout,
        )
    if not unfinished or any(map(_is_record, folders.values())):
        present = _present(tag, folders)
        entry = trash.put(tag, present)
        lines = len(run_log.read(entry.path / run_log.FILE))
        say(f"Moved {_listed(present)} and {count_of(lines, 'line')} of {run_log.FILE} to {entry.path}/", sys.stdout)
    back, gone = (command("clear", {"tag": tag, **flag}) for flag in ({"restore": entry.time}, {"rm": True}))
    say(f"Restore them: {back}      Delete them permanently: {gone}", sys.stdout)


def restore(tag: str, time: str) -> None:
    """Move the entry of `time`, or the newest one, back to where it was.

    Raises UserError if the trash has none, or none of that time.
    """
    entries = trash.entries(tag)[0]
    if not entries:
        near = near_names(tag, (entry.tag for entry in trash.entries()[0]), 1)
        attempt = f"\nTry: {command('clear', {'tag': near[0], 'restore': NEWEST})}" if near else ""
        raise UserError(f"The trash holds nothing of tag {tag!r}.{_tags_in_trash()}{attempt}")
    chosen = entries[-1:] if time == NEWEST else [entry for entry in entries if entry.time == time]
    if not chosen:
        times = ", ".join(entry.time for entry in entries)
        raise UserError(
            f"--restore is {time!r}, and the trash has no entry of tag {tag!r} of that time; allowed: {times}, or no "
            f"time for the newest. Try: {command('clear', {'tag': tag, 'restore': entries[-1].time})}"
        )
    entry = chosen[0]
    trash.restore(entry)
    there = {name: where for name, where in entry.origin.items() if os.path.lexists(where)}
    say(f"Restored {_listed(there)} from {entry.path}/", sys.stdout)
    for where in entry.origin.values():
        if where not in there.values():
            say(f"warning: {where}/ was no longer in {entry.path}/.")
    if others := [other.time for other in entries if other is not entry]:
        say(f"The trash also holds {', '.join(others)} of this tag: name one after --restore.", sys.stdout)


def remove(tag: str, folders: dict[str, Path], left: int) -> None:
    """Delete the tag's records and its entries in the trash. `left`: the number of leftovers deleted already."""
    entries = trash.entries(tag)[0]
    found = any(map(_is_record, folders.values()))
    present = _present(tag, folders) if found or not (entries or left) else {}
    held = sum(len(trash.lines_of(entry)) for entry in entries)
    lines = run_log.pop(tag)  # first: if this command is killed, a repeated one still finds the folders
    for path in [*present.values(), *(entry.path for entry in entries)]:
        if os.path.lexists(path):  # it may have been inside a deleted one
            trash.discard(path, tag)
    say(
        f"Deleted {_listed(present)}, {count_of(len(entries), 'trash entry', 'trash entries')} and "
        f"{count_of(len(lines) + held, 'line')} of {run_log.FILE}.",
        sys.stdout,
    )


def name_folds(opt: argparse.Namespace, parents: list[Path]) -> None:
    """Name the runs of the tag's folds: each has a tag of its own, which stays as it is."""
    pattern = re.compile(rf"{re.escape(opt.tag)}_fold(\d+)")
    if opt.restore:
        names = {entry.tag for entry in trash.entries()[0]}
    else:
        names = {path.name for parent in parents if parent.is_dir() for path in parent.iterdir()}
        names |= {entry.tag for entry in trash.entries()[0]} if opt.rm else set()
    tags = sorted(filter(pattern.fullmatch, names), key=lambda name: int(name.rpartition("_fold")[2]))
    if not tags:
        return
    where = "in the trash" if opt.restore else "there"
    shared = {**vars(opt), "given": (), "restore": NEWEST if opt.restore else None}
    each = "\n".join(command("clear", {**shared, "tag": tag}) for tag in tags)
    say(f"The folds of tag {opt.tag!r} are still {where}, under tags of their own. For them too:\n{each}", sys.stdout)


def _present(tag: str, folders: dict[str, Path]) -> dict[str, Path]:
    """Return those of `folders` that exist. Raises UserError with the existing tags if none does."""
    present = {name: path for name, path in folders.items() if _is_record(path)}
    if present:
        return present
    parents = [folder.parent for folder in folders.values() if folder.parent.is_dir()]
    found = {path.name for parent in parents for path in parent.iterdir() if _is_record(path)}
    tags = sorted(name for name in found if not name.startswith("."))
    hint, near = did_you_mean(tag, tags), near_names(tag, tags, 1)
    attempt = f"\nTry: {command('clear', {'tag': near[0]})}" if near else ""
    raise UserError(
        f"There are no records of tag {tag!r}.{hint and f' {hint}'}\n"
        f"There are: {', '.join(tags) or 'none of any tag'}.{_tags_in_trash()}{attempt}"
    )


def _is_record(path: Path) -> bool:
    """Return whether `path` is the folder of a tag, or a link in its place: a file such as compare.html is none."""
    return path.is_dir() or path.is_symlink()


def _tags_in_trash() -> str:
    tags = sorted({entry.tag for entry in trash.entries()[0]})
    return f" In the trash: {', '.join(tags)}." if tags else ""


def _listed(paths: dict[str, Path]) -> str:
    return ", ".join(f"{path}/" for path in paths.values()) or "no folder"


if __name__ == "__main__":
    sys.exit(run_command(parse_clear, main))
