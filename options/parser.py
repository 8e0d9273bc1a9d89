"""Argparse parsers that suggest a flag for a mistyped one; a script's parser also checks ranges and reads YAML."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NoReturn, Protocol

from options.near_names import did_you_mean
from options.plain_yaml import YamlError, read_yaml
from options.rules import Rule, lists_beside_root
from options.values import Options

Fill = Callable[[argparse.Namespace], dict[str, Any]]  # the defaults that follow from other flags
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")  # values of a switch in a file
UNSET = object()


def expanded(text: str) -> str:
    """Return a path with `~` as the home folder: a shell expands it neither after `=` nor in a file."""
    return os.path.expanduser(text)  # noqa: PTH111  # Path would also change "" and "./x"


def split_at_dashes(argv: Sequence[str] | None = None) -> tuple[list[str], list[str]]:
    """Return the words of `argv` (None: sys.argv) before the first `--`, for this command, and those after it."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


def long_name(action: argparse.Action) -> str:
    """Return the flag's own long name: neither an alias nor its --no- form."""
    return long_names(action)[0]


def long_names(action: argparse.Action) -> list[str]:
    """Return the flag's long name, then its aliases, without their --no- forms: `["--smooth", "--label_smoothing"]`."""
    return [flag for flag in action.option_strings if flag.startswith("--") and not flag.startswith("--no-")]


def beyond(value: float, bounds: tuple[float | None, float | None]) -> str:
    """Return which numbers `bounds` allow, such as "from 0 to 1", if `value` is outside them or NaN; else ""."""
    low, high = bounds
    if (low is None or value >= low) and (high is None or value <= high) and value == value:
        return ""
    if low is not None and high is not None:
        return f"from {low} to {high}"
    return f"{low} or more" if high is None else f"{high} or less"


class AddFlag(Protocol):
    """`add_argument` of a group of flags, with inclusive bounds of numbers."""

    def __call__(
        self,
        *flags: str,
        low: float | None = None,
        high: float | None = None,
        word: str = "",
        derived: bool = False,
        **settings: Any,
    ) -> None:
        """Add one flag with its aliases; `settings` are those of argparse.

        `word`: a text that it takes, too. `derived`: with `--preset auto` the run chooses a value (options.defaults)
        unless the flag is given.
        """


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Descriptions as they are written; a default after each flag that has one."""

    derived: Collection[str] = ()  # the flags whose values a run chooses

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.dest in self.derived:
            return f"{action.help} (default: chosen" + (
                "; original: %(default)s)" if action.default is not None else ")"
            )
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


class ToolParser(argparse.ArgumentParser):
    """The parser of a tool: a user's mistake ends with exit code 2 and a short message."""

    def __init__(self, prog: str, description: str | None = None, **settings: Any) -> None:
        defaults: dict[str, Any] = {"formatter_class": _Help, "allow_abbrev": False}
        super().__init__(prog=prog, description=description, **{**defaults, **settings})

    def error(self, message: str) -> NoReturn:
        """Print `message` and exit with code 2."""
        self.exit(2, f"{self.prog}: {message}\nAll options: python {self.prog} --help\n")

    def parse_args(  # type: ignore[override]  # argparse declares it for any class of namespace
        self, args: Sequence[str] | None = None, namespace: None = None
    ) -> argparse.Namespace:
        """Return the parsed options, as argparse does. An unknown flag ends with the names near it."""
        opt, unknown = self.parse_known_args(args, namespace)
        if unknown:
            kinds = (action for action in self._actions if isinstance(action, argparse._SubParsersAction))
            parser = next((action.choices[getattr(opt, action.dest)] for action in kinds), self)
            parser.error("; ".join(parser.unknown_words(unknown)))
        return opt

    def unknown_words(self, words: Sequence[str]) -> list[str]:
        """Return a line for each flag of `words`, or for the first word if no word is a flag."""
        flags = [self._unknown(word) for word in words if word.startswith("-")]
        return flags or [f"unexpected argument {word!r}" for word in words[:1]]

    def _unknown(self, word: str) -> str:
        flag = word.split("=")[0]
        hint = did_you_mean(flag, self._option_string_actions)
        return f"there is no option {flag}" + (hint and f". {hint}")

    def _get_value(self, action: argparse.Action, text: str) -> Any:
        """Return the value of a word. Raises ArgumentError that names the flag's purpose, as for `--gpu cpu`."""
        try:
            return super()._get_value(action, text)
        except argparse.ArgumentError:
            kind = {int: "whole number", float: "number"}.get(action.type)  # type: ignore[call-overload]
            if kind is None:
                raise
            purpose = f" ({action.help})" if action.help else ""
            raise argparse.ArgumentError(action, f"{text!r} is no {kind}{purpose}") from None

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """Raise ArgumentError for a value that is not among the flag's choices; it suggests the near ones."""
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            hint = did_you_mean(str(value), names)
            hint = hint and f". {hint}"
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}{hint} (choose from {', '.join(names)})")


