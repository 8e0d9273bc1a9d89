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
from mutations import change, damage
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


# ------------------------------------------------------------------------ what is done to a file


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
    opt, content, source = find_start(opt, Path("checkpoints/m"), restarted=False)
    state = RunState()
    state.load_state_dict(content)
    start = RunStart(opt, content, source, state)
    files = dataloader.open_list(opt, "train", drop_missing=True)
    classes = dataloader.find_classes(files, opt.num_classes)
    opt = opt.replace(epochs=run_length(opt.scheduler, opt.epochs, given=False), num_classes=classes.count)
    start.adopt_training_list(files.fingerprint())
    model = network.get_model(opt.model)(start.network_options(opt))
    network.loading.load_weights(model, content, source, resume=True)
    found = {name: value.clone() for name, value in model.net.state_dict().items()}
    if start.is_complete():
        return found
    model.set_precision(opt.precision)
    loader = dataloader.train_loader(opt, files, model.preprocess())
    engine = build_engine(opt, model, len(loader), classes.train_counts, classes.names)
    engine.load_state_dict(content)
    curves = StepCurves(model.device, engine.steps_per_epoch)
    curves.load_state_dict(state.curves, state.epochs_done, within_epoch=bool(state.within))
    run = types.SimpleNamespace(
        state=state,
        curves=curves,
        source=source,
        checkpoints=Path("checkpoints/m"),
        recorder=None,
        unreadable=UnreadableImages(Path("bad_images.csv"), 1.0, len(files), state),
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
