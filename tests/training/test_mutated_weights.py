"""Files of weights that were tampered with or damaged: each is refused by a UserError, or gives its weights exactly.

MUTATIONS=2000 in the environment tries 2000 per format in place of MUTATIONS_BY_DEFAULT; the first ones are equal.
"""

import copy
import json
import os
import resource
import struct
from collections import Counter

import numpy as np
import pytest
import torch

import network
import tiny
from mutations import JUNK, damage, resized
from network.loading import build_from_checkpoint
from utils import checkpoint, weight_files
from utils.errors import UserError

MUTATIONS_BY_DEFAULT = 60
MAX_GROWTH_KB = 300_000


def changed_header(raw, rng):
    """Change a value or a key somewhere in the header of safetensors."""
    size = struct.unpack("<Q", raw[:8])[0]
    head, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    name = list(head)[int(rng.integers(len(head)))]
    other = list(head)[int(rng.integers(len(head)))]
    one = head[name]
    kind = int(rng.integers(6))
    if kind == 0:
        head[f"{name}x"] = head.pop(name)
    elif kind == 1:
        del head[name]
    elif kind == 2:
        head[name], head[other] = head[other], head[name]
    elif kind == 3:
        key = list(one)[int(rng.integers(len(one)))]
        values = ["F16", "I32", [10**12], [2**62, 4], [0, 10**13], [-1], None, 3, "", {}, [], [0, 0], "x" * 64]
        one[key] = values[int(rng.integers(len(values)))]
    elif kind == 4:
        one[next(iter(one))], one["x"] = "x", "y"
    else:
        head["__metadata__"] = {"format": "pt", "sha256": "0" * 64}
    text = json.dumps(head).encode()
    length = len(text) if rng.random() < 0.9 else int(rng.integers(2**63))
    return struct.pack("<Q", length) + text + data


def changed_dict(weights, rng):
    """Delete, replace, nest, resize or rename one tensor of a state dict."""
    weights = copy.copy(weights)
    name = list(weights)[int(rng.integers(len(weights)))]
    kind = int(rng.integers(5))
    if kind == 0:
        del weights[name]
    elif kind == 1:
        other = JUNK[int(rng.integers(len(JUNK)))]  # a tensor that fits would be another network's, not a damaged file
        fits = isinstance(other, torch.Tensor) and other.shape == weights[name].shape
        weights[name] = None if fits else other
    elif kind == 2:
        weights[name] = [weights[name]]
    elif kind == 3:
        other = resized(weights[name], rng)
        weights[name] = weights[name].int() if other.dtype == torch.float16 else other  # half precision is allowed
    else:
        weights[f"{name}x"] = weights.pop(name)
    return {"state_dict": weights} if rng.random() < 0.5 else weights


def outcome(path, original):
    """ "refused", "equal", or what went wrong."""
    try:
        model, _ = build_from_checkpoint(checkpoint.load(path), str(path), "Tiny")
    except UserError:
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    found = model.net.state_dict()
    same = found.keys() == original.keys() and all(torch.equal(found[name], value) for name, value in original.items())
    return "equal" if same else "other weights"


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_load_mutated_weights_is_refused_or_exact(tmp_path, monkeypatch, suffix, capfd):
    monkeypatch.setitem(network.models, "Tiny", tiny.Tiny)
    original = checkpoint.load(tiny.unpack("sgd", tmp_path))["weights"]
    path, mutated = tmp_path / f"whole.{suffix}", tmp_path / f"mutated.{suffix}"
    weight_files.save_safetensors(path, original) if suffix == "safetensors" else torch.save(original, path)
    raw = path.read_bytes()
    assert outcome(path, original) == "equal"
    found, wrong = Counter(), []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(int(os.environ.get("MUTATIONS") or MUTATIONS_BY_DEFAULT)):
        rng = np.random.default_rng([11, number])
        if number % 2:
            data, what = damage(raw, rng)
            mutated.write_bytes(data)
        elif suffix == "safetensors":
            mutated.write_bytes(changed_header(raw, rng))
            what = "header"
        else:
            torch.save(changed_dict(original, rng), mutated)
            what = "content"
        result = outcome(mutated, original)
        found[result if result in ("refused", "equal") else "wrong"] += 1
        if result not in ("refused", "equal"):
            wrong.append(f"{number} ({what}): {result}")
    if os.environ.get("MUTATIONS"):
        with capfd.disabled():
            print(suffix, *sorted(found.items()), *wrong, sep="\n")
    assert not wrong, "\n".join(wrong)
    assert found["refused"] > 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH_KB
