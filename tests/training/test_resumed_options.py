"""The options of a resumed run: those of its checkpoint and those given now, under the rules of a new run."""

import logging
import shutil

import pytest
import torch

import network
import tiny
from dataloader import lists_of
from network import get_model
from options import parse_train
from training.resumed_options import restore_options
from training.setup import build_engine
from training.start import RunStart
from training.state import RunState
from utils import checkpoint
from utils.errors import UserError


def resumed(began, now, change=lambda saved: saved):
    """Return the options of a run that began with the words `began` and is resumed with `now`."""
    saved = {name: value for name, value in vars(parse_train(began.split())).items() if name != "given"}
    return restore_options(parse_train([*now.split(), "--resume"]), {"opt": change(saved), "epoch": 1}, "last.pt")


@pytest.mark.parametrize(
    "began, now, said",
    [
        ("--sam 0.5", "--accumulate 3", "--sam and --accumulate contradict"),
        ("--accumulate 3", "--sam 0.5", "--sam and --accumulate contradict"),
        ("--lora 4", "--swa 2", "--lora and --swa contradict"),
        ("--swa 2", "--patience 2", "--patience and --swa contradict"),
        ("--val_freq 0", "--patience 2", "--patience counts validations"),
        ("--swa 2", "--hours 1", "--hours and --swa contradict"),
        ("--loss ohem", "--mixup 0.2", "--loss ohem and --mixup/--cutmix contradict"),
        ("--head arcface", "--mixup 0.2", "--head arcface and --mixup/--cutmix contradict"),
        ("--loss bce", "--logit_adjust 1", "--loss bce has no softmax"),
        ("--min_lr 1e-5", "--lr 1e-6", "--min_lr 1e-05 is above --lr 1e-06"),
        ("--lr 1e-6", "--min_lr 1e-5", "--min_lr 1e-05 is above --lr 1e-06"),
        ("--warmup 5 --epochs 9", "--epochs 3", "--warmup 5 is longer than --epochs 3"),
        ("--epochs 3", "--warmup 5", "--warmup 5 is longer than --epochs 3"),
        ("--mixup 0.2 --mix_off 0.2", "--mixup 0", "--mix_off has nothing to leave out"),
        ("--clip_grad 1", "--clip_mode agc --sam 1 --accumulate 2", "--sam and --accumulate"),
        ("--task multilabel", "--smooth 0.1", "--smooth 0.1 and --task multilabel contradict"),
    ],
)
def test_resume_with_a_flag_that_contradicts_the_checkpoint_is_refused(began, now, said, capsys):
    with pytest.raises((UserError, SystemExit)) as error:
        resumed(began, now)
    refused = isinstance(error.value, UserError)
    text = str(error.value) if refused else capsys.readouterr().err
    assert said in text
    assert not refused or ("you change --" in text and "--load last.pt without --resume" in text)


@pytest.mark.parametrize(
    "began, now",
    [
        ("--cutmix 1", "--mix_off 0.2"),
        ("--clip_grad 1", "--clip_mode agc"),
        ("--lr 1e-2 --preset original", "--min_lr 1e-3 --preset original"),
        ("--sam 0.5", "--sam 0 --accumulate 3"),
        ("--swa 2 --epochs 4", "--epochs 6"),
        ("--hours 1", "--epochs 6"),
        ("--epochs 3", "--hours 1"),
        ("--task ordinal", "--smooth 0.2"),
    ],
)
def test_resume_with_a_flag_that_suits_the_checkpoint_is_accepted(began, now):
    opt = resumed(began, now)
    given = parse_train([*now.split(), "--resume"])
    assert all(getattr(opt, name) == getattr(given, name) for name in given.given)


@pytest.mark.parametrize(
    "began, now",
    [
        ("--head linear", "--head cosine"),
        ("--fit_head", "--head cosine"),
        ("--head cosine", "--head subcenter"),
        ("--pool gem", "--pool avg"),
        ("--task ordinal --loss corn", "--loss huber"),
        ("--task ordinal", "--loss l1"),
        ("--optimizer sgd", "--optimizer adam"),
    ],
)
def test_resume_with_a_flag_that_changes_the_saved_state_is_refused_by_its_name(began, now):
    """A --head or --pool ended in a message about the optimizer, or the classes. With two ordered classes, --loss corn
    and huber both have one logit, so the run went on."""
    with pytest.raises(UserError) as error:
        resumed(began, now)
    assert f"whose state does not fit {now}" in str(error.value)
    assert f"Leave {now.split()[0]} out" in str(error.value)


@pytest.mark.parametrize(
    "began, now",
    [
        ("--head cosine", "--head arcface"),
        ("--task ordinal --loss huber", "--loss mse"),
        ("--task multilabel", "--loss asl"),
        ("--loss ce", "--loss focal"),
        ("--pool gem", "--pool gem"),
    ],
)
def test_resume_with_a_flag_that_keeps_the_saved_state_is_accepted(began, now):
    assert resumed(began, now).resume


