"""Where weights are: a file, a folder of timm or transformers, or a repository of the Hugging Face hub.

resnet50.pth                        a file
hub/  or  local-dir:hub             a folder with config.json and model.safetensors (or pytorch_model.bin)
hf-hub:timm/resnet50.a1_in1k        a repository: from the hub's cache, or downloaded into it; @REVISION may follow
"""

import json
from pathlib import Path
from typing import Any

from utils.errors import UserError

LOCAL, HUB = "local-dir:", "hf-hub:"
FILES = ("model.safetensors", "pytorch_model.bin")
CONFIG = "config.json"
MAX_CONFIG_BYTES = 1 << 20
HUB_TIMEOUT_SECONDS = 10


def locate(source: str) -> tuple[Path, dict[str, Any]]:
    """Return the file of weights that `source` stands for, and what the folder says of its network.

    The file need not exist. What is said is {"architecture": timm's name, "config": the content of config.json}, or {}.

    Raises:
        UserError: the hub does not have it, or cannot be asked; or config.json is damaged.
    """
    if source.startswith(HUB):
        return _from_hub(source)
    path = Path(source.removeprefix(LOCAL))
    if path.is_dir():
        path = next((path / name for name in FILES if (path / name).is_file()), path)
    config = path.parent / CONFIG
    return path, _read_config(config) if path.name in FILES and config.is_file() else {}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"larger than {MAX_CONFIG_BYTES} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"a {type(config).__name__}, not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}, which says what the weights beside it are, cannot be read: {error}.") from error
    architecture = config.get("architecture")
    return {"architecture": architecture if isinstance(architecture, str) else "", "config": config}


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
    return weights, _read_config(paths[CONFIG])
