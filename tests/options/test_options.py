"""The command line: no flag without use, help and range; light; and the same names as the registries."""

import ast
import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from options import (
    Options,
    build_parser,
    choices,
    command,
    given_words,
    parse_clear,
    parse_eval,
    parse_submit,
    parse_train,
    rules,
)
from options.parser import split_at_dashes
from options.plain_yaml import read_yaml
from utils.files import write_yaml

SCRIPTS = ("train", "eval", "submit", "clear")
PARSERS = {name: build_parser(name) for name in SCRIPTS}
FLAGS = sorted({flag for parser in PARSERS.values() for flag in parser.flags()})
ROOMS = ("network", "dataloader", "optimizer", "scheduler", "utils", "training", "inference", "evaluation")
LIST = 'getattr(opt, f"{name}_list")'
# Read by a name that is put together: the expression, and the call that gives it the name.
PUT_TOGETHER = {f"{name}_list": (LIST, f'open_list(opt, "{name}"') for name in ("train", "val", "test")}


def sources() -> list[Path]:
    """The files that a script can reach: those of tools/ read flags too, but no user's run goes through them."""
    return [
        *(ROOT / f"{name}.py" for name in SCRIPTS),
        *(path for room in ROOMS for path in (ROOT / room).rglob("*.py")),
    ]


def names_read() -> set[str]:
    """What is read from the options outside options/: `opt.x`, `self.opt.x`, and what PUT_TOGETHER proves."""
    found, text = set(), ""
    for path in sources():
        source = path.read_text()
        text += source
        for node in ast.walk(ast.parse(source)):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Load)
                and ast.unparse(node.value).split(".")[-1] == "opt"
            ):
                found.add(node.attr)
    return found | {name for name, proofs in PUT_TOGETHER.items() if all(proof in text for proof in proofs)}


def test_flags_are_all_read_outside_options():
    assert sorted(set(FLAGS) - names_read()) == ["config"]  # the parser's own


@pytest.mark.parametrize("name", SCRIPTS)
def test_flags_all_have_help(name):
    for flag, action in PARSERS[name].flags().items():
        assert action.help and len(action.help) > 5, f"--{flag} of {name}.py has no help"


@pytest.mark.parametrize("name", SCRIPTS)
def test_flags_of_numbers_all_have_bounds(name):
    numbers = {flag for flag, action in PARSERS[name].flags().items() if action.type in (int, float)}
    assert numbers == set(PARSERS[name].bounds)


@pytest.mark.parametrize("name", SCRIPTS)
def test_defaults_obey_the_rules(name, monkeypatch):
    words = {"train": [], "eval": ["--load", "x.pt"], "submit": ["--load", "x.pt"], "clear": ["--tag", "x"]}[name]
    opt = PARSERS[name].parse(words)
    assert opt.given == sorted(word.removeprefix("--") for word in words if word.startswith("--"))


@pytest.mark.parametrize("flag", rules.OFF)
def test_flags_left_out_are_off(flag):
    """A rule would refuse, beside another flag, one that nobody has given."""
    defaults = [parser.flags()[flag].default for parser in PARSERS.values() if flag in parser.flags()]
    assert defaults and all(value == rules.OFF[flag] for value in defaults)


@pytest.mark.parametrize(
    "shared", ["tag", "config", "gpu", "seed", "workers", "batch_size", "data_root", "debug", "check_files", "load"]
)
def test_shared_flags_are_equal_in_all_scripts(shared):
    """submit.py had a parser of its own once, with other defaults."""
    ours = [PARSERS[name].flags()[shared] for name in ("train", "eval", "submit")]
    assert len({(tuple(action.option_strings), action.default, action.type) for action in ours}) == 1


def after(code: str, cwd: Path) -> set[str]:
    """The modules that are loaded after `code` ran in a fresh process in the empty folder `cwd`."""
    script = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}\nprint('MODULES', *sys.modules)"
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split("MODULES", 1)[1].split())