def started(words, saved=None):
    """Return the start of a run with these words, or of one that is resumed from a checkpoint of options `saved`."""
    opt = parse_train([*words.split(), *(["--resume"] if saved else [])])
    return RunStart(opt, {"opt": saved} if saved else None, "last.pt", RunState(metric="top1"))


@pytest.mark.parametrize("words", ["--mix_off 0.2 --preset original", "--mix_off 0.2 --cutmix 0"])
def test_mix_off_of_a_run_that_will_not_mix_is_refused_at_once(words, capsys):
    with pytest.raises(SystemExit):
        parse_train(words.split())
    assert "--mix_off has nothing to leave out" in capsys.readouterr().err


def test_mix_off_is_judged_after_the_defaults_are_chosen():
    """It was refused where --cutmix would have been chosen."""
    start = started("--no-pretrained --epochs 60 --mix_off 0.2")
    opt = start.fill_defaults(start.opt, torch.nn.Linear(2, 2), 36, 3)
    assert opt.cutmix > 0 and opt.mix_off == 0.2
    start = started("--no-pretrained --epochs 6 --mix_off 0.2")
    with pytest.raises(UserError, match="--mix_off has nothing to leave out"):
        start.fill_defaults(start.opt, torch.nn.Linear(2, 2), 36, 3)


@pytest.mark.parametrize(
    "words, refused",
    [
        ("--epochs 3 --scale_schedule 1:16,4:32", False),  # as it began, in a version that did not ask
        ("--epochs 2 --scale_schedule 1:16,4:32", True),
        ("--epochs 3 --scale_schedule 1:16,5:32", True),
        ("--epochs 5 --scale_schedule 1:16,5:32", False),
    ],
)
def test_resume_before_the_last_size_is_refused_unless_it_began_so(words, refused):
    saved = dict(vars(parse_train("--epochs 3 --scale_schedule 1:16,4:32".split())))
    start = started(words, saved)
    if not refused:
        assert start.fill_defaults(start.opt, torch.nn.Linear(2, 2), 36, 3).epochs == start.opt.epochs
        return
    with pytest.raises(UserError, match="--scale_schedule .* has a size from epoch"):
        start.fill_defaults(start.opt, torch.nn.Linear(2, 2), 36, 3)


def test_resume_that_is_refused_names_the_changes_that_matter():
    with pytest.raises(UserError, match="you change --accumulate 1 -> 3.\nTry: leave the change out"):
        resumed("--sam 0.5 --epochs 1", "--accumulate 3 --epochs 2")


@pytest.mark.parametrize(
    "now, said",
    [
        (
            "--data_root b",
            "last.pt names: --train_list a/t.txt --val_list a/v.txt. Try: give --train_list and --val_list",
        ),
        ("--data_root b --train_list b/t.txt", "last.pt names: --val_list a/v.txt. Try: give --val_list too"),
        ("--data_root b --val_freq 0", "last.pt names: --train_list a/t.txt. Try: give --train_list too"),
    ],
)
def test_resume_with_another_data_root_beside_lists_of_the_checkpoint_is_refused(now, said):
    with pytest.raises(UserError, match="--data_root b does not replace the lists that") as error:
        resumed("--data_root a --train_list a/t.txt --val_list a/v.txt", now)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "began, now",
    [
        ("--data_root a --train_list a/t.txt --val_list a/v.txt", "--data_root ./a/"),
        ("--data_root a --train_list a/t.txt --val_list a/v.txt", "--val_list b/v.txt"),
        ("--data_root a --train_list a/t.txt", "--data_root b --train_list b/t.txt"),
        ("--data_root a --train_list a/t.txt --val_freq 0", "--train_list b/t.txt"),
        ("--data_root a", "--data_root b"),
    ],
)
def test_resume_with_lists_that_are_all_named_is_accepted(began, now):
    opt = resumed(began, now)
    given = parse_train([*now.split(), "--resume"])
    assert all(getattr(opt, name) == getattr(given, name) for name in given.given)


def test_resume_of_a_contradiction_that_began_before_its_rule_goes_on():
    old = {"patience": 2, "swa": 3}
    assert resumed("--epochs 4", "--epochs 6", lambda saved: saved | old).epochs == 6
    assert resumed("--epochs 4", "--patience 2 --epochs 6", lambda saved: saved | old).swa == 3


def test_resume_with_a_flag_that_is_newer_than_the_checkpoint_is_judged():
    def without(saved):
        return {name: value for name, value in saved.items() if name not in ("sam", "swa")}

    assert resumed("--epochs 4", "--sam 0.5", without).sam == 0.5
    with pytest.raises(UserError, match=r"(?s)--sam and --accumulate contradict.*you change --sam 0.0 -> 0.5"):
        resumed("--accumulate 3", "--sam 0.5", without)


def test_engine_of_sam_that_accumulates_is_refused():
    """Whoever resumed so with an earlier version has both in the checkpoint."""
    opt = resumed("--model timm:test_resnet --no-pretrained", "", lambda saved: saved | {"sam": 0.5, "accumulate": 3})
    model = get_model(opt.model)(opt.replace(num_classes=3))
    model.to_device(torch.device("cpu"))
    with pytest.raises(UserError, match="--sam does not work with --accumulate 3"):
        build_engine(opt, model, 4)


