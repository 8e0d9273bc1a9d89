"""Several processes under torchrun: the same result as one, no sample twice, a lost process made good."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import processes
from benchmarks import crash_test
from conftest import ROOT, SMALL, wait_for
from dataloader.sampler import EvalSampler, SamplingConfig, TrainSampler
from evaluation.step_points import COLUMNS, read_table
from options import parse_train
from processes import free_port, logs
from training.start import find_start
from utils import checkpoint, distributed
from utils.errors import UserError

FLAGS = (
    "--model timm:test_vit --no-pretrained --preset original "
    "--scale 160 -b 12 --gpu -1 --lr 0.01 --optimizer sgd --precision fp32"
)
FLAGS += " -w 1 --transform light"


def torchrun(folder, launcher, *words, machine=None, gates=None):
    """Start an agent in the network namespace `machine`; its first process waits after epochs "2,4", see gate.py."""
    script = [ROOT / "train.py"]
    if gates is not None:
        (folder / "gates").mkdir(exist_ok=True)
        script = [ROOT / "tests/gate.py", folder / "gates", gates, *script]
    return processes.torchrun(folder, launcher, *script, *words, machine=machine)


def ranks(folder, *lines):
    """The exit codes of processes that meet each other without torchrun, one for each line of train.py's words."""
    script = [ROOT / "tests/last_threads.py", folder, ROOT / "train.py"]
    return processes.ranks(folder, *([*script, *words] for words in lines))


def run_alone(folder, tag, *words):
    """The exit code of a run of one process."""
    return processes.alone(folder, ROOT / "train.py", "--tag", tag, *words)


@pytest.fixture(scope="module")
def alone(photo_set, tmp_path_factory):
    """The folder of an undisturbed run of one process."""
    folder = tmp_path_factory.mktemp("processes")
    assert run_alone(folder, "one", *FLAGS.split(), "--data_root", photo_set, "--epochs", 2) == 0
    return folder


def apart(one, two):
    """The largest difference of two checkpoints' weights."""
    return max(float((one["weights"][name] - two["weights"][name]).abs().max()) for name in one["weights"])


@pytest.mark.parametrize("nodes", [1, 2])
def test_train_two_processes_equal_one(alone, photo_set, nodes):
    """With the same global batch, a network without batch norm; on one machine, or two agents as two."""
    words = [*FLAGS.split(), "--data_root", photo_set, "--epochs", 2, "--tag", f"nodes{nodes}"]
    port = free_port()
    where = ["--master_addr", "127.0.0.1", "--master_port", port]
    launchers = [
        [*where, f"--nproc_per_node={2 // nodes}", f"--nnodes={nodes}", f"--node_rank={rank}"] for rank in range(nodes)
    ]
    started = [torchrun(alone, launcher, *words) for launcher in launchers]
    assert [process.wait() for process in started] == [0] * nodes, logs(alone)
    one, two = (checkpoint.load(alone / f"checkpoints/{tag}/last.pt") for tag in ("one", f"nodes{nodes}"))
    assert apart(one, two) < 1e-5
    for before, after in zip(one["history"], two["history"], strict=True):
        assert after["val_count"] == before["val_count"] == 12
        assert after["val_loss"] == pytest.approx(before["val_loss"], abs=1e-5)
        assert after["train_loss"] == pytest.approx(before["train_loss"], abs=1e-5)
    steps = [read_table(alone / f"logs/{tag}/steps.csv", COLUMNS[:6])[0] for tag in ("one", f"nodes{nodes}")]
    assert len(steps[0]) == one["training"]["step"]
    for before, after in zip(*steps, strict=True):
        assert after == pytest.approx(before, rel=1e-3, abs=1e-5)
    lines = (alone / "run_log.txt").read_text().splitlines()
    assert sum(f"tag nodes{nodes}\t" in line for line in lines) == 1


