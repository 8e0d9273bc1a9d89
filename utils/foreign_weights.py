"""State dicts of other programs: where a file holds them, and what it says of their network."""

import re
import shlex
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError
from utils.logger import log
from utils.tensors import check_dense

# keys of the weights, up to MAX_WRAPPERS deep; the first one there is taken
WRAPPERS = (
    "state_dict",
    "model",
    "model_state",
    "network",
    "net",
    "classifier",
    "module",
    "state_dict_ema",
    "model_ema",
)
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")  # keys of their moving average
PARALLEL = "module."  # the prefix that DataParallel adds
MAX_WRAPPERS = 4  # around each other
MAX_TENSORS = 100_000


def plain_weights(content: object, path: Path) -> dict[str, torch.Tensor]:
    """Return the {name: tensor} of a foreign file, without DataParallel's prefix; warn of an average beside it.

    Raises:
        UserError: the file holds no state dict, a tensor that is not dense, or two tensors of one name.
    """
    for _ in range(MAX_WRAPPERS):
        key = next((one for one in WRAPPERS if isinstance(content, dict) and isinstance(content.get(one), dict)), None)
        if key is None or not isinstance(content, dict):
            break
        averages = [name for name in AVERAGES if name != key and isinstance(content.get(name), dict)]
        if averages:
            log.warning(f"{path}: loading its weights {key!r}, not the averaged weights {averages[0]!r} beside them.")
        content = content[key]
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(value, torch.Tensor) for value in content.values())
    ):
        kind = type(content).__name__
        raise UserError(f"{path} holds no checkpoint and no state dict (got a {kind}); allowed: {{name: tensor}}.")
    if not all(isinstance(name, str) for name in content):
        raise UserError(f"{path} holds tensors without names; allowed: {{name: tensor}}.")
    if len(content) > MAX_TENSORS:
        raise UserError(f"{path} holds {len(content)} tensors; allowed: up to {MAX_TENSORS}.")
    for name, value in content.items():
        _check(name, value, path)
    weights = {name.removeprefix(PARALLEL): value for name, value in content.items()}
    if len(weights) < len(content):
        raise UserError(
            f"{path} holds two tensors of one name, with and without {PARALLEL!r}. Save the state dict of one network."
        )
    return weights


def _check(name: str, value: torch.Tensor, path: Path) -> None:
    """Raise UserError where a tensor cannot be a network's: sparse, quantised, or larger than its data."""
    try:
        check_dense(value)
    except ValueError as error:
        raise UserError(f"{path} is damaged, or holds no state dict: {name[:100]} is {error}.") from error


def declared_architecture(content: object) -> str:
    """Return the name of the network that the programs of timm, torchvision and PyTorch write into a file, or ""."""
    if not isinstance(content, Mapping):
        return ""
    args: Any = content.get("args") or content.get("hyper_parameters")
    inside = vars(args) if isinstance(args, Namespace) else args if isinstance(args, dict) else {}
    found = content.get("arch") or inside.get("model") or inside.get("arch")
    return found if isinstance(found, str) else ""


def prefix_hint(given: Iterable[str], wanted: Iterable[str], path: str) -> str:
    """Return a hint at a common prefix of the names, with the command that removes it; "" without such a prefix.

    Args:
        given: names in the file.
        wanted: names in the network.
        path: the file.
    """
    given, wanted = set(given), set(wanted)
    ending = next((name for name in sorted(wanted, key=len, reverse=True) if name not in given), "")
    prefixes = [name.removesuffix(ending) for name in given if ending and name.endswith(f".{ending}")]
    prefix = next((one for one in prefixes if sum(one + name in given for name in wanted) > len(wanted) / 2), "")
    if not prefix or not re.fullmatch(r"[\w.]+", prefix):
        return ""
    out = str(Path(path).with_suffix("")) + ".plain.pt"
    code = (
        "import sys, torch; from utils import checkpoint; source, out, prefix = sys.argv[1:]; "
        "weights = checkpoint.load(source)['weights']; "
        "torch.save({n.removeprefix(prefix): w for n, w in weights.items()}, out)"
    )
    command = shlex.join(["python", "-c", code, path, out, prefix])
    return (
        f"\nIts tensors have the prefix {prefix!r} (such as {prefix}{ending}). Remove it, and load {out}:\n  {command}"
    )
