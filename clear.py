"""Put one experiment's records into the trash: checkpoints, logs, results and run_log lines of exactly this tag.

python clear.py --tag resnest               into .trash/<time>_resnest/
python clear.py --tag resnest --restore     back again
python clear.py --tag resnest --rm          for good, what lies in the trash too
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

from options import parse_clear
from utils import run_log
from utils.errors import UserError
from utils.files import atomic_write, write_json
from utils.holding import check_free
from utils.run import run_command
from utils.text import say

TRASH = Path(".trash")


def main(opt: argparse.Namespace) -> None:
    folders = {name: Path(getattr(opt, f"{name}_dir")) / opt.tag for name in ("checkpoint", "log", "result")}
    check_free(folders["log"], opt.tag)
    if opt.restore:
        restore(opt.tag)
    elif opt.rm:
        remove(opt.tag, folders)
    else:
        to_trash(opt.tag, folders)


def to_trash(tag: str, folders: dict[str, Path]) -> None:
    """Move the tag's folders and run_log lines to a new entry of the trash."""
    present = _present(tag, folders)
    entry = TRASH / f"{time.strftime('%Y%m%d-%H%M%S')}_{tag}"
    while entry.exists():
        entry = entry.with_name(entry.name.replace("_", "+_", 1))  # a second one within a second
    entry.mkdir(parents=True)
    write_json(entry / "origin.json", {name: str(path) for name, path in present.items()})
    for name, path in present.items():
        shutil.move(path, entry / name)
    lines = run_log.take(tag)
    with atomic_write(entry / run_log.FILE, "w") as file:
        file.write("".join(line + "\n" for line in lines))
    say(f"Moved {_listed(present)} and {len(lines)} line(s) of {run_log.FILE} to {entry}/", sys.stdout)
    say(f"Bring them back: python clear.py --tag {tag} --restore      Delete for good: python clear.py --tag {tag} --rm", sys.stdout)


def restore(tag: str) -> None:
    """Move the newest trash entry of the tag back to where it was."""
    entries = _entries(tag)
    if not entries:
        raise UserError(f"The trash holds nothing of tag {tag!r}.{_tags_in_trash()}")
    entry = entries[-1]
    origin = {name: Path(path) for name, path in json.loads((entry / "origin.json").read_text(encoding="utf-8")).items()}
    taken = [str(path) for path in origin.values() if os.path.lexists(path)]
    if taken:
        raise UserError(f"Nothing was restored: {', '.join(taken)} exist(s) again. Move that away first: python clear.py --tag {tag}")
    for name, path in origin.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(entry / name, path)
    run_log.put_back((entry / run_log.FILE).read_text(encoding="utf-8").splitlines())
    shutil.rmtree(entry)
    say(f"Restored {_listed(origin)} from {entry}/", sys.stdout)


def remove(tag: str, folders: dict[str, Path]) -> None:
    """Delete the tag's records, and its entries in the trash, for good."""
    entries = _entries(tag)
    present = {} if entries and not any(map(os.path.lexists, folders.values())) else _present(tag, folders)
    for path in [*present.values(), *entries]:
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    lines = run_log.take(tag)
    say(f"Deleted {_listed(present)}, {len(entries)} trash entries and {len(lines)} line(s) of {run_log.FILE}.", sys.stdout)


def _present(tag: str, folders: dict[str, Path]) -> dict[str, Path]:
    present = {name: path for name, path in folders.items() if os.path.lexists(path)}
    if present:
        return present
    tags = sorted({path.name for folder in folders.values() if folder.parent.is_dir() for path in folder.parent.iterdir()})
    raise UserError(f"There are no records of tag {tag!r}.\nThere are: {', '.join(tags) or 'none of any tag'}.{_tags_in_trash()}")


def _entries(tag: str) -> list[Path]:
    """The tag's entries in the trash, oldest first."""
    entries = [path for path in TRASH.glob("*_*") if path.name.split("_", 1)[1] == tag]
    return sorted(entries, key=lambda path: path.name.split("_")[0])  # by time alone: "_" sorts after the "+" of to_trash


def _tags_in_trash() -> str:
    tags = sorted({path.name.split("_", 1)[1] for path in TRASH.glob("*_*")})
    return f" In the trash: {', '.join(tags)}." if tags else ""


def _listed(paths: dict[str, Path]) -> str:
    return ", ".join(f"{path}/" for path in paths.values()) or "no folder"


if __name__ == "__main__":
    sys.exit(run_command(parse_clear, main))
