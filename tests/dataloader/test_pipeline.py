"""Samplers, loaders, cache: the same batches whatever makes them, wherever a run is taken up."""

import os
import signal
import sqlite3
import subprocess
import sys
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
from dataloader.sampler import EvalSampler, SamplingConfig, TrainSampler, balanced_indices, repeat_index
from dataloader.transforms import ops, transforms
from options import parse_train
from utils.errors import UserError
from utils.preprocess import Preprocess
from utils.rng import order_rng, sample_rng

WAY = Preprocess(32, "squash", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def loader(photo_set, *words):
    opt = parse_train(["--scale", "32", "-b", "12", "--epochs", "2", "--gpu", "-1", *map(str, words)])
    return dataloader.train_loader(opt, read_list(photo_set / "train.txt"), WAY)


def batches(photo_set, *words, epoch=1, step=0):
    return list(loader(photo_set, *words).batches(epoch, step))


def equal(first, second):
    pairs = list(zip(first, second, strict=True))
    return all(torch.equal(a.image, b.image) and torch.equal(a.index, b.index) and a[3:5] == b[3:5] for a, b in pairs)


@pytest.mark.parametrize("transform", list(transforms))
@pytest.mark.parametrize("how", [("-w", 1), ("-w", 2), ("-w", 1, "--loader", "process"), ("-w", 2, "--loader", "process")], ids=str)
def test_workers_change_nothing_and_repeat_nothing(photo_set, transform, how):
    plain = batches(photo_set, "-w", 0, "--transform", transform)
    assert equal(plain, batches(photo_set, *how, "--transform", transform))
    pictures = [image.numpy().tobytes() for batch in plain for image in batch.image]
    assert len(pictures) == 72
    if transform != "none":
        assert len(set(pictures)) >= 70  # a mirrored crop of a smooth cut may rarely agree
    assert plain[0].image.dtype == torch.uint8
    assert plain[0].image.is_contiguous(memory_format=torch.channels_last)


def test_a_run_is_taken_up_anywhere(photo_set):
    plain = batches(photo_set, "-w", 0)
    for epoch, step in [(1, 1), (1, 2), (2, 0), (2, 2)]:
        assert equal(plain[(epoch - 1) * 3 + step :], batches(photo_set, "-w", 2, epoch=epoch, step=step))


def test_an_epoch_shows_each_sample_once_and_orders_differ():
    sampler = TrainSampler(np.zeros(103, np.int32), 10, 2, SamplingConfig(1))
    keys = list(sampler)
    assert [(key.epoch, key.step) for key in keys] == [(e, s) for e in (1, 2) for s in range(10)]
    shown = np.concatenate([key.indices for key in keys[:10]])
    assert len(set(shown.tolist())) == 100
    assert not np.array_equal(sampler.order(1), sampler.order(2))
    assert not np.array_equal(sampler.order(1), TrainSampler(np.zeros(103, np.int32), 10, 2, SamplingConfig(2)).order(1))
    assert TrainSampler(np.zeros(5, np.int32), 10, 1, SamplingConfig(1)).batch_size == 5
    assert len(list(TrainSampler(np.zeros(103, np.int32), 10, 3, SamplingConfig(1), max_batches=2))) == 6


def test_evaluation_shows_all_in_order():
    keys = list(EvalSampler(25, 8))
    assert np.concatenate([key.indices for key in keys]).tolist() == list(range(25))
    assert [len(key.indices) for key in keys] == [8, 8, 8, 1]


@pytest.mark.parametrize("how", ["sqrt", "class"])
def test_balanced_draws(how):
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


def test_repeated_samples_are_augmented_anew(photo_set):
    assert repeat_index(np.array([3, 1, 3, 3, 1])).tolist() == [0, 0, 1, 2, 1]
    first = batches(photo_set, "-w", 0, "--repeat_aug", 3)[0]
    assert first.index.tolist() == np.repeat(first.index[::3], 3).tolist()
    assert len({image.numpy().tobytes() for image in first.image}) == 12


def test_streams_are_distinct():
    draws = [sample_rng(1, e, i, c).integers(2**62) for e in range(4) for i in range(5) for c in range(3)]
    draws += [order_rng(1, e).integers(2**62) for e in range(4)] + [sample_rng(2, 0, 0).integers(2**62)]
    assert len(set(draws)) == len(draws)


def test_progressive_sizes(photo_set):
    sizes = [batch.image.shape[-1] for batch in batches(photo_set, "-w", 0, "--scale_schedule", "1:16,2:32")]
    assert sizes == [16] * 3 + [32] * 3
    for wrong in ("2:16", "1:16,1:32", "a:b", "1"):
        with pytest.raises(UserError, match="--scale_schedule"):
            loader(photo_set, "--scale_schedule", wrong)


def test_orientations_and_colours():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    seen = {ops.random_flip_transpose(0.5, 0.5, 0.5)(image.copy(), np.random.default_rng(k)).tobytes() for k in range(200)}
    wanted = {np.ascontiguousarray(np.rot90(base, k)).tobytes() for base in (image, image.swapaxes(0, 1)) for k in range(4)}
    assert seen == wanted
    assert ops.color_matrix(1, 1, 1, 0)[:, :3] == pytest.approx(np.eye(3), abs=1e-9)
    grey = ops.color_matrix(1, 1, 0.3, 0.2) @ np.array([90.0, 90, 90, 1])
    assert grey == pytest.approx([90, 90, 90], abs=0.3)
    assert ops.color_matrix(1.2, 0.5, 1, 0) @ np.array([200.0, 100, 50, 1]) == pytest.approx([196.5, 136.5, 106.5], abs=0.1)


def test_cutout_blanks_one_grey_box():
    image = np.full((100, 100, 3), 7, np.uint8)
    for k in range(20):
        out = ops.cutout(1.0, 0.3)(image.copy(), np.random.default_rng(k))
        rows, columns = np.nonzero((out != 7).all(axis=2))
        h, w = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert 15 <= h <= 30
        assert 15 <= w <= 30
        assert len(rows) == h * w
        assert (out[rows, columns] == 128).all()


# ------------------------------------------------------------------------------------------------ cache


@pytest.mark.parametrize("form", ["jpeg", "raw"])
@pytest.mark.parametrize("loader_kind", ["thread", "process"])
def test_cache_in_memory_and_on_disk_agree_and_are_close_to_the_files(photo_set, tmp_path, form, loader_kind):
    plain = batches(photo_set, "-w", 0, "--transform", "light")
    words = ("-w", 2, "--loader", loader_kind, "--transform", "light", "--cache_format", form, "--cache")
    ram = batches(photo_set, *words, "ram")
    assert equal(ram, batches(photo_set, *words, f"disk:{tmp_path}/c"))
    apart = np.mean([(a.image.float() - b.image.float()).abs().mean() for a, b in zip(plain, ram, strict=True)])
    assert 0 < apart < 8


def test_a_second_run_reads_no_file_and_a_changed_one_is_built_anew(photo_set, tmp_path, monkeypatch):
    words = ("-w", 0, "--cache", f"disk:{tmp_path}/c")
    batches(photo_set, *words)
    encoded = []
    real = cache._encode
    monkeypatch.setattr(cache, "_encode", lambda files, index, encoding: encoded.append(index) or real(files, index, encoding))
    batches(photo_set, *words)
    assert encoded == []
    path = read_list(photo_set / "train.txt").path(5)
    os.utime(path, (1, 1))
    batches(photo_set, *words)
    assert set(encoded) == {5}


def test_a_cache_that_does_not_fit_is_refused(photo_set, monkeypatch):
    monkeypatch.setattr(cache.MemoryStore, "free_bytes", lambda self: 1000)
    with pytest.raises(UserError, match="--cache_size"):
        loader(photo_set, "--cache", "ram")


def test_the_cache_holds_what_the_smallest_crop_needs():
    assert RandomCrop(224, 0.25, 0.75).min_source_side() == 448


def test_cache_build_killed_between_two_transactions_continues_and_gives_the_same(photo_set, tmp_path):
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
def test_damaged_disk_cache_gives_the_same_batches_and_is_built_again(photo_set, tmp_path, monkeypatch, damage):
    """Damaged between two runs, and while a run reads it: nothing ends by a signal, and the next run's pixels are a sound cache's."""
    words = ("-w", 0, "--transform", "light", "--cache_format", "raw", "--cache", f"disk:{tmp_path}/c")
    sound = batches(photo_set, *words)
    running = iter(loader(photo_set, *words).batches(1))
    next(running)
    (held,) = (tmp_path / "c").glob("*.sqlite")
    damage(held)
    assert len(list(running)) == len(sound) - 1  # from the files themselves where the cache fails
    encoded, real = [], cache._encode
    monkeypatch.setattr(cache, "_encode", lambda files, index, encoding: encoded.append(index) or real(files, index, encoding))
    assert equal(batches(photo_set, *words), sound)
    assert set(encoded) == set(range(36))
    (held,) = (tmp_path / "c").glob("*.sqlite")
    damage(held)
    rest = batches(photo_set, *words)
    assert [batch.index.tolist() for batch in rest] == [batch.index.tolist() for batch in sound]
    assert equal(batches(photo_set, *words), sound)


def test_a_cache_that_another_run_has_replaced_is_neither_made_again_nor_called_damaged(photo_set, tmp_path, caplog, monkeypatch):
    words = ("-w", 1, "--transform", "light", "--cache_format", "raw", "--cache", f"disk:{tmp_path}/c")
    sound = batches(photo_set, *words)
    held = loader(photo_set, *words)  # its threads have opened nothing yet
    next((tmp_path / "c").glob("*.sqlite")).unlink()
    monkeypatch.setattr(cache.log, "propagate", True)
    assert [batch.index.tolist() for batch in held.batches(1)] == [batch.index.tolist() for batch in sound]
    assert list((tmp_path / "c").iterdir()) == [] and "is gone" in caplog.text


def test_a_cache_that_cannot_be_written_is_the_user_s_to_mend(photo_set, tmp_path, monkeypatch):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(cache.SqliteStore, "put", full)
    with pytest.raises(UserError, match="cannot be written: database or disk is full"):
        loader(photo_set, "--cache", f"disk:{tmp_path}/c")


def test_two_projects_with_the_same_relative_paths_share_a_disk_cache(tmp_path, monkeypatch):
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


# ------------------------------------------------------------------------------------------------ workers that fail


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("kind", ["train", "eval"])
def test_images_are_decoded_into_the_page_locked_memory_that_a_gpu_reads(photo_set, monkeypatch, kind, workers):
    """There is no GPU here: what would be asked of torch is recorded."""
    from dataloader import dataset

    rooms, labels, real = [], [], dataset.empty_images
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: labels.append(self) or self)
    monkeypatch.setattr(dataset, "empty_images", lambda *given: rooms.append((real(*given[:2], False), given[2])) or rooms[-1][0])
    for words, wanted in ((["--gpu", "0"], True), ([], True), (["--gpu", "-1"], False)):
        rooms.clear()
        labels.clear()
        opt = parse_train(["-b", "4", "-w", workers, "--scale", "32", *words])
        way = Preprocess(32, "squash", (0.5,) * 3, (0.5,) * 3)
        files = read_list(photo_set / "train.txt")
        loader = dataloader.train_loader(opt, files, way).batches(1) if kind == "train" else dataloader.eval_loader(opt, files, (way,))
        batch = next(iter(loader))
        images = batch.image if kind == "train" else batch.images[0]
        assert [pinned for room, pinned in rooms if room.data_ptr() == images.data_ptr()] == [wanted]  # without a copy
        assert sum(one is batch.label for one in labels) == wanted


