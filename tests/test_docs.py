"""The documents say what is so: option tables, commands, links, and the steps to a model of your own."""

import importlib
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap

import options
import pytest
from options import choices
from options.help_zh import GROUPS, HELP, help_zh
from tools import docs
from tools.prepare import clean
from tools.prepare import command as prepare
from utils import checkpoint

from conftest import ROOT

READMES = ("README.md", "README_zh.md")
SCRIPTS = ("train", "eval", "submit", "clear")
PAGES = (*READMES, "CONTRIBUTING.md", "CHANGELOG.md", "dev/LOG.md", "runs/README.md", "pretrained/README.md")
RECIPES = sorted((ROOT / "runs").glob("*.sh"))
OTHER_PROGRAMS = {"cp", "find", "source", "tensorboard", "bash", "set", "cd"}
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", re.M | re.S)


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text, language):
    """The fenced blocks of that language, without their indentation."""
    return [textwrap.dedent(body) for _, kind, body in FENCE.findall(text) if kind == language]


def commands(text):
    """The commands of shell text, each a list of words, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def readme_commands(name):
    """Of torchrun's commands the script and its flags: that is what we parse."""
    found = [words for block in blocks(read(name), "bash") for words in commands(block)]
    return [["python", *words[words.index("train.py") :]] if words[0] == "torchrun" else words for words in found]


def headings(name):
    return re.findall(r"^#+(?= )", FENCE.sub("", read(name)), re.M)


def section_with(name, code):
    """The section (of level two) of a page that holds `code`; exactly one does."""
    text = read(name)
    bare = FENCE.sub(lambda found: "\n" * found[0].count("\n"), text).splitlines()  # a fence may hold what looks like a heading
    starts = [number for number, line in enumerate(bare) if line.startswith("## ")] + [len(bare)]
    parts = ["\n".join(text.splitlines()[start:end]) + "\n" for start, end in itertools.pairwise(starts)]
    found = [part for part in parts if code in part]
    assert len(found) == 1, f"{name} has {len(found)} sections with {code}"
    return found[0]


# ------------------------------------------------------------------------------------------------ option tables


def test_option_tables_are_current(capsys):
    assert docs.main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_table_is_found_and_mended(tmp_path, monkeypatch, capsys):
    for name in READMES:
        (tmp_path / name).write_text(read(name).replace("| `--lr` |", "| `--rate` |"), encoding="utf-8")
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    assert docs.main(["--check"]) == 1
    assert "make docs" in capsys.readouterr().err
    assert docs.main([]) == 0
    assert [(tmp_path / name).read_text(encoding="utf-8") for name in READMES] == [read(name) for name in READMES]


def test_a_readme_without_markers_is_an_error(tmp_path, monkeypatch, capsys):
    for name in READMES:
        (tmp_path / name).write_text(read(name).replace(docs.END, ""), encoding="utf-8")
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    assert docs.main([]) == 2
    assert docs.END in capsys.readouterr().err


@pytest.mark.parametrize("name", READMES)
def test_every_flag_stands_in_the_tables(name):
    table = read(name).split(docs.BEGIN)[1].split(docs.END)[0]
    for script in SCRIPTS:
        for action in options.build_parser(script).flags().values():
            assert any(f"`{flag}`" in table for flag in action.option_strings), f"{script}.py {action.option_strings}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_and_group_has_a_chinese_text(script):
    parser = options.build_parser(script)
    for dest, action in parser.flags().items():
        text = help_zh(script, dest)
        assert isinstance(text, str) and text, dest
        if text not in (", ".join(getattr(choices, name)) for name in ("OPTIMIZERS", "LOSSES")):  # names alone need no translation
            assert re.search(r"[\u4e00-\u9fff]", text), dest
        assert all(flag in text for flag in re.findall(r"--[a-z_]+", action.help)), f"{dest} should name the flags that the English does"
    assert {group.title for group in parser._action_groups if group._group_actions} - {"options"} <= set(GROUPS)


def test_no_chinese_text_is_of_a_flag_that_is_gone():
    present = {dest for script in SCRIPTS for dest in options.build_parser(script).flags()}
    present |= {f"{script}.{dest}" for script in SCRIPTS for dest in options.build_parser(script).flags()}
    assert set(HELP) <= present