def test_train_processes_with_other_flags_end_before_first_step(photo_set, tmp_path):
    """Different batches would hang for ever; different learning rates or seeds would train nonsense in silence."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/classes.txt").write_text((photo_set / "classes.txt").read_text())
    for name in ("train", "val"):
        lines = (photo_set / f"{name}.txt").read_text().splitlines()
        (tmp_path / f"other/{name}.txt").write_text("\n".join(lines[:-1] if name == "train" else lines) + "\n")
    alike = [*FLAGS.split(), "--epochs", 1, "--tag", "unlike"]
    unlike = ["--data_root", tmp_path / "other", "-b", 24, "--lr", 0.5, "--seed", 3]
    assert ranks(tmp_path, [*alike, "--data_root", photo_set], [*alike, *unlike]) == [2, 2]
    said = logs(tmp_path)
    told = said.split("not started alike:")[1].split("Give each machine")[0].splitlines()
    assert [line.split(":")[0].strip() for line in told if ":" in line] == [
        "--batch_size",
        "--lr",
        "--seed",
        "the training list",
    ]
    assert "--lr: 0.01 (process 0), 0.5 (process 1)" in said
    assert "Traceback" not in said.split("not started alike:")[0]
    assert not list(tmp_path.glob("checkpoints/unlike/*.pt"))


@pytest.mark.parametrize("more", ["--sam 0.5", "--mixup 0.4 --cutmix 1"])
def test_train_two_processes_with_sam_or_mix_equal_one(alone, photo_set, more):
    """--sam: each process climbs by the gradient of the whole batch. --mixup: a sample's partner is of the whole batch.

    No thread of gloo is left when a process ends: it could abort it.
    """
    tag = more.split()[0].strip("-")
    words = [*FLAGS.split(), "--data_root", photo_set, "--epochs", 2, *more.split()]
    assert run_alone(alone, tag, *words) == 0
    assert ranks(alone, *[[*words, "--tag", f"{tag}2"]] * 2) == [0, 0], logs(alone)
    assert "gloo" not in "".join((alone / f"threads{rank}.txt").read_text() for rank in (0, 1))
    one, plain, two = (checkpoint.load(alone / f"checkpoints/{name}/last.pt") for name in (tag, "one", f"{tag}2"))
    assert apart(one, two) < 1e-5 < 1e-4 < apart(one, plain)
    assert two["history"][0]["train_top1"] == pytest.approx(one["history"][0]["train_top1"])


def test_eval_score_equals_that_of_two_processes(script, photo_set, tmp_path):
    """With batch norm, whose statistics differ between the processes after each step."""
    words = (
        "--model timm:test_resnet --no-pretrained --preset original "
        "--scale 32 -b 12 -w 0 --gpu -1 --lr 0.05 --optimizer sgd"
    )
    words += " --precision fp32 --epochs 3"
    more = ["--ema", 0.5, "--data_root", photo_set, "--tag", "bn"]
    assert ranks(tmp_path, *[[*words.split(), *more]] * 2) == [0, 0], logs(tmp_path)
    last = checkpoint.load(tmp_path / "checkpoints/bn/last.pt")["history"][-1]
    words = ["--load", "checkpoints/bn/last.pt", "--data_root", photo_set, "-b", 12, "--gpu", -1]
    words += ["--no-fold", "--no-report", "--resamples", 0]
    done = script("eval.py", *words)
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "results/cache/bn_3/metrics.json").read_text())
    assert found["loss"] == pytest.approx(last["val_loss"], abs=1e-6)
    assert found["top1"] == last["val_top1"]


@pytest.mark.parametrize("share, code", [(0.01, 2), (0.5, 0)])
def test_train_two_processes_name_and_count_unreadable_images_together(photo_set, tmp_path, share, code):
    """Neither has found ten, which are always tolerated, when both together have found more, within the epoch."""
    bad = [tmp_path / f"bad{k:02}.jpg" for k in range(24)]
    for path in bad:
        path.write_bytes(b"no image")
    for name in ("classes", "val"):
        shutil.copy(photo_set / f"{name}.txt", tmp_path)
    listed = (photo_set / "train.txt").read_text() + "".join(f"{path} 1\n" for path in bad)
    (tmp_path / "train.txt").write_text(listed)
    words = [*SMALL.split(), "--data_root", tmp_path, "--epochs", 1, "--max_bad", share, "--tag", "bad"]
    assert ranks(tmp_path, words, words) == [code, code], logs(tmp_path)
    first, second = (path.read_text() for path in sorted(tmp_path.glob("torchrun*.log")))
    assert (tmp_path / "checkpoints/bad/last.pt").exists() == (code == 0)
    table = (tmp_path / "logs/bad/bad_images.csv").read_text()
    log = (tmp_path / "logs/bad/log.txt").read_text()
    named = [path for path in bad if str(path) in table]
    assert 10 < len(named) < 24 if code else named == bad
    assert all(log.count(f"{path}") == (path in named) for path in bad)
    assert "cannot be read" not in second
    if code:
        assert f"{len(named)} of 60 images cannot be read, more than --max_bad 0.01" in first
    else:
        assert "24 images could not be read in training" in first


# ------------------------------------------------------------------------ processes that die

LONG = ["--epochs", 6, "--save_minutes", 0, "--drop", 0.1, "--optimizer", "adamw"]


def reached(folder, epoch):
    """Whether the first process waits at that gate, and so the others for it."""
    return (folder / "gates" / str(epoch)).exists()


def signal_a_rank(agent, which=0, number=signal.SIGKILL):
    """A signal to a training process of a torchrun."""
    ranks = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    assert len(ranks) > which
    os.kill(int(ranks[which]), number)


@pytest.fixture(scope="module")
def undisturbed(photo_set, tmp_path_factory):
    """The folder of a longer run of two processes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    words = [*FLAGS.split(), "--data_root", photo_set, *LONG, "--tag", "whole"]
    assert ranks(folder, words, words) == [0, 0], logs(folder)
    return folder


