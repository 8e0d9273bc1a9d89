"""Where weights are: a file, a folder of timm or transformers, or a repository of the Hugging Face hub.

resnet50.pth                        a file
hub/  or  local-dir:hub             a folder with config.json and model.safetensors (or pytorch_model.bin)
hf-hub:timm/resnet50.a1_in1k        a repository: from the hub's cache, or downloaded into it; @REVISION may follow
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.logger import log

LOCAL, HUB = "local-dir:", "hf-hub:"
FILES = ("model.safetensors", "pytorch_model.bin")
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"  # the second one is of transformers
MAX_CONFIG_BYTES = 1 << 20
HUB_TIMEOUT_SECONDS = 10
CHANNELS = 3
MAX_PIXEL = 255
MAX_RESCALE_ERROR = 1e-6  # transformers writes 1 / 255 with all its digits


def locate(source: str) -> tuple[Path, dict[str, Any]]:
    """Return the file of weights that `source` stands for, and what the folder says of its network.

    The file need not exist. What is said is {"architecture": timm's name, "config": the content of config.json,
    "normalisation": {"mean", "std"}}, the last one only where a file has it, or {}.

    Raises:
        UserError: the hub does not have it, or cannot be asked; or config.json is damaged.
    """
    if source.startswith(HUB):
        return _from_hub(source)
    path = Path(source.removeprefix(LOCAL))
    if path.is_dir():
        path = next((path / name for name in FILES if (path / name).is_file()), path)
    config = path.parent / CONFIG
    return path, _read_about(config) if path.name in FILES and config.is_file() else {}


def _read_about(path: Path) -> dict[str, Any]:
    """Return what config.json and the preprocessor_config.json beside it say of the network; see `locate`."""
    config = _read_config(path)
    architecture = config.get("architecture")
    about = {"architecture": architecture if isinstance(architecture, str) else "", "config": config}
    preprocessor = path.with_name(PREPROCESSOR)
    source, found = preprocessor, None
    try:
        if preprocessor.is_file():
            found = _of_transformers(_read_config(preprocessor))
        else:
            source, found = path, _of_timm(config)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise UserError(
            f"{source} says how images are normalised, and cannot be understood: {error}. Allowed: {CHANNELS} finite "
            "numbers as the mean, and as many above 0 as the standard deviation."
        ) from error
    return about | ({} if found is None else {"normalisation": found})


def _of_transformers(config: Mapping[str, Any]) -> dict[str, list[float]] | None:
    """Return {"mean", "std"} of the RGB values in 0..1, as transformers' image processor has them, or None."""
    if config.get("do_normalize", True) is False:
        mean, std = [0.0] * CHANNELS, [1.0] * CHANNELS
    elif "image_mean" in config and "image_std" in config:
        mean, std = _numbers(config["image_mean"]), _numbers(config["image_std"])
    else:
        return None
    factor = config.get("rescale_factor", 1 / MAX_PIXEL) if config.get("do_rescale", True) is not False else 1.0
    largest = float(factor) * MAX_PIXEL  # the value of white before it is normalised
    if not math.isclose(largest, 1, abs_tol=MAX_RESCALE_ERROR):
        mean, std = [value / largest for value in mean], [value / largest for value in std]
    return _checked(mean, std)


def _of_timm(config: Mapping[str, Any]) -> dict[str, list[float]] | None:
    """Return {"mean", "std"} of timm's config.json, or None. Older files have them beside the architecture."""
    part = config.get("pretrained_cfg")
    shown = part if isinstance(part, dict) else config
    if shown.get("mean") is None or shown.get("std") is None:
        return None
    return _checked(_numbers(shown["mean"]), _numbers(shown["std"]))


def _numbers(values: Any) -> list[float]:
    found = [float(value) for value in values]
    return found * CHANNELS if len(found) == 1 else found


def _checked(mean: list[float], std: list[float]) -> dict[str, list[float]]:
    if {len(mean), len(std)} != {CHANNELS} or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ValueError(f"mean {mean}, standard deviation {std}")
    return {"mean": mean, "std": std}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"larger than {MAX_CONFIG_BYTES} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"a {type(config).__name__}, not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}, which says what the weights beside it are, cannot be read: {error}.") from error
    return config


def _from_hub(source: str) -> tuple[Path, dict[str, Any]]:
    import huggingface_hub
    from huggingface_hub import constants

    repository, _, revision = source.removeprefix(HUB).partition("@")
    words: dict[str, Any] = {"repo_id": repository, "revision": revision or None}
    paths: dict[str, Path] = {}
    reason = "the hub is switched off (HF_HUB_OFFLINE)"
    for name in (CONFIG, *FILES):
        if len(paths) == 2 or (name != CONFIG and CONFIG not in paths):
            break
        try:
            found = huggingface_hub.try_to_load_from_cache(filename=name, **words)
            if not isinstance(found, str) and not constants.HF_HUB_OFFLINE:
                found = huggingface_hub.hf_hub_download(filename=name, etag_timeout=HUB_TIMEOUT_SECONDS, **words)
            if isinstance(found, str):
                paths[name] = Path(found)
        except Exception as error:  # of the hub's library, of the connection, of the name
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    weights = next((paths[name] for name in FILES if name in paths), None)
    if weights is None:
        raise UserError(
            f"The weights {source} are not available: {reason}.\n"
            f"Allowed: {HUB}<owner>/<name>, with {CONFIG} and {FILES[0]}. Or fetch both into a folder, and give it."
        )
    if "architecture" not in _read_config(paths[CONFIG]):
        _fetch_preprocessor(source, words)
    return weights, _read_about(paths[CONFIG])


def _fetch_preprocessor(source: str, words: dict[str, Any]) -> None:
    """Put transformers' preprocessor_config.json beside the config.json in the hub's cache, if there is one."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    found = huggingface_hub.try_to_load_from_cache(filename=PREPROCESSOR, **words)
    if found is not None:  # a path, or the mark that the repository has none
        return
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("the hub is switched off (HF_HUB_OFFLINE)")
        huggingface_hub.hf_hub_download(filename=PREPROCESSOR, etag_timeout=HUB_TIMEOUT_SECONDS, **words)
    except errors.EntryNotFoundError:
        return
    except Exception as error:  # of the hub's library, of the connection
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        log.warning(
            f"{source}: its {PREPROCESSOR} is not available ({reason}), so it is unknown how its images are "
            "normalised. The network's own mean and standard deviation are used."
        )