# ------------------------------------------------------------------------------------------------ the two READMEs


def test_both_readmes_have_the_same_headings():
    assert headings(READMES[0]) == headings(READMES[1])


def test_both_readmes_have_the_same_code():
    assert readme_commands(READMES[0]) == readme_commands(READMES[1])
    for language in ("python", "yaml"):
        assert blocks(read(READMES[0]), language) == blocks(read(READMES[1]), language)


def test_both_readmes_have_tables_of_the_same_shape():
    shape = [[line.count("|") for line in FENCE.sub("", read(name)).splitlines() if line.startswith("|")] for name in READMES]
    assert shape[0] == shape[1]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    links = re.findall(r"!?\[[^\]]*\]\(([^)#\s]+)\)", FENCE.sub("", read(name)))
    for link in links:
        if "://" not in link and not link.endswith(".png"):
            assert ((ROOT / name).parent / link).exists(), link


def test_both_readmes_show_the_same_pictures_which_are_there():
    pictures, same = (re.findall(r"!\[[^\]]+\]\(([^)]+)\)", read(name)) for name in READMES)
    assert pictures == same and len(pictures) > 5
    assert [picture for picture in pictures if not (ROOT / picture).is_file()] == []


@pytest.mark.parametrize("name", READMES)
def test_the_file_tree_is_of_files_that_are_there(name):
    tree = next(block for block in blocks(read(name), "text") if block.startswith("train.py"))
    assert [line for line in tree.splitlines() if not (ROOT / line.split()[0]).exists() or len(line.split()) < 2] == []


@pytest.mark.parametrize("name", READMES)
def test_the_readme_names_all_that_the_registries_hold(name):
    text = read(name).split(docs.BEGIN)[0]
    named = set(re.findall(r"`([\w-]+)`", text)) | {f"EfficientNet-B{k}" for k in range(8)}
    for known in (choices.MODELS, choices.OPTIMIZERS, choices.SCHEDULERS, choices.TRANSFORMS, choices.LOSSES, choices.TTAS):
        assert set(known) - named == set()


def test_weight_files_have_the_names_that_are_looked_for():
    import timm

    page = read("pretrained/README.md")
    for name, (_, arch) in choices.MODELS.items():
        config = timm.get_pretrained_cfg(arch, allow_unregistered=True)
        if config is not None:
            row = f"| `{name}` | `{config.architecture}.{config.tag}.safetensors` | `{config.hf_hub_id}` |"
            assert row in page, f"pretrained/README.md wants the line {row}"


# ------------------------------------------------------------------------------------------------ commands


def cases():
    for name in READMES[:1]:  # the other has the same
        yield from ((name, words) for words in readme_commands(name))
    yield from (("CONTRIBUTING.md", words) for words in readme_commands("CONTRIBUTING.md"))
    yield from ((recipe.name, words) for recipe in RECIPES for words in commands(recipe.read_text(encoding="utf-8")))


