"""Errors that a user reads, and hints at the name that was meant."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from options.near_names import did_you_mean, near_names

MAX_NAMES = 60  # timm has 1,400 models: of more names than these, a message lists only the near ones
MAX_NEAR = 5
MAX_FOLDERS = 8
T = TypeVar("T")


class UserError(Exception):
    """A mistake that the user can fix. The message gives the problem, the value, what is allowed, and the next command.

    A script prints the message without a traceback and exits with code 2.

    printed_elsewhere: another process prints the same error, so this one prints nothing.
    """

    printed_elsewhere = False


class ProcessLost(Exception):  # noqa: N818  # what happened, not a kind of mistake
    """Another process of the run has ended. A script prints the message without a traceback and exits with code 1."""


class MachineFault(UserError):  # noqa: N818
    """A fault of the machine while a file was read (utils.faults). The message holds the path and the reason.

    It ends the command: the next file would fare no better.
    """


class NotFinite(UserError):  # noqa: N818  # what happened, not a kind of mistake
    """A network's outputs are NaN or infinite."""


class ImageError(Exception):
    """An image cannot be read. The message holds its path and the reason."""


def unknown_name(kind: str, name: str, known: Iterable[str], flag: str = "") -> UserError:
    """Return the error for a name that a registry does not hold: the near names, then all of them if they are few.

    Args:
        flag: what stands before the name on a command line ("--loss ", "--model timm:"), for a line to try.
    """
    names = list(known)
    near = near_names(name, (one for one in names if " " not in one), 1)  # not "Nx (any N)"
    attempt = f"\nTry: {flag}{near[0]}" if flag and near else ""
    if len(names) > MAX_NAMES:
        hint = did_you_mean(name, names, MAX_NEAR) or "No name is similar."
        return UserError(f"There is no {kind} {name!r} among {len(names):,}. {hint}{attempt}")
    hint = did_you_mean(name, names)
    return UserError(f"There is no {kind} {name!r}.{hint and f' {hint}'}\nThere are: {', '.join(names)}.{attempt}")


def look_up(kind: str, name: str, registry: Mapping[str, T], flag: str = "") -> T:
    """Return what `registry` holds under `name`.

    Raises:
        UserError: it holds nothing of that name; see `unknown_name`.
    """
    if name not in registry:
        raise unknown_name(kind, name, registry, flag)
    return registry[name]


def _names_in(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; none where it cannot be read."""
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


def path_hint(path: Path) -> str:
    """Return a hint for a missing path: its first part that does not exist, and paths of similar names; or ""."""
    missing = path
    while missing.parent != missing and not missing.parent.exists():
        missing = missing.parent
    if not missing.parent.is_dir():
        return f" {missing.parent} is not a folder." if missing.parent.exists() else ""
    hint = f" There is no folder {missing}." if missing != path else ""
    names = _names_in(missing.parent)
    tail = path.relative_to(missing)
    similar = [missing.parent / name / tail for name in near_names(missing.name, names)]
    if missing == path:  # the folder is there: a file of this name may be in one beside it
        beside = path.parent.parent
        similar += [beside / name / path.name for name in near_names(path.parent.name, _names_in(beside))]
    existing = [str(other) for other in similar if other.exists()]
    if existing:
        return f"{hint} Did you mean {' or '.join(existing)}?"
    folders = [name for name in names if (missing.parent / name).is_dir() and not name.startswith(".")][:MAX_FOLDERS]
    return hint + (f" In {missing.parent}/ there are: {', '.join(folders)}." if hint and folders else "")