def test_options_import_only_standard_library(tmp_path):
    loaded = {name.split(".")[0] for name in after("import options; options.parse_train([])", tmp_path)}
    before = {name.split(".")[0] for name in after("", tmp_path)}
    assert loaded - before <= {*sys.stdlib_module_names, "options"}
    assert not loaded & {"torch", "numpy", "yaml"}


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("words, code", [(["--help"], 0), (["--no_such_flag"], 2)], ids=["help", "a typo"])
def test_help_and_typo_import_nothing_heavy(tmp_path, name, words, code):
    run = f"""
import runpy
sys.argv = ["{name}.py", *{words!r}]
try:
    runpy.run_path({str(ROOT / f"{name}.py")!r}, run_name="__main__")
except SystemExit as stop:
    assert stop.code == {code}, stop.code
"""
    assert not after(run, tmp_path) & {"torch", "numpy", "cv2", "timm", "albumentations", "matplotlib"}


def registries() -> dict[str, set[str]]:
    from dataloader.transforms import transforms
    from inference.tta import TTA
    from network import models
    from optimizer import optimizers
    from scheduler import schedulers, tables
    from training.losses import losses

    return {
        "MODELS": set(models),
        "OPTIMIZERS": set(optimizers),
        "SCHEDULERS": {*schedulers, *tables},
        "TRANSFORMS": set(transforms),
        "LOSSES": set(losses),
        "TTAS": set(TTA),
    }


@pytest.mark.parametrize("name", ["MODELS", "OPTIMIZERS", "SCHEDULERS", "TRANSFORMS", "LOSSES", "TTAS"])
def test_choices_equal_the_registries(name):
    names = getattr(choices, name)
    assert set(names) == registries()[name]
    assert len(set(names)) == len(names)


def test_parse_name_outside_choices_is_accepted(monkeypatch):
    """Only what nobody is meant to extend is held against choices.py when the command line is read."""
    for flag in ("model", "optimizer", "scheduler", "transform", "loss"):
        assert getattr(parse_train([f"--{flag}", "mine"]), flag) == "mine"


NEEDED = [
    (parse_train, []),
    (parse_eval, ["--load", "x"]),
    (parse_submit, ["--load", "x"]),
]  # words that each cannot do without


