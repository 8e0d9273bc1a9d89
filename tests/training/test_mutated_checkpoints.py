"""Checkpoints that were tampered with or damaged: each is refused by a UserError, or gives the weights that it had.

MUTATIONS=2000 in the environment tries so many in place of MUTATIONS_BY_DEFAULT; the first ones are the same.
"""

import copy
import os
import types
from collections import Counter
from pathlib import Path

import numpy as np
import torch

import dataloader
import inference
import network.loading
import tiny
from evaluation.report.curves import draw_curves
from evaluation.step_points import rows_of
from options import parse_eval, parse_train
from scheduler import run_length
from training.epoch import EpochTracker
from training.setup import build_engine
from training.start import RunStart, find_start
from training.state import RunState
from training.step_curves import StepCurves
from training.unreadable import UnreadableImages
from utils import checkpoint
from utils.errors import UserError

MUTATIONS_BY_DEFAULT = 48
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


# ------------------------------------------------------------------------ what is done to a file


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


def mutate(number, original, raw, path):
    """Write mutation `number` of a checkpoint to `path`; returns what was done."""
    rng = np.random.default_rng([7, number])
    if number % 4 == 3:
        data, what = damage(raw, rng)
        path.write_bytes(data)
        return what
    content = copy.deepcopy(original)
    what = [change(content, rng) for _ in range(1 if rng.random() < 0.8 else 2)]
    torch.save(content, path)
    return ", ".join(what)


# ------------------------------------------------------------------------ who reads it


def evaluated(path, _):
    """As eval.py and submit.py read it; returns the network's weights."""
    opt = parse_eval(
        ["--load", str(path), *"--model Tiny --gpu -1 -w 0 --no-fold --data_root . --precision fp32".split()]
    )
    loaded = inference.load_predictor(opt, torch.device("cpu"))
    dataloader.Classes.from_dict(loaded.data).name(0)
    assert Path(loaded.name).name == loaded.name and not loaded.name.startswith("."), (
        f"results would go to {loaded.name}"
    )
    files = dataloader.open_list(opt, "val")
    inference.predict(loaded.predictor, dataloader.eval_loader(opt, files, loaded.predictor.preprocesses))
    return loaded.predictor.members[0].model.net.state_dict()


def started(path, head):
    """As train.py --load reads it."""
    opt = parse_train([*tiny.FLAGS, "--load", str(path), "--num_classes", "3", "--head", head])
    model = network.get_model("Tiny")(opt)
    network.loading.load_weights(model, checkpoint.load(path), str(path))
    return model.net.state_dict()


def resumed(path, _):
    """As train.py --resume reads it, with a step; returns the weights before that."""
    opt = parse_train(["--tag", "m", "--load", str(path), "--resume", "--data_root", ".", "--gpu", "-1", "-w", "0"])
    opt, content, source = find_start(opt, Path("checkpoints/m"), again=False)
    state = RunState()
    state.load_state_dict(content)
    start = RunStart(opt, content, source, state)
    files = dataloader.open_list(opt, "train", drop_missing=True)
    classes = dataloader.find_classes(files, opt.num_classes)
    opt = opt.replace(epochs=run_length(opt.scheduler, opt.epochs, given=False), num_classes=classes.count)
    start.check_list(files.fingerprint())
    model = network.get_model(opt.model)(start.network_options(classes.count))
    network.loading.load_weights(model, content, source, strict=True)
    found = {name: value.clone() for name, value in model.net.state_dict().items()}
    if start.is_complete():
        return found
    model.set_precision(opt.precision)
    loader = dataloader.train_loader(opt, files, model.preprocess())
    engine = build_engine(opt, model, len(loader), classes.train_counts, classes.names)
    engine.load_state_dict(content)
    curves = StepCurves(model.device, engine.optimizer_steps_per_epoch)
    curves.load_state_dict(state.curves, state.epochs_done, within_epoch=bool(state.within))
    run = types.SimpleNamespace(
        state=state,
        curves=curves,
        source=source,
        checkpoints=Path("checkpoints/m"),
        recorder=None,
        facts=types.SimpleNamespace(train_images=len(files)),
        unreadable=UnreadableImages(Path("bad_images.csv"), 1.0, state),
        maybe_save=lambda tracker: None,
        divergence_error=lambda what, lr: UserError(what),
    )
    with EpochTracker(run, state.next_epoch, engine) as tracker:
        for batch in tracker.track(loader.batches(*state.next_batch)):
            tracker.update(engine.train_step(batch))
        tracker.close()
    state.best()
    if os.environ.get("MUTATIONS"):
        draw_curves(Path("curves.png"), state.history, rows_of(curves.state_dict(within_epoch=True), state.history))
    return found


READERS = {"eval and submit": evaluated, "train --load": started, "train --resume": resumed}


def outcome(reader, path, original):
    """ "refused", "equal", or what went wrong."""
    try:
        found = READERS[reader](path, original["opt"]["head"])
    except UserError:
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    for own in (original[name] for name in ("weights", "ema", "swa") if original[name]):
        if own.keys() == found.keys() and all(torch.equal(own[name], found[name]) for name in own):
            return "equal"
    return "other weights"


def test_load_mutated_checkpoint_is_refused_or_exact(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(network.models, "Tiny", tiny.Tiny)
    tiny.write_images(tmp_path)
    paths = [tiny.unpack(name, tmp_path) for name in tiny.KEPT]
    originals = [torch.load(path, weights_only=True) for path in paths]
    found, wrong = Counter(), []
    before = set(tmp_path.iterdir())
    for number in range(int(os.environ.get("MUTATIONS") or MUTATIONS_BY_DEFAULT)):
        which = number // 4 % len(paths)
        original, path = originals[which], tmp_path / "mutated.pt"
        what = mutate(number, original, paths[which].read_bytes(), path)
        for reader in READERS:
            result = outcome(reader, path, original)
            found[reader, result if result in ("refused", "equal") else "wrong"] += 1
            if result not in ("refused", "equal"):
                wrong.append(f"{number} ({tiny.KEPT[which]}, {what}), {reader}: {result}")
    path.unlink()
    if os.environ.get("MUTATIONS"):
        with capfd.disabled():
            print(*sorted(found.items()), *wrong, sep="\n")
    assert not wrong, "\n".join(wrong)
    assert set(tmp_path.iterdir()) - before <= {tmp_path / "curves.png"}
    assert min(found[reader, "equal"] for reader in READERS) > 0
    assert min(found[reader, "refused"] for reader in READERS) > 0