def as_undisturbed(undisturbed, folder):
    """Whether the run "cut" of `folder` ended as "whole"."""
    for room in ("checkpoints", "logs"):
        shutil.copytree(undisturbed / room / "whole", folder / room / "whole")
    return crash_test.differences(folder, "whole", "cut") == []


@pytest.mark.slow
def test_torchrun_process_killed_resumes_bit_for_bit(undisturbed, photo_set, tmp_path):
    (tmp_path / "checkpoints/cut").mkdir(parents=True)
    shutil.copy(undisturbed / "checkpoints/whole/last.pt", tmp_path / "checkpoints/cut")  # of an earlier run
    words = [*FLAGS.split(), "--data_root", photo_set, *LONG, "--tag", "cut", "--overwrite"]
    agent = torchrun(tmp_path, ["--standalone", "--nproc_per_node=2", "--max-restarts=2"], *words, gates="2,4")
    for kill in range(2):
        wait_for(lambda kill=kill: reached(tmp_path, 2 + 2 * kill))
        signal_a_rank(agent, 1 - kill)
    assert agent.wait() == 0, logs(tmp_path)
    assert (tmp_path / "logs/cut/log.txt").read_text().count("torchrun restarted the run: it continues from") == 2
    assert as_undisturbed(undisturbed, tmp_path)


@pytest.mark.slow
def test_torchrun_restart_of_overwrite_continues(photo_set, tmp_path):
    (tmp_path / "checkpoints/cut").mkdir(parents=True)
    (tmp_path / "checkpoints/cut/last.pt").write_bytes(b"of an earlier run")
    words = [*FLAGS.split(), "--data_root", photo_set, "--epochs", 3, "--tag", "cut", "--overwrite"]
    agent = torchrun(tmp_path, ["--standalone", "--nproc_per_node=1", "--max-restarts=1"], *words, gates="2")
    wait_for(lambda: reached(tmp_path, 2))
    signal_a_rank(agent)
    assert agent.wait() == 0, logs(tmp_path)
    said = (tmp_path / "logs/cut/log.txt").read_text()
    assert said.count("--overwrite: deleted") == 1
    assert said.count("torchrun restarted the run: it continues from") == 1
    assert said.count("epoch 1/3") == 1


@pytest.mark.slow
def test_torchrun_signal_to_one_process_stops_all_saved(undisturbed, photo_set, tmp_path):
    words = [*FLAGS.split(), "--data_root", photo_set, *LONG, "--save_minutes", 10, "--tag", "cut"]
    launcher = ["--nproc_per_node=2", "--master_port", free_port()]
    agent = torchrun(tmp_path, launcher, *words, gates="2")
    wait_for(lambda: reached(tmp_path, 2))
    # it waits for the first process in a collective: its handler runs after that
    signal_a_rank(agent, 1, signal.SIGUSR1)
    (tmp_path / "gates/2.open").touch()
    assert agent.wait() == 1  # torchrun's code where a process gives any but 0
    assert "SIGUSR1: the run ends here" in logs(tmp_path)
    assert 2 <= checkpoint.load(tmp_path / "checkpoints/cut/last.pt")["epoch"] < 6
    again = ["--tag", "cut", "--resume", "--gpu", -1, "--save_minutes", 0]
    assert ranks(tmp_path, again, again) == [0, 0], logs(tmp_path)
    assert as_undisturbed(undisturbed, tmp_path)


