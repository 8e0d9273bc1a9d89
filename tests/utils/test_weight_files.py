"""Files of tensors: what changed after writing is refused, code is named and not run, settings are read as data."""

import argparse
import json
import os
import pathlib
import resource
import struct
import zipfile

import numpy as np
import pytest
import torch

from utils import checkpoint, weight_files
from utils.errors import UserError

TENSORS = {"a": torch.arange(64.0).reshape(8, 8), "b.bias": torch.ones(3, dtype=torch.float16), "n": torch.tensor(7)}


def header(path):
    """The header of a file of safetensors as JSON, and the bytes after it."""
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def write(path, head, data):
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_save_safetensors_loads_equal_with_metadata(tmp_path):
    path = tmp_path / "x.safetensors"
    weight_files.save_safetensors(path, TENSORS, {"architecture": "resnet18"})
    found = checkpoint.load(path)["weights"]
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in TENSORS.items())
    about = weight_files.safetensors_metadata(path)
    assert about["architecture"] == "resnet18" and about["format"] == "pt" and len(about["sha256"]) == 64


CHANGES = {
    "a bit": lambda head, data: (head, data[:10] + bytes([data[10] ^ 1]) + data[11:]),
    "a dtype": lambda head, data: (head["a"].update(dtype="I32"), (head, data))[1],
    "a shape": lambda head, data: (head["a"].update(shape=[4, 16]), (head, data))[1],
    "a name": lambda head, data: (head.update(c=head.pop("a")), (head, data))[1],
    "metadata": lambda head, data: (head["__metadata__"].update(x="y"), (head, data))[1],
    "the writer": lambda head, data: (head["__metadata__"].pop("written_by"), (head, data))[1],
    "no hash": lambda head, data: (head["__metadata__"].pop("sha256"), (head, data))[1],
}


@pytest.mark.parametrize("what", CHANGES)
def test_load_changed_safetensors_is_refused_by_hash(tmp_path, what):
    path = tmp_path / "x.safetensors"
    weight_files.save_safetensors(path, TENSORS, {"x": "x"})
    write(path, *CHANGES[what](*header(path)))
    with pytest.raises(UserError, match="its content differs from the hash in its metadata"):
        checkpoint.load(path)


