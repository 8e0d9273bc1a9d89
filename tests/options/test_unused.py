"""Flags that change nothing beside the others: each has a line that names it, and none where it acts."""

import pytest

from options import build_parser, parse_eval, parse_train
from options.choices import TRANSFORM_FLAGS
from options.unused import CONDITIONS, unused_flags

# Each flag with a value, beside words with which it does not act, and with which it does.
CASES = {
    "ohem_ratio 0.3": ("", "--loss ohem"),
    "focal_gamma 1": ("--loss ohem", "--task multilabel --loss focal"),
    "cb_beta 0.9": ("", "--class_weight effective"),
    "distill_alpha 0.2": ("", "--teacher x.pt"),
    "distill_temp 3": ("", "--teacher x.pt"),
    "head_scale 9": ("", "--head cosine"),
    "head_margin 0.1": ("--head cosine", "--head subcenter"),
    "momentum 0.8": ("--optimizer muon", "--optimizer sgd"),
    "step_size 3": ("", "--scheduler step"),
    "min_lr 0.0001": ("--scheduler 7x", "--scheduler onecycle"),
    "drop_path 0.1": ("--model iResNet50", "--model timm:resnet18"),
    "rotate 9": ("--transform albumentations", "--transform resize"),
    "ra_ops 3": ("", "--transform randaugment"),
    "ra_magnitude 3": ("--transform none", "--transform randaugment"),
    "hue 0.1": ("--jitter 0", "--jitter 0.1"),
    "cutout_size 0.2": ("--cutout 0", "--transform albumentations"),
    "erase_area 0.2": ("", "--erase 0.1"),
    "cache_size 64": ("", "--cache ram"),
    "cache_format raw": ("", "--cache disk:x"),
    "cache_quality 90": ("--cache ram --cache_format raw", "--cache ram"),
    "weights_dir x": ("--load x.pt", "--pretrained"),
    "on_bad_image skip": ("--no-check_files", ""),
}


@pytest.mark.parametrize("flag", CASES)
def test_unused_flags_names_a_flag_where_it_does_not_act(flag):
    idle, acting = CASES[flag]
    (line,) = unused_flags(parse_train(f"--{flag} {idle}".split()))
    assert line.startswith(f"--{flag.split()[0]} has no effect with") and "Try: leave it out, or --" in line
    assert unused_flags(parse_train(f"--{flag} {acting}".split())) == []


def test_unused_flags_covers_every_flag_of_its_table():
    parser = build_parser("train")
    assert CONDITIONS.keys() <= parser.flags().keys()
    cases = {flag.split()[0] for flag in CASES}
    assert CONDITIONS.keys() - cases <= set(TRANSFORM_FLAGS["resize"])


@pytest.mark.parametrize("transform", TRANSFORM_FLAGS)
def test_unused_flags_of_a_transform_are_those_that_it_does_not_read(transform):
    for name in {name for names in TRANSFORM_FLAGS.values() for name in names}:
        value = "1" if name.startswith("ra_") else "0.5"
        words = ["--transform", transform, f"--{name}", value]
        assert bool(unused_flags(parse_train(words))) == (name not in TRANSFORM_FLAGS[transform]), name


def test_unused_flags_of_one_reason_share_a_line():
    lines = unused_flags(parse_train("--transform none --rotate 9 --zoom 0.3 --distill_temp 3".split()))
    assert lines == [
        "--distill_temp has no effect without --teacher. Try: leave it out, or --teacher CKPT",
        "--zoom, --rotate have no effect with --transform none. Try: leave them out, or --transform resize",
    ]


def test_unused_flags_of_a_part_of_the_users_own_are_none():
    """Nobody but its author knows what it reads."""
    words = "--transform mine --rotate 9 --hue 0.2 --loss poly --focal_gamma 1 --optimizer nadam --momentum 0.8"
    assert unused_flags(parse_train([*words.split(), *"--scheduler 3e --min_lr 0.0001 --step_size 2".split()])) == []


def test_unused_flags_counts_processes():
    opt = parse_train(["--sync_bn"])
    assert "in one process" in unused_flags(opt)[0] and unused_flags(opt, processes=2) == []


def test_unused_flags_of_eval_are_those_of_the_cache():
    opt = parse_eval("--load x.pt --cache_size 64 --cache_format raw".split())
    assert [line.split(" have ")[0] for line in unused_flags(opt)] == ["--cache_size, --cache_format"]


def test_unused_flags_of_a_config_are_those_off_their_defaults(tmp_path):
    """The options.yaml of an earlier run holds every flag: few of them were meant."""
    file = tmp_path / "c.yaml"
    defaults = {name: value for name, value in vars(parse_train([])).items() if name in CONDITIONS}
    file.write_text("".join(f"{name}: {value}\n" for name, value in defaults.items() if value is not None))
    assert unused_flags(parse_train(["--config", str(file)])) == []
    file.write_text("momentum: 0.8\nfocal_gamma: 2\n")
    assert [line.split(" has ")[0] for line in unused_flags(parse_train(["--config", str(file)]))] == ["--momentum"]