def test_every_command_parses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(read("README.md"), "yaml"):  # a file that a command reads bears its name in the first line
        (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
    for source, words in cases():
        try:
            parse_command(source, words, monkeypatch)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{source}: {shlex.join(words)}: {type(error).__name__} {error}")


def parse_command(source, words, monkeypatch):
    program, *rest = words
    if program == "make":
        assert rest and set(rest) <= set(re.findall(r"^(\w+):", read("Makefile"), re.M))
    elif program.split("/")[-1] in ("python", "python3"):
        parse_python(rest, monkeypatch)
    else:
        assert program in OTHER_PROGRAMS, f"{source}: {shlex.join(words)}"


def parse_python(words, monkeypatch):
    """Parse a python command line with the parser that would get it; nothing is done."""
    if words[:1] == ["-m"]:
        return parse_module(words[1], words[2:], monkeypatch)
    name, *rest = words
    if name == "datasets/clean.py":
        clean.option_parser().parse_args(rest)
        return None
    if name == "datasets/prepare.py":
        called = []
        for kind in prepare.COMMANDS:
            monkeypatch.setitem(prepare.COMMANDS, kind, called.append)
        assert prepare.main(rest) == 0 and len(called) == 1
        return None
    script = name.removesuffix(".py")
    assert script in SCRIPTS, name
    opt = getattr(options, f"parse_{script}")(rest)
    if getattr(opt, "model", None):
        assert opt.model in choices.MODELS or opt.model == "MyNet" or opt.model.startswith("timm:")
    return None


def parse_module(name, words, monkeypatch):
    if name in ("venv", "pip"):
        return
    if name == "tools.docs":
        docs.option_parser().parse_args(words)
    elif name == "tools.preview":
        from tools import preview

        called = []
        monkeypatch.setattr(preview, "draw", called.append)
        assert preview.main(words) == 0 and len(called) == 1
    elif name in ("tools.doctor", "benchmarks.transforms"):
        module, work = {
            "tools.doctor": ("tools.doctor.command", "check"),
            "benchmarks.transforms": ("benchmarks.transforms", "compare"),
        }[name]
        tool = importlib.import_module(module)
        called = []
        monkeypatch.setattr(tool, work, lambda opt: called.append(opt) or 0)
        assert tool.main(words) == 0 and len(called) == 1
    elif name == "tools.lr_find":
        from tools import lr_find

        lr_find.option_parser().parse(words)
    elif name == "tools.sweep":
        from tools import sweep

        cut = words.index("--") if "--" in words else len(words)
        sweep.option_parser().parse_args(words[:cut])
        options.build_parser("train").parse([*words[cut + 1 :], "--tag", "x"])
    elif name in ("tools.embed", "tools.best_scale", "tools.long_tail", "benchmarks.input", "benchmarks.eval", "benchmarks.train"):
        importlib.import_module(name).option_parser().parse_args(words)
    else:
        assert name == "tools.demo" and not words, name


def test_a_command_that_does_not_parse_is_found(monkeypatch, capsys):
    for wrong in (
        "train.py --modle ResNet50",
        "eval.py --tta x9 --load a.pt",
        "-m tools.preview --view 3",
        "datasets/prepare.py folders x",
    ):
        with pytest.raises(SystemExit):
            parse_python(wrong.split(), monkeypatch)


def test_the_recipe_is_the_demo_s_training():
    from tools import demo

    recipe = {tuple(words[1:]) for words in commands(read("runs/fashion_mnist_lite0.sh")) if words[0] == "python"}
    train = next(shlex.split(step) for step in demo.STEPS if step.startswith("train.py"))
    train[train.index("--tag") + 1] = "fashion_mnist_lite0"
    assert tuple(train) in recipe


# ------------------------------------------------------------------------------------------------ what the README says to do


@pytest.fixture
def copy(tmp_path):
    """The code that training needs, in a folder of its own."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("options", "network", "dataloader", "optimizer", "scheduler", "utils", "training", "inference", "evaluation"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "eval.py"):
        shutil.copy(ROOT / name, folder)
    return folder


def run_small(words, folder, photo_set, *more):
    """Run a README's training command in `folder`, on the photographs, small."""
    assert words[:2] == ["python", "train.py"]
    small = f"--data_root {photo_set} --scale 32 -b 12 -w 0 --gpu -1".split()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *words[1:], *small, *more], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("changed", [False, True], ids=["copied", "rewritten"])
def test_a_model_of_your_own_in_four_steps(changed, copy, photo_set):
    text = section_with("README.md", "cp -r network/ResNeSt network/MyNet")
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
def test_parts_of_your_own(copy, photo_set):
    text = section_with("README.md", "# optimizer/__init__.py")
    for code in blocks(text, "python"):
        path = copy / code.splitlines()[0].removeprefix("# ")
        path.write_text(f"{path.read_text()}\n\n{code}")
    (command,) = commands(blocks(text, "bash")[0])
    run_small(command, copy, photo_set, "--model", "ResNet18", "--no-pretrained")
    assert (copy / "checkpoints/mine/3_ResNet18.pt").is_file()
    run_small(command, copy, photo_set, "--model", "ResNet18", "--no-pretrained", "--scheduler", "sqrt", "--epochs", "1", "--overwrite")
