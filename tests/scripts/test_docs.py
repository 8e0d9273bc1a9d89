"""The documentation is true: generated tables, commands, links, quoted messages, the steps to a model of your own."""

import ast
import importlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap

import pytest

import options
from conftest import ROOT
from options import choices
from options.help_zh import GROUPS, HELP, help_zh
from options.parser import Parser, ToolParser
from options.unused import unused_flags
from tools import docs
from tools.prepare import command as prepare
from utils import checkpoint

PAIRS = {"README.md": "README_zh.md"} | {
    f"docs/{path.name}": f"docs/zh/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))
}
ENGLISH = (*PAIRS, "CONTRIBUTING.md", "runs/README.md", "pretrained/README.md")
PAGES = (*ENGLISH, *PAIRS.values(), "CHANGELOG.md", "dev/LOG.md")
SCRIPTS = ("train", "eval", "submit", "clear")
RECIPES = sorted((ROOT / "runs").glob("*.sh"))
OTHER_PROGRAMS = {"cat", "cp", "source", "tensorboard", "set", "cd"}
MAX_README_LINES = 200
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", re.M | re.S)


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text, *languages):
    """The fenced blocks of those languages, without their indentation."""
    return [textwrap.dedent(body) for _, kind, body in FENCE.findall(text) if kind in languages]


def commands(text):
    """The commands of shell text, each a list of words, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def unrolled(lines):
    """Lines of a recipe with each `for NAME in WORDS; do … done` replaced by what it runs."""
    found, lines = [], list(lines)
    while lines:
        line = lines.pop(0)
        loop = re.fullmatch(r"for (\w+) in ([\w ]+); do", line.strip())
        if loop is None:
            found.append(line)
            continue
        depth, body = 1, []
        while depth:
            body.append(lines.pop(0).strip())
            depth += body[-1].startswith("for ") - (body[-1] == "done")
        for word in loop[2].split():
            found += unrolled(line.replace(f"${loop[1]}", word) for line in body[:-1])
    return found


def recipe_commands(path):
    return commands("\n".join(unrolled(path.read_text(encoding="utf-8").splitlines())))


def page_commands(name):
    return [words for block in blocks(read(name), "bash", "sh") for words in commands(block)]


def headings(name):
    return re.findall(r"^(#+) (.+)", FENCE.sub("", read(name)), re.M)


def anchors(name):
    """What may follow the # of a link to the page, as GitHub makes it of the headings."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in headings(name)}


def section_with(name, code):
    """The section (of level two) of a page that holds `code`; exactly one does."""
    text = read(name)
    bare = FENCE.sub(
        lambda found: "\n" * found[0].count("\n"), text
    ).splitlines()  # a fence may hold what looks like a heading
    starts = [number for number, line in enumerate(bare) if line.startswith("## ")] + [len(bare)]
    parts = ["\n".join(text.splitlines()[start:end]) + "\n" for start, end in itertools.pairwise(starts)]
    found = [part for part in parts if code in part]
    assert len(found) == 1, f"{name} has {len(found)} sections with {code}"
    return found[0]


# ------------------------------------------------------------------------ generated tables


def test_docs_generated_tables_are_current(capsys):
    assert docs.main(["--check"]) == 0, capsys.readouterr().err


def test_docs_stale_table_is_found_and_mended(tmp_path, monkeypatch, capsys):
    for name in docs.PAGES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        stale = read(name).replace("| `--lr` |", "| `--rate` |").replace("`ResNet50`", "`ResNet49`")
        (tmp_path / name).write_text(stale, encoding="utf-8")
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    assert docs.main(["--check"]) == 1
    message = capsys.readouterr().err
    assert "make docs" in message and all(name in message for name in docs.PAGES)
    assert docs.main([]) == 0
    tables = [docs.BETWEEN.search((tmp_path / name).read_text(encoding="utf-8"))[0] for name in docs.PAGES]
    assert tables == [docs.BETWEEN.search(read(name))[0] for name in docs.PAGES]


def test_docs_page_without_markers_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "README.md").write_text("no table", encoding="utf-8")
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    assert docs.main([]) == 2
    assert "models:end" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["docs/options.md", "docs/zh/options.md"])
