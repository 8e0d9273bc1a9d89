"""Check the options in a checkpoint against the flags of train.py: no parser has seen the values of a file."""

import argparse
import functools
import math
from collections.abc import Mapping

from options import rules
from options.options import build_parser
from options.parser import Parser, beyond

PRECISIONS = ("fp32", "bf16", "fp16")  # results of --precision auto


@functools.cache
def _parser() -> Parser:
    return build_parser("train")


def problems_of_saved(values: Mapping[str, object]) -> list[str]:
    """Return a line for each value that its flag does not allow. Names that are no flags are ignored."""
    parser, problems = _parser(), []
    for name, action in parser.flags().items():
        if name in values:
            allowed = _allowed(action, parser.bounds.get(name, (None, None)), values[name])
            problems += [f"{name} is {str(values[name])[:60]!r}; allowed: {allowed}"] if allowed else []
    if "tag" in values and not problems:
        problems += rules.tag(
            argparse.Namespace(tag=values["tag"]), max_bytes=255
        )  # earlier versions allowed the limit of file systems
    if values.get("precision_used", "fp32") not in PRECISIONS:
        problems.append(f"precision_used is {values['precision_used']!r}; allowed: {', '.join(PRECISIONS)}")
    if not isinstance(values.get("precision_why", ""), str):
        problems.append("precision_why is not text")
    return problems


def _allowed(action: argparse.Action, bounds: tuple[float | None, float | None], value: object) -> str:
    """Return what the flag allows if it does not allow `value`; else ""."""
    if value is None:
        return "" if action.default is None else "a value"
    if action.nargs == 0:
        return "" if isinstance(value, bool) else "true or false"
    if action.choices is not None:
        return "" if isinstance(value, str) and value in action.choices else ", ".join(map(str, action.choices))
    if action.type not in (int, float):
        return "" if isinstance(value, str) and "\0" not in value else "text"
    kinds, name = ((int,), "a whole number") if action.type is int else ((int, float), "a number")
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
        return name
    return beyond(value, bounds)
