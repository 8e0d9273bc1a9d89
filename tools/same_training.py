"""Whether two calls of a tool train alike: the options of train.py that decide a run's bits, and its networks."""

import argparse
import json
from collections.abc import Iterable, Mapping
from typing import Any

from utils import checkpoint
from utils.errors import MachineFault, UserError
from utils.seen_lists import STARTS

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


def network_identities(train: argparse.Namespace, space: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return {path: utils.checkpoint.identity} of the networks that trainings start from or learn from.

    A network that cannot be read is left out: train.py names the reason.

    Args:
        train: the options of train.py.
        space: the options that vary, each with its "choices" or a range.
    """
    choices = [path for name in STARTS for path in (space or {}).get(name, {}).get("choices", [])]
    paths = {str(path) for path in [*choices, *(vars(train)[name] for name in STARTS)] if path}
    found = {}
    for path in sorted(paths):
        try:
            found[path] = checkpoint.identity(checkpoint.load(path))
        except MachineFault:
            raise
        except UserError:
            continue
    return found


def replaced_networks(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the paths under which another network is found `now`; both are of `network_identities`."""
    return [path for path, identity in now.items() if before.get(path, identity) != identity]


def shown(differing: list[str]) -> str:
    """Return the first SHOWN of the differences for a message, one per line, and how many more there are."""
    more = [f"… and {len(differing) - SHOWN} more"] if len(differing) > SHOWN else []
    return "".join(f"\n  {line}" for line in [*differing[:SHOWN], *more])