def test_train_signal_to_one_process_all_stay_until_it_is_saved(photo_set, tmp_path):
    """torchrun kills the first process 30 seconds after another has ended; its checkpoint was lost, though "saved"."""
    script = [ROOT / "tests/held_write.py", tmp_path, ROOT / "train.py", *SMALL.split(), "--data_root", photo_set]
    words = [*script, "--epochs", 3, "--val_freq", 0, "--tag", "cut"]
    first, second = processes.start_ranks(tmp_path, words, words)
    wait_for((tmp_path / "held").exists)
    wait_for(lambda: (tmp_path / "waits").exists() or second.poll() is not None)
    assert first.poll() is second.poll() is None
    first.send_signal(signal.SIGTERM)  # as torchrun does when another process has ended
    (tmp_path / "release").touch()
    assert [first.wait(), second.wait()] == [128 + signal.SIGUSR1] * 2, logs(tmp_path)
    said, other = (path.read_text() for path in sorted(tmp_path.glob("torchrun*_*.log")))
    assert 0 < said.index("written") < said.index("SIGUSR1: the run ends here. It is saved in checkpoints/cut/last.pt")
    assert "has ended" not in said and "It is saved" not in other
    assert checkpoint.load(tmp_path / "checkpoints/cut/last.pt")["within"] is not None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["static", "c10d"])
def test_torchrun_two_agents_killed_process_resumes_bit_for_bit(undisturbed, photo_set, tmp_path, kind):
    """Two agents without a folder in common; torchrun counts their restarts apart."""
    port, nodes = free_port(), []
    words = [*FLAGS.split(), "--data_root", photo_set, *LONG, "--tag", "cut"]
    for node in range(2):
        (tmp_path / str(node)).mkdir()
        where = ["--master_addr", "127.0.0.1", "--master_port", port, f"--node_rank={node}"]
        if kind == "c10d":
            where = f"--rdzv_backend c10d --rdzv_endpoint 127.0.0.1:{port} --rdzv_conf is_host={1 - node}".split()
        nodes.append(
            torchrun(
                tmp_path / str(node),
                [*where, "--nnodes=2", "--nproc_per_node=1", "--max-restarts=4"],
                *words,
                gates="2,4",
            )
        )
    # with c10d the first process may be on either machine, and is on the same after a restart
    wait_for(lambda: any(reached(tmp_path / node, 2) for node in "01"))
    first = 0 if reached(tmp_path / "0", 2) else 1
    signal_a_rank(nodes[1 - first])
    (tmp_path / str(first) / "gates/2.open").touch()  # no agent tells it: it notices in its next collective
    wait_for(lambda: reached(tmp_path / str(first), 4))
    signal_a_rank(nodes[first])
    assert [node.wait() for node in nodes] == [0, 0], logs(tmp_path / "0") + logs(tmp_path / "1")
    assert not (tmp_path / str(1 - first) / "checkpoints").exists()
    assert as_undisturbed(undisturbed, tmp_path / str(first))


def test_rendezvous_name_of_newest_start_wins(monkeypatch):
    """Names in the store: a process that begins first waits for the newest start, whatever an earlier one left."""
    store = torch.distributed.HashStore()
    names = {}

    def start(rank, label):
        names[label] = distributed._rendezvous_name(store)

    monkeypatch.setattr(distributed, "rank", lambda: int(threading.current_thread().name))
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    for round_ in range(2):
        threads = [threading.Thread(target=start, args=(rank, (round_, rank)), name=str(rank)) for rank in range(3)]
        for thread in reversed(threads):
            thread.start()
            time.sleep(0.3)
        for thread in threads:
            thread.join(20)
    assert [len({names[round_, rank] for rank in range(3)}) for round_ in range(2)] == [1, 1]
    assert names[0, 0] != names[1, 0]


def test_find_start_restart_without_checkpoint_is_refused(monkeypatch, tmp_path):
    opt = parse_train(["--tag", "x"])
    with pytest.raises(UserError, match="on another machine now"):
        find_start(opt, tmp_path, restarted=True)
    monkeypatch.setattr(distributed, "broadcast_from_main", lambda make: make())
    monkeypatch.setattr(distributed, "may_restart", lambda: True)
    assert find_start(opt, tmp_path, restarted=False)[1:] == (None, "")
    assert find_start(opt, tmp_path, restarted=True)[1:] == (None, "")  # it had begun, and not saved yet


# ------------------------------------------------------------------------ machines of their own