class Parser(ToolParser):
    """The parser of a script. It adds `bounds` and `words` of numbers, `rules` across flags, aliases, and `--config`.

    An alias is a second long name in `add_argument`: `group("--smooth", "--label_smoothing")`. It works on the command
    line, in a file, and in --no- forms. The options, checkpoints and printed commands use the first name.
    A user's mistake ends with exit code 2 and one message in the user's spelling. It lists every
    problem, but a word that argparse cannot read (`--lr abc`), which it names alone, before the others are looked for.
    """

    def __init__(self, prog: str, description: str) -> None:
        self.derived: set[str] = set()
        super().__init__(prog, description)
        self.bounds: dict[str, tuple[float | None, float | None]] = {}
        self.special_values: dict[str, str] = {}
        self.rules: list[Rule] = []
        self.fills: list[Fill] = []

    def group(self, title: str) -> AddFlag:
        """Return a function that adds flags under `title`."""
        group = self.add_argument_group(title)

        def add(
            *flags: str,
            low: float | None = None,
            high: float | None = None,
            word: str = "",
            derived: bool = False,
            **settings: Any,
        ) -> None:
            action = group.add_argument(*flags, **settings)
            if word:
                self.special_values[action.dest] = word
            if low is not None or high is not None:
                self.bounds[action.dest] = (low, high)
            if derived:
                self.derived.add(action.dest)

        return add

    def _get_formatter(self) -> argparse.HelpFormatter:
        formatter = super()._get_formatter()
        if isinstance(formatter, _Help):
            formatter.derived = self.derived
        return formatter

    def flags(self) -> dict[str, argparse.Action]:
        """Return {dest: action} of every flag but --help, in the order of the help text."""
        return {action.dest: action for action in self._actions if action.dest != "help"}

    def names(self) -> dict[str, str]:
        """Return {long name without dashes: dest}, such as {"smooth": "smooth", "label_smoothing": "smooth"}."""
        return {flag[2:]: dest for dest, action in self.flags().items() for flag in long_names(action)}

    def parse(self, argv: Sequence[str] | None = None) -> Options:
        """Parse `argv` (None: sys.argv) into read-only options. `opt.given` names those that the user sets.

        Raises:
            SystemExit: code 2, after printing what is wrong; 0 after --help.
        """
        words = self._with_pretrained_path(list(sys.argv[1:] if argv is None else argv))
        settings, typed = self._config(words)
        typed |= {self._option_string_actions[flag].dest: flag for flag in self._flags_in(words)}
        opt, unknown = self.parse_known_args(words, Options(**settings))
        mistyped = self.unknown_words(unknown)
        opt.given = sorted({*self.names_in(words), *settings} - {"config"})
        for fill in self.fills:
            for name, value in fill(opt).items():
                setattr(opt, name, value)
        problems = [line for name in self.bounds for line in self.out_of_bounds(name, getattr(opt, name))]
        problems += [line for rule in self.rules for line in rule(opt)]
        problems += lists_beside_root(opt, self.names_in(words), settings, f"the file {opt.config}") if settings else []
        # "--load is needed" follows from a mistyped --lod
        known = [line for line in problems if " is needed" not in line or line.split()[0] not in " ".join(mistyped)]
        problems = mistyped + [_as_typed(line, typed) for line in known]
        if problems:
            self.error(problems[0] if len(problems) == 1 else "\n  - ".join([f"{len(problems)} problems", *problems]))
        return opt.make_read_only()

    def names_in(self, words: Sequence[str]) -> set[str]:
        """Return the names of the options that `words` set, by a flag in any spelling: `-b`, an alias, a --no- form.

        Raises:
            SystemExit: code 2, after a message: a word is no value of its flag.
        """
        marked, _ = self.parse_known_args(
            self._with_pretrained_path(list(words)), Options(**dict.fromkeys(self.flags(), UNSET))
        )
        return {name for name in self.flags() if getattr(marked, name) is not UNSET}

    def _flags_in(self, words: Iterable[str]) -> list[str]:
        flags = [word.split("=")[0] for word in words if word.startswith("--")]
        return [re.sub("^--no-", "--", flag) for flag in flags if flag in self._option_string_actions]

    def out_of_bounds(self, name: str, value: float | Sequence[float | None] | None) -> list[str]:
        """Return a line for each number of `value` (one, or a list) outside the bounds of the option `name`."""
        several = [value] if isinstance(value, str) or not isinstance(value, Sequence) else value
        numbers = [number for number in several if number is not None and number != self.special_values.get(name)]
        found = [(number, beyond(number, self.bounds.get(name, (None, None)))) for number in numbers]
        return [f"--{name} is {number}; allowed: {allowed}" for number, allowed in found if allowed]

    def value(self, name: str, content: Any) -> Any:
        """Return the value that a file's `content` gives to the option `name`, read as the command line reads a word.

        Args:
            name: any long name of the flag, without dashes.
            content: a text, or a list of texts for a flag that takes several, as options.plain_yaml reads them.

        Raises:
            ValueError: the content is of another kind or not allowed; the message says what is.
        """
        action = self.flags()[self.names()[name]]
        if action.nargs == 0:  # a switch
            if not isinstance(content, str) or content.lower() not in TRUE + FALSE:
                raise ValueError(f"--{name} is {content!r}; allowed: true or false")
            return content.lower() in TRUE
        texts = content if isinstance(content, list) and action.nargs else [content]
        if not texts or not all(isinstance(text, str) for text in texts):
            allowed = "texts, at least one" if action.nargs else "one value"
            raise ValueError(f"--{name} is {content!r}; allowed: {allowed}")
        if isinstance(action.nargs, int) and len(texts) != action.nargs:
            raise ValueError(f"--{name} is {content!r}; allowed: {action.nargs} values")
        try:
            values = [self._get_value(action, text) for text in texts]
            for value in values:
                self._check_value(action, value)
        except argparse.ArgumentError as error:
            raise ValueError(f"--{name}: {error.message}") from None
        return values if action.nargs not in (None, "?") else values[0]

    def _with_pretrained_path(self, words: list[str]) -> list[str]:
        """Return `words` with `--pretrained PATH`, the name that others give it, as `--load PATH`."""
        if not {"pretrained", "load"} <= self.flags().keys():
            return words
        found: list[str] = []
        for k, word in enumerate(words):
            name, equals, path = word.partition("=")
            following = words[k + 1] if k + 1 < len(words) else "-"
            if name != "--pretrained" or (not equals and following.startswith("-")):
                found.append(word)
            elif "--load" in found or any(other.split("=")[0] == "--load" for other in words):
                self.error("--load and --pretrained contradict: both set the initial weights; leave one out")
            else:
                found += ["--load", path] if equals else ["--load"]
        return found

    def _get_value(self, action: argparse.Action, text: str) -> Any:
        """Return the value of a word, which stays text where it is the one that its flag takes instead of a number."""
        return text if text == self.special_values.get(action.dest) else super()._get_value(action, text)

    def _config(self, words: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """Read the file that --config names. Return ({dest: value}, {dest: flag as the file spells it})."""
        if "config" not in self.flags():
            return {}, {}
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.add_argument("--config", nargs="?", type=expanded)  # the real parser complains of a missing file name
        file = finder.parse_known_args(words)[0].config
        if file is None:
            return {}, {}
        try:
            content = read_yaml(file)
        except (OSError, YamlError) as error:
            self.error(f"--config {file} cannot be read: {error}")
        content = {} if content is None else content
        if not isinstance(content, dict):
            kind = "list" if isinstance(content, list) else "text"
            self.error(f"--config {file} must hold lines of `option: value`, got a {kind}")
        names, settings, problems = self.names(), dict[str, Any](), []
        typed: dict[str, str] = {}
        for name, given in content.items():
            dest = names.get(name)
            if dest is None:
                problems.append(self._unknown(f"--{name}"))
            elif dest in typed:
                problems.append(f"{name} and {typed[dest][2:]} are one option; give it once")
            elif dest == "config":
                problems += ["config: a file cannot name another file"] if given is not None else []
            else:
                typed[dest] = f"--{name}"
                try:
                    settings |= {} if given is None or given == [] else {dest: self.value(name, given)}
                except ValueError as error:
                    problems.append(str(error))
        if problems:
            self.error(f"--config {file}: " + "; ".join(problems))
        return settings, typed


def _as_typed(line: str, typed: dict[str, str]) -> str:
    """Return a message with each option spelt as the user spelt it."""
    return re.sub(r"--(\w+)", lambda found: typed.get(found[1], found[0]), line)
