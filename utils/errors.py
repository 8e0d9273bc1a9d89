"""Errors that a person reads."""

import difflib
from collections.abc import Iterable

MOST_NAMES = 60  # timm has 1,400: a message of 26 kB hides what it says


class UserError(Exception):
    """A mistake that its user can mend: the message says what, what was got, what is allowed, the next command.

    A script ends with exit code 2 and the message alone, without a traceback.
    """


class ImageError(Exception):
    """An image that cannot be read; the message holds its path and the reason."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that no registry holds: the near ones first, then all."""
    names = list(known)
    lowered = {other.lower(): other for other in names}
    close = [lowered[match] for match in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)]
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    shown = names if len(names) <= MOST_NAMES else [*names[:MOST_NAMES], f"… ({len(names)} in all)"]
    return UserError(f"There is no {kind} {name!r}.{hint}\nThere are: {', '.join(shown)}.")
