"""The defaults that a run chooses: what they follow from, and that nothing given is changed."""

from dataclasses import replace
from itertools import product

import pytest

from options import Options, build_parser, parse_train
from options.choices import TRANSFORM_FLAGS
from options.defaults import ACTS_THROUGH, ADAMW_LR, CHAIN, FITTED_LR_FACTOR, MAX_FITTED_IMAGES, Facts, fill_defaults

FINE_TUNED = Facts(images=3_000, pretrained=True, batch_norm=True, features=512, classes=10)
SCRATCH = Facts(images=60_000, pretrained=False, batch_norm=True)


def filled(words: str = "", facts: Facts = FINE_TUNED) -> Options:
    return fill_defaults(parse_train(words.split()), facts)[0]


def test_fill_defaults_fills_the_flags_that_help_calls_chosen():
    """Over many runs, the flags that change or are logged are those that --help marks, each at least once."""
    original = vars(parse_train([]))
    changed = set()
    for images, pretrained, batch_norm, words in product(
        (50, 5_000, 2_000_000),
        (True, False),
        (True, False),
        ("", "--optimizer sgd --mixup 0.2", "--epochs 1"),
    ):
        opt = vars(filled(words, Facts(images, pretrained, batch_norm, features=512, classes=50)))
        given = vars(parse_train(words.split()))
        changed |= {name for name in original if opt[name] != given[name]}
    assert changed | {"hflip", "optimizer"} == build_parser("train").derived  # these two equal the template's values


@pytest.mark.parametrize(
    "word",
    "--batch_size=7 --epochs=3 --optimizer=lamb --lr=0.3 --weight_decay=0.3 --warmup=0.5 --transform=augmix --zoom=0.9 "
    "--crop_ratio=0.9 --hflip=0.9 --vflip=0.9 --transpose=0.9 --jitter=0.9 --blur=0.9 --cutout=0.9 --smooth=0.3 "
    "--cutmix=0.3".split(),
)
@pytest.mark.parametrize("facts", (FINE_TUNED, SCRATCH))
def test_fill_defaults_given_flag_is_never_changed(word, facts):
    name = word[2:].split("=")[0]
    assert getattr(filled(word, facts), name) == getattr(parse_train([word]), name)


def test_fill_defaults_original_changes_nothing():
    opt = parse_train(["--preset", "original"])
    assert fill_defaults(opt, SCRATCH) == (opt, [])
    assert (opt.transform, opt.vflip, opt.transpose, opt.lr, opt.batch_size) == ("resize", 0.5, 0.5, 5e-4, 24)


def test_fill_defaults_original_command_line_keeps_its_meaning():
    """The template's own command: its schedule sets the epochs, and nothing is added to it."""
    words = "--model ResNeSt101 --optimizer sgd --scheduler 2x -b 24 --lr 0.0001"
    opt = filled(words, Facts(3_000, True, True, features=512, classes=10, scheduled_epochs=24))
    assert (opt.epochs, opt.warmup, opt.optimizer, opt.scheduler) == (24, 0.0, "sgd", "2x")
    assert (opt.batch_size, opt.lr, opt.weight_decay, opt.vflip, opt.transpose) == (24, 1e-4, 1e-4, 0.0, 0.0)
    assert filled(f"{words} --transform resize").vflip == 0.5


def test_fill_defaults_hours_sets_no_epochs_and_a_short_warmup():
    """How many epochs --hours allows is unknown here; a tenth of twenty could be longer than the run."""
    opt = parse_train(["--hours", "1", "-b", "30"])
    found, reasons = fill_defaults(opt, FINE_TUNED)
    assert "--epochs" not in "".join(reasons) and "if --hours allows it" in "".join(reasons)
    assert (found.warmup, found.zoom) == (1.0, filled("--epochs 10").zoom)
    assert fill_defaults(opt, SCRATCH)[0].warmup == 0.05


def test_fill_defaults_reasons_of_one_epoch_are_singular():
    reasons = "\n".join(fill_defaults(parse_train(["--epochs", "1"]), SCRATCH)[1])
    assert "1 epoch" in reasons and "1 epochs" not in reasons


def test_fill_defaults_augments_more_in_longer_runs():
    zooms = [filled(f"--epochs {epochs}").zoom for epochs in (5, 10, 20, 100)]
    assert zooms == sorted(zooms, reverse=True) and zooms[0] > zooms[1] > zooms[2] == zooms[3] == CHAIN["zoom"][1]
    assert filled("--epochs 1").transform == "none"


