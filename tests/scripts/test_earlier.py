"""A tag that has a run: a new one replaces it only with --overwrite, and never what it starts from."""

import shutil
from pathlib import Path

import pytest

from utils import checkpoint, distributed

FLAGS = (
    "--model timm:test_resnet --no-pretrained --preset original "
    "--scale 32 -b 12 -w 0 --gpu -1 --lr 0.01 --optimizer sgd --precision fp32"
)


@pytest.fixture
def earlier(tmp_path, photo_set):
    """What a run of three epochs left under the tag `run`, as far as its names tell; and the words of the next one."""
    folder, logs = tmp_path / "checkpoints/run", tmp_path / "logs/run"
    folder.mkdir(parents=True)
    logs.mkdir(parents=True)
    for name in ("2_ResNet18.pt", "3_ResNet18.pt", "last.pt", "best.pt", "best.norm.pt", "mine.pt"):
        (folder / name).write_bytes(b"weights of old")
    (logs / "metrics.csv").write_text("epoch,val_top1\n1,0.1\n2,0.2\n3,0.3\n")
    (logs / "confusion.png").write_bytes(b"a picture")
    (logs / "log.txt").write_text("what it said\n")
    return ["--tag", "run", *FLAGS.split(), "--data_root", str(photo_set), "--epochs", "1"]


def files(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "run_log" not in path.name
    }


def test_train_over_earlier_run_needs_overwrite(script, earlier, tmp_path):
    before = files(tmp_path)
    result = script("train.py", *earlier)
    assert result.code == 2 and files(tmp_path) == before
    for part in (
        "run of tag 'run' already",
        "2_ResNet18.pt, 3_ResNet18.pt, best.norm.pt, best.pt, last.pt;",
        "has 3 epoch(s)",
        "--overwrite",
        "--resume",
    ):
        assert part in result.err, result.err
    command = result.err.split("try: ")[-1].split()
    for flags, part in (
        (["--load", "checkpoints/run/best.pt", "--overwrite"], "--load checkpoints/run/best.pt is of tag 'run' itself"),
        (
            ["--teacher", "checkpoints/run/best.pt", "--overwrite"],
            "--teacher checkpoints/run/best.pt is of tag 'run' itself",
        ),
        (["--load", "checkpoints/run/../run/3_ResNet18.pt"], "is of tag 'run' itself"),
        (["--resume", "--load", "other.pt"], "run of tag 'run' already"),
        (["--resume", "--overwrite"], "--resume and --overwrite contradict: one continues the run of tag 'run'"),
        # it deleted the run that it continued, with its best epoch, before it had anything new
        (["--resume", "--load", "./checkpoints/run/last.pt", "--overwrite"], "--resume and --overwrite contradict"),
        (["--resume", "--load", "checkpoints/run/2_ResNet18.pt", "--overwrite"], "--resume and --overwrite contradict"),
        (["--resume", "--load", "other.pt"], "Leave --load out to continue it, --overwrite to delete it"),
    ):
        result = script("train.py", *earlier, *flags)
        assert result.code == 2 and part in result.err and files(tmp_path) == before, result.err

    result = script("train.py", *earlier, "--overwrite", "--val_freq", 0)
    assert result.code == 0, result.err
    assert "deleted 5 checkpoints of the earlier run in checkpoints/run/, 2 files in logs/run/" in result.out
    after = files(tmp_path)
    assert {path.name for path in after if path.parts[0] == "checkpoints"} == {
        "1_timm-test_resnet.pt",
        "last.pt",
        "mine.pt",
    }  # best.norm.pt was made of the best.pt that is deleted
    assert Path("logs/run/confusion.png") not in after and after[Path("logs/run/log.txt")].startswith(b"what it said\n")
    saved = checkpoint.load(tmp_path / "checkpoints/run/last.pt")["opt"]
    assert "overwrite" not in saved and "overwrite" not in (tmp_path / "logs/run/options.yaml").read_text()
    for other_name in ([], ["--load", tmp_path / "checkpoints/run/last.pt"]):
        again = script("train.py", "--tag", "run", "--resume", "--epochs", 1, *other_name)
        assert again.code == 0 and "\ncheckpoints/run/last.pt is complete" in f"\n{again.out}", again

    assert script(*command[1:]).code == 0  # as printed
    assert not (tmp_path / "checkpoints/run").exists()
    assert script("train.py", *earlier, "--val_freq", 0, "--debug").code == 0


def test_train_over_records_without_checkpoints_is_refused(script, earlier, tmp_path):
    shutil.rmtree(tmp_path / "checkpoints")
    result = script("train.py", *earlier)
    assert result.code == 2 and "logs/run/metrics.csv has 3 epoch(s)" in result.err, result.err
    (tmp_path / "logs/run/metrics.csv").unlink()
    result = script("train.py", *earlier, "--train_list", "none.txt")
    assert result.code == 2 and "There is no list none.txt" in result.err


def test_distributed_init_after_refused_start_is_no_restart(monkeypatch):
    """torchrun starts a refused run again; it must not go on from the earlier run's last.pt."""
    import torch

    monkeypatch.setattr(torch.distributed, "rendezvous", lambda _: iter([(store, 0, 1)]))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(distributed, "_stores", [])  # later tests run without torchrun
    monkeypatch.setattr(distributed, "_has_joined", False)
    monkeypatch.setattr(distributed, "_restarted", False)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "_rendezvous_name", lambda _: "name")
    monkeypatch.setattr(distributed, "broadcast_from_main", lambda make: make())
    store, found = torch.distributed.HashStore(), []
    for begins in (False, True, True):
        distributed.init(torch.device("cpu"))
        found.append(distributed.was_restarted())
        if begins:
            distributed.mark_begun()
    assert found == [False, False, True]
