"""Several processes under torchrun: the same result as one, no sample twice, a lost process made good."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dataloader.sampler import Draw, EvalSampler, TrainSampler
from tools import crash_test
from utils import checkpoint, processes
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
FLAGS = "--model timm:test_vit --no-pretrained --scale 160 -b 12 --gpu -1 --lr 0.01 --optimizer sgd --precision fp32 -w 1 --transform light"


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def torchrun(folder, launcher, *words):
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, launcher), str(ROOT / "train.py"), *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(folder / f"torchrun{time.monotonic_ns()}.log", "wb") as file:
        return subprocess.Popen(command, cwd=folder, stdout=file, stderr=subprocess.STDOUT, env=environment)


def logs(folder):
    return "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("torchrun*.log")))


@pytest.fixture(scope="module")
def alone(photo_set, tmp_path_factory):
    """The folder of an undisturbed run of one process."""
    folder = tmp_path_factory.mktemp("processes")
    assert crash_test.train(folder, "one", [*FLAGS.split(), "--data_root", str(photo_set), "--epochs", "2"]).wait() == 0
    return folder


def apart(one, two):
    """The largest difference of two checkpoints' weights."""
    return max(float((one["weights"][name] - two["weights"][name]).abs().max()) for name in one["weights"])


@pytest.mark.parametrize("nodes", [1, 2])
def test_two_processes_reach_the_weights_of_one(alone, photo_set, nodes):
    """With the same global batch, a network without batch norm; on one machine, or two agents as two."""
    words = [*FLAGS.split(), "--data_root", photo_set, "--epochs", 2, "--tag", f"nodes{nodes}"]
    port = free_port()
    where = ["--master_addr", "127.0.0.1", "--master_port", port]
    agents = [[*where, f"--nproc_per_node={2 // nodes}", f"--nnodes={nodes}", f"--node_rank={rank}"] for rank in range(nodes)]
    started = [torchrun(alone, agent, *words) for agent in agents]
    assert [process.wait(120) for process in started] == [0] * nodes, logs(alone)
    one, two = (checkpoint.load(alone / f"checkpoints/{tag}/last.pt") for tag in ("one", f"nodes{nodes}"))
    assert apart(one, two) < 1e-5
    for before, after in zip(one["history"], two["history"], strict=True):
        assert after["val_count"] == before["val_count"] == 12
        assert after["val_loss"] == pytest.approx(before["val_loss"], abs=1e-5)
        assert after["train_loss"] == pytest.approx(before["train_loss"], abs=1e-5)
    lines = (alone / "run_log.txt").read_text().splitlines()
    assert sum(f"tag nodes{nodes}\t" in line for line in lines) == 1


def test_two_processes_climb_as_one(alone, photo_set):
    """--sam: each process climbs by the gradient of the whole batch, and steps by that of the whole batch up there."""
    words = [*FLAGS.split(), "--data_root", str(photo_set), "--epochs", "2", "--sam", "0.5"]
    assert crash_test.train(alone, "sam", words).wait() == 0
    assert torchrun(alone, ["--nproc_per_node=2", "--master_port", free_port()], *words, "--tag", "sam2").wait(120) == 0, logs(alone)
    one, plain, two = (checkpoint.load(alone / f"checkpoints/{tag}/last.pt") for tag in ("sam", "one", "sam2"))
    assert apart(one, two) < 1e-5 < 1e-4 < apart(one, plain)
    assert two["history"][0]["train_top1"] == pytest.approx(one["history"][0]["train_top1"])


def test_a_killed_process_is_made_good_to_the_bit(photo_set, tmp_path):
    words = [*FLAGS.split(), "--data_root", photo_set, "--epochs", 30, "--save_minutes", 0, "--drop", 0.1, "--optimizer", "adamw"]
    assert torchrun(tmp_path, ["--nproc_per_node=2", "--master_port", free_port()], *words, "--tag", "whole").wait(200) == 0, logs(tmp_path)
    (tmp_path / "checkpoints/cut").mkdir(parents=True)
    (tmp_path / "checkpoints/cut/last.pt").write_bytes((tmp_path / "checkpoints/whole/last.pt").read_bytes())  # of an earlier run
    process = torchrun(tmp_path, ["--standalone", "--nproc_per_node=2", "--max-restarts=2"], *words, "--tag", "cut")
    for kill in range(2):
        until = time.monotonic() + 120
        goal = f"epoch {4 + 8 * kill}/30"
        while time.monotonic() < until and not (
            (tmp_path / "logs/cut/log.txt").exists() and goal in (tmp_path / "logs/cut/log.txt").read_text()
        ):
            time.sleep(0.05)
        ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(ranks) >= 2, logs(tmp_path)
        os.kill(int(ranks[1 - kill]), signal.SIGKILL)
    assert process.wait(200) == 0, logs(tmp_path)
    assert "Restart 2 of torchrun" in (tmp_path / "logs/cut/log.txt").read_text()
    assert crash_test.differences(tmp_path, "whole", "cut") == []


def as_process(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))


@pytest.mark.parametrize("draw", [Draw(3), Draw(3, "class"), Draw(3, "sqrt", 2)], ids=str)
def test_processes_share_each_batch_without_repeats(monkeypatch, draw):
    labels = np.arange(103) % 7
    whole = list(TrainSampler(labels.astype(np.int32), 12, 2, draw))
    parts = []
    for rank in range(3):
        as_process(monkeypatch, rank, 3)
        parts.append(list(TrainSampler(labels.astype(np.int32), 12, 2, draw)))
    for keys in zip(whole, *parts, strict=True):
        assert {key[:2] for key in keys} == {keys[0][:2]}
        pairs = sorted(zip(keys[0].indices.tolist(), keys[0].copies.tolist(), strict=True))
        shared = sorted((i, c) for key in keys[1:] for i, c in zip(key.indices.tolist(), key.copies.tolist(), strict=True))
        assert shared == pairs
        assert all(len(key.indices) == 4 for key in keys[1:])


@pytest.mark.parametrize("count", [1, 5, 24, 101])
def test_evaluation_counts_each_sample_once(monkeypatch, count):
    seen = []
    for rank in range(3):
        as_process(monkeypatch, rank, 3)
        seen += [index for key in EvalSampler(count, 12) for index in key.indices.tolist()]
    assert sorted(seen) == list(range(count))


def test_a_batch_that_cannot_be_shared_out(monkeypatch):
    as_process(monkeypatch, 0, 5)
    with pytest.raises(UserError, match=r"-b 12 .* 5 processes; give a multiple, such as -b 10"):
        processes.share(12)


def test_one_process_sees_nothing_of_it(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "3")  # some batch systems set it
    values = torch.ones(2)
    assert processes.rank() == 0
    assert processes.mean(values) is values
    assert processes.gather("x") == ["x"]
    assert processes.in_words() == ""