def test_docs_option_tables_have_every_flag(name):
    for script in SCRIPTS:
        for action in options.build_parser(script).flags().values():
            assert any(f"`{flag}`" in read(name) for flag in action.option_strings), (
                f"{script}.py {action.option_strings}"
            )


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_zh_has_every_flag_and_group(script):
    parser = options.build_parser(script)
    for dest, action in parser.flags().items():
        text = help_zh(script, dest)
        assert isinstance(text, str) and text, dest
        if text not in (
            ", ".join(getattr(choices, name)) for name in ("OPTIMIZERS", "LOSSES")
        ):  # names alone need no translation
            assert re.search(r"[\u4e00-\u9fff]", text), dest
        assert all(flag in text for flag in re.findall(r"--[a-z_]+", action.help)), (
            f"{dest} should name the flags that the English does"
        )
    assert {group.title for group in parser._action_groups if group._group_actions} - {"options"} <= set(GROUPS)


def test_help_zh_has_no_removed_flag():
    present = {dest for script in SCRIPTS for dest in options.build_parser(script).flags()}
    present |= {f"{script}.{dest}" for script in SCRIPTS for dest in options.build_parser(script).flags()}
    assert set(HELP) <= present


# ------------------------------------------------------------------------ pages


@pytest.mark.parametrize("name", ["README.md", "README_zh.md"])
def test_readme_is_at_most_200_lines(name):
    assert len(read(name).splitlines()) <= MAX_README_LINES


def test_docs_pages_have_chinese_twin_and_readme_link():
    assert [name for name in PAIRS.values() if not (ROOT / name).is_file()] == []
    assert {f"docs/zh/{path.name}" for path in (ROOT / "docs/zh").glob("*.md")} == {*PAIRS.values()} - {"README_zh.md"}
    for readme, pages in (("README.md", PAIRS), ("README_zh.md", PAIRS.values())):
        assert [name for name in pages if f"({name})" not in read(readme)] == [readme]


@pytest.mark.parametrize("english", PAIRS)
def test_docs_pages_of_both_languages_agree(english):
    chinese = PAIRS[english]
    assert [level for level, _ in headings(english)] == [level for level, _ in headings(chinese)]
    assert page_commands(english) == page_commands(chinese)
    assert blocks(read(english), "python", "yaml", "text") == blocks(read(chinese), "python", "yaml", "text")
    shape = [
        [line.count("|") for line in FENCE.sub("", read(name)).splitlines() if line.startswith("|")]
        for name in (english, chinese)
    ]
    assert shape[0] == shape[1]
    pictures = [re.findall(r"[\w/]+\.png(?=[)\"])", read(name)) for name in (english, chinese)]
    assert pictures[0] == [name.removeprefix("/") for name in pictures[1]]


@pytest.mark.parametrize("name", PAGES)
def test_docs_links_and_anchors_exist(name):
    text = FENCE.sub("", read(name))
    for link in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"src=\"([^\"]+)\"", text):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = (ROOT / name).parent / path if path else ROOT / name
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.resolve().relative_to(ROOT)), link


def test_docs_name_every_registry_entry():
    text = "".join(map(read, PAIRS))
    for known in (
        choices.OPTIMIZERS,
        choices.SCHEDULERS,
        choices.TRANSFORMS,
        choices.LOSSES,
        choices.TTAS,
        choices.BLENDS,
    ):
        assert [name for name in known if f"| `{name}`" not in text and f"` `{name}` " not in text] == []


def test_readme_map_names_every_room():
    house = importlib.import_module("test_house")
    assert [room for room in (*house.ROOMS, "datasets", "tests") if f"[{room}/]({room})" not in read("README.md")] == []


def test_pretrained_page_names_every_weight_file():
    import timm

    page = read("pretrained/README.md")
    for name, (_, arch) in choices.MODELS.items():
        config = timm.get_pretrained_cfg(arch, allow_unregistered=True)
        if config is not None:
            row = f"| `{name}` | `{config.architecture}.{config.tag}.safetensors` | `{config.hf_hub_id}` |"
            assert row in page, f"pretrained/README.md wants the line {row}"


