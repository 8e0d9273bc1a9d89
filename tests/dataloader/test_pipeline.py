"""Samplers, loaders, cache: the same batches whatever makes them, wherever a run is taken up."""

import logging
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import dataloader
from conftest import ROOT
from dataloader import cache
from dataloader.file_list import read_list
from dataloader.geometry import RandomCrop
from dataloader.sampler import balanced_indices, repeat_index
from dataloader.transforms import transforms
from options import parse_train
from utils.errors import UserError
from utils.logger import start_logging
from utils.preprocess import Preprocess

WAY = Preprocess(32, "squash", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def loader(photo_set, *words):
    opt = parse_train(["--scale", "32", "-b", "12", "--epochs", "2", "--gpu", "-1", *map(str, words)])
    return dataloader.train_loader(opt, read_list(photo_set / "train.txt"), WAY)


def batches(photo_set, *words):
    return list(loader(photo_set, *words).batches(1))


def equal(first, second):
    pairs = list(zip(first, second, strict=True))
    return all(torch.equal(a.image, b.image) and torch.equal(a.index, b.index) and a[3:5] == b[3:5] for a, b in pairs)


@pytest.mark.parametrize("transform", list(transforms))
@pytest.mark.parametrize(
    "how", [("-w", 1), ("-w", 2), ("-w", 1, "--loader", "process"), ("-w", 2, "--loader", "process")], ids=str
)
def test_train_loader_with_workers_gives_same_distinct_images(photo_set, transform, how):
    plain = batches(photo_set, "-w", 0, "--transform", transform)
    assert equal(plain, batches(photo_set, *how, "--transform", transform))
    pictures = [image.numpy().tobytes() for batch in plain for image in batch.image]
    assert len(pictures) == 72
    if transform != "none":
        assert len(set(pictures)) >= 70  # a mirrored crop of a smooth cut may rarely agree
    assert plain[0].image.dtype == torch.uint8
    assert plain[0].image.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("how", ["sqrt", "class"])
def test_balanced_indices_draws_by_class_share(how):
    labels = np.repeat(np.arange(4), [1000, 400, 100, 4]).astype(np.int32)
    drawn = balanced_indices(labels, how, np.random.default_rng(0))
    counts = np.bincount(labels[drawn], minlength=4)
    share = np.sqrt([1000, 400, 100, 4]) if how == "sqrt" else np.ones(4)
    assert len(drawn) == len(labels)
    times = np.bincount(drawn, minlength=len(labels))
    for label in range(4):
        expected = share[label] / share.sum() * len(labels) / (labels == label).sum()
        mine = times[labels == label]
        assert set(mine.tolist()) <= {int(expected), int(expected) + 1}
        assert abs(counts[label] - expected * (labels == label).sum()) <= 2


def test_repeat_aug_copies_differ(photo_set):
    assert repeat_index(np.array([3, 1, 3, 3, 1])).tolist() == [0, 0, 1, 2, 1]
    first = batches(photo_set, "-w", 0, "--repeat_aug", 3)[0]
    assert first.index.tolist() == np.repeat(first.index[::3], 3).tolist()
    assert len({image.numpy().tobytes() for image in first.image}) == 12


@pytest.mark.parametrize(
    ("batch", "repeats", "said"),
    [
        (8, 3, "A batch of 8 .* Try: -b 6 or -b 9$"),
        (35, 4, "A batch of 35 .* Try: -b 32 or -b 36$"),
        (40, 5, "A batch of 36 .* Try: -b 35$"),  # the list has 36 images
        (2, 3, "A batch of 2 .* Try: -b 3$"),
    ],
)
def test_repeat_aug_that_does_not_divide_the_batch_is_refused(photo_set, batch, repeats, said):
    """Some images of a batch had fewer copies."""
    with pytest.raises(UserError, match=said):
        loader(photo_set, "-b", batch, "--repeat_aug", repeats)


def test_repeat_aug_of_a_resumed_run_warns_if_it_began_so(photo_set, capfd):
    start_logging()
    opt = parse_train(["-b", "8", "--repeat_aug", "3", "--resume"])
    dataloader.train_loader(opt, read_list(photo_set / "train.txt"), WAY, repeats_as_before=True)
    assert "A batch of 8 cannot hold each image --repeat_aug 3 times" in capfd.readouterr().out
    with pytest.raises(UserError, match="A batch of 8 .* Try: -b 6 or -b 9$"):
        loader(photo_set, "-b", 8, "--repeat_aug", 3, "--resume")


@pytest.mark.parametrize("size, warned", [(31, True), (32, False), (None, False)])
def test_cache_smaller_than_the_images_is_warned_of(size, warned, photo_set, caplog, monkeypatch):
    """Scores changed, and the log named the size of the cache alone."""
    monkeypatch.setattr(logging.getLogger("classifier"), "propagate", True)
    given = [] if size is None else ["--cache_size", size]
    loader(photo_set, "-w", 0, "--transform", "none", "--cache", "ram", *given)
    said = f"--cache_size {size} is less than the 32 px that train.txt needs here"
    assert (said in caplog.text) == warned and ("--cache_size" in caplog.text) == warned


def test_scale_schedule_sets_size_per_epoch(photo_set):
    sizes = [batch.image.shape[-1] for batch in batches(photo_set, "-w", 0, "--scale_schedule", "1:16,2:32")]
    assert sizes == [16] * 3 + [32] * 3
    for wrong in ("2:16", "1:16,1:32", "a:b", "1"):
        with pytest.raises(UserError, match="--scale_schedule"):
            loader(photo_set, "--scale_schedule", wrong)


# ------------------------------------------------------------------------ cache


@pytest.mark.parametrize("form", ["jpeg", "raw"])
def test_cache_leaves_out_an_image_with_too_long_a_side(tmp_path, form, capfd):
    """A struct.error, or one of libjpeg, ended the run, which reads such files without a cache."""
    start_logging()
    lines = []
    for label, width in enumerate((65501, 40)):
        cv2.imwrite(str(tmp_path / f"{label}.png"), np.full((1, width, 3), 60 * label + 30, np.uint8))
        lines.append(f"{label}.png {label}\n")
    for name in ("train", "val"):
        (tmp_path / f"{name}.txt").write_text("".join(lines))
    words = ("-w", 0, "-b", 2, "--transform", "none")
    cached = batches(tmp_path, *words, "--cache", "ram", "--cache_format", form)
    said = capfd.readouterr().out
    assert "Cached 1 image of" in said and "; 1 have no entry: they cannot be read, or a side is over" in said
    assert cached and equal(cached, batches(tmp_path, *words))


@pytest.mark.parametrize("form", ["jpeg", "raw"])
@pytest.mark.parametrize("loader_kind", ["thread", "process"])
def test_cache_in_ram_and_on_disk_agree_and_are_near_files(photo_set, tmp_path, form, loader_kind):
    plain = batches(photo_set, "-w", 0, "--transform", "light")
    words = ("-w", 2, "--loader", loader_kind, "--transform", "light", "--cache_format", form, "--cache")
    ram = batches(photo_set, *words, "ram")
    assert equal(ram, batches(photo_set, *words, f"disk:{tmp_path}/c"))
    apart = np.mean([(a.image.float() - b.image.float()).abs().mean() for a, b in zip(plain, ram, strict=True)])
    assert 0 < apart < 8


def test_disk_cache_is_reused_and_changed_files_are_rebuilt(photo_set, tmp_path, monkeypatch):
    words = ("-w", 0, "--cache", f"disk:{tmp_path}/c")
    batches(photo_set, *words)
    encoded = []
    real = cache._encode
    monkeypatch.setattr(
        cache, "_encode", lambda files, index, encoding: encoded.append(index) or real(files, index, encoding)
    )
    batches(photo_set, *words)
    assert encoded == []
    path = read_list(photo_set / "train.txt").path(5)
    os.utime(path, (1, 1))
    batches(photo_set, *words)
    assert set(encoded) == {5}


def test_ram_cache_too_large_is_refused(photo_set, monkeypatch):
    monkeypatch.setattr(cache.MemoryStore, "free_bytes", lambda self: 1000)
    with pytest.raises(UserError, match="--cache_size"):
        loader(photo_set, "--cache", "ram")


def test_ram_cache_is_one_of_as_many_as_the_machine_has_processes(monkeypatch):
    """Each process of torchrun keeps a copy of its own: the check counted one."""
    monkeypatch.setattr("os.sysconf", {"SC_AVPHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert cache.MemoryStore(3).free_bytes() == 512_000


def test_min_source_side_of_quarter_zoom_is_doubled():
    assert RandomCrop(224, 0.25, 0.75).min_source_side() == 448


def test_disk_cache_killed_while_building_continues_to_same_pixels(photo_set, tmp_path):
    """SIGKILL where the third of many transactions is open; then a run that was never killed."""
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from dataloader import cache, stores
cache.TRANSACTION_SIZE, puts = 1, []
class Slow(stores.SqliteStore):
    def put(self, entries):
        puts.append(1)
        if len(puts) == 3:
            self._connection().execute("BEGIN IMMEDIATE")
            self._connection().execute("INSERT INTO entries VALUES (?, 0, ?)", (b"half", b"x" * 1000000))
            print("here", flush=True)
            sys.stdin.read()
        super().put(entries)
cache.SqliteStore = Slow
from dataloader.file_list import read_list
cache.build_reader(read_list({str(photo_set / "train.txt")!r}), cache.CacheConfig("disk:{tmp_path}/c"), 46)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    while process.stdout.readline().strip() != b"here":
        assert process.poll() is None
    process.kill()
    process.communicate()
    words = ("-w", 0, "--transform", "light", "--cache")
    assert equal(batches(photo_set, *words, f"disk:{tmp_path}/c"), batches(photo_set, *words, "ram"))


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def garble(path):
    rng, held = np.random.default_rng(0), bytearray(path.read_bytes())
    for at in rng.integers(len(held), size=40).tolist():
        held[at] ^= 1 << int(rng.integers(8))
    path.write_bytes(held)


def overwrite(path):
    path.write_bytes(b"not a cache" * 1000)


@pytest.mark.parametrize("damage", [cut, garble, overwrite])
def test_disk_cache_damaged_gives_same_batches_and_is_rebuilt(photo_set, tmp_path, monkeypatch, damage):
    """Damaged between two runs, and while a run reads it: no signal ends a run, and the pixels stay the same."""
    words = ("-w", 0, "--transform", "light", "--cache_format", "raw", "--cache", f"disk:{tmp_path}/c")
    sound = batches(photo_set, *words)
    running = iter(loader(photo_set, *words).batches(1))
    next(running)
    (held,) = (tmp_path / "c").glob("*.sqlite")
    damage(held)
    assert len(list(running)) == len(sound) - 1  # from the files themselves where the cache fails
    encoded, real = [], cache._encode
    monkeypatch.setattr(
        cache, "_encode", lambda files, index, encoding: encoded.append(index) or real(files, index, encoding)
    )
    assert equal(batches(photo_set, *words), sound)
    assert set(encoded) == set(range(36))
    (held,) = (tmp_path / "c").glob("*.sqlite")
    damage(held)
    rest = batches(photo_set, *words)
    assert [batch.index.tolist() for batch in rest] == [batch.index.tolist() for batch in sound]
    assert equal(batches(photo_set, *words), sound)


def test_disk_cache_folder_deleted_between_two_runs_of_one_process_is_built_again(photo_set, tmp_path):
    words = ("-w", 0, "--transform", "light", "--cache_format", "raw", "--cache", f"disk:{tmp_path}/c")
    sound = batches(photo_set, *words)  # its connection stays open in this thread
    shutil.rmtree(tmp_path / "c")
    assert equal(batches(photo_set, *words), sound)
    assert list((tmp_path / "c").glob("*.sqlite"))


def test_disk_cache_removed_by_another_run_is_not_rebuilt(photo_set, tmp_path, caplog, monkeypatch):
    words = ("-w", 1, "--transform", "light", "--cache_format", "raw", "--cache", f"disk:{tmp_path}/c")
    sound = batches(photo_set, *words)
    held = loader(photo_set, *words)  # its threads have opened nothing yet
    next((tmp_path / "c").glob("*.sqlite")).unlink()
    monkeypatch.setattr(cache.log, "propagate", True)
    assert [batch.index.tolist() for batch in held.batches(1)] == [batch.index.tolist() for batch in sound]
    assert list((tmp_path / "c").iterdir()) == [] and "is gone" in caplog.text


def test_disk_cache_not_writable_is_user_error(photo_set, tmp_path, monkeypatch):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(cache.SqliteStore, "put", full)
    with pytest.raises(UserError, match="cannot be written: database or disk is full"):
        loader(photo_set, "--cache", f"disk:{tmp_path}/c")


def test_disk_cache_shared_by_two_projects_keeps_them_apart(tmp_path, monkeypatch):
    """Files of the same name, size and time in two folders; each project gets its own images."""
    means = []
    for project, value in (("one", 40), ("two", 200)):
        folder = tmp_path / project / "data"
        folder.mkdir(parents=True)
        for k in range(4):
            cv2.imwrite(str(folder / f"{k}.bmp"), np.full((64, 64, 3), value, np.uint8))
            os.utime(folder / f"{k}.bmp", (1, 1))
        (folder / "train.txt").write_text("".join(f"{k}.bmp {k % 2}\n" for k in range(4)))
        monkeypatch.chdir(tmp_path / project)
        words = ("-w", 0, "--transform", "none", "--cache_format", "raw", "--cache", f"disk:{tmp_path}/c")
        means.append(float(next(iter(loader(Path("data"), *words).batches(1))).image.float().mean()))
    assert means == [40, 200]


# ------------------------------------------------------------------------ workers that fail


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("kind", ["train", "eval"])
def test_loaders_beside_gpu_decode_into_pinned_memory(photo_set, monkeypatch, kind, workers):
    """There is no GPU here: what would be asked of torch is recorded."""
    from dataloader import dataset

    rooms, labels, real = [], [], dataset.empty_images
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: labels.append(self) or self)
    monkeypatch.setattr(
        dataset, "empty_images", lambda *given: rooms.append((real(*given[:2], False), given[2])) or rooms[-1][0]
    )
    for words, wanted in ((["--gpu", "0"], True), ([], True), (["--gpu", "-1"], False)):
        rooms.clear()
        labels.clear()
        opt = parse_train(["-b", "4", "-w", workers, "--loader", "thread", "--scale", "32", *words])
        way = Preprocess(32, "squash", (0.5,) * 3, (0.5,) * 3)
        files = read_list(photo_set / "train.txt")
        loader = (
            dataloader.train_loader(opt, files, way).batches(1)
            if kind == "train"
            else dataloader.eval_loader(opt, files, (way,))
        )
        batch = next(iter(loader))
        images = batch.image if kind == "train" else batch.images[0]
        assert [pinned for room, pinned in rooms if room.data_ptr() == images.data_ptr()] == [wanted]  # without a copy
        assert sum(one is batch.label for one in labels) == wanted


def test_workers_default_beside_gpu_follows_cores(photo_set, monkeypatch, caplog):
    import joblib

    from dataloader import prefetch, shared_memory

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        shared_memory.shutil,
        "disk_usage",
        lambda path: type("Usage", (), {"free": 2 * 32 * 32 * 3 * shared_memory.PREFETCH_BATCHES * 10})(),
    )
    monkeypatch.setattr("utils.logger.log.propagate", True)
    caplog.set_level("INFO")
    cases = [(8, 1, "thread", [], 7), (64, 1, "thread", [], 16), (32, 4, "thread", [], 7), (1, 1, "thread", [], 2)]
    cases += [(64, 1, "process", [], 5), (64, 1, "thread", ["--gpu", "-1"], 2), (64, 1, "process", ["-w", "3"], 3)]
    for cores, world, kind, words, wanted in cases:
        prefetch._workers_here.cache_clear()
        caplog.clear()
        monkeypatch.setattr(joblib, "cpu_count", lambda cores=cores: cores)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(world))
        opt = parse_train(["-b", "2", "--scale", "32", "--loader", kind, *words])
        way = Preprocess(32, "squash", (0.5,) * 3, (0.5,) * 3)
        found = {dataloader.eval_loader(opt, read_list(photo_set / "train.txt"), (way,)).workers for _ in range(2)}
        assert found == {wanted}
        kinds = "processes" if kind == "process" else "threads"
        said = [line.startswith(f"Workers: {wanted} {kinds} (") for line in caplog.messages]
        assert said == [True] * ("-w" not in words)
    prefetch._workers_here.cache_clear()


