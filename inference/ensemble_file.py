"""ensemble.yaml as --ensemble reads it: members, weights, views, and the thresholds of labels."""

import argparse
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference import blend
from inference.tta import TTA
from options import changed, rules
from options.choices import FITS
from options.parser import expanded
from options.plain_yaml import YamlError, read_yaml
from utils import weight_sources
from utils.errors import UserError, path_hint
from utils.logger import log

FIT_COMMAND = "python eval.py --load A B --blend greedy"
REQUIRED = {"load": list, "hashes": list, "weights": list, "blend": str, "tta": str}


@dataclass(frozen=True)
class EnsembleFile:
    """What an ensemble.yaml holds that no flag does; load_predictor uses it.

    path: as --ensemble names it. identities: those of the members that the weights were fitted to, by their names in
    --load. thresholds: of labels, for temperature 1, with how they were fitted; None: there are none.
    """

    path: str
    identities: dict[str, str]
    thresholds: dict[str, Any] | None


def apply_ensemble_file(opt: argparse.Namespace) -> tuple[argparse.Namespace, EnsembleFile | None]:
    """Return `opt` and None; with --ensemble a changed copy, and what else its file holds.

    The copy's load, weights, blend, tta, scale and fit come from the file. Flags on the command line override the file.
    A member of weight 0 is left out: it would only cost time.

    Raises:
        UserError: the file is missing or of another kind, or a member is missing. A changed member is refused later,
            by load_predictor.
    """
    if not opt.ensemble:
        return opt, None
    path = Path(opt.ensemble)
    try:
        content = read_yaml(path)
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path} for --ensemble.{path_hint(path)}\nTry: {FIT_COMMAND}") from error
    except (OSError, YamlError) as error:
        raise UserError(f"--ensemble {path} cannot be read: {error}.\nTry: {FIT_COMMAND}") from error
    wrong = [
        key for key, kind in REQUIRED.items() if not isinstance(content, dict) or not isinstance(content.get(key), kind)
    ]
    if wrong or len({len(content[key]) for key in ("load", "hashes", "weights")}) != 1:
        raise UserError(
            f"--ensemble {path} is no file of `eval.py --blend`: {', '.join(wrong) or 'load, hashes, weights'} "
            "missing or not valid."
        )
    content = _typed(content, path)
    used = [k for k, weight in enumerate(content["weights"]) if weight > 0]
    load = [_source_of(content["load"][k], path.parent) for k in used]
    for name in load:
        if not name.startswith(weight_sources.HUB) and not weight_sources.locate(name)[0].is_file():
            raise UserError(
                f"--ensemble {path}: there is no {name}. Put it back, or fit the ensemble again with eval.py --blend."
            )
    settings = {name: content.get(name) for name in ("tta", "blend", "scale", "fit") if name not in opt.given}
    identities = {name: content["hashes"][k] for name, k in zip(load, used, strict=True)}
    found = EnsembleFile(opt.ensemble, identities, content.get("thresholds"))
    if found.thresholds and not vars(opt).get("threshold") and not vars(opt).get("fit_thresholds"):
        for name in ("tta", "blend", "scale", "fit"):
            if name not in settings and getattr(opt, name) != content.get(name):
                log.warning(
                    f"The thresholds of {path} were fitted with --{name} {content.get(name)}; now it is "
                    f"{getattr(opt, name)}."
                )
    applied = changed(opt, load=load, weights=[content["weights"][k] for k in used], **settings)
    needing = rules.without_probabilities(applied)
    if needing:
        raise UserError(
            f"--ensemble {path} blends by rank, and {needing[0]} needs probabilities. Try: --blend mean beside it."
        )
    return applied, found


def _source_of(name: str, folder: Path) -> str:
    """Return the value of --load that `name` of an ensemble.yaml in `folder` stands for; it undoes `_relative`."""
    if name.startswith(weight_sources.HUB):
        return name
    return os.path.normpath(folder / expanded(name.removeprefix(weight_sources.LOCAL)))


def _typed(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the content of an ensemble.yaml with its weights and its scale as numbers.

    Raises:
        UserError: a value is not valid; the message lists all of them.
    """
    wrong = [
        f"{key} holds a value that is no text"
        for key in ("load", "hashes")
        if not all(isinstance(one, str) for one in content[key])
    ]
    weights = [_number(one) for one in content["weights"]]
    if not all(0 <= one < math.inf for one in weights) or not any(weights):
        wrong.append(f"weights are {content['weights']}; allowed: numbers from 0 on, not all 0")
    for key, allowed in (("blend", blend.BLENDERS), ("tta", TTA), ("fit", (*FITS, None))):
        if not isinstance(content.get(key), str | None) or content.get(key) not in allowed:
            wrong.append(f"{key} is {content.get(key)!r}; allowed: {', '.join(str(one) for one in allowed if one)}")
    thresholds = content.get("thresholds")
    if thresholds is not None:
        edges = thresholds.get("values") if isinstance(thresholds, dict) else None
        numbers = [_number(one) for one in edges] if isinstance(edges, list) else []
        if not numbers or not all(0 <= one <= 1 for one in numbers):
            wrong.append(f"thresholds.values is {str(edges)[:100]}; allowed: numbers from 0 to 1, one or one per label")
        else:
            thresholds = {**thresholds, "values": numbers}
    scale = None if content.get("scale") is None else _number(content["scale"])
    if scale is not None and scale not in range(8, 4097):
        wrong.append(f"scale is {content['scale']!r}; allowed: 8 to 4096")
    if wrong:
        raise UserError(
            f"--ensemble {path}:\n  " + "\n  ".join(wrong) + f"\nCorrect the file, or fit it again: {FIT_COMMAND}"
        )
    return {**content, "weights": weights, "scale": None if scale is None else int(scale), "thresholds": thresholds}


def _number(text: object) -> float:
    """Return the number that `text` is, or NaN, which is in no range."""
    try:
        return float(text)  # type: ignore[arg-type]  # TypeError is expected
    except (TypeError, ValueError):
        return math.nan
