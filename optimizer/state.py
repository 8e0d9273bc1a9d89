"""Check an optimizer's saved state against the parameters that it is for: torch's kernels read it unchecked."""

import math
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from utils.errors import UserError

if TYPE_CHECKING:
    from optimizer import OptimizerSettings

LOOKAHEAD = ("lookahead_state", "base_optimizer")  # pytorch_optimizer's wrapper
State = dict[str, Any]  # of a checkpoint
Build = Callable[[nn.Module, "OptimizerSettings", None, Collection[str]], torch.optim.Optimizer]  # get_optimizer


class Unfit(UserError):  # noqa: N818  # a name as in utils.errors
    """Raised for a saved state that is not that of this optimizer and these parameters."""


def check_state(optimizer: Any, state: object, build: Build, settings: "OptimizerSettings") -> State:
    """Return a copy of `state` that `optimizer.load_state_dict` can take.

    Each tensor has the shape, dtype and strides of its parameter. Settings of a group that an older version did not
    save are taken from this optimizer.

    Args:
        build: optimizer.get_optimizer; a tiny network shows what a parameter's state consists of.

    Raises:
        UserError: the state is of another optimizer, or of other parameters.
    """
    names = state_names(build, settings)
    if not hasattr(optimizer, "load_optimizer"):  # no Lookahead
        return _checked(optimizer, state, names)
    if not isinstance(state, dict) or set(state) != set(LOOKAHEAD) or not isinstance(state[LOOKAHEAD[0]], dict):
        raise _unfit(f"it has the parts {_keys(state)}, not {', '.join(LOOKAHEAD)}")
    slow = state[LOOKAHEAD[0]]
    places = [(g, k) for g, group in enumerate(optimizer.param_groups) for k in range(len(group["params"]))]
    if set(slow) != set(places):
        raise _unfit(f"it has slow weights of {len(slow)} parameters; there are {len(places)}")
    return {
        LOOKAHEAD[0]: {
            place: _like(slow[place], optimizer.param_groups[place[0]]["params"][place[1]], {"slow_params": True})
            for place in places
        },
        LOOKAHEAD[1]: _checked(optimizer.optimizer, state[LOOKAHEAD[1]], names),
    }


def state_names(build: Build, settings: "OptimizerSettings") -> dict[bool, dict[str, bool]]:
    """Return what the state of a parameter consists of, from one step of a tiny network.

    Returns:
        {use_muon: {name: whether it has the parameter's shape}}, for groups with a true `use_muon` and for the others.
    """
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 5))
    optimizer: Any = build(net, settings, None, {"2.weight", "2.bias"})
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    inner = optimizer.optimizer if hasattr(optimizer, "load_optimizer") else optimizer
    found: dict[bool, dict[str, bool]] = {True: {}, False: {}}
    for group in inner.param_groups:
        for parameter in group["params"]:
            kind = {
                name: isinstance(value, torch.Tensor) and value.shape == parameter.shape
                for name, value in inner.state[parameter].items()
            }
            found[bool(group.get("use_muon"))] |= kind
    return found


def _checked(optimizer: torch.optim.Optimizer, state: object, names: dict[bool, dict[str, bool]]) -> State:
    """Return a checked copy of the state dict of a torch optimizer."""
    if (
        not isinstance(state, dict)
        or not isinstance(state.get("state"), dict)
        or not isinstance(state.get("param_groups"), list)
    ):
        raise _unfit(f"it has the parts {_keys(state)}, not state, param_groups")
    groups, saved = optimizer.param_groups, state["param_groups"]
    sizes = [len(group["params"]) for group in groups]
    held = [
        len(group["params"]) if isinstance(group, dict) and isinstance(group.get("params"), list) else -1
        for group in saved
    ]
    if sizes != held:
        raise _unfit(f"its groups have {held} parameters; here they have {sizes}")
    places = [place for group in saved for place in group["params"]]
    if (
        not all(isinstance(place, int) for place in places)
        or len(set(places)) < len(places)
        or not set(state["state"]) <= set(places)
    ):
        raise _unfit("its parameters are not numbered one by one")
    states = {}
    for group, old in zip(groups, saved, strict=True):
        for parameter, place in zip(group["params"], old["params"], strict=True):
            if place in state["state"]:
                states[place] = _like(state["state"][place], parameter, names[bool(group.get("use_muon"))])
    return {"state": states, "param_groups": [_settings(old, group) for old, group in zip(saved, groups, strict=True)]}


def _settings(saved: State, group: State) -> State:
    """Return the saved settings of a group, completed by this optimizer's. Raises Unfit for one of another type."""
    for name, value in group.items():
        if name != "params" and name in saved and not _alike(saved[name], value):
            raise _unfit(f"its {name} is {str(saved[name])[:60]!r}, here it is {value!r}")
    return {**{name: value for name, value in group.items() if name != "params"}, **saved}


def _alike(saved: object, own: object) -> bool:
    """Return whether two settings are of one type."""
    if isinstance(own, list | tuple):
        return isinstance(saved, list | tuple) and len(saved) == len(own) and all(map(_alike, saved, own))
    if isinstance(own, bool) or isinstance(saved, bool):
        return isinstance(saved, bool | None.__class__) and isinstance(own, bool | None.__class__)
    if isinstance(own, int | float):
        return isinstance(saved, int | float) and math.isfinite(saved)
    return saved is None or own is None or type(saved) is type(own)


def _like(state: object, parameter: torch.Tensor, names: dict[str, bool]) -> State:
    """Return the checked state of one parameter, its tensors with the parameter's strides."""
    if not isinstance(state, dict) or (state and not names.keys() <= state.keys()):
        raise _unfit(f"of a parameter it holds {_keys(state)}, not {', '.join(names)}")
    found = {}
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and value.numel() == 1 and not names.get(name):
            fits = bool(value.isfinite().all()) and bool((value >= 0).all())
        elif isinstance(value, torch.Tensor):
            fits = value.shape == parameter.shape and value.dtype in (parameter.dtype, torch.float32)
        else:
            fits = value is None or (isinstance(value, int | float) and not names.get(name) and math.isfinite(value))
        if not fits:
            shape = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, torch.Tensor) else repr(value)[:60]
            raise _unfit(f"its {name} is {shape} for a parameter of {tuple(parameter.shape)} {parameter.dtype}")
        if isinstance(value, torch.Tensor) and value.ndim and value.stride() != parameter.stride():
            value = torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
        found[name] = value
    return found


def _keys(state: object) -> str:
    return ", ".join(map(str, list(state)[:6])) or "nothing" if isinstance(state, dict) else f"a {type(state).__name__}"


def _unfit(what: str) -> Unfit:
    return Unfit(f"The optimizer's state in the checkpoint does not fit this network: {what}.")
