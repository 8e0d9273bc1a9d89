"""ensemble.yaml: members, weights, views, and the thresholds of labels. --ensemble reads it; eval.py writes it."""

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.calibration import labels_at_temperature
from evaluation.multilabel import describe_thresholds
from evaluation.thresholds import ONE, FittedThresholds
from inference import blend
from inference.tta import TTA
from options import NO_TEST_LIST, after_evaluation, changed, choices, predict_rules
from options.parser import expanded
from options.plain_yaml import YamlError, read_yaml
from utils import weight_sources
from utils.errors import UserError, path_hint
from utils.files import write_yaml
from utils.logger import log

if TYPE_CHECKING:
    from inference.session import Inference

FIT_COMMAND = "python eval.py --load A B --blend greedy"
REQUIRED = {"load": list, "hashes": list, "weights": list, "blend": str, "tta": str}


@dataclass(frozen=True)
class EnsembleFile:
    """What an ensemble.yaml holds that no flag does; load_predictor uses it.

    Attributes:
        path: as --ensemble names it.
        identities: {a member, as --load names it: its identity when the weights were fitted}.
        thresholds: of labels, for temperature 1, with how they were fitted; None: there are none.
    """

    path: str
    identities: dict[str, str]
    thresholds: dict[str, Any] | None

    def check_members(self, paths: tuple[str, ...], identities: tuple[str, ...]) -> None:
        """Raise UserError where a member is not the one that the weights were fitted to."""
        for path, identity in zip(paths, identities, strict=True):
            if self.identities[path] != identity:
                raise UserError(
                    f"--ensemble {self.path}: {path} has changed since the weights were fitted (another network, "
                    "or other weights, names or options). Put it back, or fit them again with eval.py --blend."
                )

    def thresholds_at(self, temperature: float, count: int) -> list[float]:
        """Return the thresholds of `count` labels, moved from temperature 1 to `temperature`, and log them.

        Raises:
            UserError: the file has neither one threshold nor `count` of them.
        """
        assert self.thresholds is not None
        values = self.thresholds["values"]
        if len(values) not in (1, count):
            raise UserError(
                f"--ensemble {self.path}: thresholds.values has {len(values)} numbers; allowed: one, or one for each "
                f"of the {count} labels."
            )
        moved: list[float] = labels_at_temperature(np.array(values), temperature).tolist()
        moved = moved * (count if len(moved) == 1 else 1)
        images = str(self.thresholds.get("images"))
        about = f" (fitted to {images} images)" if images.isdigit() else ""
        log.info(f"Labels count as predicted {describe_thresholds(moved)}, as {self.path} says{about}")
        return moved


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
    ensemble = EnsembleFile(opt.ensemble, identities, content.get("thresholds"))
    if ensemble.thresholds and not vars(opt).get("threshold") and not vars(opt).get("fit_thresholds"):
        for name in ("tta", "blend", "scale", "fit"):
            if name not in settings and getattr(opt, name) != content.get(name):
                log.warning(
                    f"The thresholds of {path} were fitted with --{name} {content.get(name)}; now it is "
                    f"{getattr(opt, name)}."
                )
    applied = changed(opt, load=load, weights=[content["weights"][k] for k in used], **settings)
    needing = predict_rules.without_probabilities(applied)
    if needing:
        raise UserError(
            f"--ensemble {path} blends by rank, and {needing[0]} needs probabilities. Try: --blend mean beside it."
        )
    return applied, ensemble


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
    for key, allowed in (("blend", blend.BLENDERS), ("tta", TTA), ("fit", (*choices.FITS, None))):
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


# ------------------------------------------------------------------------------------------------ writing


@dataclass(frozen=True)
class EnsembleMember:
    """A member of an ensemble.yaml: its file, utils.checkpoint.identity of it, and its weight."""

    path: str
    identity: str
    weight: float


def ensemble_content(
    folder: Path,
    members: Sequence[EnsembleMember],
    tta: str,
    *,
    blend: str = "mean",
    scale: int | None = None,
    fit: str | None = None,
) -> dict[str, object]:
    """Return what every ensemble.yaml in `folder` holds: members by paths relative to it, their weights, and the views.

    A repository of the hub keeps its name.
    """
    folder = folder.resolve()
    return {
        "load": [_relative(member.path, folder) for member in members],
        "hashes": [member.identity for member in members],
        "weights": [round(member.weight, 6) for member in members],
        "blend": blend,
        "tta": tta,
        "scale": scale,
        "fit": fit,
    }