@pytest.fixture
def two_machines():
    """Two network namespaces on a cable, and their addresses: each is a machine to the programs in it."""
    names = [f"classifier{os.getpid()}{letter}" for letter in "ab"]
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    if subprocess.run(["ip", "netns", "add", names[0]], capture_output=True).returncode:
        pytest.skip("network namespaces are not allowed here")
    try:
        lines = [f"netns add {names[1]}", f"link add eth0 netns {names[0]} type veth peer name eth0 netns {names[1]}"]
        for k, name in enumerate(names):
            lines += [
                f"-n {name} addr add 10.77.0.{k + 1}/24 dev eth0",
                f"-n {name} link set eth0 up",
                f"-n {name} link set lo up",
            ]
        for line in lines:
            subprocess.run(["ip", *line.split()], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def test_train_two_machines_equal_one(alone, photo_set, tmp_path, two_machines):
    """Network namespaces, each with its own folder, with the README's command."""
    words = [*FLAGS.split(), "--data_root", photo_set, "--epochs", 2, "--tag", "far"]
    nodes = []
    for rank, machine in enumerate(two_machines):
        (tmp_path / str(rank)).mkdir()
        launcher = [
            "--nnodes=2",
            f"--node_rank={rank}",
            "--nproc_per_node=1",
            "--master_addr=10.77.0.1",
            "--master_port=29500",
        ]
        nodes.append(torchrun(tmp_path / str(rank), launcher, *words, machine=machine))
    assert [node.wait() for node in nodes] == [0, 0], logs(tmp_path / "0") + logs(tmp_path / "1")
    one, far = (
        checkpoint.load(path) for path in (alone / "checkpoints/one/last.pt", tmp_path / "0/checkpoints/far/last.pt")
    )
    assert apart(one, far) < 1e-5
    assert not (tmp_path / "1/checkpoints").exists()


def as_process(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))


@pytest.mark.parametrize("draw", [SamplingConfig(3), SamplingConfig(3, "class"), SamplingConfig(3, "sqrt", 2)], ids=str)
def test_train_sampler_processes_share_each_batch(monkeypatch, draw):
    labels = np.arange(103) % 7
    whole = list(TrainSampler(labels.astype(np.int32), 12, 2, draw))
    parts = []
    for rank in range(3):
        as_process(monkeypatch, rank, 3)
        parts.append(list(TrainSampler(labels.astype(np.int32), 12, 2, draw)))
    for keys in zip(whole, *parts, strict=True):
        assert {key[:2] for key in keys} == {keys[0][:2]}
        pairs = sorted(zip(keys[0].indices.tolist(), keys[0].repeat_index.tolist(), strict=True))
        shared = sorted(
            (i, c) for key in keys[1:] for i, c in zip(key.indices.tolist(), key.repeat_index.tolist(), strict=True)
        )
        assert shared == pairs
        assert all(len(key.indices) == 4 for key in keys[1:])


@pytest.mark.parametrize("count", [1, 5, 24, 101])
def test_eval_sampler_processes_cover_each_sample_once(monkeypatch, count):
    seen = []
    for rank in range(3):
        as_process(monkeypatch, rank, 3)
        seen += [index for key in EvalSampler(count, 12) for index in key.indices.tolist()]
    assert sorted(seen) == list(range(count))


def test_per_process_batch_indivisible_is_refused(monkeypatch):
    as_process(monkeypatch, 0, 5)
    with pytest.raises(UserError, match=r"-b 12 .* 5 processes; give a multiple of 5, such as -b 10"):
        distributed.per_process_batch(12)


def test_distributed_helpers_of_one_process_do_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "3")  # some batch systems set it
    values = torch.ones(2)
    assert distributed.rank() == 0
    assert distributed.all_reduce_mean_(values) is values
    assert distributed.all_gather_object("x") == ["x"]
    assert distributed.process_count_text() == ""


def test_train_hours_two_processes_follow_the_first_clock(photo_set, tmp_path):
    """The second process's clock is seven times as fast. Another number of steps would hang, as would other rates."""
    words = [*FLAGS.split(), "--data_root", photo_set, "--hours", 30 / 3600, "--tag", "hours"]
    launcher = ["--master_addr", "127.0.0.1", "--master_port", free_port(), "--nproc_per_node=2"]
    process = torchrun(tmp_path, [*launcher, ROOT / "tests/ticking.py"], *words)
    assert process.wait(900) == 0, logs(tmp_path)  # it would hang for ever
    assert "--hours 0.00833333: took " in logs(tmp_path)
    used = checkpoint.load(tmp_path / "checkpoints/hours/last.pt")["training"]["clock"]["used"]
    assert used == pytest.approx(30, abs=3)
