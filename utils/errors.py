"""Errors that a person reads."""

from collections.abc import Iterable
from pathlib import Path

from options.near_names import did_you_mean, near_names

MAX_NAMES = 60  # timm has 1,400: of more than these, the near ones alone are named
MAX_NEAR = 5
MAX_BESIDE = 8


class UserError(Exception):
    """A mistake that its user can mend: the message says what, what was got, what is allowed, the next command.

    A script ends with exit code 2 and the message alone, without a traceback.
    """


class MachineFault(UserError):  # noqa: N818
    """A file could not be read, and the machine is at fault (utils.faults): the message holds its path and the reason.

    It ends the command, as no file that is read next would fare better.
    """


class NotFinite(UserError):  # noqa: N818  # what happened, not a kind of mistake
    """A network's answers are no numbers: NaN or infinite logits."""


class ImageError(Exception):
    """An image that cannot be read; the message holds its path and the reason."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a name that no registry holds: the near ones first, then all, unless there are too many to read."""
    names = list(known)
    if len(names) > MAX_NAMES:
        hint = did_you_mean(name, names, MAX_NEAR) or "No name is similar."
        return UserError(f"There is no {kind} {name!r} among {len(names):,}. {hint}")
    hint = did_you_mean(name, names)
    return UserError(f"There is no {kind} {name!r}.{hint and f' {hint}'}\nThere are: {', '.join(names)}.")


def near(path: Path) -> str:
    """Return what to say after "there is no file <path>": the part of the path that is not there, and the names near it; or ""."""
    missing = path
    while missing.parent != missing and not missing.parent.exists():
        missing = missing.parent
    if not missing.parent.is_dir():
        return f" {missing.parent} is no folder." if missing.parent.exists() else ""
    hint = f" There is no folder {missing}." if missing != path else ""
    try:
        names = sorted(entry.name for entry in missing.parent.iterdir())
    except OSError:
        return hint
    tail = path.relative_to(missing)
    found = [missing.parent / name / tail for name in near_names(missing.name, names)]
    there = [str(other) for other in found if other.exists()]
    if there:
        return f"{hint} Did you mean {' or '.join(there)}?"
    beside = [name for name in names if (missing.parent / name).is_dir() and not name.startswith(".")][:MAX_BESIDE]
    return hint + (f" In {missing.parent}/ there are: {', '.join(beside)}." if hint and beside else "")
