"""Whether two calls of a tool train alike: the options of train.py that decide a run's bits, and how they differ."""

import argparse
import json
from collections.abc import Iterable, Mapping
from typing import Any

# Options of train.py that change no bit of a run, or only its name.
FREE = {"tag", "gpu", "workers", "loader", "worker_timeout", "config", "given", "check_files", "histograms", "keep"}
FREE |= {"save_freq", "save_minutes", "resume", "overwrite", "checkpoint_dir", "log_dir"}
SHOWN = 6  # differences in a message


def deciding_options(train: argparse.Namespace, left_out: Iterable[str] = ()) -> dict[str, Any]:
    """Return the options of train.py without FREE and `left_out`, as JSON gives them back."""
    names = FREE.union(left_out)
    found: dict[str, Any] = json.loads(json.dumps({k: value for k, value in vars(train).items() if k not in names}))
    return found


def differing_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in words how options differ; one that only `now` has is of a later version, and is passed over."""
    return [
        f"--{name} {before[name]} -> {value}" for name, value in now.items() if name in before and before[name] != value
    ]


def shown(differing: list[str]) -> str:
    """Return the first SHOWN of the differences for a message, one per line, and how many more there are."""
    more = [f"… and {len(differing) - SHOWN} more"] if len(differing) > SHOWN else []
    return "".join(f"\n  {line}" for line in [*differing[:SHOWN], *more])