@pytest.mark.parametrize(
    "began, now, says",
    [
        ("--scheduler 2x", "--epochs 30", False),  # it ends after 24 epochs, as before
        ("--scheduler 2x --epochs 24", "--scheduler 2x --epochs 20", False),
        ("--epochs 24", "--epochs 20", True),
        ("--scheduler 2x", "--scheduler cos --epochs 30", True),
        ("--scheduler 2x --hours 1", "--epochs 30", True),
    ],
)
def test_resume_with_another_number_of_epochs_is_a_change_where_the_schedule_uses_it(
    began, now, says, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("classifier"), "propagate", True)
    caplog.set_level("INFO")
    resumed(began, now)
    assert ("--epochs" in caplog.text) == ("learning rate follows the changed schedule" in caplog.text) == says


@pytest.mark.parametrize("now, position", [("--seed 7", None), ("--lr 0.1", {"epoch": 2, "done": 3})])
def test_resume_of_a_cut_epoch_begins_it_again_if_its_batches_change(now, position):
    saved = {name: value for name, value in vars(parse_train([])).items() if name != "given"}
    content = {"opt": saved, "epoch": 1, "within": {"epoch": 2, "done": 3}}
    restore_options(parse_train([*now.split(), "--resume"]), content, "last.pt")
    assert content["within"] == position


def test_resume_with_another_teacher_at_the_same_path_is_refused(script, tmp_path, monkeypatch):
    """The rest of the run learned from the other network, and the log told of no change."""
    monkeypatch.setitem(network.models, "Tiny", tiny.Tiny)
    tiny.write_images(tmp_path)
    first = checkpoint.load(tiny.unpack("sgd", tmp_path))
    other = {**first, "weights": {name: value.clone() for name, value in first["weights"].items()}}
    other["weights"]["fc.bias"] += 1
    checkpoint.save(tmp_path / "t.pt", first)
    words = ["train.py", "--tag", "s", "--gpu", "-1", "-w", "0"]
    run = [*words, *tiny.FLAGS, "--data_root", ".", "--teacher", "t.pt", "--epochs", "1"]
    assert script(*run).code == 0
    last = tmp_path / "checkpoints/s/last.pt"
    content = checkpoint.load(last)
    assert content["training"]["teacher"] == checkpoint.identity(first)

    checkpoint.save(tmp_path / "t.pt", {**first, "calibration": {"temperature": 2.0, "tta": "none"}})
    assert script(*words, "--resume", "--epochs", "2").code == 0, "eval.py stores a temperature in the same network"
    checkpoint.save(tmp_path / "t.pt", other)
    for more in ((), ("--teacher", "t.pt")):
        result = script(*words, "--resume", "--epochs", "3", *more)
        assert result.code == 2
        assert "--teacher t.pt is another network than the one that checkpoints/s/last.pt has learned" in result.err
    shutil.copy("t.pt", "copy.pt")
    result = script(*words, "--resume", "--epochs", "3", "--teacher", "copy.pt")
    assert result.code == 0 and "--teacher t.pt -> copy.pt" in result.out
    assert checkpoint.load(last)["training"]["teacher"] == checkpoint.identity(other)

    del content["training"]["teacher"]
    checkpoint.save(last, content)  # of an earlier version
    assert script(*words, "--resume", "--epochs", "2").code == 0


@pytest.mark.parametrize(
    "now, warned",
    [("", "train val"), ("--val_freq 0", "train"), ("--val_list datasets/val.txt", "train"), ("--data_root data", "")],
)
def test_resume_in_another_folder_names_the_lists_that_it_reads_instead(now, warned, tmp_path, monkeypatch, caplog):
    """A second version of a data set, of the same names and labels, was trained on without a word."""
    for folder in ("one", "two"):
        (tmp_path / folder / "datasets").mkdir(parents=True)
        for name in ("train", "val"):
            (tmp_path / folder / "datasets" / f"{name}.txt").write_text("a.png 0\n")
    monkeypatch.setattr(logging.getLogger("classifier"), "propagate", True)
    monkeypatch.chdir(tmp_path / "one")
    recorded = lists_of(parse_train([]))
    opt = parse_train([*now.split(), "--resume"])
    start = RunStart(opt, {"data": {"lists": recorded}}, "last.pt", RunState())
    start.warn_other_lists(lists_of(parse_train([])))
    assert not caplog.records, "the same folder"
    monkeypatch.chdir(tmp_path / "two")
    start.warn_other_lists(lists_of(opt))
    for name in ("train", "val"):
        said = f"{recorded[name]} -> {tmp_path}/two/datasets/{name}.txt"
        assert (said in caplog.text) == (f"--{name}_list {recorded[name]}" in caplog.text) == (name in warned)
    caplog.clear()
    (tmp_path / "one").rename(tmp_path / "moved")
    start.warn_other_lists(lists_of(opt))
    assert not caplog.records, "the folder was moved"