def test_loader_auto_takes_processes_for_gpu_where_memory_and_batches_suffice(photo_set, monkeypatch, caplog):
    from dataloader import shared_memory

    each = 32 * 32 * 3 * shared_memory.PREFETCH_BATCHES
    room = 24 * each * 2 * 2  # two batches of two workers, training and validation
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr("utils.logger.log.propagate", True)
    caplog.set_level("INFO")

    def kinds(words, free=room, epochs=4):
        monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free})())
        words = [*"-b 9 --scale 32 -w 2 --no-pretrained --epochs".split(), str(epochs), *words]
        opt = parse_train([*words, "--train_list", str(photo_set / "train.txt")])
        files, way = read_list(photo_set / "train.txt"), Preprocess(32, "squash", (0.5,) * 3, (0.5,) * 3)
        train, val = dataloader.train_loader(opt, files, way), dataloader.eval_loader(opt, files, (way,))
        found = train._batches.config.kind, val.config.kind
        assert train.dataset.pinned == ("--gpu" not in words and found[0] == "thread")
        assert val.dataset.pinned == ("--gpu" not in words and found[1] == "thread")
        assert train.kind == found[0]
        return found

    assert kinds([]) == ("process", "process")  # 36 images: 4 batches of training, 4 epochs; 4 of validation
    assert kinds(["-b", "18"], epochs=1) == ("thread", "thread")  # 2 batches, one for each worker
    assert kinds(["-b", "18"], epochs=2) == ("process", "thread")
    assert kinds(["-w", "0"]) == kinds(["--gpu", "-1"]) == kinds(["--loader", "thread"]) == ("thread", "thread")
    assert "--shm-size" not in caplog.text
    assert kinds([], free=9 * each * 2 * 2 - 1) == ("thread", "thread")
    assert caplog.text.count("docker run --shm-size=64m") == 2  # of either loader


