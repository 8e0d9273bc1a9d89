"""Names near a mistyped one."""

import difflib
from collections.abc import Iterable


def near_names(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Return up to `limit` names of `known` that are similar to `name`, the most similar first, whatever their case."""
    lowered = {other.lower(): other for other in known}
    return [lowered[match] for match in difflib.get_close_matches(name.lower(), lowered, n=limit, cutoff=0.5)]


def did_you_mean(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Return "Did you mean a or b?" for the names of `known` near `name`, or "" if there is none."""
    close = near_names(name, known, limit)
    return f"Did you mean {' or '.join(close)}?" if close else ""