@pytest.mark.parametrize("parse, words", NEEDED)
def test_parse_given_words_ignores_sys_argv(parse, words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x.py", "--no_such_flag"])
    assert parse([*words, "--tag", "mine"]).tag == "mine"


def test_given_words_of_values_and_lists_parse_to_them():
    values = {"load": ["a b", "c"], "weights": (0.5, 1.0), "data_root": Path("datasets"), "gpu": -1, "scale": None}
    words = ["--load", "a b", "c", "--weights", "0.5", "1.0", "--data_root", "datasets", "--gpu", "-1"]
    assert given_words(values) == words
    assert given_words(values, "gpu", "scale", "load") == ["--gpu", "-1", "--load", "a b", "c"]
    opt = parse_eval(given_words(values))
    assert (opt.load, opt.weights, opt.data_root, opt.gpu) == (["a b", "c"], [0.5, 1.0], "datasets", -1)
    assert "data_root" in opt.given and "scale" not in opt.given  # the first with its default


@pytest.mark.parametrize(
    "words, parts",
    [
        (["--a", "1"], (["--a", "1"], [])),
        (["--a", "1", "--", "--b", "--", "c"], (["--a", "1"], ["--b", "--", "c"])),
        (["--", "--b"], ([], ["--b"])),
        (["--a", "--"], (["--a"], [])),
    ],
)
def test_split_at_dashes_gives_the_words_before_and_after_the_first(words, parts, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x.py", *words])
    assert split_at_dashes(words) == split_at_dashes() == parts


def test_parse_without_words_reads_sys_argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["clear.py", "--tag", "typed"])
    assert parse_clear().tag == "typed"


def test_given_includes_flags_at_their_default():
    assert parse_train(["--lr", "0.0005", "--no-pretrained"]).given == ["lr", "pretrained"]
    assert parse_train([]).given == []


@pytest.mark.parametrize(
    "words",
    [
        ["--lr", "nan"],
        ["--smooth", "1.5"],
        ["--gpu", "-2"],
        ["--tag", "鞋" * 67],
        ["--epochs", "0"],
        ["-b", "1"],
        ["--scale", "7"],
        ["--seed", "-1"],
        ["--momentum", "inf"],
        ["--lr", "1e10"],
        ["--lr", "nan"],
    ],
)
def test_parse_number_out_of_range_is_refused(words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_train(words)
    assert stop.value.code == 2
    assert "allowed: " in capsys.readouterr().err


def test_parse_typo_reports_other_problems_too(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_train(["--optimiser", "sgd", "--lr", "1e10", "--hflip", "2", "--mixup", "1", "--loss", "ohem"])
    shown = capsys.readouterr().err
    assert stop.value.code == 2 and "4 problems" in shown
    for part in (
        "no option --optimiser. Did you mean --optimizer",
        "--lr is 10000000000.0; allowed: from 0 to 100",
        "--hflip is 2",
        "ohem and",
    ):
        assert part in shown
    with pytest.raises(SystemExit):
        parse_eval(["--lod", "x.pt"])
    assert "is needed" not in capsys.readouterr().err  # it follows


def test_parse_abbreviated_flag_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse_train(["--batch", "3"])
    assert "Did you mean --batch_size" in capsys.readouterr().err


# ------------------------------------------------------------------------ files of options, and paths

TEXTS = {  # text flags that are no path: a new one is sorted in here, or takes type=expanded
    *"tag model preset optimizer scheduler precision head pool loss class_weight balance transform".split(),
    *"scale_schedule clip_mode fit metric on_bad_image cache_format loader tta blend temperature format".split(),
    *"columns separator id labels joiner task fit_thresholds restore".split(),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_parse_tilde_in_any_path_is_expanded(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    parser = PARSERS[name]
    for flag, action in parser.flags().items():
        if action.nargs != 0 and action.type not in (int, float) and flag not in TEXTS:
            prefix = "disk:" if flag == "cache" else ""
            assert parser.value(flag, [f"{prefix}~/x"] if action.nargs else f"{prefix}~/x") in (
                f"{prefix}/home/me/x",
                ["/home/me/x"],
            ), flag
    (tmp_path / "c.yaml").write_text("load: [~/a.pt, b.pt]\n")
    assert parse_eval([f"--config={tmp_path}/c.yaml"]).load == ["/home/me/a.pt", "b.pt"]


def test_config_values_are_text_as_written(tmp_path):
    """YAML 1.1 would make 83, 1.1 and True of the first three."""
    file = tmp_path / "c.yaml"
    for text in ("0123", "1.10", "on", "2020-01-01", "'null'", "!!str 0x10"):
        file.write_text(f"tag: {text}\n")
        assert parse_train(["--config", str(file)]).tag == text.removeprefix("!!str ").strip("'")
    file.write_text(
        "lr: 1e-3\nema: .5\nbatch_size: 32\nresume: on\npretrained: No\n"
        "val_list: ~\nload: null\nscale_schedule: 1:128,11:19\n"
    )
    opt = parse_train(["--config", str(file)])
    assert (opt.lr, opt.ema, opt.batch_size, opt.resume, opt.pretrained) == (1e-3, 0.5, 32, True, False)
    assert (opt.val_list, opt.load, opt.scale_schedule) == (None, None, "1:128,11:19")
    assert opt.given == ["batch_size", "ema", "lr", "pretrained", "resume", "scale_schedule"]
    file.write_text("columns: [0, on]\n")
    assert parse_submit(["--config", str(file), "--load", "x"]).columns == ["0", "on"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tag: [mine, --lr, 5]", "--tag is ['mine', '--lr', '5']; allowed: one value"),
        ("load: {a: b}", "--load is {'a': 'b'}; allowed: texts, at least one"),
        ("load: [[a.pt]]", "--load is [['a.pt']]"),
        ("columns: [id]", "--columns is ['id']; allowed: 2 values"),
        ("tta: x88", "--tta: invalid choice: 'x88'. Did you mean x8?"),
        ("scale: 12.5", "--scale: '12.5' is no whole number (side of the square"),
        ("tag: a\ntag: b", "'tag' appears twice"),
        ("a: &a [x, x]\nb: &b [*a, *a]", "aliases are not allowed"),
        (
            "tag: !!python/object/apply:os.getcwd []",
            "the tag tag:yaml.org,2002:python/object/apply:os.getcwd is not allowed",
        ),
        ("tag: " + "[" * 5000, "nested deeper"),
        ("#" * 1_000_001, "more than 1,000,000 bytes"),
        ("config: other.yaml", "a file cannot name another file"),
    ],
)
def test_config_with_forbidden_content_is_refused(text, said, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        parse_submit(["--config", str(tmp_path / "c.yaml"), "--load", "x.pt"])
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_config_whose_lists_another_data_root_would_leave_is_refused(tmp_path, capsys):
    """The options.yaml of a run on class folders names the lists that it drew from them."""
    file = tmp_path / "options.yaml"
    file.write_text("data_root: photos\ntrain_list: logs/b/lists/train.txt\nval_list: logs/b/lists/val.txt\n")
    for words in (["--data_root", "other"], ["--data_root", "other", "--train_list", "t.txt"]):
        with pytest.raises(SystemExit):
            parse_train(["--config", str(file), *words])
        said = capsys.readouterr().err
        assert f"--data_root other does not replace the lists that the file {file} names" in said
        assert ("--train_list logs/b" in said) == ("t.txt" not in words) and "--val_list logs/b/lists/val.txt" in said
    parse_train(["--config", str(file), "--data_root", "other", "--train_list", "t.txt", "--val_freq", "0"])
    parse_train(["--config", str(file), "--data_root", "photos/"])
    file.write_text("train_list: mine.txt\n")
    assert parse_train(["--config", str(file), "--data_root", "other"]).train_list == "mine.txt"


def test_config_flag_inside_a_list_is_a_value(tmp_path):
    (tmp_path / "c.yaml").write_text("load: [a.pt, --tta, x8]\n")
    opt = parse_eval(["--config", str(tmp_path / "c.yaml")])
    assert (opt.load, opt.tta) == (["a.pt", "--tta", "x8"], "none")


def test_write_yaml_reads_back_as_text(tmp_path):
    texts = ["0123", "on", "null", "~", "", "a: b", "- x", "caf\udce9", "\x1b\r\n", "图"]
    texts += ["!tag", "&a", "*a", "1.10", "# no"]
    twice = ["x"]
    write_yaml(tmp_path / "c.yaml", {"texts": texts, "one": twice, "two": twice, "nothing": None, "number": 5e-4})
    found = read_yaml(tmp_path / "c.yaml")
    assert (found["texts"], found["one"], found["two"], found["nothing"]) == (texts, twice, twice, None)
    assert float(found["number"]) == 5e-4


# ------------------------------------------------------------------------ aliases

ALIASES = {
    "scale": "img_size",
    "fit": "resize_mode",
    "fold": "fuse_bn",
    "smooth": "label_smoothing",
    "accumulate": "grad_accum_steps",
    "head_lr": "head_lr_mult",
    "max_nan": "max_nonfinite_steps",
    "max_bad": "max_unreadable",
    "keep": "keep_last",
    "drop": "dropout",
    "checkpoint_grad": "grad_checkpointing",
}
VALUES = {
    "fit": "crop",
    "fold": "false",
    "smooth": "0.3",
    "drop": "0.3",
    "max_bad": "0.3",
    "head_lr": "0.3",
    "checkpoint_grad": "true",
}  # else "64"


def test_aliases_equal_the_table():
    found = {dest: name for parser in PARSERS.values() for name, dest in parser.names().items() if name != dest}
    assert found == ALIASES


@pytest.mark.parametrize("dest", ALIASES)
def test_alias_in_words_or_config_sets_the_option(dest, tmp_path):
    script = "eval" if dest == "fold" else "train"
    alias, value, load = ALIASES[dest], VALUES.get(dest, "64"), ["--load", "x.pt"]
    (tmp_path / "c.yaml").write_text(f"{alias}: {value}\n")
    typed, own = (
        {"false": [f"--no-{name}"], "true": [f"--{name}"]}.get(value, [f"--{name}", value]) for name in (alias, dest)
    )
    expected = PARSERS[script].parse([*load, *own])
    for words in (typed, ["--config", str(tmp_path / "c.yaml")]):
        opt = PARSERS[script].parse([*load, *words])
        assert getattr(opt, dest) == getattr(expected, dest) != PARSERS[script].get_default(dest)
        assert opt.given == expected.given == sorted([dest, "load"])
        assert not hasattr(opt, alias)
        assert command(script, vars(opt) | {"config": None}) == command(script, vars(expected))


def test_alias_in_error_is_spelt_as_typed(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("label_smoothing: 3\n")
    words = ["--config", str(tmp_path / "c.yaml"), "--grad_accum_steps=2", "--sam", "0.1", "--img_size", "4"]
    with pytest.raises(SystemExit):
        parse_train(words)
    shown = capsys.readouterr().err
    for part in (
        "--label_smoothing is 3.0; allowed",
        "--img_size is 4; allowed",
        "--sam and --grad_accum_steps contradict",
    ):
        assert part in shown
    with pytest.raises(SystemExit):
        parse_train(["--smooth", "3"])
    assert "--smooth is 3.0; allowed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("smooth: 0.1\nlabel_smoothing: 0.2", "label_smoothing and smooth are one option; give it once"),
        ("label_smoothing: x", "--label_smoothing: 'x' is no number"),
        ("grad_acum_steps: 2", "there is no option --grad_acum_steps. Did you mean --grad_accum_steps"),
    ],
)
def test_alias_wrong_in_config_is_refused(text, said, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        parse_train(["--config", str(tmp_path / "c.yaml")])
    assert stop.value.code == 2 and said in capsys.readouterr().err


# ------------------------------------------------------------------------ read-only options


@pytest.mark.parametrize("parse, words", [*NEEDED, (parse_clear, ["--tag", "x"])])
def test_parsed_options_are_read_only(parse, words):
    opt = parse(words)
    with pytest.raises(AttributeError, match="read-only"):
        opt.tag = "other"
    assert opt.replace(tag="other").tag == "other" != opt.tag


def test_options_read_only_refuse_set_and_delete():
    opt = Options(scale=224, lr=0.1).make_read_only()
    with pytest.raises(AttributeError, match=r"opt.replace\(scale="):
        opt.scale = 128
    with pytest.raises(AttributeError, match="read-only"):
        opt.new = 1
    with pytest.raises(AttributeError, match="read-only"):
        del opt.lr
    assert vars(opt) == {"scale": 224, "lr": 0.1}


def test_replace_gives_changed_read_only_copy():
    opt = Options(scale=224, lr=0.1).make_read_only()
    changed = opt.replace(scale=128)
    assert (opt.scale, changed.scale, changed.lr) == (224, 128, 0.1)
    with pytest.raises(AttributeError, match="read-only"):
        changed.scale = 64
    with pytest.raises(AttributeError, match="there is no option scal"):
        opt.replace(scal=128)


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_options_copied_stay_read_only(copied):
    """Worker processes get the options by pickle."""
    opt = copied(Options(scale=224).make_read_only())
    assert vars(opt) == {"scale": 224}
    with pytest.raises(AttributeError, match="read-only"):
        opt.scale = 128


def test_flags_have_no_method_names():
    """argparse would take the method for a value, and never set the default."""
    assert not set(dir(Options)) & {*FLAGS, "given"}


@pytest.mark.parametrize("words", [["--pretrained", "x.pth"], ["--pretrained=x.pth"], ["--load", "x.pth"]])
def test_pretrained_with_path_is_load(words, capsys):
    opt = parse_train([*words, "--epochs", "3"])
    assert (opt.load, opt.pretrained, opt.epochs) == ("x.pth", True, 3) and "load" in opt.given
    assert parse_train(["--pretrained", "--epochs", "3"]).load is None
    if "--load" not in words:
        with pytest.raises(SystemExit) as end:
            parse_train([*words, "--load", "y.pth"])
        assert end.value.code == 2 and "--load and --pretrained contradict" in capsys.readouterr().err
