"""Checkpoints and resuming: whole files, plain data, and the run that would have been."""

import copy
import csv
import logging
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import inference
import network.loading
import tiny
from conftest import ROOT
from made import make
from optimizer import load_optimizer_state
from options import parse_eval, parse_train
from training.setup import build_engine
from training.start import RunStart
from training.state import RunState
from utils import checkpoint, checkpoint_schema
from utils.errors import UserError


def test_checkpoint_saved_under_several_names_loads_equal(tmp_path):
    content = {
        "model": "X",
        "weights": {"a": torch.arange(3.0)},
        "opt": {"lr": 0.1, "load": None},
        "history": [{"epoch": 1}],
    }
    checkpoint.save(tmp_path / "last.pt", content, also=[tmp_path / "1_X.pt", tmp_path / "best.pt"])
    for name in ("last.pt", "1_X.pt", "best.pt"):
        back = checkpoint.load(tmp_path / name)
        assert torch.equal(back["weights"]["a"], content["weights"]["a"])
        assert {key: back[key] for key in ("model", "opt", "history")} == {
            key: content[key] for key in ("model", "opt", "history")
        }
    checkpoint.save(tmp_path / "last.pt", {**content, "model": "Y"}, also=[tmp_path / "best.pt"])
    assert [checkpoint.load(tmp_path / name)["model"] for name in ("last.pt", "1_X.pt", "best.pt")] == ["Y", "X", "Y"]
    assert not list(tmp_path.glob(".*"))


def test_checkpoint_docstring_lists_the_keys_of_the_schema():
    lines = re.findall(r"^    (\w+(?:, \w+)*)  ", checkpoint.__doc__, re.MULTILINE)
    assert sorted(", ".join(lines).split(", ")) == sorted(checkpoint_schema.Checkpoint.__annotations__)


def test_load_plain_state_dict_gives_weights(tmp_path):
    weights = {"conv.weight": torch.ones(2)}
    parallel = {f"module.{key}": value for key, value in weights.items()}
    for k, content in enumerate([weights, {"state_dict": weights}, {"state_dict": parallel}]):
        torch.save(content, tmp_path / f"{k}.pth")
        assert torch.equal(checkpoint.load(tmp_path / f"{k}.pth")["weights"]["conv.weight"], torch.ones(2))