def test_workers_follow_the_cores_beside_a_gpu_and_are_logged(photo_set, monkeypatch, caplog):
    import joblib

    from dataloader import prefetch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        prefetch.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 24 * 32 * 32 * 3 * prefetch.PREFETCH_BATCHES * 10})()
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
        opt = parse_train(["-b", "24", "--scale", "32", "--loader", kind, *words])
        way = Preprocess(32, "squash", (0.5,) * 3, (0.5,) * 3)
        found = {dataloader.eval_loader(opt, read_list(photo_set / "train.txt"), (way,)).workers for _ in range(2)}
        assert found == {wanted}
        assert [line.startswith(f"Workers: {wanted} (") for line in caplog.messages] == [True] * ("-w" not in words)
    prefetch._workers_here.cache_clear()


def test_a_killed_worker_is_an_error_that_says_so(photo_set, monkeypatch):
    from dataloader import dataset

    monkeypatch.setattr(dataset.TrainDataset, "__getitems__", lambda self, key: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match="worker process was killed"):
        batches(photo_set, "-w", 1, "--loader", "process")


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_stuck_worker_is_noticed(photo_set, monkeypatch, kind):
    from dataloader import dataset

    monkeypatch.setattr(dataset.TrainDataset, "__getitems__", lambda self, key: time.sleep(4))
    with pytest.raises(UserError, match="a worker is stuck"):
        batches(photo_set, "-w", 1, "--loader", kind, "--worker_timeout", 1)


def test_too_little_shared_memory_is_seen_at_the_start(photo_set, monkeypatch):
    from dataloader import prefetch

    monkeypatch.setattr(prefetch.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match="--shm-size"):
        loader(photo_set, "-w", 2, "--loader", "process")


@pytest.mark.skipif(os.geteuid() != 0, reason="a small /dev/shm of its own takes root")
def test_worker_whose_batch_finds_no_shared_memory_ends_the_run_at_once(photo_set, tmp_path):
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
    command = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=7m tmpfs /dev/shm && exec "$@"', "sh", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "found no room for a batch (/dev/shm" in done.stdout, done.stdout + done.stderr
    assert "docker run --shm-size=" in done.stdout
