"""What a user can get wrong: exit code 2 and one message that says what, where, and what is allowed.

Or the run continues with a warning.
"""

import csv
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import ROOT
from inference.predictor import Predictor
from utils import checkpoint
from utils.errors import UserError
from utils.run import run_tool

CODE = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def tiny(photo_set) -> list[str]:
    """Flags for a run of a third of a second: 373,000 parameters, one epoch of three batches."""
    words = (
        "--model timm:test_resnet --no-pretrained --preset original "
        "--scale 32 -b 12 -w 0 --gpu -1 --lr 0.01 --optimizer sgd --epochs 1"
    )
    return [*words.split(), "--transform", "light", "--precision", "fp32", "--data_root", str(photo_set)]


@pytest.fixture
def lines(photo_set) -> dict[str, list[str]]:
    """The lines of the photo set's lists by list name."""
    return {name: (photo_set / f"{name}.txt").read_text().splitlines() for name in ("train", "val", "test")}


@pytest.fixture
def trained(script, tiny, tmp_path) -> Path:
    """The checkpoint of a finished run of one epoch, tag `ok`, three classes; relative to the current folder."""
    result = script("train.py", "--tag", "ok", *tiny, "--save_freq", 1)
    assert result.code == 0, result.err
    return Path("checkpoints/ok/last.pt")


@pytest.fixture
def listed(tmp_path, lines):
    """`listed(train=[...])` writes the three lists into a new folder, those not given as they are in the photo set."""

    def write(**changed: list[str]) -> Path:
        folder = tmp_path / f"lists{len(list(tmp_path.glob('lists*')))}"
        folder.mkdir()
        for name, present in lines.items():
            (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in changed.get(name, present)))
        return folder

    return write


def garbage(path: Path) -> Path:
    path.write_bytes(b"not an image")
    return path


def refused(result, *parts: str) -> None:
    """Exit code 2, no traceback, nothing but one message, which holds all of `parts`."""
    assert result.code == 2, result.err + result.out
    assert "Traceback" not in result.err
    assert re.match(r"\n?(error|train\.py|eval\.py|submit\.py|clear\.py): ", result.err), result.err
    assert len(re.findall(r"^error:", result.err, re.MULTILINE)) <= 1
    for part in parts:
        assert part in result.err, f"{part!r} is not in: {result.err}"


# ------------------------------------------------------------------------ lists


def test_train_missing_list_names_lists_nearby(script, tiny, tmp_path):
    (tmp_path / "mine.txt").write_text("")
    refused(
        script("train.py", *tiny, "--data_root", tmp_path),
        f"{tmp_path}/train.txt",
        "mine.txt",
        "--train_list",
        "prepare.py",
    )


@pytest.mark.parametrize(
    "text", [b"", b"\xef\xbb\xbf", b"\r\n  \r\n\n"], ids=["nothing", "byte-order mark", "blank lines"]
)
def test_train_empty_list_is_refused(script, tiny, tmp_path, text):
    (tmp_path / "train.txt").write_bytes(text)
    refused(script("train.py", *tiny, "--data_root", tmp_path), "train.txt holds no image", "path, space, label")


@pytest.mark.parametrize(
    "end, message", [("", "has no label"), (" cat", "the label is 'cat'"), (" -1", "'-1'"), (" 1.5", "'1.5'")]
)
def test_train_label_not_a_number_is_refused(script, tiny, lines, listed, end, message):
    bare = lines["train"][0].rsplit(" ", 1)[0]
    folder = listed(train=[lines["train"][0], "", bare + end])
    refused(script("train.py", *tiny, "--data_root", folder), f"{folder}/train.txt, line 3", message)


def test_train_label_beyond_num_classes_is_refused(script, tiny, photo_set, listed):
    folder = listed()
    result = script("train.py", *tiny, "--data_root", folder, "--num_classes", 2)
    refused(result, f"{folder}/train.txt, line 25", "the label is 2", "allowed: 0 to 1", "--num_classes", "12 line(s)")


def test_train_val_label_beyond_classes_is_refused(script, tiny, lines, listed):
    folder = listed(val=[*lines["val"], lines["val"][0].replace(" 0", " 7")])
    refused(
        script("train.py", *tiny, "--data_root", folder),
        f"{folder}/val.txt, line 13",
        "the label is 7",
        "allowed: 0 to 2",
    )


def test_submit_top_k_beyond_the_classes_is_refused_before_a_network_runs(script, trained, photo_set, monkeypatch):
    monkeypatch.setattr(Predictor, "share", None)
    result = script("submit.py", "--load", trained, "--data_root", photo_set, "--gpu", -1, "-w", 0, "--top_k", 4)
    refused(result, "--top_k is 4; allowed: 1 to 3")


