"""Argparse parsers that name the near flag for a mistyped one; the scripts' also checks ranges and reads a YAML file of defaults."""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from options.plain_yaml import YamlError, read_yaml

Rule = Callable[[argparse.Namespace], list[str]]
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")  # of a switch in a file


def expanded(text: str) -> str:
    """Return the path of an option, with `~` as the home folder: a shell expands it neither after = nor in a file."""
    return os.path.expanduser(text)  # noqa: PTH111  # Path would change what needs no change: "" and "./x"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean a or b?" for the names of `known` that are near `name`, or ""."""
    lowered = {other.lower(): other for other in known}
    close = [lowered[match] for match in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.6)]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def long_name(action: argparse.Action) -> str:
    """Return the flag's long name, without its --no- twin."""
    return max((flag for flag in action.option_strings if not flag.startswith("--no-")), key=len)


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Descriptions as they are written; a default after each flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


class ToolParser(argparse.ArgumentParser):
    """ArgumentParser of a tool: a mistake ends with exit code 2, a short message, and the near name for a mistyped one."""

    def __init__(self, prog: str, description: str | None = None, **settings: Any) -> None:
        super().__init__(
            prog=prog, description=description, **{"formatter_class": _Help, "allow_abbrev": False, **settings}
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\nAll options: python {self.prog} --help\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, with the near flag for one that there is not."""
        opt, unknown = self.parse_known_args(args, namespace)
        if unknown:
            kinds = (action for action in self._actions if isinstance(action, argparse._SubParsersAction))
            parser = next((action.choices[getattr(opt, action.dest)] for action in kinds), self)
            parser.error("; ".join(parser.unknown_words(unknown)))
        return opt

    def unknown_words(self, words: Sequence[str]) -> list[str]:
        """Return a line for each flag of `words`, or for the first word where there is no flag among them."""
        return [self._unknown(word) for word in words if word.startswith("-")] or [
            f"what is {words[0]!r}?" for _ in words[:1]
        ]

    def _unknown(self, word: str) -> str:
        flag = word.split("=")[0]
        return f"there is no option {flag}" + did_you_mean(flag, self._option_string_actions)

    def _get_value(self, action: argparse.Action, text: str) -> Any:
        """Return the value of a word. Raises ArgumentError for one that is no number, with what the flag is for: `--gpu cpu`."""
        try:
            return super()._get_value(action, text)
        except argparse.ArgumentError:
            kind = {int: "whole number", float: "number"}.get(action.type)  # type: ignore[call-overload]
            if kind is None:
                raise
            raise argparse.ArgumentError(
                action, f"{text!r} is no {kind}" + (f" ({action.help})" if action.help else "")
            ) from None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raise ArgumentError for a value that is no choice: the near one first."""
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action, f"invalid choice: {value!r}{did_you_mean(str(value), names)} (choose from {', '.join(names)})"
            )