LIES = [
    {"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}},
    {"a": {"dtype": "F32", "shape": [0, 10**12], "data_offsets": [0, 0]}},
    {"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]}},
    {"a": [1, 2]},
    {"__metadata__": [1]},
    {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
]


@pytest.mark.parametrize("head", LIES, ids=range(len(LIES)))
def test_load_lying_safetensors_header_takes_no_memory(tmp_path, head):
    write(tmp_path / "x.safetensors", head, bytes(16))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        found = checkpoint.load(tmp_path / "x.safetensors")["weights"]
        assert sum(value.numel() for value in found.values()) == 0
    except UserError as error:
        assert "damaged" in str(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kB"
    (tmp_path / "y.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(UserError, match="y.safetensors"):
        checkpoint.load(tmp_path / "y.safetensors")


def test_load_tells_formats_by_content_not_by_suffix(tmp_path):
    weight_files.save_safetensors(tmp_path / "x.pth", TENSORS)
    torch.save(TENSORS, tmp_path / "y.safetensors")
    for name in ("x.pth", "y.safetensors"):
        assert torch.equal(checkpoint.load(tmp_path / name)["weights"]["a"], TENSORS["a"])


def test_verify_zip_reads_hard_links_once_and_changed_files_again(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "last.pt", {"weights": TENSORS}, also=[tmp_path / "best.pt"])
    opened: list[str] = []
    real = zipfile.ZipFile.open
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda self, *words: (opened.append(""), real(self, *words))[1])
    checkpoint.load(tmp_path / "last.pt")
    first = len(opened)
    assert first >= len(TENSORS)
    checkpoint.load(tmp_path / "best.pt")
    assert len(opened) == first
    state = os.stat(tmp_path / "best.pt")
    raw = bytearray((tmp_path / "best.pt").read_bytes())
    raw[raw.index(TENSORS["a"].numpy().tobytes()) + 5] ^= 1
    with open(tmp_path / "best.pt", "r+b") as file:
        file.write(raw)
    os.utime(tmp_path / "best.pt", ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(UserError, match="Bad CRC-32"):
        checkpoint.load(tmp_path / "last.pt")


def test_load_compressed_zip_is_refused_before_it_grows(tmp_path):
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as source,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for entry in source.namelist():
            out.writestr(entry, source.read(entry))
    with pytest.raises(UserError, match="a compressed entry"):
        checkpoint.load(tmp_path / "y.pt")


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(1).expand(10**12),
        torch.ones(2, 2).to_sparse(),
    ],
    ids=["repeated", "sparse"],
)
def test_load_state_dict_of_no_dense_tensors_is_refused(tmp_path, value):
    torch.save({"a": torch.ones(1), "b": value}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="b is a tensor of"):
        checkpoint.load(tmp_path / "x.pt")


# ------------------------------------------------------------------------ what a pickle may hold


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


class Subclass(argparse.Namespace):
    pass


@pytest.mark.parametrize("zipped", [True, False])
def test_load_settings_of_other_programs_as_data(tmp_path, zipped):
    args = argparse.Namespace(lr=np.float32(0.5), out=pathlib.Path("/a/b"), seed=np.int64(3), model="resnet18")
    content = {
        "state_dict": {"a": torch.ones(2)},
        "args": args,
        "best": np.float64(0.25),
        "flag": np.bool_(True),
        "folder": pathlib.PureWindowsPath("c:/x"),
        "array": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
    }
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    found = weight_files.read(tmp_path / "x.pth")
    assert found["args"] == argparse.Namespace(lr=0.5, out="/a/b", seed=3, model="resnet18")
    assert (found["best"], found["flag"], found["folder"]) == (0.25, True, "c:\\x")
    assert np.array_equal(found["array"].value, content["array"])
    assert torch.equal(checkpoint.load(tmp_path / "x.pth")["weights"]["a"], torch.ones(2))


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (lambda path: Runs(path), "it names _?io.open|it names open"),
        (lambda path: Subclass(a=1), r"test_weight_files\.Subclass"),
        (lambda path: os.system, r"posix\.system"),
        (lambda path: np.array([object()]), r"collections|object|dtype|builtins"),
        (lambda path: torch.nn.Linear(1, 1), r"torch\.nn\.modules\.linear\.Linear"),
    ],
    ids=["method", "subclass", "system", "objects", "module"],
)
def test_load_pickle_with_code_names_the_global(tmp_path, value, named):
    torch.save({"state_dict": {"a": torch.ones(2)}, "x": value(str(tmp_path / "ran"))}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=rf"(?s)x\.pth (is refused|is damaged).*({named})|damaged.*({named})"):
        checkpoint.load(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


def test_published_checkpoint_loads_as_it_was_saved(tmp_path):
    path = tmp_path / "model.safetensors"
    content = {"model": "ResNet18", "epoch": 3, "weights": TENSORS, "showing": "raw", "probe": {"top1": 0.1}}
    checkpoint.save_published(path, content, {"x": "y"})
    found = checkpoint.load(path)
    assert all(torch.equal(found["weights"].pop(name), value) for name, value in TENSORS.items())
    assert found == {**content, "weights": {}, "format": 1}
    assert weight_files.safetensors_metadata(path)["x"] == "y"


@pytest.mark.parametrize("text", ["[1]", "no JSON", "[" * 100_000, '{"format": 1, "epoch": "three"}'])
def test_published_checkpoint_with_a_right_hash_and_other_content_is_refused(tmp_path, text):
    path = tmp_path / "model.safetensors"
    weight_files.save_safetensors(path, TENSORS, {"checkpoint": text})
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.load(path)