def test_loader_auto_takes_as_many_processes_as_find_room_and_have_work(photo_set, monkeypatch):
    from dataloader import prefetch, shared_memory

    each = 9 * 32 * 32 * 3 * shared_memory.PREFETCH_BATCHES * 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(prefetch, "usable_cores", lambda: 9)
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 5 * each})())
    prefetch._workers_here.cache_clear()
    opt = parse_train("-b 9 --scale 32 --no-pretrained --epochs 9".split())
    files, way = read_list(photo_set / "train.txt"), Preprocess(32, "squash", (0.5,) * 3, (0.5,) * 3)
    train = dataloader.train_loader(opt, files, way)
    assert (train.kind, train._batches.workers) == ("process", 5)
    assert dataloader.eval_loader(opt.replace(loader=train.kind), files, (way,)).workers == 4  # it has 4 batches
    prefetch._workers_here.cache_clear()


def test_train_validates_by_the_workers_of_its_training(photo_set, script, small, monkeypatch):
    """A process that is forked beside threads which read a cache may inherit a lock that nobody opens."""
    from dataloader import prefetch

    found, real = [], prefetch.BatchLoader.iterate

    def iterate(self, batches):
        found.append((type(self.dataset).__name__, self.config.kind))
        return real(self, batches)

    monkeypatch.setattr(prefetch.BatchLoader, "iterate", iterate)
    monkeypatch.setattr(dataloader.TrainLoader, "kind", property(lambda self: "process"))
    done = script("train.py", "--tag", "a", "--data_root", photo_set, *small, "--epochs", 1)
    assert done.code == 0, done.err
    assert found == [("TrainDataset", "thread"), ("EvalDataset", "process")]