def texts_of_the_code():
    """Every text in the code, a value within it as …"""
    rooms = {path.parent for path in ROOT.glob("*/__init__.py")} - {ROOT / "tests"}
    for path in [*ROOT.glob("*.py"), *(file for room in rooms for file in room.rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                yield " ".join("".join(map(str, parts)).split())
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield " ".join(node.value.split())


def test_troubleshooting_quotes_exist_in_the_code():
    rows = [
        [re.findall("`([^`]+)`", line.split(" | ")[0]) for line in read(name).splitlines() if line.startswith("| `")]
        for name in ("docs/troubleshooting.md", "docs/zh/troubleshooting.md")
    ]
    assert rows[0] == rows[1]
    texts = "\n".join(texts_of_the_code())
    patterns = {
        quote: ".*?".join(re.escape(part.strip()) for part in quote.split("…")) for row in rows[0] for quote in row
    }
    assert [quote for quote, pattern in patterns.items() if not re.search(pattern, texts)] == []


@pytest.mark.parametrize("name", ["docs/outputs.md", "docs/zh/outputs.md"])
def test_outputs_page_columns_are_words_of_the_code(name):
    """Words such as `val_<score>` are made of others."""
    section = section_with(name, "| `steps.csv` |")
    rows = [line.split(" | ", 1)[1] for line in section.splitlines() if line.startswith("| `")]
    words = {word for row in rows for word in re.findall("`([^`]+)`", row) if "<" not in word}
    assert len(rows) > 15 and words - set(texts_of_the_code()) == {"val_num_classes"}


def test_readme_demo_output_equals_the_code():
    (shown,) = (block for block in blocks(read("README.md"), "text") if block.startswith("Done in"))
    code = read("tools/demo.py").replace("{TAG}", "demo")
    assert [line for line in shown.splitlines()[1:] if line not in code] == []


def test_kaggle_page_accounts_for_every_requirement():
    required = set(re.findall(r"^[\w-]+", read("requirements.txt"), re.M))
    (download,) = (words for words in page_commands("docs/kaggle.md") if words[1:4] == ["-m", "pip", "download"])
    brought = {re.match(r"[\w-]+", word)[0] for word in download if not word.startswith("-")}
    rows = [line.split(" | ")[0] for line in read("docs/kaggle.md").splitlines() if line.startswith("| `")]
    present = {name for row in rows for name in re.findall("`([^`]+)`", row)}
    assert required - brought - present == set()
    assert required & brought & present == set()


# ------------------------------------------------------------------------ commands


class ParsedError(BaseException):
    """A command line was parsed: its program goes no further."""


@pytest.fixture
def parse_only(monkeypatch, tmp_path):
    """Every parser of ours parses, then ends its program."""

    def ending(parse):
        def parse_and_end(*words):
            opt = parse(*words)
            if isinstance(opt, options.Options):
                assert unused_flags(opt, processes=2) == []
            raise ParsedError(f"parsed {words}")

        return parse_and_end

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ToolParser, "parse_args", ending(ToolParser.parse_args))
    monkeypatch.setattr(Parser, "parse", ending(Parser.parse))
    for kind in prepare.COMMANDS:
        monkeypatch.setitem(prepare.COMMANDS, kind, lambda _: None)


def parse_command(words):
    """Parse a command with the parser that would get it; raises what that raises."""
    program, *rest = words
    if program == "make":
        assert rest and set(rest) <= set(re.findall(r"^([\w-]+):", read("Makefile"), re.M)), words
    elif program == "torchrun":
        start = next(k for k, word in enumerate(rest) if word == "-m" or word.endswith(".py"))
        parse_python(rest[start:])
    elif program.split("/")[-1] in ("python", "python3"):
        parse_python(rest)
    else:
        assert program in OTHER_PROGRAMS, words


def parse_python(words):
    if words[:2] in (["-m", "venv"], ["-m", "pip"]):
        return
    module, rest = (
        (words[1], words[2:]) if words[0] == "-m" else (words[0].removesuffix(".py").replace("/", "."), words[1:])
    )
    with pytest.raises(ParsedError):
        if module in SCRIPTS:
            getattr(options, f"parse_{module}")(rest)
        elif module.startswith("datasets."):
            importlib.import_module(
                module.replace("datasets.prepare", "tools.prepare.command").replace("datasets.", "tools.prepare.")
            ).main(rest)
        elif module in ("tools.sweep", "tools.folds"):
            cut = rest.index("--") if "--" in rest else len(rest)
            tool = importlib.import_module(f"{module}.command" if module == "tools.folds" else module)
            with pytest.raises(ParsedError):
                tool.option_parser().parse_args(rest[:cut])
            options.build_parser("train").parse([*rest[cut + 1 :], "--tag", "x"])
        else:
            file = f"{module}.command" if (ROOT / module.replace(".", "/") / "command.py").is_file() else module
            importlib.import_module(file).main(rest)
    if "--model" in words:
        model = words[words.index("--model") + 1]
        assert model in choices.MODELS or model == "MyNet" or model.startswith("timm:"), model


def test_docs_commands_all_parse(parse_only, tmp_path):
    for name in ENGLISH:  # the Chinese pages have the same
        for block in blocks(read(name), "yaml"):  # a file that a command reads is named in its first line
            (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
    saved = tmp_path / "logs/first/options.yaml"  # which the first run writes
    saved.parent.mkdir(parents=True)
    saved.write_text("tag: first\nmodel: EfficientNet-Lite0\n")
    sources = {name: page_commands(name) for name in ENGLISH} | {path.name: recipe_commands(path) for path in RECIPES}
    for source, found in sources.items():
        for words in found:
            try:
                parse_command(words)
            except (Exception, SystemExit) as error:
                pytest.fail(f"{source}: {shlex.join(words)}: {type(error).__name__} {error}")


def docstring_commands():
    """The commands in the docstrings of modules, which --help shows: (file, words)."""
    rooms = [ROOT, *(ROOT / room for room in ("tools", "benchmarks", "datasets"))]
    found = {path for room in rooms for path in (room.glob("*.py") if room == ROOT else room.rglob("*.py"))}
    for path in sorted(path for path in found if path.parent.name != "shipped"):  # those run in another folder
        text = re.sub(r"\\\n +", "", ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
        for line in re.findall(r"^ *((?:python|torchrun) .*)", text, re.M):
            line = re.split("  +", line)[0]  # what follows is said of the command
            yield path.relative_to(ROOT), shlex.split(line, comments=True)


def test_docstring_commands_all_parse(parse_only, tmp_path):
    """tools.lr_find showed a --model that does not exist."""
    (tmp_path / "space.yaml").write_text("lr: [0.1, 0.01]\n")
    found = list(docstring_commands())
    assert len(found) > 60
    for source, words in found:
        try:
            parse_command(words)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{source}: {shlex.join(words)}: {type(error).__name__} {error}")


@pytest.mark.parametrize(
    "wrong",
    [
        "train.py --modle ResNet50",
        "train.py --model ResNet49",
        "train.py --rotate 9 --transform light",
        "eval.py --tta x9 --load a.pt",
        "-m tools.preview --view 3",
        "-m tools.sweep --name a --space b -- --epochs x",
        "-m tools.folds --fold 5 -- --tag x",
        "-m tools.folds --folds 5 -- --epochs x",
        "-m benchmarks.inputs",
        "datasets/prepare.py folders x",
    ],
)
def test_docs_command_that_does_not_parse_is_found(wrong, parse_only, capsys):
    with pytest.raises((SystemExit, AssertionError, ModuleNotFoundError)):
        parse_python(wrong.split())


@pytest.mark.parametrize("name", [*ENGLISH, *PAIRS.values()])
def test_docs_commands_in_sentences_name_existing_programs(name):
    for words in re.findall(r"`python (-m [\w.]+|[\w/]+\.py)", FENCE.sub("", read(name))):
        path = words.removeprefix("-m ").removesuffix(".py").replace(".", "/")
        assert (
            words.split()[-1] == "pip" or (ROOT / f"{path}.py").is_file() or (ROOT / path / "__main__.py").is_file()
        ), words


def test_recipe_loop_is_unrolled():
    text = "a $x\nfor x in 1 2; do\nb $x\nfor y in u v; do\n  c $x$y\ndone\ndone\nd"
    assert unrolled(text.splitlines()) == ["a $x", "b 1", "c 1u", "c 1v", "b 2", "c 2u", "c 2v", "d"]


def test_recipe_equals_the_demos_training():
    from tools import demo

    recipe = {tuple(words[1:]) for words in commands(read("runs/fashion_mnist_lite0.sh")) if words[0] == "python"}
    train = next(shlex.split(step) for step in demo.STEPS if step.startswith("train.py"))
    train[train.index("--tag") + 1] = "fashion_mnist_lite0"
    assert tuple(train) in recipe


# ------------------------------------------------------------------------ what docs/extending.md says to do


@pytest.fixture
def copy(tmp_path):
    """The code that training needs, in a folder of its own."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in (
        "options",
        "network",
        "dataloader",
        "optimizer",
        "scheduler",
        "utils",
        "training",
        "inference",
        "evaluation",
    ):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "eval.py"):
        shutil.copy(ROOT / name, folder)
    return folder


def run_small(words, folder, photo_set, *more):
    """Run a page's command in `folder`, on the photographs, small."""
    assert words[:2] in (["python", "train.py"], ["python", "eval.py"])
    small = f"--data_root {photo_set} --scale 32 -b 12 -w 0 --gpu -1".split()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *words[1:], *small, *more], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("changed", [False, True], ids=["copied", "rewritten"])
def test_extending_page_model_trains(changed, copy, photo_set):
    text = section_with("docs/extending.md", "cp -r network/ResNeSt network/MyNet")
    (copy_command,), train_command = commands(blocks(text, "bash")[0]), commands(blocks(text, "bash")[1])[0]
    model, import_line, dict_line = blocks(text, "python")

    subprocess.run(copy_command, cwd=copy, check=True)
    if changed:
        (copy / "network/MyNet/model.py").write_text(model)
    registry = copy / "network/__init__.py"
    lines = registry.read_text().splitlines(keepends=True)
    after_imports = max(k for k, line in enumerate(lines) if re.match(r"from network\.\w+\.model import", line)) + 1
    lines.insert(after_imports, import_line)
    in_models = next(k for k, line in enumerate(lines) if line.startswith("models")) + 1
    lines.insert(in_models, dict_line)
    registry.write_text("".join(lines))

    run_small(train_command, copy, photo_set)
    tag = train_command[train_command.index("--tag") + 1]
    weights = checkpoint.load(copy / "checkpoints" / tag / "1_MyNet.pt")["weights"]
    assert ("features.0.weight" if changed else "layer1.0.conv2.fc1.weight") in weights  # its own network, or ResNeSt's


@pytest.mark.slow
def test_extending_page_parts_train(copy, photo_set):
    text = section_with("docs/extending.md", "# optimizer/__init__.py")
    for code in blocks(text, "python"):
        path = copy / code.splitlines()[0].removeprefix("# ")
        path.write_text(f"{path.read_text()}\n\n{code}")
    (command,) = commands(blocks(text, "bash")[0])
    network = ["--model", "timm:test_resnet", "--no-pretrained"]
    run_small(command, copy, photo_set, *network)
    assert (copy / "checkpoints/mine/3_timm-test_resnet.pt").is_file()
    run_small(command, copy, photo_set, *network, "--scheduler", "sqrt", "--epochs", "1", "--overwrite")


@pytest.mark.slow
def test_extending_page_metric_trains_and_is_reported(copy, photo_set):
    text = section_with("docs/extending.md", "worst_class_accuracy")
    places = ("\nMETRICS = {\n", "\nSINGLE_METRICS = (", "    return {\n")  # "…" stands for the names that are there
    for code, place in zip(blocks(text, "python"), places, strict=True):
        first, line = code.split("\n", 1)
        path = copy / first.removeprefix("# ").split(":")[0]
        content = path.read_text()
        start = content.index(place, max(content.find("def class_scores"), 0)) + len(place)
        if "…" in line:
            end = content.index(")", start)
            content = content[:end] + line.partition('"log_loss"')[2].removesuffix(")\n") + content[end:]
        else:
            content = content[:start] + line + content[start:]
        path.write_text(content)

    metric = ["--metric", "worst_class_accuracy"]
    train = "python train.py --tag worst --model timm:test_resnet --no-pretrained --epochs 1".split()
    run_small(train, copy, photo_set, *metric)
    score = "python eval.py --tag two --load checkpoints/worst/best.pt checkpoints/worst/last.pt --blend greedy".split()
    run_small(score, copy, photo_set)
    (made,) = (copy / "results/two").glob("*/metrics.json")
    metrics = json.loads(made.read_text())
    assert metrics["worst_class_accuracy"] <= metrics["mean_class_accuracy"]
    assert "Worst class accuracy" in (made.parent / "report.html").read_text()
