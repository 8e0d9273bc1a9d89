"""Faults of the machine while images are read: no image is called bad for them.

The reading is tried again, then the command ends with the reason.
"""

import errno
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import simplejpeg
import torch

from conftest import ROOT
from dataloader.cache import Encoding, entry_keys
from dataloader.decode import read_image
from dataloader.file_list import missing_files, read_list
from dataloader.geometry import RandomCrop
from dataloader.stores import SqliteStore
from dataloader.transforms import Pipeline
from tools.doctor import command as doctor
from utils import checkpoint, faults, weight_files
from utils.errors import ImageError, MachineFault, UserError
from utils.rng import sample_rng

MACHINE = [
    *(errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EIO),
    *(errno.ENOMEM, errno.EINTR, errno.ETIMEDOUT, errno.ENOTCONN),
]
FILES = [errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO]


@pytest.fixture
def pauses(monkeypatch):
    """What would have been waited, in seconds."""
    waited = []
    monkeypatch.setattr(faults, "pause", waited.append)
    return waited


@pytest.fixture
def failing(monkeypatch, pauses):
    """failing(path, number): `os.open` of `path` succeeds `after` times, then fails with that error `times` times."""

    def start(path, number, times=10**6, call="open", after=0, patch=monkeypatch):
        calls, real = [0], getattr(os, call)

        def fails(name, *args, **named):
            calls[0] += str(name) == str(path)
            if str(name) == str(path) and after < calls[0] <= after + times:
                raise OSError(number, os.strerror(number), str(path))
            return real(name, *args, **named)

        patch.setattr(os, call, fails)

    return start


@pytest.mark.parametrize("number", MACHINE, ids=errno.errorcode.get)
def test_read_image_machine_fault_is_retried_then_raised(photo_set, failing, pauses, number):
    path = str(photo_set / "val_china_0.jpg")
    wanted = read_image(path)[0]
    failing(path, number, times=4)
    assert np.array_equal(read_image(path)[0], wanted)
    assert pauses == list(faults.WAIT_SECONDS) == sorted(faults.WAIT_SECONDS)
    failing(path, number)
    with pytest.raises(MachineFault, match=f"{path}: {os.strerror(number)}, 5 times in a row.*not the file"):
        read_image(path)


@pytest.mark.parametrize("number", FILES, ids=errno.errorcode.get)
def test_read_image_path_fault_is_image_error_at_once(photo_set, failing, pauses, number):
    path = str(photo_set / "val_china_0.jpg")
    failing(path, number)
    with pytest.raises(ImageError, match=f"{path}: {os.strerror(number)}"):
        read_image(path)
    assert pauses == []


def test_pipeline_out_of_memory_decodes_again_with_same_crop(photo_set, pauses, monkeypatch):
    path, pipeline = str(photo_set / "train_china_0.jpg"), Pipeline(RandomCrop(32, 0.3, 0.75))
    wanted = pipeline(lambda need: read_image(path, need), sample_rng(0, 1, 5))
    real, left = simplejpeg.decode_jpeg, [MemoryError(), ValueError("Insufficient memory (case 4)")]

    def fails(*args, **named):
        if left:
            raise left.pop()
        return real(*args, **named)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", fails)
    assert np.array_equal(pipeline(lambda need: read_image(path, need), sample_rng(0, 1, 5)), wanted)
    assert len(pauses) == 2