def test_load_truncated_file_is_refused(tmp_path):
    checkpoint.save(tmp_path / "x.pt", {"weights": {"a": torch.arange(1000.0)}})
    whole = (tmp_path / "x.pt").read_bytes()
    for tenth in range(10):
        (tmp_path / "cut.pt").write_bytes(whole[: len(whole) * tenth // 10])
        with pytest.raises(UserError, match="damaged|refused"):
            checkpoint.load(tmp_path / "cut.pt")


def test_load_newer_format_is_refused(tmp_path):
    torch.save({"format": 99, "weights": {}}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="format 99"):
        checkpoint.load(tmp_path / "x.pt")


def test_save_on_full_disk_keeps_old_file(tmp_path, monkeypatch):
    path = tmp_path / "1.pt"
    checkpoint.save(path, {"weights": {"a": torch.zeros(2)}})
    before = path.read_bytes()

    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(checkpoint.SaveError, match="(?s)No space left.*--resume"):
        checkpoint.save(path, {"weights": {}})
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["1.pt"]


@pytest.mark.parametrize(
    "key",
    ["state_dict", "model", "model_state", "state_dict_ema", "model_ema", "network", "net", "classifier", "module"],
)
def test_load_wrapped_state_dict_gives_weights(tmp_path, key):
    torch.save({key: {"module.a": torch.ones(1)}, "epoch": 3}, tmp_path / "w.pt")
    assert checkpoint.load(tmp_path / "w.pt") == {"weights": {"a": torch.ones(1)}}
    torch.save({"net": {key: {"module.a": torch.ones(1)}, "step": 1}}, tmp_path / "w.pt")
    assert checkpoint.load(tmp_path / "w.pt") == {"weights": {"a": torch.ones(1)}}


@pytest.mark.parametrize("content", [{}, [1], {"a": 1}, {"state_dict": {"a": "b"}}])
def test_load_without_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match="no state dict"):
        checkpoint.load(tmp_path / "w.pt")


def test_load_pickle_with_code_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"format": 1, "x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="is refused"):
        checkpoint.load(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "bad.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(UserError, match="(?s)damaged or cut short.*evil.pt"):
        checkpoint.load(tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match="(?s)There is no checkpoint.*There are: .*evil.pt.*Try: .*\\.pt"):
        checkpoint.load(tmp_path / "none.pt")


def test_load_zip_of_other_content_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        file.writestr("hello.txt", "hello")
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(tmp_path / "x.pt")


def tensors(content):
    """All tensors in a checkpoint, in order, however deep."""
    if isinstance(content, torch.Tensor):
        yield content
    elif isinstance(content, dict | list | tuple):
        for value in content.values() if isinstance(content, dict) else content:
            yield from tensors(value)


def scores(content):
    """The history without what a clock measured."""
    return [
        {key: value for key, value in row.items() if key not in ("images_per_second", "data_wait")}
        for row in content["history"]
    ]


EXTRAS = {
    "plain": [],
    "ranger-mixup-ema": ["--optimizer", "ranger", "--mixup", "0.3", "--ema", "0.9"],
    "swa-ema-freeze": "--swa 2 --ema 0.9 --freeze 2 --layer_decay 0.8 --sam 0.05 --model timm:resnet10t".split(),
    "workers-accumulate": ["--transform", "resize", "--accumulate", "2", "-w", "2"],
}


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS)
def test_resume_after_an_epoch_equals_uninterrupted_run(script, photo_set, small, tmp_path, extra, monkeypatch):
    flags = [*small, *extra, "--data_root", photo_set, "--epochs", 3, "--save_freq", 1]
    assert script("train.py", "--tag", "whole", *flags).code == 0
    import training.run

    real = training.run.TrainingRun.end_epoch

    def cut(self, epoch, scores):
        real(self, epoch, scores)
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.run.TrainingRun, "end_epoch", cut)
        assert script("train.py", "--tag", "cut", *flags).code == 130
    assert script("train.py", "--tag", "cut", "--resume", "--gpu", -1).code == 0
    whole, resumed = (checkpoint.load(tmp_path / f"checkpoints/{tag}/last.pt") for tag in ("whole", "cut"))
    pairs = list(zip(tensors(whole), tensors(resumed), strict=True))
    assert len(pairs) > 130
    assert all(torch.equal(a, b) for a, b in pairs)
    assert scores(whole) == scores(resumed)
    assert (tmp_path / "logs/cut/steps.csv").read_bytes() == (tmp_path / "logs/whole/steps.csv").read_bytes()
    with open(tmp_path / "logs/cut/metrics.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]


def test_resume_under_another_tag_continues(script, photo_set, small, tmp_path):
    flags = [*small, "--data_root", photo_set]
    assert script("train.py", "--tag", "first", "--epochs", 1, *flags).code == 0
    first = "checkpoints/first/1_timm-test_resnet.pt"
    result = script("train.py", "--tag", "second", "--epochs", 2, "--load", first, "--resume", "--gpu", -1)
    assert result.code == 0
    assert "--epochs 1 -> 2" in result.out
    assert checkpoint.load(tmp_path / "checkpoints/second/last.pt")["epoch"] == 2
    again = script("train.py", "--tag", "second", "--resume", "--gpu", -1)
    assert again.code == 0
    assert "is complete: epoch 2 of 2" in again.out


def test_resume_keeps_the_temperature_that_eval_stored(script, photo_set, small, tmp_path):
    """No later epoch is better: with --lr 0 and --freeze_bn all are alike."""
    assert script("train.py", "--tag", "run", "--epochs", 1, *small, "--data_root", photo_set).code == 0
    folder, stored = tmp_path / "checkpoints/run", {"temperature": 2.5, "tta": "none"}
    for name in ("1_timm-test_resnet.pt", "best.pt"):
        checkpoint.amend(folder / name, "calibration", stored, checkpoint.identity(checkpoint.load(folder / name)))
    more = ["--epochs", 2, "--lr", 0, "--freeze_bn"]
    first = ["--load", "checkpoints/run/last.pt", "--resume", "--gpu", -1]
    assert script("train.py", "--tag", "other", *first, *more).code == 0
    assert checkpoint.load(tmp_path / "checkpoints/other/best.pt")["calibration"] == stored
    done = script("train.py", "--tag", "run", "--resume", "--gpu", -1, *more)
    assert done.code == 0 and "best: epoch 1" in done.out, done.err + done.out
    for name in ("1_timm-test_resnet.pt", "best.pt"):
        assert checkpoint.load(folder / name)["calibration"] == stored


def test_resume_links_the_names_that_a_killed_run_had_not(script, photo_set, small, tmp_path):
    assert script("train.py", "--tag", "run", "--epochs", 2, *small, "--data_root", photo_set).code == 0
    folder = tmp_path / "checkpoints/run"
    numbered = folder / "2_timm-test_resnet.pt"
    numbered.unlink()
    numbered.write_bytes((folder / "1_timm-test_resnet.pt").read_bytes())
    assert script("train.py", "--tag", "run", "--resume", "--gpu", -1, "--epochs", 3).code == 0
    assert checkpoint.load(numbered)["epoch"] == 2


def test_resume_of_a_complete_run_links_the_names_that_its_last_epoch_lacks(photo_set, tmp_path, caplog, monkeypatch):
    """It said that the run is complete, and best.pt stayed an earlier epoch, if the run was killed before the links."""
    said, folder = messages(caplog, monkeypatch), tmp_path / "run"
    folder.mkdir()
    history = [{"epoch": k, "val_top1": k / 4, "val_loss": 1.0} for k in (1, 2)]
    for epoch, name in ((1, "best.pt"), (2, "last.pt")):
        content = checkpoint.load(make(tmp_path / "made.pt", photo_set, epoch / 10))
        checkpoint.save(folder / name, content | {"epoch": epoch, "history": history[:epoch], "within": None})
    opt = parse_train(["--tag", "run", "--checkpoint_dir", str(tmp_path), "--epochs", "2"]).replace(resume=True)
    last = folder / "last.pt"
    start = RunStart(opt, checkpoint.load(last), str(last), RunState(epochs_done=2, history=history))
    assert start.is_complete()
    start.link_last_epoch()
    for name in ("best.pt", "2_timm-test_resnet.pt"):
        assert (folder / name).samefile(last) and f"{folder / name} is {last} now" in said()
    (folder / "best.pt").unlink()
    make(folder / "best.pt", photo_set, 0.7)
    start.link_last_epoch()
    assert not (folder / "best.pt").samefile(last) and "best.pt is of no epoch of this run, so it stays" in said()


def messages(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("classifier"), "propagate", True)
    caplog.set_level("INFO")
    return lambda: " ".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(("schedule", "warns"), [("1:16,3:32", False), ("1:16,3:24", True), (None, False)])
def test_run_whose_last_training_size_is_not_its_scale_is_warned_of(schedule, warns, caplog, monkeypatch):
    """It is scored, and predicts later, at --scale."""
    said = messages(caplog, monkeypatch)
    opt = parse_train(["--scale", "32", "--epochs", "3", "--no-pretrained"]).replace(scale_schedule=schedule)
    assert RunStart(opt, None, "", RunState()).fill_defaults(opt, nn.Linear(2, 3), 30, 3).scale == 32
    assert ("ends with 24 px, and --scale is 32" in said() and "try: --scale 24" in said()) == warns


@pytest.mark.parametrize("saved", [{"scale": 16}, {"fit": "crop"}, {"scale": 32}, {}], ids=str)
def test_resume_with_another_size_counts_the_best_epoch_from_there_on(saved, caplog, monkeypatch):
    """Scores of two sizes were compared: best.pt stayed that of the smaller images."""
    said = messages(caplog, monkeypatch)
    opt = parse_train(["--scale", "32", "--fit", "squash", "--epochs", "3"]).replace(resume=True)
    state = RunState(epochs_done=2, history=[{"epoch": k, "val_count": 6.0} for k in (1, 2)])
    start = RunStart(opt, {"opt": saved, "data": {"val_list": "a"}}, "last.pt", state)
    assert start.adopt_validation_list("a", 6) == "a"
    changed = saved in ({"scale": 16}, {"fit": "crop"})
    assert state.scored_from == (3 if changed else 1)
    assert ("last.pt was scored on images of another size or fit (--" in said()) == changed


@pytest.mark.parametrize(
    ("saved", "listed", "complete"),
    [({}, "a", True), ({"scale": 16}, "a", False), ({"fit": "crop"}, "a", False), ({}, "b", False), ({}, None, True)],
    ids=str,
)
def test_resume_of_a_run_that_ended_by_patience_with_other_images_trains_on(
    saved, listed, complete, caplog, monkeypatch
):
    """It was called complete, before its lists were open."""
    said = messages(caplog, monkeypatch)
    opt = parse_train("--scale 32 --fit squash --epochs 6 --patience 1".split()).replace(resume=True)
    history = [{"epoch": k, "val_top1": 0.5, "val_loss": 1.0, "val_count": 6.0} for k in (1, 2)]
    start = RunStart(opt, {"opt": saved, "data": {"val_list": "a"}}, "l.pt", RunState(epochs_done=2, history=history))
    assert not start.is_complete()
    start.adopt_validation_list(listed, 6)
    assert start.is_out_of_patience() == complete
    assert ("l.pt is complete: it stopped after epoch 2 by --patience 1" in said()) == complete


@pytest.mark.parametrize(
    ("scheduler", "advice"), [("cos", "give more --epochs, or"), ("1x", "another --scheduler (1x")]
)
def test_is_complete_names_the_flag_that_sets_the_epochs(scheduler, advice, caplog, monkeypatch):
    """A run of a table was told to give more --epochs, which the table does not use."""
    said = messages(caplog, monkeypatch)
    opt = parse_train(["--scheduler", scheduler, "--epochs", "12"]).replace(resume=True)
    assert RunStart(opt, {"opt": {}}, "last.pt", RunState(epochs_done=12)).is_complete()
    assert "last.pt is complete: epoch 12 of 12. To train more, give" in said() and advice in said()


def test_run_start_without_its_content_is_still_resumed():
    """The run drops the checkpoint once the engine has its tensors; from there on it counted as a new run."""
    start = RunStart(parse_train([]).replace(resume=True), {"opt": {}}, "last.pt", RunState())
    start.content = None
    assert start.resumed


def test_load_flipped_bit_is_refused_by_checksum(tmp_path, caplog, monkeypatch):
    said = messages(caplog, monkeypatch)
    path, weights = tmp_path / "x.pt", {"a": torch.arange(1000.0)}
    checkpoint.save(path, {"weights": weights})
    whole = path.read_bytes()
    at = whole.index(weights["a"].numpy().tobytes()) + 2001
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
    assert torch.load(path, weights_only=True)["weights"]["a"].shape == (1000,), "torch.load takes it"
    with pytest.raises(UserError, match=r"damaged or cut short \(Bad CRC-32 for file"):
        checkpoint.load(path)
    assert not said()
    torch.save(weights, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights, tmp_path / "none.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    save_file(weights, tmp_path / "w.safetensors")
    for name in ("legacy.pth", "none.pth", "w.safetensors"):
        assert torch.equal(checkpoint.load(tmp_path / name)["weights"]["a"], weights["a"])
        assert f"{name} " in said() and "without checksums" in said()


def test_load_foreign_file_gets_true_messages_and_working_command(script, tmp_path, monkeypatch):
    """Prefixes are named, with a command that removes them and works as printed; averages in the file are mentioned."""
    monkeypatch.setitem(network.models, "Tiny", tiny.Tiny)
    data = tiny.write_images(tmp_path)
    weights = checkpoint.load(tiny.unpack("sgd", tmp_path))["weights"]
    words = ["--data_root", data, *"--model Tiny --gpu -1 -w 0 --scale 32 --no-report --resamples 0".split()]
    opt = parse_eval(["--load", "theirs.pth", "--model", "Tiny"])
    for prefix in ("student.", "a.b.net."):
        torch.save({"state_dict": {prefix + name: value for name, value in weights.items()}}, "theirs.pth")
        with pytest.raises(UserError, match=f"Its tensors have the prefix {prefix!r}"):
            inference.load_predictor(opt, torch.device("cpu"))
        with pytest.raises(UserError, match=f"does not fit this network(?s:.*)the prefix {prefix!r}"):
            network.loading.load_weights(
                network.get_model("Tiny")(parse_train(tiny.FLAGS)), checkpoint.load("theirs.pth"), "theirs.pth"
            )
    result = script("eval.py", "--load", "theirs.pth", *words)
    assert result.code == 2 and "holds no classifier" not in result.err
    command = result.err.strip().splitlines()[-1]
    subprocess.run(
        command,
        shell=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
    )
    assert script("eval.py", "--load", "theirs.plain.pt", *words).code == 0
    torch.save({"a": torch.ones(1)}, "other.pth")
    result = script("eval.py", "--load", "other.pth", *words)
    assert result.code == 2
    assert "other.pth does not fit this network: a, " in result.err and "It holds 1 tensor, " in result.err
    torch.save({"state_dict": weights, "state_dict_ema": weights}, "both.pth")
    result = script("eval.py", "--load", "both.pth", *words)
    assert "loading its weights 'state_dict', not the averaged weights 'state_dict_ema'" in result.out
    torch.save({"module.a": torch.ones(1), "a": torch.ones(1)}, "twice.pth")
    with pytest.raises(UserError, match="two tensors of one name"):
        checkpoint.load("twice.pth")


def test_checkpoint_with_foreign_paths_writes_nothing_there(script, tmp_path, monkeypatch):
    monkeypatch.setitem(network.models, "Tiny", tiny.Tiny)
    data = tiny.write_images(tmp_path)
    content = checkpoint.load(tiny.unpack("sgd", tmp_path))
    torch.save({**content, "epoch": "../../x"}, "epoch.pt")
    words = ["--data_root", data, "--gpu", -1, "-w", 0]
    result = script("eval.py", "--load", "epoch.pt", *words)
    assert result.code == 2 and "epoch: input should be a valid integer, got '../../x'" in result.err
    folders = {f"{name}_dir": str(tmp_path / f"their_{name}") for name in ("checkpoint", "log", "result")}
    torch.save({**content, "opt": {**content["opt"], **folders, "cache": f"disk:{tmp_path}/theirs"}}, "paths.pt")
    again = ["train.py", "--tag", "on", "--load", "paths.pt", "--resume", *words]
    result = script(*again)
    assert result.code == 2 and f"{tmp_path}/theirs/ holds no cache" in result.err and "--cache ram" in result.err
    assert script("eval.py", "--load", "paths.pt", *words, "--no-report", "--resamples", 0).code == 0
    assert not list(tmp_path.glob("their*"))
    assert script(*again, "--cache", f"disk:{tmp_path}/mine").code == 0
    assert not list(tmp_path.glob("their*")) and list((tmp_path / "mine").iterdir())
    torch.save({**content, "opt": {**content["opt"], "cache": f"disk:{tmp_path}/mine"}}, "mine.pt")
    assert script("train.py", "--tag", "again", "--load", "mine.pt", "--resume", *words).code == 0


@pytest.mark.parametrize("name", tiny.KEPT)
def test_load_optimizer_state_of_other_shapes_is_refused(name, tmp_path, monkeypatch):
    """The fused kernels read it unchecked: such a file ended in SIGSEGV, or in memory that is another tensor's."""
    monkeypatch.setitem(network.models, "Tiny", tiny.Tiny)
    content = checkpoint.load(tiny.unpack(name, tmp_path))
    opt = parse_train(
        [
            *tiny.FLAGS,
            "--num_classes",
            "3",
            *{"sgd": ["--optimizer", "sgd"], "ranger_fp16": ["--optimizer", "ranger", "--head", "arcface"]}.get(
                name, []
            ),
        ]
    )
    model = network.get_model("Tiny")(opt)
    model.set_precision("fp32")
    engine = build_engine(opt, model, 2)
    saved = content["training"]["optimizer"]
    load_optimizer_state(engine.optimizer, copy.deepcopy(saved), engine.optimizer_settings)
    part = "base_optimizer" if name == "ranger_fp16" else None
    changes = {
        "shape": lambda state: state[0].__setitem__(next(key for key in state[0] if key != "step"), torch.zeros(2)),
        "dtype": lambda state: state[0].update(
            {key: value.double() for key, value in state[0].items() if key != "step"}
        ),
        "missing": lambda state: (
            state[1].pop(next(key for key in state[1] if key != "step"))
            if len(state[1]) > 1
            else state[1].update(momentum_buffer=3.0)
        ),
        "number": lambda state: state.__setitem__(9999, state.pop(0)),
    }
    for what, change in changes.items():
        state = copy.deepcopy(saved)
        change((state[part] if part else state)["state"])
        with pytest.raises(UserError, match="The optimizer's state in the checkpoint does not fit"):
            load_optimizer_state(engine.optimizer, state, engine.optimizer_settings)
            raise AssertionError(what)
    state = copy.deepcopy(saved)
    (state[part] if part else state)["param_groups"].pop()
    with pytest.raises(UserError, match="its groups have"):
        load_optimizer_state(engine.optimizer, state, engine.optimizer_settings)


def test_load_weights_of_another_dtype_is_refused(tmp_path, monkeypatch):
    """They would be converted in silence: statistics in half precision are other statistics."""
    monkeypatch.setitem(network.models, "Tiny", tiny.Tiny)
    content = checkpoint.load(tiny.unpack("sgd", tmp_path))
    content["weights"]["bn1.running_mean"] = content["weights"]["bn1.running_mean"].half()
    model = network.get_model("Tiny")(network.loading.options_from_checkpoint(content, 3, "Tiny"))
    with pytest.raises(
        UserError, match=r"bn1.running_mean is torch.float16, the network's is torch.float32 \(1 tensor"
    ):
        network.loading.load_weights(model, content, "x.pt")
    network.loading.load_weights(
        model, {"weights": content["weights"]}, "a state dict of others, which may be in half precision"
    )
