"""Reads files of tensors, with their checksums verified and without running code from them; writes safetensors.

torch.save's zip files carry a CRC per entry, which torch.load ignores. safetensors have none, so `save_safetensors`
puts a hash into their metadata. Files without either are read too; the log reports that they cannot be verified.
"""

import hashlib
import json
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes

from utils.files import atomic_write, json_text
from utils.logger import log
from utils.plain_pickle import ALLOWED

BLOCK_BYTES = 1 << 20
ZIP_START, PICKLE_START = b"PK\3\4", b"\x80"
MAX_HEADER_BYTES = 100_000_000  # as the safetensors library
# in the metadata; a file with any of them must have the right hash. CHECKPOINT: a checkpoint without its tensors, JSON
HASH, WRITER, CHECKPOINT = "sha256", "written_by", "checkpoint"
WRITER_NAME = "image classification training framework"
UNVERIFIABLE = "damage inside its tensors cannot be detected"
_verified: dict[tuple[int, int], tuple[int, int, int]] = {}  # (device, inode): size, times of change


def read(path: Path, verified: bool = False) -> Any:
    """Return what a file of torch.save or of safetensors holds, on the CPU.

    The format is told by the content, not by the suffix. safetensors are {name: tensor}; where `save_safetensors` wrote
    a checkpoint, they are its content, with the tensors under "weights".

    Args:
        verified: whether the caller has compared the file with a checksum that is kept elsewhere, so that nothing is
            logged about one without.

    Raises:
        ValueError: a checksum is wrong, the file is cut, or its header does not fit it.
        pickle.UnpicklingError: it holds more than tensors and plain data; nothing of it was run.
        Exception: others of torch and the operating system, where the file is damaged or cannot be read.
    """
    with path.open("rb") as file:
        content, checked = _read_safetensors(file, path) if is_safetensors(file) else _read_pickle(file, path)
    if not (checked or verified):
        log.info(f"{path} is a file without checksums: {UNVERIFIABLE}.")
    return content


def _read_pickle(file: BinaryIO, path: Path) -> tuple[Any, bool]:
    """Return what a file of torch.save holds, and whether it has checksums."""
    start = file.read(len(ZIP_START))
    if path.suffix == ".safetensors" and start != ZIP_START and not start.startswith(PICKLE_START):
        raise ValueError("no header of safetensors")
    checked = start == ZIP_START and verify_zip(file)
    file.seek(0)
    with warnings.catch_warnings(), torch.serialization.safe_globals(ALLOWED):  # type: ignore[arg-type]
        warnings.simplefilter("ignore")  # about the pickle's protocol, which the user cannot change
        return torch.load(file, map_location="cpu", weights_only=True), checked


def verify_zip(file: BinaryIO) -> bool:
    """Check a zip file against its own checksums, since flipped bits would become weights.

    A file is read once, under all its hard links, as long as it does not change.

    Returns:
        Whether it has checksums.

    Raises:
        ValueError: a checksum is wrong, or an entry is compressed, which torch.save never does: a few bytes could
            claim gigabytes.
    """
    state = os.fstat(file.fileno())
    inode, version = (state.st_dev, state.st_ino), (state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    if _verified.get(inode) == version:
        return True
    if not zipfile.is_zipfile(file):
        raise ValueError("the end of the file is missing")
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("a compressed entry; torch.save compresses none")
            if not any(entry.CRC for entry in entries):  # torch.serialization.set_crc32_options(False)
                return False
            for entry in entries:
                with archive.open(entry) as part:
                    while part.read(BLOCK_BYTES):
                        pass
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, struct.error) as error:
        raise ValueError(str(error)) from error
    _verified[inode] = version
    return True


# ------------------------------------------------------------------------------------------------ safetensors


def is_safetensors(file: BinaryIO) -> bool:
    """Return whether `file` starts as safetensors do: the header's length in 8 bytes, then JSON. Rewinds it."""
    start = file.read(9)
    file.seek(0)
    return len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] <= MAX_HEADER_BYTES


def save_safetensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    content: Mapping[str, object] | None = None,
) -> None:
    """Write tensors as safetensors, atomically, with a hash of everything in the metadata.

    Args:
        metadata: text for other programs, by name.
        content: the rest of a checkpoint whose weights the tensors are, as plain data; `read` returns it with them.

    Raises:
        OSError: the file cannot be written. An earlier one is intact.
    """
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    about = {"format": "pt", **(metadata or {}), WRITER: WRITER_NAME}
    about |= {} if content is None else {CHECKPOINT: json_text(content)}
    about[HASH] = _hash(own, about)
    with atomic_write(path) as file:
        file.write(safetensors_bytes(own, about))


def safetensors_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a file of safetensors, {} without any.

    Raises:
        ValueError: the header is damaged.
    """
    with path.open("rb") as file:
        return _metadata(file)


def _metadata(file: BinaryIO) -> dict[str, str]:
    size = struct.unpack("<Q", file.read(8))[0]
    header = json.loads(file.read(size))
    found = header.get("__metadata__") or {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError("its metadata is no text")
    return found


def _read_safetensors(file: BinaryIO, path: Path) -> tuple[dict[str, Any], bool]:
    """Return the tensors, or the checkpoint that they are of, after a look at the hash; and whether there is a hash."""
    about = _metadata(file)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    checked = bool(about.keys() & {HASH, WRITER, CHECKPOINT})
    if checked and about.get(HASH) != _hash(tensors, about):
        raise ValueError("its content differs from the hash in its metadata")
    if CHECKPOINT not in about:
        return tensors, checked
    try:
        content = json.loads(about[CHECKPOINT])
    except RecursionError as error:
        raise ValueError("its metadata is nested too deep") from error
    if not isinstance(content, dict):
        raise ValueError("the checkpoint in its metadata is no object")
    return {**content, "weights": tensors}, checked


def _hash(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """Return the sha256, as hex, of the tensors by name, and of the metadata without the hash."""
    digest = hashlib.sha256()
    for key in sorted(metadata.keys() - {HASH}):
        digest.update(f"{key!r}={metadata[key]!r};".encode(errors="surrogatepass"))
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name!r}: {tensor.dtype} {tuple(tensor.shape)};".encode(errors="surrogatepass"))
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