def test_fill_defaults_one_epoch_keeps_a_flag_of_the_chain():
    """`--transform none` would leave out the flips that were asked for."""
    opt = filled("--epochs 1 --vflip 0.5")
    assert (opt.transform, opt.vflip, opt.zoom, opt.cutout) == ("resize", 0.5, 1.0, 0.0)


@pytest.mark.parametrize("epochs", (1, 2, 3))
@pytest.mark.parametrize("name", TRANSFORM_FLAGS["resize"])
def test_fill_defaults_short_run_keeps_every_flag_of_the_chain(name, epochs):
    """Few epochs chose --transform none beside --rotate, and --jitter 0 beside --brightness: neither acted."""
    opt = filled(f"--epochs {epochs} --{name} 0.4")
    assert (opt.transform, getattr(opt, name)) == ("resize", 0.4)
    assert getattr(opt, ACTS_THROUGH.get(name, name)) > 0


def test_fill_defaults_flag_that_acts_through_another_leaves_a_given_one():
    opt, reasons = fill_defaults(parse_train("--epochs 3 --hue 0.4 --cutout_size 0.2 --jitter 0".split()), FINE_TUNED)
    assert (opt.jitter, opt.cutout) == (0, CHAIN["cutout"][1])
    assert "--cutout for --cutout_size" in "".join(reasons)


def test_fill_defaults_learning_rate_follows_optimizer_batch_and_network():
    at = {
        words: filled(f"-b 32 --no-fit_head {words}").lr
        for words in ("", "--optimizer sgd", "--optimizer lion", "-b 128")
    }
    assert at[""] == ADAMW_LR[True, True]
    assert at["--optimizer lion"] < at[""] < at["-b 128"] < at["--optimizer sgd"]
    assert at["-b 128"] == 2 * at[""] and filled("-b 32 --accumulate 4").lr == 2 * at[""]
    assert filled("-b 32", Facts(3_000, True, batch_norm=False)).lr == ADAMW_LR[True, False]


def test_fill_defaults_from_scratch_mixes_unless_it_cannot():
    opt = filled("--epochs 100", SCRATCH)
    assert opt.cutmix > 0 and opt.mix_off > 0
    for words in ("--loss ohem", "--head arcface"):
        opt = filled(f"--epochs 100 {words}", SCRATCH)
        assert (opt.cutmix, opt.mix_off) == (0, 0)
    opt = filled("--epochs 100 --mixup 0.2", SCRATCH)
    assert opt.cutmix == 0 and opt.mix_off > 0  # the user has chosen how to mix
    assert filled("--epochs 100").cutmix == 0  # fine-tuning
    opt = filled("--epochs 100 --mix_off 0.3", SCRATCH)
    assert opt.cutmix > 0 and opt.mix_off == 0.3


def test_fill_defaults_gives_each_value_with_its_reason():
    opt, reasons = fill_defaults(parse_train(["--lr", "0.01"]), FINE_TUNED)
    assert f"--batch_size {opt.batch_size}  (3,000 training images)" in reasons
    assert not any("--lr" in line for line in reasons)


def test_fill_defaults_batch_is_a_multiple_of_repeat_aug():
    for repeats, batch in ((1, 32), (2, 32), (3, 33), (5, 35), (16, 32)):
        assert filled(f"--repeat_aug {repeats}").batch_size == batch
    assert filled("--repeat_aug 3 -b 32").batch_size == 32  # a given flag is never changed


def test_fill_defaults_fits_the_classifier_to_few_images_from_imagenet_weights():
    few = replace(FINE_TUNED, classes=15)
    opt = filled("", few)
    assert opt.fit_head and opt.lr == pytest.approx(FITTED_LR_FACTOR * filled("--no-fit_head", few).lr, rel=0.05)
    assert filled("", replace(few, images=MAX_FITTED_IMAGES, classes=50)).fit_head
    for changed in (
        {"images": MAX_FITTED_IMAGES + 1, "classes": 100},
        {"pretrained": False},
        {"features": 0},
        {"classes": 14},  # more than 200 images per class
        {"classes": 1501},  # fewer than 2
        {"classes": 0},  # unknown
        {"images": 10_000, "features": 2_048, "classes": 100},  # minutes of fitting
    ):
        assert not filled("", replace(few, **changed)).fit_head, changed
    for words in ("--load x.pt", "--probe_init x.pt", "--loss focal", "--head arcface", "--balance sqrt", "--lr 0.001"):
        assert not filled(words, few).fit_head, words
    for words in ("--logit_adjust 1", "--class_weight effective", "--no-freeze_bn", "--preset original"):
        assert not filled(words, few).fit_head, words
    assert not filled("--task ordinal", few).fit_head