def test_eval_label_beyond_checkpoint_is_refused(script, trained, lines, listed):
    folder = listed(val=[*lines["val"], lines["val"][0].replace(" 0", " 7")])
    result = script("eval.py", "--load", trained, "--data_root", folder, "--gpu", -1)
    refused(result, f"{folder}/val.txt, line 13", "the label is 7", "the checkpoint")


def test_scripts_windows_lists_with_chinese_names_succeed(script, tiny, lines, tmp_path, recwarn):
    folder = tmp_path / "数据 集"
    (folder / "图 片").mkdir(parents=True)
    for name in ("train", "val", "test"):
        rows = []
        for k, line in enumerate(lines[name]):
            path, _, label = line.partition(" ")
            shutil.copy(path, folder / f"图 片/{name} 照片 {k}.jpg")
            rows.append(f"图 片/{name} 照片 {k}.jpg {label}".strip())
        (folder / f"{name}.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode() + b"\r\n")
    (folder / "classes.txt").write_bytes("\ufeff寺\r\n花\r\n人\r\n".encode())
    result = script("train.py", *tiny, "--tag", "中文", "--data_root", "数据 集")
    assert result.code == 0, result.err
    assert "36 training and 12 validation images" in result.out
    common = ["--tag", "中文", "--load", "checkpoints/中文/best.pt", "--data_root", "数据 集", "--gpu", -1, "-w", 0]
    result = script("eval.py", *common)
    assert result.code == 0, result.err
    assert result.err == ""
    # a drawing process that is still at work when its object goes is no fault
    assert not [str(one.message) for one in recwarn.list if one.category is not ResourceWarning]
    with open("results/中文/1/predictions.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label_name"] for row in rows] == ["寺"] * 4 + ["花"] * 4 + ["人"] * 4
    assert script("submit.py", *common).code == 0
    submission = Path("results/中文/submission.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in submission[1:]] == [f"test 照片 {k}.jpg" for k in range(6)]


# ------------------------------------------------------------------------ images


def test_train_missing_image_is_refused_or_skipped(script, tiny, lines, listed):
    folder = listed(
        train=[*lines["train"], "/no/such.jpg 1", "/no/other.jpg 1"], val=[*lines["val"], lines["train"][5]]
    )
    flags = [*tiny, "--data_root", folder]
    result = script("train.py", *flags)
    refused(
        result, "2 of 38 images", "/no/such.jpg", f"{folder}/train.txt, line 37", "/no/other.jpg", "--on_bad_image skip"
    )
    result = script("train.py", *flags, "--on_bad_image", "skip")
    assert result.code == 0, result.err
    assert "2 of 38 images" in result.out
    assert "/no/such.jpg" in result.out
    assert "36 training and 13 validation images" in result.out
    assert f"1 of 13 images of {folder}/val.txt are in {folder}/train.txt too" in result.out


def test_train_unreadable_image_is_skipped_and_counted(script, tiny, lines, listed, tmp_path):
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(Path(lines["train"][0].split()[0]).read_bytes()[:700])
    folder = listed(train=[*lines["train"], f"{garbage(tmp_path / 'bad.jpg')} 1", f"{cut} 2"])
    result = script("train.py", *tiny, "--tag", "bad", "--data_root", folder, "-b", 19)
    assert result.code == 0, result.err
    assert "2 images could not be read" in result.out
    with open("logs/bad/bad_images.csv") as file:
        rows = {int(row["index"]): row["reason"] for row in csv.DictReader(file)}
    assert set(rows) == {36, 37}
    assert f"{tmp_path}/bad.jpg" in rows[36]
    assert f"{folder}/train.txt, line 38" in rows[37]
    log = Path("logs/bad/log.txt").read_text()
    assert f"{tmp_path}/bad.jpg" in log
    assert f"{cut}" in log


@pytest.mark.parametrize("count, share, code", [(10, 0.01, 0), (11, 0.01, 2), (11, 0.5, 0)])
def test_train_unreadable_above_max_bad_and_ten_stops(script, tiny, lines, listed, tmp_path, count, share, code):
    bad = [f"{garbage(tmp_path / f'bad{k}.jpg')} 1" for k in range(count)]
    folder = listed(train=[*lines["train"], *bad])
    result = script("train.py", *tiny, "--tag", "bad", "--data_root", folder, "-b", 36 + count, "--max_bad", share)
    if code:
        refused(result, f"{count} of {36 + count} images", "--max_bad 0.01", "logs/bad/bad_images.csv")
    assert result.code == code
    assert len(Path("logs/bad/bad_images.csv").read_text().splitlines()) == count + 1


@pytest.mark.parametrize(
    "loading", [["-w", 0], ["-w", 2], ["-w", 2, "--loader", "process"]], ids=["here", "threads", "processes"]
)
def test_train_all_unreadable_is_refused(script, tiny, listed, tmp_path, loading):
    folder = listed(train=[f"{garbage(tmp_path / f'bad{k}.jpg')} {k % 2}" for k in range(4)])
    flags = [*tiny, "--data_root", folder, "--num_classes", 3, *loading]
    refused(
        script("train.py", *flags, "--no-check_files"), "cannot be read", f"{tmp_path}/bad", f"{folder}/train.txt, line"
    )
    refused(
        script("train.py", *flags),
        "None of the 4 images",
        f"{tmp_path}/bad0.jpg",
        f"{folder}/train.txt, line 1",
        "tools.doctor",
    )


def test_eval_and_submit_unreadable_image_is_handled(script, trained, lines, listed, tmp_path):
    bad = garbage(tmp_path / "bad.jpg")
    folder = listed(
        val=[*lines["val"], f"{bad} 1"], test=[lines["test"][0], str(bad), lines["test"][1], "/no/such.jpg"]
    )
    common = ["--load", trained, "--data_root", folder, "--gpu", -1, "-w", 0]
    result = script("eval.py", *common)
    assert result.code == 0, result.err
    assert f"unreadable, counts in no score: {bad}" in result.out
    metrics = json.loads(Path("results/cache/ok_1/metrics.json").read_text())
    assert (metrics["count"], metrics["unreadable"]) == (12, 1)
    result = script("submit.py", *common)
    assert result.code == 0, result.err
    assert "2 of 4 images could not be read" in result.out
    assert f"unreadable, so not predicted: {bad}" in result.out and "in no score" not in result.out
    names = [line.split(",")[0] for line in Path("results/cache/submission.csv").read_text().splitlines()[1:]]
    assert names == [Path(lines["test"][0]).name, "bad.jpg", Path(lines["test"][1]).name, "such.jpg"]
    before = sorted(Path("results").rglob("*"))
    folder = listed(test=[str(bad)])
    common = ["--load", trained, "--data_root", folder, "--gpu", -1, "-w", 0, "--no-check_files", "--tag", "other"]
    refused(script("submit.py", *common), "None of the 1 images", f"{folder}/test.txt")
    result = script("eval.py", *common, "--val_list", listed(val=[f"{bad} 1"]) / "val.txt")
    refused(result, "None of the 1 images")
    assert sorted(Path("results").rglob("*")) == before
    result = script("eval.py", *common, "--val_list", listed(val=[f"{bad} 1", f"{bad} 2", lines["val"][0]]) / "val.txt")
    assert result.code == 0 and "2 of 3 images" in result.out and "over half" in result.out


# ------------------------------------------------------------------------ sizes


def test_train_batch_above_data_is_the_data(script, tiny):
    result = script("train.py", *tiny, "-b", 500)
    assert result.code == 0, result.err
    assert "36 images, fewer than a batch of 500" in result.out
    assert "1 batch of 36" in result.out


def test_last_batch_of_one_is_dropped_in_train_kept_in_eval(script, tiny, lines, listed):
    folder = listed(train=lines["train"][:25], val=lines["val"])
    result = script("train.py", *tiny, "--data_root", folder, "--num_classes", 3, "-b", 8)
    assert result.code == 0, result.err
    assert "leaves out 1 of 25 images" in result.out
    sizes = [
        script("eval.py", "--load", "checkpoints/cache/last.pt", "--data_root", folder, "--gpu", -1, "-b", b)
        for b in (11, 1)
    ]
    assert [result.code for result in sizes] == [0, 0]
    assert all("(12 images)" in result.out for result in sizes)


def test_train_class_of_one_image_succeeds(script, tiny, lines, listed):
    result = script("train.py", *tiny, "--data_root", listed(train=lines["train"][:25]))
    assert result.code == 0, result.err
    assert checkpoint.load("checkpoints/cache/last.pt")["data"]["class_images"] == [12, 12, 1]


def test_train_batch_of_one_is_refused(script, tiny):
    refused(script("train.py", *tiny, "-b", 1), "--batch_size is 1", "2 or more")


@pytest.mark.parametrize("label", [0, 1])
def test_train_single_class_is_refused(script, tiny, lines, listed, label):
    folder = listed(train=lines["train"][12 * label :][:12], val=lines["val"][4 * label :][:4])
    refused(
        script("train.py", *tiny, "--data_root", folder),
        f"{folder}/train.txt are of class {label}",
        "two or more classes",
    )


@pytest.mark.parametrize("which", [0, -1])
def test_train_single_image_is_refused(script, tiny, lines, listed, which):
    refused(script("train.py", *tiny, "--data_root", listed(train=[lines["train"][which]])), "1 image")


# ------------------------------------------------------------------------ names and flags

TYPOS = {
    "model": ("ResNest50", "ResNeSt50"),
    "optimizer": ("adm", "adam"),
    "scheduler": ("cosine", "cos"),
    "transform": ("resized", "resize"),
    "loss": ("focall", "focal"),
}


@pytest.mark.parametrize("flag", TYPOS)
def test_train_unknown_name_suggests_near_one(script, tiny, flag):
    typed, meant = TYPOS[flag]
    result = script("train.py", *tiny, f"--{flag}", typed)
    refused(result, f"There is no {flag} {typed!r}", f"Did you mean {meant}", "There are: ")
    assert not Path("checkpoints").exists()
    assert f"Try: --{flag} {meant}" in result.err


def test_train_several_unknown_names_are_refused_at_once_before_anything_is_opened(script):
    """Of two, one was named, after the lists were read and the ImageNet weights asked for."""
    words = [word for flag, (typed, _) in TYPOS.items() for word in (f"--{flag}", typed)]
    refused(
        script("train.py", *words, "--gpu", -1, "--data_root", "nowhere"),
        *[f"There is no {flag} {typed!r}" for flag, (typed, _) in TYPOS.items()],
    )


@pytest.mark.parametrize("typed, meant", [("resnet5", "resnet50"), ("resnet18.tv_in", "resnet18.tv_in1k")])
def test_train_unknown_timm_name_suggests_near_one(script, tiny, typed, meant):
    result = script("train.py", *tiny, "--model", f"timm:{typed}")
    refused(result, f"There is no timm model {typed!r}", f"Did you mean {meant}")
    assert len(result.err) < 400  # the near ones alone, of 1,400, and one to try


@pytest.mark.parametrize(
    "name, word, meant",
    [
        ("train.py", "--learning_rat", None),
        ("train.py", "--optimiser", "--optimizer"),
        ("eval.py", "--ttaa=x8", "--tta"),
        ("submit.py", "--lod", "--load"),
    ],
)
def test_script_unknown_flag_suggests_near_one(script, name, word, meant):
    refused(
        script(name, word),
        f"there is no option {word.split('=')[0]}",
        f"python {name} --help",
        *([f"Did you mean {meant}"] if meant else []),
    )


def test_train_extra_word_is_refused(script):
    refused(script("train.py", "resnet"), "'resnet'")


def test_train_contradictions_are_all_reported(script, tiny):
    flags = "--hflip 2 --gpu -2 --min_lr 1 --loss ohem --mixup 0.2 --resume --pretrained --tag a/b".split()
    result = script("train.py", *tiny, *flags)
    refused(
        result,
        "6 problems",
        "--hflip is 2",
        "--gpu is -2",
        "--min_lr 1 is above --lr",
        "ohem and --mixup",
        "--resume and --pretrained",
        "'a/b'",
    )


@pytest.mark.parametrize("flags, message", [([0, 0], "all 0"), ([1], "1 number for 2"), ([1, -1], "--weights is -1")])
def test_eval_wrong_ensemble_weights_are_refused(script, flags, message):
    refused(script("eval.py", "--load", "a.pt", "b.pt", "--weights", *flags), message)


@pytest.mark.parametrize("name", ["train.py", "eval.py", "submit.py", "clear.py"])
def test_script_tag_not_a_file_name_is_refused(script, tmp_path, name):
    for tag in ("a/b", "..", "", " ", "-x", ".hidden", "a\\b", "a\nb", "a" * 101):
        result = script(name, f"--tag={tag}", *(["--load", "x.pt"] if name in ("eval.py", "submit.py") else []))
        refused(result, f"--tag is {tag!r}", "allowed: one file name")
    assert {path.name for path in tmp_path.iterdir()} == {"run_log.txt", "run_log.txt.lock"}


@pytest.mark.parametrize("name, flag", [("eval.py", "--load"), ("submit.py", "--load"), ("clear.py", "--tag")])
def test_script_missing_needed_flag_is_refused(script, name, flag):
    refused(script(name), f"{flag} is needed")


CONFIGS = {
    "unknown key": ("epochz: 3\n", ["no option --epochz", "Did you mean --epochs"]),
    "bad YAML": ("epochs: [3\n", ["cannot be read", "line 1"]),
    "a list": ("- 3\n", ["`option: value`", "got a list"]),
    "not text": (b"\xff\xfe\x00", ["cannot be read"]),
    "a word for a number": ("epochs: three\n", ["--epochs", "'three'"]),
    "out of range": ("hflip: 3\n", ["--hflip is 3"]),
    "a number for a switch": ("pretrained: 0.5\n", ["--pretrained is '0.5'", "true or false"]),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_train_bad_config_is_refused(script, tmp_path, case):
    text, parts = CONFIGS[case]
    (tmp_path / "c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(script("train.py", "--config", "c.yaml"), *parts)


@pytest.mark.parametrize("words, part", [(["--config", "no.yaml"], "no.yaml"), (["--config"], "expected one argument")])
def test_train_missing_config_is_refused(script, words, part):
    refused(script("train.py", *words), part)


def test_train_flags_override_the_config(script, tmp_path, tiny):
    (tmp_path / "c.yaml").write_text("lr: 0.5\nseed: 7\nsmooth: 0.1\npretrained: false\nval_list: null\nhflip: 1\n")
    result = script("train.py", *tiny, "--config", "c.yaml", "--seed", 8)
    assert result.code == 0, result.err
    saved = checkpoint.load("checkpoints/cache/last.pt")["opt"]
    assert {name: saved[name] for name in ("lr", "seed", "smooth", "hflip", "pretrained")} == {
        "lr": 0.01, "seed": 8, "smooth": 0.1, "hflip": 1.0, "pretrained": False,
    }  # fmt: skip


def test_train_from_written_options_gives_same_weights(script, trained, tiny):
    result = script("train.py", "--config", "logs/ok/options.yaml", "--tag", "again")
    assert result.code == 0, result.err
    ours, theirs = (checkpoint.load(f"checkpoints/{tag}/last.pt")["weights"] for tag in ("ok", "again"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# ------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("name", ["eval.py", "train.py"])
def test_load_checkpoint_of_another_model_is_refused(script, trained, tiny, photo_set, name):
    flags = tiny if name == "train.py" else ["--data_root", photo_set, "--gpu", -1]
    result = script(name, *flags, "--load", trained, "--model", "ResNet18")
    refused(result, str(trained), "holds timm:test_resnet", "ResNet18")


def test_load_plain_weights_of_another_model_is_refused(script, trained, tiny):
    torch.save(checkpoint.load(trained)["weights"], "plain.pt")
    refused(
        script("train.py", *tiny, "--load", "plain.pt", "--model", "ResNet18"), "plain.pt does not fit", "92 tensors"
    )


def test_eval_plain_weights_without_model_is_refused(script, trained, photo_set):
    torch.save(checkpoint.load(trained)["weights"], "plain.pt")
    refused(script("eval.py", "--load", "plain.pt", "--data_root", photo_set), "plain.pt", "--model NAME")


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
@pytest.mark.parametrize("name", ["eval.py", "train.py"])
def test_load_truncated_checkpoint_is_refused(script, trained, tiny, photo_set, name, share):
    whole = trained.read_bytes()
    cut = trained.with_name("cut.pt")
    cut.write_bytes(whole[: int(len(whole) * share)])
    flags = tiny if name == "train.py" else ["--data_root", photo_set, "--gpu", -1]
    refused(script(name, *flags, "--load", cut), "cut.pt is damaged or cut short", "There are: ", str(trained))


def test_load_damaged_safetensors_is_refused(script, tiny, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"junk" * 10)
    refused(script("train.py", *tiny, "--load", "x.safetensors"), "x.safetensors is damaged")


class Attack:
    """Unpickling it creates the file `ran`."""

    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize("protocol, found", [(None, "posix.system"), (2, "posix.system"), (4, "Unsupported operand")])
@pytest.mark.parametrize("name", ["train.py", "eval.py", "submit.py"])
def test_load_checkpoint_with_code_is_refused(script, tiny, photo_set, name, protocol, found):
    if protocol is None:
        torch.save({"weights": Attack()}, "evil.pt")
    else:
        Path("evil.pt").write_bytes(pickle.dumps({"weights": Attack()}, protocol))
    flags = tiny if name == "train.py" else ["--data_root", photo_set, "--gpu", -1]
    result = script(name, *flags, "--load", "evil.pt")
    refused(result, "evil.pt is refused", "code", found)
    assert "weights_only" not in result.err  # torch's own message advises to switch the guard off
    assert not Path("ran").exists()
    pickle.loads(pickle.dumps(Attack()))  # and it would have worked
    assert Path("ran").exists()


@pytest.mark.parametrize("what", ["nope.pt", "."])
def test_load_missing_checkpoint_names_those_nearby(script, trained, photo_set, what):
    result = script("eval.py", "--load", trained.parent / what, "--data_root", photo_set)
    refused(
        result,
        "There is no checkpoint",
        *(f"checkpoints/ok/{name}" for name in ("last.pt", "best.pt", "1_timm-test_resnet.pt")),
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["eval.py", "--load", "checkpoints/okk/best.pt"],
            "There is no folder checkpoints/okk. Did you mean checkpoints/ok/best.pt?",
        ),
        (
            ["eval.py", "--load", "checkpoints/zzz/best.pt"],
            "There is no folder checkpoints/zzz. In checkpoints/ there are: ok.",
        ),
        (
            ["train.py", "--tag", "okk", "--resume"],
            "There is no folder checkpoints/okk. Did you mean checkpoints/ok/last.pt?",
        ),
        (
            ["train.py", "--teacher", "checkpoint/ok/best.pt"],
            "There is no folder checkpoint. Did you mean checkpoints/ok/best.pt?",
        ),
        (
            ["submit.py", "--ensemble", "checkpoints/ok/bset.pt"],
            "bset.pt for --ensemble. Did you mean checkpoints/ok/best.pt or",
        ),
        (["eval.py", "--load", "logs/ok/best.pt"], "The folder logs/ok holds no checkpoint.\nTry: find . -name '*.pt'"),
        (
            ["train.py", "--pretrained", "--weights_dir", "checkpoint"],
            "There is no folder checkpoint for --weights_dir. Did you mean",
        ),
        (["train.py", "--gpu", "cpu"], "'cpu' is no whole number (number of the GPU; -1: CPU"),
        (["clear.py", "--tag", "okk"], "There are no records of tag 'okk'. Did you mean ok?"),
        (["clear.py", "--tag", "okk"], "Try: python clear.py --tag ok\n"),
    ],
    ids=str,
)
def test_load_missing_path_names_folder_or_file(script, tiny, tmp_path, photo_set, words, said):
    for path in (
        tmp_path / "checkpoints/ok/best.pt",
        tmp_path / "checkpoints/ok/last.pt",
        tmp_path / "logs/ok/log.txt",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    flags = {"train.py": tiny, "clear.py": []}.get(words[0], ["--data_root", photo_set, "--gpu", -1])
    refused(script(words[0], *flags, *words[1:]), said)


def test_load_other_head_size_keeps_backbone(script, trained, tiny, listed, monkeypatch):
    import network.loading

    loaded = []
    real = network.loading.load_matching
    monkeypatch.setattr(network.loading, "load_matching", lambda net, *rest: (loaded.append(net), real(net, *rest))[1])
    monkeypatch.setattr("train.train", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    result = script("train.py", *tiny, "--tag", "finer", "--load", trained, "--data_root", listed(), "--num_classes", 7)
    assert result.code == 130
    assert "left out: fc.weight, fc.bias" in result.out
    before, after = checkpoint.load(trained)["weights"], loaded[0].state_dict()
    assert after["fc.weight"].shape[0] == 7
    assert all(torch.equal(after[name], before[name]) for name in before if not name.startswith("fc."))


def test_resume_with_other_head_size_is_refused(script, trained, tiny, listed):
    result = script(
        "train.py", *tiny, "--tag", "ok", "--resume", "--epochs", 2, "--data_root", listed(), "--num_classes", 7
    )
    refused(result, "classifier of another size than 7 classes", "fc.weight", "without --resume")


def test_resume_without_checkpoint_is_refused(script, tiny):
    refused(script("train.py", *tiny, "--tag", "new", "--resume"), "There is no checkpoint checkpoints/new/last.pt")


def test_resume_from_plain_weights_is_refused(script, trained, tiny):
    torch.save(checkpoint.load(trained)["weights"], "plain.pt")
    refused(
        script("train.py", *tiny, "--load", "plain.pt", "--resume"), "plain.pt holds weights alone", "without --resume"
    )


def test_resume_of_complete_run_changes_nothing(script, trained):
    before = trained.read_bytes()
    result = script("train.py", "--tag", "ok", "--resume", "--gpu", -1)
    assert result.code == 0
    assert "is complete: epoch 1 of 1" in result.out
    assert trained.read_bytes() == before


@pytest.mark.parametrize("flag, value", [("optimizer", "adam"), ("model", "ResNet18")])
@pytest.mark.parametrize("epochs", [1, 2])
def test_resume_with_other_optimizer_or_model_is_refused(script, trained, flag, value, epochs):
    result = script("train.py", "--tag", "ok", "--resume", "--gpu", -1, "--epochs", epochs, f"--{flag}", value)
    refused(result, f"was trained with --{flag}", value, f"Leave --{flag} out")


# ------------------------------------------------------------------------ pretrained weights


@pytest.fixture(params=["offline", "nobody answers"])
def no_hub(request, monkeypatch, tmp_path) -> None:
    """No hub, and nothing in its cache."""
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", request.param == "offline")
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")


def test_pretrained_weights_unavailable_are_explained(script, no_hub, photo_set):
    Path("here").mkdir()
    result = script("train.py", "--model", "ResNet50", "--data_root", photo_set, "--gpu", -1, "--weights_dir", "here")
    refused(
        result,
        "ResNet50".lower(),
        "model.safetensors",
        "timm/resnet50.",
        "here/resnet50.",
        "--weights_dir",
        "--no-pretrained",
    )


@pytest.mark.slow
def test_pretrained_weights_offline_in_own_process_are_explained(tmp_path, photo_set):
    env = {**CODE, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    words = [sys.executable, ROOT / "train.py", "--model", "ResNet50", "--data_root", photo_set, "--gpu", "-1"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "pretrained/resnet50." in done.stderr


def test_weights_dir_damaged_or_other_file_is_refused(script, tiny, no_hub, trained):
    flags = [word for word in tiny if word != "--no-pretrained"]
    Path("here").mkdir()
    Path("here/resnet18.pth").write_bytes(b"junk" * 10)
    refused(script("train.py", *flags, "--model", "ResNet18", "--weights_dir", "here"), "here/resnet18.pth is damaged")
    torch.save(checkpoint.load(trained)["weights"], "here/resnet18.pth")
    refused(
        script("train.py", *flags, "--model", "ResNet18", "--weights_dir", "here"),
        "here/resnet18.pth does not fit this network",
        "--no-pretrained",
    )


def test_pretrained_iresnet_is_refused(script, photo_set):
    result = script("train.py", "--model", "iResNet50", "--data_root", photo_set, "--gpu", -1, "-w", 0)
    refused(result, "iResNet50", "--load", "--no-pretrained")


# ------------------------------------------------------------------------ divergence


def test_train_nan_loss_stops_the_run(script, tiny):
    refused(
        script("train.py", *tiny, "--head_lr", 1e30, "--max_nan", 0),
        "The loss is nan in epoch 1",
        "--lr",
        "--clip_grad",
    )


def test_train_network_broken_in_last_step_is_not_saved(script, trained, tiny, monkeypatch):
    before = trained.read_bytes()
    from training.engine import Engine

    monkeypatch.setattr(Engine, "learning_rate", lambda self: 1e30)  # more than --lr may be
    flags = ["--tag", "ok", "--resume", "--epochs", 2, "--scheduler", "none", "-b", 36]
    refused(
        script("train.py", *tiny, *flags), "NaN or infinite logits", "validation images after epoch 2", "whole", "--lr"
    )
    assert trained.read_bytes() == before


def test_train_broken_weights_without_validation_are_found(script, trained, tiny, monkeypatch):
    before = trained.read_bytes()
    from training.engine import Engine

    def broken(engine, *_):
        next(engine.model.net.parameters()).data[0] = float("inf")

    monkeypatch.setattr(Engine, "end_epoch", broken)
    result = script("train.py", *tiny, "--tag", "ok", "--resume", "--epochs", 3, "--val_freq", 3)
    refused(result, "After epoch 2 weights are infinite or NaN", "whole")
    assert trained.read_bytes() == before


# ------------------------------------------------------------------------ full disks


@pytest.fixture
def disk(tmp_path):
    """`disk("4m")` is a folder on a file system of that size, `disk("64m")` makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: str) -> Path:
        again = [] if not os.path.ismount(folder) else ["remount"]
        options = ",".join([*again, f"size={size}"])
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode:
            pytest.skip("mounting is not allowed here")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", "-l", folder], check=True)


def test_train_full_disk_keeps_checkpoint_and_can_resume(script, tiny, disk):
    folder = disk("5m")
    flags = ["--tag", "full", "--checkpoint_dir", folder]
    assert script("train.py", *tiny, *flags).code == 0
    before = (folder / "full/last.pt").read_bytes()
    result = script("train.py", *tiny, *flags, "--resume", "--epochs", 2)
    refused(result, f"{folder}/full/last.pt could not be written", "No space left", "intact", "--resume")
    assert (folder / "full/last.pt").read_bytes() == before
    assert checkpoint.load(folder / "full/last.pt")["epoch"] == 1
    assert not [path for path in (folder / "full").iterdir() if path.name.endswith(".tmp")]
    assert "exit 2" in Path("run_log.txt").read_text().splitlines()[-1]
    disk("64m")
    assert script("train.py", *tiny, *flags, "--resume", "--epochs", 2).code == 0
    assert checkpoint.load(folder / "full/last.pt")["epoch"] == 2


@pytest.mark.parametrize("what", ["checkpoints", "logs", "results"])
def test_folder_of_a_drive_that_is_not_mounted_is_refused_at_once(script, tiny, trained, monkeypatch, tmp_path, what):
    """A training went through all epochs, and could write none of its checkpoints."""
    from training.run import TrainingRun

    monkeypatch.setattr(TrainingRun, "__init__", lambda *_: pytest.fail("it began to train"))
    (tmp_path / what).mkdir(exist_ok=True)
    (tmp_path / what / "away").symlink_to("/mnt/not/mounted")
    words = (
        ["eval.py", "--load", trained, *tiny[tiny.index("--data_root") :][:2]] if what == "results" else ["train.py"]
    )
    result = script(*words, *([] if what == "results" else tiny), "--tag", "away")
    refused(result, f"{what}/away is a link to /mnt/not/mounted, which is not there", "Mount its drive")


def test_train_checkpoints_that_cannot_be_written_are_found_before_the_first_step(script, tiny, tmp_path, monkeypatch):
    from training.run import TrainingRun

    real = os.access
    monkeypatch.setattr(TrainingRun, "__init__", lambda *_: pytest.fail("it began to train"))
    monkeypatch.setattr(os, "access", lambda path, *how, **more: Path(path).name != "shut" and real(path, *how, **more))
    (tmp_path / "checkpoints/shut").mkdir(parents=True)
    refused(script("train.py", *tiny, "--tag", "shut"), "checkpoints/shut/last.pt cannot be written: its permissions")


def test_train_best_epoch_that_met_a_full_disk_is_named_as_such(script, tiny, monkeypatch):
    """The log blamed another run, and did not say that best.pt is an earlier epoch."""
    from training.run import TrainingRun

    real_end, real_save = TrainingRun.end_epoch, checkpoint.save

    def full(path, content, also=()):
        if content["epoch"] == 2:
            raise checkpoint.SaveError("No space left on device")
        real_save(path, content, also)

    monkeypatch.setattr(
        TrainingRun, "end_epoch", lambda self, epoch, scores: real_end(self, epoch, scores | {"val_top1": epoch % 3})
    )
    monkeypatch.setattr(checkpoint, "save", full)
    result = script("train.py", *tiny, "--tag", "gap", "--epochs", 3)
    assert result.code == 0, result.err
    said = "has no checkpoint of epoch 2, the best: it could not be written, as a warning above says. checkpoints/gap/"
    assert said + "best.pt is of another epoch." in result.out and "another run" not in result.out
    assert checkpoint.load("checkpoints/gap/best.pt")["epoch"] == 1
    assert "checkpoints/gap/last.pt" in result.out.rpartition("Next:")[2]


@pytest.mark.parametrize("size, part", [("4k", "options.yaml"), ("100k", "last.pt could not be written")])
def test_train_full_disk_for_records_is_refused(script, tiny, disk, monkeypatch, size, part):
    monkeypatch.chdir(disk(size))
    result = script("train.py", *tiny, "--epochs", 2)
    refused(result, "No space left", part)
    assert "Logging error" not in result.err


def test_train_full_disk_for_tensorboard_does_not_hang(script, tiny, monkeypatch):
    import tensorboardX.event_file_writer as writer

    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer.EventsWriter, "flush", full)
    result = script("train.py", *tiny, "--epochs", 4)
    assert result.code == 0, result.err
    assert "TensorBoard's file cannot be written" in result.out


def test_submit_full_disk_for_the_probabilities_keeps_the_earlier_set(script, trained, tiny, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    words = ["--load", trained, *tiny[tiny.index("--data_root") :][:2], "--gpu", "-1", "--save_probs", "--tag", "set"]
    assert script("submit.py", *words).code == 0
    before = {path: path.read_bytes() for path in Path("results/set").iterdir()}
    assert len(before) == 3
    monkeypatch.setattr("inference.saved_probs.write", full)
    refused(script("submit.py", *words, "--scale", 16, "--force"), "Free some space")
    assert {path: path.read_bytes() for path in Path("results/set").iterdir()} == before


@pytest.mark.slow
def test_train_file_size_limit_keeps_checkpoint(trained, tiny, tmp_path):
    before = trained.read_bytes()
    words = [sys.executable, ROOT / "train.py", *tiny, "--tag", "ok", "--resume", "--epochs", "2"]
    megabyte = (1 << 20, 1 << 20)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, megabyte)  # noqa: E731
    done = subprocess.run(words, cwd=tmp_path, env=CODE, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "checkpoints/ok/last.pt could not be written" in done.stderr
    assert trained.read_bytes() == before
    assert checkpoint.load(trained)["epoch"] == 1
    assert not [path for path in trained.parent.iterdir() if path.name.endswith(".tmp")]


def test_train_folder_not_creatable_is_refused(script, tiny, tmp_path):
    (tmp_path / "logs").write_text("a file")
    refused(script("train.py", *tiny), "logs/cache")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has …"),
            "The GPU is out of memory (CUDA out of memory)",
        ),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might"), "(CUDA error: out of memory)"),
        (torch.OutOfMemoryError(), "The GPU is out of memory"),
    ],
    ids=["torch", "CUDA", "wordless"],
)
def test_eval_out_of_memory_is_one_message(script, trained, tiny, monkeypatch, error, said):
    from network import BaseModel

    def normalise(self, images):
        raise error

    monkeypatch.setattr(BaseModel, "normalise", normalise)
    result = script("eval.py", "--load", trained, *tiny[tiny.index("--data_root") :][:2])
    refused(result, said, "smaller -b")


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (None, 0, ""),
        (UserError("no such list"), 2, "error: no such list"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 2, "Free some space"),
        (ValueError("a bug"), 1, "Traceback"),
    ],
    ids=repr,
)
def test_run_tool_exits_as_scripts_do(fault, code, said, capsys):
    def act(_):
        if fault is not None:
            raise fault

    assert run_tool(lambda: None, act) == code
    assert said in capsys.readouterr().err