class Parser(ToolParser):
    """The parser of a script, with three additions: `bounds` of numbers, `rules` across flags, `--config`.

    A mistake of the user ends with exit code 2 and one message that lists every problem found.
    """

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description)
        self.bounds: dict[str, tuple[float | None, float | None]] = {}
        self.rules: list[Rule] = []

    def group(self, title: str) -> Callable[..., None]:
        """A function that adds flags under `title`; it takes `low=` and `high=` (inclusive) besides argparse's own."""
        group = self.add_argument_group(title)

        def add(*flags: str, low: float | None = None, high: float | None = None, **settings: Any) -> None:
            action = group.add_argument(*flags, **settings)
            if low is not None or high is not None:
                self.bounds[action.dest] = (low, high)

        return add

    def flags(self) -> dict[str, argparse.Action]:
        """{dest: action} of every flag but --help, in the order of the help text."""
        return {action.dest: action for action in self._actions if action.dest != "help"}

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse `argv` (None: sys.argv); `opt.given` holds the names set on the command line or in --config.

        Raises:
            SystemExit: code 2, after printing what is wrong; 0 after --help.
        """
        words = list(sys.argv[1:] if argv is None else argv)
        settings = self._config(words)
        unset = object()
        opt, unknown = self.parse_known_args(words, argparse.Namespace(**settings))
        mistyped = self.unknown_words(unknown)
        marked, _ = self.parse_known_args(
            words, argparse.Namespace(**{**dict.fromkeys(self.flags(), unset), **settings})
        )
        opt.given = sorted(name for name in self.flags() if getattr(marked, name) is not unset and name != "config")
        problems = [line for name in self.bounds for line in self.out_of_bounds(name, getattr(opt, name))]
        problems += [line for rule in self.rules for line in rule(opt)]
        # --lod x: that --load is needed follows from it
        problems = mistyped + [
            line for line in problems if " is needed" not in line or line.split()[0] not in " ".join(mistyped)
        ]
        if problems:
            self.error(problems[0] if len(problems) == 1 else "\n  - ".join([f"{len(problems)} problems", *problems]))
        return opt

    def out_of_bounds(self, name: str, value: Any) -> list[str]:
        """Return a line for each number of `value` (one, or a list) that is beyond the bounds of flag `name`."""
        problems = []
        low, high = self.bounds.get(name, (None, None))
        for number in value if isinstance(value, list) else [value]:
            if number is None or not (
                (low is not None and number < low) or (high is not None and number > high) or number != number
            ):
                continue
            allowed = (
                f"from {low} to {high}"
                if None not in (low, high)
                else f"{low} or more"
                if high is None
                else f"{high} or less"
            )
            problems.append(f"--{name} is {number}; allowed: {allowed}")
        return problems

    def value(self, name: str, content: Any) -> Any:
        """Return the value of flag `name` for the `content` that a file gives it, read as the command line reads a word.

        Args:
            content: a text, or a list of texts for a flag that takes several, as options.plain_yaml reads them.

        Raises:
            ValueError: of another kind, or not allowed; the message says what is.
        """
        action = self.flags()[name]
        if action.nargs == 0:  # a switch
            if not isinstance(content, str) or content.lower() not in TRUE + FALSE:
                raise ValueError(f"--{name} is {content!r}; allowed: true or false")
            return content.lower() in TRUE
        texts = content if isinstance(content, list) and action.nargs else [content]
        if not texts or not all(isinstance(text, str) for text in texts):
            wanted = "texts, at least one" if action.nargs else "one value"
            raise ValueError(f"--{name} is {content!r}; allowed: {wanted}")
        if isinstance(action.nargs, int) and len(texts) != action.nargs:
            raise ValueError(f"--{name} is {content!r}; allowed: {action.nargs} values")
        try:
            values = [self._get_value(action, text) for text in texts]
            for value in values:
                self._check_value(action, value)
        except argparse.ArgumentError as error:
            raise ValueError(f"--{name}: {error.message}") from None
        return values if action.nargs else values[0]

    def _config(self, words: list[str]) -> dict[str, Any]:
        """The settings of the file that --config names, {flag: value}, each checked as on the command line."""
        if "config" not in self.flags():
            return {}
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.add_argument("--config", nargs="?", type=expanded)  # without a file's name: the real parser complains
        file = finder.parse_known_args(words)[0].config
        if file is None:
            return {}
        try:
            content = read_yaml(file)
        except (OSError, YamlError) as error:
            self.error(f"--config {file} cannot be read: {error}")
        content = {} if content is None else content
        if not isinstance(content, dict):
            self.error(
                f"--config {file} must hold lines of `option: value`, got a {'list' if isinstance(content, list) else 'text'}"
            )
        unknown = [self._unknown(f"--{name}") for name in content if name not in self.flags()]
        settings, wrong = {}, ["config: a file names no other"] if content.get("config") is not None else []
        for name, given in content.items():
            if name in self.flags() and name != "config" and given is not None and given != []:
                try:
                    settings[name] = self.value(name, given)
                except ValueError as error:
                    wrong.append(str(error))
        if unknown or wrong:
            self.error(f"--config {file}: " + "; ".join(unknown + wrong))
        return settings
