"""What tests do to the content and the bytes of a file that is to be refused."""

import copy

import torch

DEEP: list = []
for _ in range(200):
    DEEP = [DEEP]
LOOP: list = []
LOOP.append(LOOP)
JUNK = [
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        3,
        10**20,
        -1.5,
        1.5,
        float("nan"),
        float("inf"),
        "",
        "../../evil",
        "/evil",
        "disk:evil",
        "a\0b",
        "raw",
        "ema",
    ),
    *([], {}, [1, 2], ["a"], {"a": 1}, {1: 2}, (), "x" * 10000, "Tiny", LOOP, DEEP),
    *(
        torch.zeros(3),
        torch.zeros(0),
        torch.zeros(()),
        torch.ones(2, 2, dtype=torch.complex64),
        torch.zeros(1).expand(10**12),
    ),
    torch.ones(2, 2).to_sparse(),
]


def pick(content, rng):
    """A random place in nested dicts and lists: (parent, key)."""
    parent, key = None, None
    here = content
    while isinstance(here, dict | list) and here and (parent is None or rng.random() < 0.75):
        keys = list(here) if isinstance(here, dict) else range(len(here))
        parent, key = here, keys[int(rng.integers(len(keys)))]
        here = parent[key]
    return parent, key


def resized(tensor, rng):
    flat = tensor.reshape(-1)
    return [
        lambda: flat,
        lambda: torch.cat([flat, flat]),
        lambda: flat[:1],
        lambda: tensor[None],
        lambda: tensor.to(torch.float16 if tensor.dtype == torch.float32 else torch.int32),
        lambda: tensor.reshape(-1)[:0],
        lambda: flat[::2],
    ][int(rng.integers(7))]()


def change(content, rng):
    """Delete, replace, nest, resize, rename or exchange one value of `content` in place; return what was done."""
    parent, key = pick(content, rng)
    value = parent[key]
    kind = ("delete", "replace", "replace", "nest", "resize", "rename", "exchange")[int(rng.integers(7))]
    if kind == "resize" and not isinstance(value, torch.Tensor | list | str):
        kind = "replace"
    if kind == "delete":
        del parent[key]
    elif kind == "replace":
        parent[key] = copy.deepcopy(JUNK[int(rng.integers(len(JUNK)))])
    elif kind == "nest":
        parent[key] = [value] if rng.random() < 0.5 else {key: value}
    elif kind == "resize":
        parent[key] = (
            resized(value, rng) if isinstance(value, torch.Tensor) else value * 2 if rng.random() < 0.5 else value[:-1]
        )
    elif kind == "rename" and isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
    else:
        other, place = pick(content, rng)
        parent[key], other[place] = other[place], value
    return f"{kind} {key!r}"


def damage(raw, rng):
    """Flip, cut, exchange, overwrite or insert bytes; returns the bytes, and what was done."""
    data = bytearray(raw)
    kind = ("flip", "flip", "cut", "swap", "zero", "insert")[int(rng.integers(6))]
    at, other, size = int(rng.integers(len(data))), int(rng.integers(len(data))), int(rng.integers(1, 600))
    if kind == "flip":
        for place in rng.integers(len(data), size=int(rng.integers(1, 9))):
            data[place] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del data[at:]
    elif kind == "swap":
        data[at : at + size], data[other : other + size] = data[other : other + size], data[at : at + size]
    elif kind == "zero":
        data[at : at + size] = bytes(len(data[at : at + size]))
    else:
        data[at:at] = rng.bytes(size)
    return bytes(data), f"{kind} at {at}"