def _relative(source: str, folder: Path) -> str:
    """Return a value of --load as ensemble.yaml in the absolute `folder` names it: a hub's name stays as it is."""
    if source.startswith(weight_sources.HUB):
        return source
    return os.path.relpath(Path(source.removeprefix(weight_sources.LOCAL)).resolve(), folder)


def expand_folds(
    members: Sequence[EnsembleMember], hashes: Mapping[str, str]
) -> tuple[list[EnsembleMember], str] | None:
    """Return the networks behind members that are all oof.npz of tools.folds, and their views; None for other members.

    An oof.npz says how well the networks of its folds predict images that they have not seen. To predict others, each
    of its K networks takes the weight of the file, divided by K.

    Args:
        members: with their fitted weights.
        hashes: the sha256 of each member's file.
    """
    networks, views = [], set[str]()
    for member in members:
        beside = _folds_of(member.path, hashes[member.path])
        if beside is None:
            return None
        views.add(beside["tta"])
        folder = Path(member.path).parent
        shares = zip(beside["load"], beside["hashes"], strict=True)
        networks += [
            EnsembleMember(str(folder / path), identity, member.weight / len(beside["load"]))
            for path, identity in shares
        ]
    if len(views) > 1:
        log.warning(
            f"The folds were predicted with --tta {' and '.join(sorted(views))}, and an ensemble has one --tta. "
            "So its members are the files, which submit.py cannot predict with. Try: the same --tta for all folds"
        )
        return None
    return networks, views.pop()


def _folds_of(path: str, sha256: str) -> dict[str, Any] | None:
    """Return the content of the ensemble.yaml beside `path` if it belongs to exactly this file of `sha256`."""
    if not path.endswith(".npz"):
        return None
    try:
        content = read_yaml(Path(path).with_name("ensemble.yaml"))
    except (OSError, YamlError):
        return None
    oof = content.get("oof") if isinstance(content, dict) else None
    if not isinstance(oof, dict) or oof.get("sha256") != sha256:
        return None
    return content if all(isinstance(content.get(key), kind) for key, kind in REQUIRED.items()) else None


def thresholds_content(fitted: FittedThresholds, temperature: float) -> dict[str, object]:
    """Return what ensemble.yaml holds of thresholds: for temperature 1, while `fitted` are for `temperature`.

    One value is that of all labels. They have nine digits, which tell any two float32 probabilities apart.
    """
    values = fitted.values[:1] if fitted.rule == ONE else fitted.values
    plain = labels_at_temperature(np.array(values), 1 / temperature)
    return {"rule": fitted.rule, "images": fitted.images, "values": [float(f"{value:.9g}") for value in plain]}


def write_ensemble(
    staging: Path,
    folder: Path,
    run: "Inference",
    scores: blend.BlendScores | None = None,
    thresholds: FittedThresholds | None = None,
) -> None:
    """Write ensemble.yaml into the folder `staging`, which will replace `folder`.

    It holds the members (paths relative to its folder), their identities, weights and views, the list, the `scores` of
    fitted weights, and the fitted `thresholds` of labels, if any.
    """
    opt, loaded, files = run.opt, run.loaded, run.files
    path = folder / "ensemble.yaml"
    if opt.debug:
        log.warning(f"--debug: the weights were fitted to a few batches, so {path} is not written.")
        return
    members = [
        EnsembleMember(str(name), identity, weight)
        for name, identity, weight in zip(loaded.paths, loaded.identities, loaded.predictor.weights, strict=True)
    ]
    blended = "mean" if opt.blend in choices.FITTED_BLENDS else opt.blend
    about: dict[str, object] = {"fitted_by": opt.blend, "list": str(files.source), "list_hash": files.content_hash()}
    if scores is not None:
        about["scores"] = scores
    if thresholds is not None:
        about["thresholds"] = thresholds_content(thresholds, loaded.predictor.temperature)
    expanded_folds = expand_folds(members, dict(zip(loaded.paths, loaded.hashes, strict=True)))
    if expanded_folds is not None:
        members, tta = expanded_folds
        content = ensemble_content(folder, members, tta, blend=blended)
    else:
        content = ensemble_content(folder, members, opt.tta, blend=blended, scale=opt.scale, fit=opt.fit)
    write_yaml(staging / path.name, content | about)
    if any(member.path.endswith(".npz") for member in members):
        use = "submit.py --load the same members, with their .npz of the test list, and --weights as above"
    else:
        # an oof.npz does not say where the test list of its networks is
        known = expanded_folds is not None or run.has_test_list()
        use = after_evaluation(opt if known else changed(opt, test_list=NO_TEST_LIST), path)
    log.info(f"Written: {path}; use it with {use}")
