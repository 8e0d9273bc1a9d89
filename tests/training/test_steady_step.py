"""What a steady step asks of the device: it reads nothing back; and how many operations the host dispatches for it."""

import collections
import types

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from network import get_model
from options import parse_train
from training.engine import Engine
from training.epoch import EpochTracker
from training.setup import build_engine
from training.state import RunState
from training.step_curves import StepCurves
from utils.batch import Batch

STEPS = 50
WORDS = (
    "--model timm:test_resnet --no-pretrained --preset original "
    "--scale 32 -b 6 --gpu -1 --num_classes 3 --precision fp32 --lr 0.001"
)
FUSED_STEPS = (  # flags of steps that wait for nothing
    "--optimizer adamw --ema 0.9 --clip_grad 1",
    "--optimizer sgd --accumulate 2 --clip_grad 0.01 --clip_mode agc",
    "--optimizer sgd --sam 0.05",
    "--optimizer adam --loss ohem --head arcface",
)
READS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal.default", "unique")


class Counter(TorchDispatchMode):
    """Counts the operations that are dispatched in its body, and a boolean index as a read-back."""

    def __init__(self) -> None:
        super().__init__()
        self.count: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        indices = args[1] if name.startswith("aten.index.") else ()
        self.count[name if not any(one is not None and one.dtype == torch.bool for one in indices) else "nonzero"] += 1
        return func(*args, **(kwargs or {}))

    def reads(self) -> dict[str, int]:
        return {name: times for name, times in self.count.items() if any(read in name for read in READS)}


def batch_of(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    image = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=generator)
    image = image.contiguous(memory_format=torch.channels_last)
    return Batch(image, torch.arange(6) % 3, torch.arange(6), 1, step, ())


def started(*words: str) -> tuple[Engine, EpochTracker]:
    opt = parse_train([*WORDS.split(), *words])
    model = get_model(opt.model)(opt)
    model.to_device(torch.device("cpu"))
    engine = build_engine(opt, model, 1000)
    curves = StepCurves(torch.device("cpu"), engine.steps_per_epoch)
    run = types.SimpleNamespace(state=RunState(), recorder=None, divergence_error=AssertionError, curves=curves)
    return engine, EpochTracker(run, 1, engine).__enter__()


def counted(*words: str) -> collections.Counter[str]:
    """The operations of STEPS steps, after three that make the optimizer's state."""
    engine, tracker = started(*words)
    batches = [batch_of(step) for step in range(3 + STEPS)]
    tracker.batch = batches[0]
    for batch in batches[:3]:
        tracker.update(engine.train_step(batch))
    with Counter() as counter:
        for batch in batches[3:]:
            tracker.update(engine.train_step(batch))
    assert engine.step_count >= STEPS // 2 and float(tracker.run.curves.sums[:, 1].sum()) == len(batches)
    assert counter.count.total() > 100 * STEPS
    return counter.count + collections.Counter(reads=sum(counter.reads().values()))


@pytest.mark.parametrize("words", FUSED_STEPS)
def test_train_step_fused_reads_nothing_back(words):
    assert counted(*words.split())["reads"] == 0


def test_train_step_unfused_reads_back_once():
    assert counted("--optimizer", "lion")["reads"] == STEPS


def test_counter_sees_each_read_back():
    with Counter() as counter:
        values = torch.arange(4.0)
        values.sum().item()
        values[values > 1]
        bool(values.isfinite().all())
    assert sum(counter.reads().values()) >= 3