@pytest.fixture
def full():
    """full(): from now on this process may open no file more; returns what ends that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def begin():
        lowest = os.open(os.devnull, os.O_RDONLY)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))

    yield begin, lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_read_image_without_free_descriptor_waits(photo_set, tmp_path, full, monkeypatch, suffix):
    """By the kernel's own limit: also where the first PNG finds Pillow's plugins not yet loaded."""
    import PIL.Image

    path = tmp_path / f"x.{suffix}"
    PIL.Image.open(photo_set / "val_china_0.jpg").convert("P").convert("RGB" if suffix == "jpg" else "P").save(path)
    begin, end = full
    waited = []
    monkeypatch.setattr(faults, "pause", lambda seconds: (waited.append(seconds), end()))
    begin()
    assert read_image(str(path))[0].ndim == 3
    assert len(waited) == 1
    monkeypatch.setattr(faults, "pause", lambda seconds: None)
    begin()
    with pytest.raises(MachineFault, match="Too many open files.*\n.*ulimit -n"):
        read_image(str(path))


WEBP = """
import io, os, resource, sys
sys.path.insert(0, {root!r})
from dataloader.decode import decode
from dataloader.file_list import read_list
from dataloader.reader import FileReader
files = read_list({listed!r})
reader, data = FileReader(files), open(files.path(0), "rb").read()
free = os.open(os.devnull, os.O_RDONLY)
resource.setrlimit(resource.RLIMIT_NOFILE, (free, free))
os.close(free)
print(decode(data)[1])
"""


def test_decode_webp_after_descriptors_ran_out_still_works(tmp_path):
    import PIL.Image

    PIL.Image.new("RGB", (30, 20)).save(tmp_path / "x.webp")
    (tmp_path / "train.txt").write_text("x.webp 0\n")
    code = WEBP.format(root=str(ROOT), listed=str(tmp_path / "train.txt"))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.stdout == "(20, 30)\n", ended.stderr


def test_sqlite_store_that_cannot_be_opened_is_kept(tmp_path, full, monkeypatch):
    monkeypatch.setattr(faults, "pause", lambda seconds: None)
    store = SqliteStore(tmp_path)
    store.put([(0, b"k" * 16, b"body")])
    begin, end = full
    failed = []

    def read():
        begin()
        try:
            store.get(0, b"k" * 16)
        except MachineFault as error:
            failed.append(str(error))
        finally:
            end()

    thread = threading.Thread(target=read)  # which has no connection yet
    thread.start()
    thread.join()
    assert len(failed) == 1 and "Too many open files" in failed[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [store.path.name]
    assert store.get(0, b"k" * 16) == b"body"


def test_checkpoint_load_on_failing_drive_is_machine_fault(pauses, tmp_path, monkeypatch):
    (tmp_path / "a.pt").write_bytes(b"x")

    for number, kind, said in (
        (errno.EIO, MachineFault, "The machine is at fault"),
        (errno.EACCES, UserError, "cannot be read: Permission denied"),
    ):
        failure = OSError(number, os.strerror(number))
        monkeypatch.setattr(weight_files, "read", Mock(side_effect=failure))
        with pytest.raises(kind, match=said):
            checkpoint.load(tmp_path / "a.pt")
    assert pauses == list(faults.WAIT_SECONDS)


def test_missing_files_on_failing_drive_is_machine_fault(photo_set, failing):
    files = read_list(photo_set / "val.txt")
    encoding = Encoding(32, "jpeg", 90)
    keys = entry_keys(files, encoding)
    failing(files.path(3), errno.ESTALE, times=2, call="stat")
    assert not missing_files(files).any()
    failing(files.path(3), errno.ESTALE, times=2, call="stat")
    assert np.array_equal(entry_keys(files, encoding), keys)
    failing(files.path(3), errno.ENOTCONN, call="stat")
    for look in (missing_files, lambda files: entry_keys(files, encoding)):
        with pytest.raises(MachineFault, match="not connected"):
            look(files)


@pytest.mark.slow
def test_train_machine_fault_saves_and_resumes_bit_for_bit(script, small, photo_set, failing, monkeypatch):
    words = [*small, "--data_root", photo_set, "--epochs", 1, "--model", "timm:test_resnet", "--transform", "light"]
    opened, real = [], os.open
    with monkeypatch.context() as noting:
        noting.setattr(
            os, "open", lambda name, *args, **named: (opened.append(str(name)), real(name, *args, **named))[1]
        )
        assert script("train.py", *words, "--tag", "straight").code == 0
    path = [name for name in opened if "/train_" in name][-6]  # of the last batch
    wanted = checkpoint.load("checkpoints/straight/last.pt")["weights"]
    with monkeypatch.context() as patched:
        failing(path, errno.EIO, after=opened.count(path) - 1, patch=patched)
        ended = script("train.py", *words, "-w", 1, "--loader", "process", "--tag", "cut")
    assert ended.code == 2
    assert f"{path}: Input/output error, 5 times in a row" in ended.err
    assert re.search(r"train\.py --tag cut .*--resume", ended.err)
    assert "Traceback" not in ended.out + ended.err
    assert not Path("logs/cut/bad_images.csv").exists()
    last = checkpoint.load("checkpoints/cut/last.pt")
    assert (last["within"]["epoch"], last["within"]["done"]) == (1, 2)
    assert script("train.py", "--tag", "cut", "--resume", "--gpu", -1, "-w", 2).code == 0
    ours = checkpoint.load("checkpoints/cut/last.pt")["weights"]
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


@pytest.mark.slow
def test_commands_machine_fault_ends_with_the_reason(script, small, photo_set, failing, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(photo_set, data)
    for part in ("train", "val", "test"):
        (data / f"{part}.txt").write_text((photo_set / f"{part}.txt").read_text().replace(str(photo_set), str(data)))
    words = ["--data_root", data, "--gpu", -1, "-w", 0, "-b", 12]
    assert script("train.py", *small, *words, "--epochs", 1, "--tag", "a", "--model", "timm:test_resnet").code == 0
    load = [*words, "--load", "checkpoints/a/best.pt"]
    for part in ("val", "test"):
        failing(data / f"{part}_flower_0.jpg", errno.ESTALE)
    failing(data / "train_flower_0.jpg", errno.ENOMEM)
    for name, flags in (
        ("eval.py", load),
        ("submit.py", load),
        ("eval.py", [*load, "--cache", "ram"]),
        ("eval.py", [*load, "--cache", "disk:c"]),
    ):
        ended = script(name, *flags)
        assert ended.code == 2, (name, ended.err)
        assert "_flower_0.jpg: Stale file handle, 5 times in a row" in ended.err
        assert "Traceback" not in ended.out + ended.err
    assert not [path for path in Path("results").rglob("*") if path.is_file()]
    assert doctor.main([str(data / "train.txt"), "--out", "out"]) == 2
    assert not Path("out/doctor.csv").exists()
