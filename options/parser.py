"""An argparse parser that reads a YAML file of defaults, checks ranges, and reports all problems at once."""

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

Rule = Callable[[argparse.Namespace], list[str]]


class Parser(argparse.ArgumentParser):
    """ArgumentParser with three additions: `bounds` of numbers, `rules` across flags, `--config`.

    A mistake of the user ends with exit code 2 and one message that lists every problem found.
    """

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
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

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\nAll options: python {self.prog} --help\n")

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse `argv` (None: sys.argv); `opt.given` holds the names set on the command line or in --config.

        Raises:
            SystemExit: code 2, after printing what is wrong; 0 after --help.
        """
        words = list(sys.argv[1:] if argv is None else argv)
        words = self._config_words(words) + words
        unset = object()
        opt, unknown = self.parse_known_args(words)
        mistyped = [self._unknown(word) for word in unknown if word.startswith("-")]
        if unknown and not mistyped:
            mistyped = [f"what is {unknown[0]!r}?"]
        marked, _ = self.parse_known_args(words, argparse.Namespace(**dict.fromkeys(self.flags(), unset)))
        opt.given = sorted(name for name in self.flags() if getattr(marked, name) is not unset and name != "config")
        problems = self._out_of_bounds(opt) + [line for rule in self.rules for line in rule(opt)]
        # --lod x: that --load is needed follows from it
        problems = mistyped + [line for line in problems if " is needed" not in line or line.split()[0] not in " ".join(mistyped)]
        if problems:
            self.error(problems[0] if len(problems) == 1 else "\n  - ".join([f"{len(problems)} problems", *problems]))
        return opt

    def _unknown(self, word: str) -> str:
        flag = word.split("=")[0]
        known = [name for action in self._actions for name in action.option_strings]
        close = difflib.get_close_matches(flag, known, n=3, cutoff=0.6)
        return f"there is no option {flag}" + (f"; did you mean {' or '.join(close)}?" if close else "")

    def _out_of_bounds(self, opt: argparse.Namespace) -> list[str]:
        problems = []
        for name, (low, high) in self.bounds.items():
            value = getattr(opt, name)
            for number in value if isinstance(value, list) else [value]:
                if number is None or not ((low is not None and number < low) or (high is not None and number > high) or number != number):
                    continue
                allowed = f"from {low} to {high}" if None not in (low, high) else f"{low} or more" if high is None else f"{high} or less"
                problems.append(f"--{name} is {number}; allowed: {allowed}")
        return problems

    def _config_words(self, words: list[str]) -> list[str]:
        """The flags in the file that --config names, as command-line words, so that both are checked alike."""
        if "config" not in self.flags():
            return []
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.add_argument("--config", nargs="?")  # without a file's name: the real parser complains
        path = finder.parse_known_args(words)[0].config
        if path is None:
            return []
        import yaml  # the one import here that is not the standard library's: only who asks for a file pays for it

        try:
            with open(path, encoding="utf-8") as file:
                settings = yaml.safe_load(file) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            self.error(f"--config {path} cannot be read: {error}")
        if not isinstance(settings, dict):
            self.error(f"--config {path} must hold lines of `option: value`, got a {type(settings).__name__}")
        unknown = [self._unknown(f"--{name}") for name in settings if name not in self.flags()]
        if unknown:
            self.error(f"--config {path}: " + "; ".join(unknown))
        return [word for name, value in settings.items() for word in self._as_words(name, value)]

    def _as_words(self, name: str, value: Any) -> list[str]:
        action = self.flags()[name]
        if value is None:
            return []
        if action.nargs == 0:  # a switch: --flag, or --no-flag where there is one
            if not isinstance(value, bool):
                self.error(f"--config: {name} is {value!r}; allowed: true or false")
            negative = [flag for flag in action.option_strings if flag.startswith("--no-")]
            return [action.option_strings[0]] if value is True else negative[:1]
        flag = max(action.option_strings, key=len)
        if isinstance(value, list):
            return [flag, *map(str, value)] if value else []
        return [f"{flag}={value}"]