def test_worker_killed_is_user_error(photo_set, monkeypatch):
    from dataloader import dataset

    monkeypatch.setattr(dataset.TrainDataset, "__getitems__", lambda self, key: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match="worker process was killed"):
        batches(photo_set, "-w", 1, "--loader", "process")


def test_worker_process_ends_by_sigterm_of_its_parent_only(photo_set):
    """SIGTERM of another process is the run's to handle; torch ends a worker that hangs by the parent's own."""
    before = multiprocessing.active_children()
    running = iter(loader(photo_set, "-w", 1, "--loader", "process").batches(1))
    next(running)  # the worker has begun
    (worker,) = (child for child in multiprocessing.active_children() if child not in before)
    try:
        subprocess.run(["sh", "-c", f"kill -TERM {worker.pid}"], check=True)
        worker.join(0.5)
        assert worker.is_alive()
        worker.terminate()
        worker.join(10)
        assert not worker.is_alive()
    finally:
        worker.kill()  # multiprocessing would wait for it


def test_worker_process_computes_in_one_thread(photo_set, monkeypatch, tmp_path):
    """OpenCV's threads in a forked process can wait for each other for ever, and several per worker fight for cores."""
    from dataloader import dataset

    real, before = dataset.TrainDataset.__getitems__, (cv2.getNumThreads(), torch.get_num_threads())

    def noting(self, key):
        (tmp_path / "threads").write_text(f"{os.getpid()} {cv2.getNumThreads()} {torch.get_num_threads()}")
        return real(self, key)

    monkeypatch.setattr(dataset.TrainDataset, "__getitems__", noting)
    cv2.setNumThreads(3)
    torch.set_num_threads(3)
    try:
        batches(photo_set, "-w", 1, "--loader", "process")
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])
    process, *threads = map(int, (tmp_path / "threads").read_text().split())
    assert process != os.getpid() and threads == [1, 1]


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_worker_stuck_is_user_error_after_timeout(photo_set, monkeypatch, kind):
    from dataloader import dataset

    monkeypatch.setattr(dataset.TrainDataset, "__getitems__", lambda self, key: time.sleep(4))
    with pytest.raises(UserError, match="a worker is stuck"):
        batches(photo_set, "-w", 1, "--loader", kind, "--worker_timeout", 1)


