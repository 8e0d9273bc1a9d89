"""State dicts of other programs: where a file holds them, and how it names their tensors."""

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

import torch

from utils.errors import UserError
from utils.logger import log

WRAPPERS = ("state_dict", "model", "model_state", "state_dict_ema")  # keys of the weights; the first one there is taken
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")  # keys of their moving average
PARALLEL = "module."  # the prefix that DataParallel adds


def plain_weights(content: object, path: Path) -> dict[str, torch.Tensor]:
    """Return the {name: tensor} of a foreign file, without DataParallel's prefix; warn of an average beside it.

    Raises:
        UserError: the file holds no state dict, or two tensors of one name.
    """
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            averages = [name for name in AVERAGES if name != key and isinstance(content.get(name), dict)]
            if averages:
                log.warning(
                    f"{path}: loading its weights {key!r}, not the averaged weights {averages[0]!r} beside them."
                )
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
    weights = {name.removeprefix(PARALLEL): value for name, value in content.items()}
    if len(weights) < len(content):
        raise UserError(
            f"{path} holds two tensors of one name, with and without {PARALLEL!r}. Save the state dict of one network."
        )
    return weights


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
