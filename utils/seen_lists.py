"""The lists whose images a network has learned from: its own, and those of the networks that it was made from.

A checkpoint keeps them as `data.seen`. Whatever makes a checkpoint from others joins their lists and adds its own.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

STARTS = ("load", "probe_init", "teacher")  # options that name another network
OTHERS = ("probe", "average")  # keys that a tool adds to what it makes of other networks, or fits to another list

Seen = list[dict[str, str | None]]


def entry(path: str | os.PathLike[str] | None, fingerprint: str | None, task: str = "single") -> dict[str, str | None]:
    """Return a list as `data.seen` keeps it; None: the path, or FileList.fingerprint, is not known."""
    return {"path": None if path is None else os.path.abspath(path), "fingerprint": fingerprint, "task": task}


def joined(*parts: Iterable[Mapping[str, str | None]]) -> Seen:
    """Return the lists of all parts, each once, in their order."""
    found: Seen = []
    for one in (dict(one) for part in parts for one in part):
        if one not in found:
            found.append(one)
    return found


def seen_lists(content: Mapping[str, Any]) -> Seen:
    """Return the lists whose images the network of a checkpoint has learned from.

    Earlier versions recorded the list of the last run alone. If the network had another start, the result also has an
    entry without path and fingerprint, which stands for the lists that nobody knows.
    """
    data, opt = content.get("data") or {}, content.get("opt") or {}
    if "seen" in data:
        return joined(data["seen"])
    path = (data.get("lists") or {}).get("train")
    if path is None and "train_list" not in data:  # the earliest versions recorded options alone
        root = opt.get("data_root")
        path = opt.get("train_list") or (os.path.join(root, "train.txt") if root else None)
    task = data.get("task", "single")
    others = any(opt.get(name) for name in STARTS) or any(content.get(name) for name in OTHERS)
    return joined([entry(path, data.get("train_list"), task)], [entry(None, None, task)] if others else [])
