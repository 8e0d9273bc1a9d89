"""The option tables of README.md and README_zh.md, made from the parsers.

    python -m tools.docs             writes them anew between the markers
    python -m tools.docs --check     exit code 1 where they are out of date, for tests

English comes from each flag's help, Chinese from options/help_zh.py. train.py's tables hold all of its flags; those of
the other scripts hold what is new there or differs, and name the rest.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from options import build_parser
from options.help_zh import GROUPS, help_zh
from options.parser import Parser, ToolParser, long_name
from utils.errors import UserError
from utils.files import atomic_write
from utils.run import run_tool

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- options:begin -->", "<!-- options:end -->"
SCRIPTS = {
    "train": None,
    "eval": "train",
    "submit": "eval",
    "clear": "train",
}  # a script, and whose flags it is compared with
KINDS = {"FILE": "file", "DIR": "folder", "CKPT": "checkpoint", "PX": "pixels", "EPOCHS": "epochs", "DEG": "degrees"}
ENDLESS = 2**53  # an upper bound beyond this is as good as none


@dataclass(frozen=True)
class Language:
    """What differs between the two files: `words` for the tables, `help` of a (script, action), `title` of a group."""

    words: dict[str, str]
    help: Callable[[str, argparse.Action], str]
    title: Callable[[str], str]


ENGLISH = Language(
    words={
        "head": "option | values | default | what it does",
        "also": "Also, as in `{other}.py`: {flags}.",
        "some": "{kind} (one or more)",
        "both": "{kind}, {low} to {high}",
        "low": "{kind}, {low} or more",
        "comma": ", ",
    },
    help=lambda script, action: action.help or "",
    title=lambda group: group,
)
CHINESE = Language(
    words={
        "head": "选项 | 取值 | 默认 | 作用",
        "also": "另有与 `{other}.py` 相同的：{flags}。",
        "some": "{kind}（一个或多个）",
        "both": "{kind}，{low} 到 {high}",
        "low": "{kind}，不小于 {low}",
        "comma": "、",
        "whole number": "整数",
        "number": "数值",
        "name": "名称",
        "file": "文件",
        "folder": "文件夹",
        "checkpoint": "检查点",
        "pixels": "像素",
        "epochs": "epoch 数",
        "degrees": "度",
        "switch": "开关",
        "on": "开",
        "off": "关",
    },
    help=lambda script, action: help_zh(script, action.dest),
    title=lambda group: GROUPS[group],
)
FILES = {"README.md": ENGLISH, "README_zh.md": CHINESE}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the tables, or with --check compare them; returns the exit code."""
    return run_tool(lambda: option_parser().parse_args(argv), update)


def update(opt: argparse.Namespace) -> int:
    """Write the tables, or compare them; returns the exit code. Raises UserError where a README has no place for one."""
    stale = []
    for name, language in FILES.items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        wanted = fill(text, tables(language), name)
        if wanted != text:
            stale.append(name)
            if not opt.check:
                with atomic_write(path, "w") as file:
                    file.write(wanted)
    if opt.check and stale:
        print(f"The option tables of {' and '.join(stale)} are out of date. Run: make docs", file=sys.stderr)
        return 1
    print(f"Written: {', '.join(stale)}" if stale else "The option tables are current.")
    return 0


def option_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = ToolParser("-m tools.docs", "Write the option tables of the two READMEs.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a table is out of date")
    return parser


def fill(text: str, content: str, name: str) -> str:
    """`text` with what stands between the markers replaced. Raises UserError where it has not one pair of them."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"{name} must hold {BEGIN} and, after it, {END}, once each.")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{content}\n{END}{rest.split(END)[1]}"


def tables(language: Language) -> str:
    """A section a script, in it a table a group of flags."""
    return "\n".join(line for script in SCRIPTS for line in _section(script, language))


def _section(script: str, language: Language) -> Iterator[str]:
    parser, other = build_parser(script), SCRIPTS[script]
    known = _meanings(build_parser(other)) if other else {}
    same = [action for action in parser.flags().values() if known.get(action.dest) == _meaning(parser, action)]
    yield from (f"### {script}.py", "")
    for group in parser._action_groups:
        rows = [action for action in group._group_actions if action.dest != "help" and action not in same]
        if rows:
            yield from (
                f"#### {language.title(group.title or '')}",
                "",
                f"| {language.words['head']} |",
                "|---|---|---|---|",
            )
            yield from (_row(script, parser, action, language) for action in rows)
            yield ""
    if same:
        flags = language.words["comma"].join(f"`{long_name(action)}`" for action in same)
        yield from (language.words["also"].format(other=other, flags=flags), "")


def _meaning(parser: Parser, action: argparse.Action) -> tuple[object, ...]:
    """What a reader must know of a flag: two scripts in which it is equal need not both say it."""
    return (
        tuple(action.option_strings),
        action.default,
        action.help,
        tuple(action.choices or ()),
        parser.bounds.get(action.dest),
    )


def _meanings(parser: Parser) -> dict[str, tuple[object, ...]]:
    return {dest: _meaning(parser, action) for dest, action in parser.flags().items()}


def _row(script: str, parser: Parser, action: argparse.Action, language: Language) -> str:
    flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
    cells = (
        flags,
        _values(parser, action, language.words),
        _default(action, language.words),
        _cell(language.help(script, action)),
    )
    return f"| {' | '.join(cells)} |"


def _values(parser: Parser, action: argparse.Action, words: dict[str, str]) -> str:
    """What a flag takes: names to choose from, a switch, or a kind of value with its bounds."""
    if action.choices:
        return words["comma"].join(f"`{choice}`" for choice in action.choices)
    if action.nargs == 0:
        return words.get("switch", "switch")
    kind = {int: "whole number", float: "number"}.get(action.type, "name")  # type: ignore[call-overload]
    kind = KINDS.get(str(action.metavar), kind)
    kind = words.get(kind, kind)
    low, high = parser.bounds.get(action.dest, (None, None))
    if low is not None:
        endless = high is None or high > ENDLESS
        kind = words["low" if endless else "both"].format(kind=kind, low=_number(low), high=_number(high))
    return words["some"].format(kind=kind) if action.nargs == "+" else kind


def _default(action: argparse.Action, words: dict[str, str]) -> str:
    if isinstance(action.default, bool):
        word = "on" if action.default else "off"
        return words.get(word, word)
    return "–" if action.default is None else f"`{_number(action.default)}`"


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    """Help as Markdown in a table: flags and <placeholders> as code, which GitHub would swallow as HTML otherwise."""
    parts = text.replace("|", r"\|").split("`")
    code = re.compile(r"--[a-z_]+|[A-Za-z0-9_./:]*<[^>]+>[A-Za-z0-9_./:<>]*")
    parts[::2] = [code.sub(lambda found: f"`{found[0]}`", part) for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    sys.exit(main())