@pytest.mark.parametrize(
    "kind, unit, error",
    [
        ("process", multiprocessing.process.BaseProcess, BlockingIOError(11, "Resource temporarily unavailable")),
        ("thread", threading.Thread, RuntimeError("can't start new thread")),
    ],
)
def test_workers_that_cannot_start_are_one_message(photo_set, monkeypatch, kind, unit, error):
    """The limit of a container on processes ended a run in a traceback."""

    def fail(_):
        raise error

    opened = loader(photo_set, "-w", 2, "--loader", kind)
    monkeypatch.setattr(unit, "start", fail)
    with pytest.raises(UserError, match=f"2 .*cannot start: .*{error.args[-1]}.*\nUse fewer --workers"):
        next(opened.batches(1))


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_run_that_was_stopped_for_longer_than_the_timeout_goes_on(photo_set, tmp_path, kind):
    """After Ctrl-Z and `fg`, or a batch system's SIGSTOP, a run ended with "a worker is stuck"."""
    code = f"""
import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(ROOT / "tests")!r}, {str(ROOT)!r}]
from test_pipeline import Path, loader, time
from dataloader import dataset
real = dataset.TrainDataset.__getitems__

def slow(self, key):
    for _ in range(20):
        time.sleep(0.05)
    return real(self, key)

opened = loader(Path({str(photo_set)!r}), "--scale", 64, "-w", 1, "--loader", {kind!r}, "--worker_timeout", 10)
dataset.TrainDataset.__getitems__ = slow
batches = opened.batches(1)
print("begun", flush=True)
print(next(batches).label.shape[0] > 0)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True) as run:
        try:
            assert run.stdout is not None and run.stdout.readline() == "begun\n"
            time.sleep(0.5)
            os.killpg(run.pid, signal.SIGSTOP)
            time.sleep(11)
            os.killpg(run.pid, signal.SIGCONT)
            assert run.stdout.readline() == "True\n"
        finally:
            os.killpg(run.pid, signal.SIGKILL)


def test_shared_memory_too_small_is_refused_at_start(photo_set, monkeypatch):
    from dataloader import shared_memory

    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match="--shm-size"):
        loader(photo_set, "-w", 2, "--loader", "process")


@pytest.mark.skipif(os.geteuid() != 0, reason="a small /dev/shm of its own takes root")
def test_shared_memory_filled_later_ends_run_at_once(photo_set, tmp_path):
    """Somebody else fills /dev/shm after the check at the start; torch alone would lose the batch, and wait for it."""
    code = f"""
import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(ROOT / "tests")!r}, {str(ROOT)!r}]
from test_pipeline import Path, UserError, loader
import shutil
opened = loader(Path({str(photo_set)!r}), "--scale", 64, "-w", 2, "--loader", "process", "--worker_timeout", 0)
open("/dev/shm/other", "wb").write(bytes(shutil.disk_usage("/dev/shm").free - 100_000))
held = []
try:
    for batch in opened.batches(1):
        held.append(batch)
except UserError as error:
    print(error)
"""
    mount = 'mount -t tmpfs -o size=7m tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "found no room for a batch (/dev/shm" in done.stdout, done.stdout + done.stderr
    assert "docker run --shm-size=" in done.stdout
