"""Read the search space of tools.sweep: which flags of train.py vary, and in which range."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from options.parser import Parser
from options.plain_yaml import YamlError, read_yaml
from utils.errors import UserError, path_hint, unknown_name

if TYPE_CHECKING:
    from optuna import Trial

GRID_POINTS = 5  # of a range without a step
KEYS = {"low", "high", "log", "step"}
Dimension = dict[str, Any]  # {"choices": […]}, or {"low", "high", "log", "step" (or None), "whole"}
Space = dict[str, Dimension]  # by flag


def read_space(path: Path, parser: Parser, fixed: Sequence[str] = ()) -> Space:
    """Return the search space of a YAML file.

    Args:
        parser: train.py's, which reads each choice as on the command line. fixed: its flags that no space may vary.

    Raises:
        UserError: the file cannot be read, there is no such flag, or a value, range or list is not allowed.
    """
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"There is no file {path} for --space.{path_hint(path)}") from None
    except (OSError, YamlError) as error:
        raise UserError(f"The space {path} cannot be read: {error}.") from None
    if not isinstance(content, dict) or not content:
        raise UserError(
            f"{path} must hold lines like `lr: {{low: 1e-5, high: 1e-2, log: true}}` or `optimizer: [sgd, adamw]`."
        )
    space, known = {}, {name: dest for name, dest in parser.names().items() if dest not in fixed}
    for given, rule in content.items():
        if given not in known:
            raise unknown_name("option of train.py", str(given), known)
        name = known[given]
        if name in space:
            raise UserError(f"{path}: {given} is an option that the file names already; name it once.")
        try:
            choices = [parser.value(name, value) for value in rule] if isinstance(rule, list) else []
        except ValueError as error:
            raise UserError(f"{path}: {error}.") from None
        whole = parser.flags()[name].type is int
        space[name] = {"choices": choices} if choices else _rule(f"{name} in {path}", rule, whole)
        wrong = parser.out_of_bounds(name, choices or [space[name]["low"], space[name]["high"]])
        if wrong:
            raise UserError(f"{path}: {'; '.join(wrong)}.")
    return space


def _rule(where: str, rule: object, whole: bool) -> Dimension:
    """Return the rule of a range; `whole`: its flag takes whole numbers. Raises UserError where it is not allowed."""
    if (
        not isinstance(rule, dict)
        or not {"low", "high"} <= {key for key in rule if rule[key] is not None} <= set(rule) <= KEYS
    ):
        raise UserError(
            f"{where} is {rule!r}; allowed: a list of values, or {{low: A, high: B}} with log: true or step: C."
        )
    low, high, step = (
        _number(where, rule[key]) if rule.get(key) is not None else None for key in ("low", "high", "step")
    )
    text = rule.get("log") or "false"
    log = text == "true"
    assert low is not None and high is not None
    if (
        not low < high
        or (log and low <= 0)
        or text not in ("true", "false")
        or (step is not None and (step <= 0 or log))
    ):
        raise UserError(
            f"{where} is {rule!r}; allowed: low below high, above 0 where log is true, and step above 0, without log."
        )
    if whole and not all(isinstance(value, int) for value in (low, high, *([] if step is None else [step]))):
        raise UserError(f"{where} is {rule!r}; allowed: whole numbers, as its flag takes.")
    return {"low": low, "high": high, "log": log, "step": step, "whole": whole}


def _number(where: str, value: object) -> int | float:
    try:
        number = int(str(value)) if re.fullmatch(r"[+-]?\d+", str(value)) else float(str(value))
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where} holds {value!r}, which is not a number.")
    return number


def suggest(trial: "Trial", space: Space) -> dict[str, Any]:
    """Return the values that an Optuna trial suggests: {flag: value}."""
    chosen: dict[str, Any] = {}
    for name, rule in space.items():
        if "choices" in rule:
            chosen[name] = trial.suggest_categorical(name, rule["choices"])
        elif rule["whole"]:
            chosen[name] = trial.suggest_int(name, rule["low"], rule["high"], step=rule["step"] or 1, log=rule["log"])
        else:
            chosen[name] = trial.suggest_float(name, rule["low"], rule["high"], step=rule["step"], log=rule["log"])
    return chosen


def grid(space: Space) -> dict[str, list[Any]]:
    """Return {flag: values} of a grid: the list, each step of a range, or five evenly (or log-evenly) spaced points."""
    return {name: rule["choices"] if "choices" in rule else _points(rule) for name, rule in space.items()}


def _points(rule: Dimension) -> list[Any]:
    low, high = rule["low"], rule["high"]
    if rule["step"] is not None:
        return [low + k * rule["step"] for k in range(int((high - low) / rule["step"] + 1e-9) + 1)]
    shares = [k / (GRID_POINTS - 1) for k in range(GRID_POINTS)]
    points = [low * (high / low) ** share if rule["log"] else low + (high - low) * share for share in shares]
    points = [low, *points[1:-1], high]
    return list(dict.fromkeys(round(point) for point in points)) if rule["whole"] else points


def words_of(chosen: Mapping[str, object]) -> list[str]:
    """Return the values as words of a command line; a switch becomes --name or --no-name."""
    words = []
    for name, value in chosen.items():
        value = float(f"{value:.5g}") if isinstance(value, float) else value
        words += [f"--{name}" if value else f"--no-{name}"] if isinstance(value, bool) else [f"--{name}={value}"]
    return words


def in_words(chosen: Mapping[str, object]) -> list[str]:
    """Return the values as text, such as ["lr 0.00443", "optimizer sgd"]."""
    return [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in chosen.items()]
