"""What a GPU has to prove, as `make test-gpu` runs it: thirteen checks, numbered as they are below.

Tests marked `cuda` are skipped without a GPU. The others take the fixture `device`, so that they also run on the CPU.
Two more checks are timings, which no test asserts: benchmarks.train and benchmarks.input report them.
"""

import contextlib
import gc
import os
import re
import signal

import pytest
import torch
from test_steady_step import FUSED_STEPS

import dataloader
import network
import tiny
from benchmarks import crash_test
from inference.loading import load_predictor
from inference.predictor import Member, Predictor
from network import get_model
from optimizer import optimizers
from options import parse_eval, parse_train
from training import batch_size
from training.checkpoint_writer import AsyncCheckpointWriter, snapshot
from training.engine import Engine
from training.guard import Diverged
from training.memory import out_of_memory
from training.setup import build_engine
from utils import checkpoint
from utils.batch import Batch, EvalBatch
from utils.run import seed_everything

WORDS = (
    "--model timm:test_resnet --no-pretrained --preset original "
    "--scale 32 -b 6 --num_classes 3 --precision fp32 --lr 0.01"
)
WORDS += " --optimizer sgd"
VIT = "--model timm:test_vit --scale 160"
CPU = torch.device("cpu")
on_gpu = pytest.mark.cuda


def gpu_flag(device):
    return ["--gpu", "-1" if device.type == "cpu" else str(device.index)]


def engine_on(device, *words, batches=1000):
    """An engine whose network starts from the same weights on every device."""
    opt = parse_train([*WORDS.split(), *gpu_flag(device), *map(str, words)])
    torch.manual_seed(0)
    model = get_model(opt.model)(opt)
    model.to_device(device)
    model.set_precision(opt.precision)
    return build_engine(opt, model, batches)


def batch_for(engine, step=0, count=None):
    """Make a batch of noise, of the size that the engine's options give, in page-locked memory for a GPU."""
    opt = engine.model.opt
    count = count or opt.batch_size
    image = torch.randint(
        0, 256, (count, 3, opt.scale, opt.scale), dtype=torch.uint8, generator=torch.Generator().manual_seed(step)
    )
    image, label = image.contiguous(memory_format=torch.channels_last), torch.arange(count) % engine.model.num_classes
    if engine.model.device.type == "cuda":
        image, label = image.pin_memory(), label.pin_memory()
    return Batch(image, label, torch.arange(count), 1, step, ())


def train(engine, steps):
    """Train these steps; return the losses, on the device."""
    return [engine.train_step(batch_for(engine, step)).loss for step in steps]


def relative(one, other):
    """The norm of the difference of two lists of tensors, as a share of the norm of the second."""
    one, other = (
        torch.cat([tensor.detach().double().cpu().flatten() for tensor in tensors]) for tensors in (one, other)
    )
    return float((one - other).norm() / other.norm())


def assert_equal(one, other):
    """Two nested states hold the same keys, the same numbers and the same bits."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_equal(*pair)
    else:
        assert one == other


@pytest.fixture
def backends():
    """Global settings of torch's backends that a test changes are afterwards as they were."""
    kept = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.use_deterministic_algorithms(kept[0])
    torch.backends.cudnn.benchmark = kept[1]
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


@pytest.fixture
def no_tf32(backends):
    """fp32 with all of its bits: TF32 has 10 of the mantissa."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@pytest.fixture
def deterministic(backends):
    """What --deterministic does."""
    seed_everything(0, deterministic=True)


# ------------------------------------------------------------------------ 1, 2: nothing waits for the GPU


@contextlib.contextmanager
def no_read_back():
    """An operation that waits for the GPU raises RuntimeError in the body; torch does not see all of them."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
def test_no_read_back_with_item_raises(device):
    value = torch.ones(1, device=device)
    with no_read_back(), pytest.raises(RuntimeError, match="synchronizing"):
        value.item()
    assert value.item() == 1


@on_gpu
@pytest.mark.parametrize(
    "words",
    [
        *FUSED_STEPS,
        "--model EfficientNet-Lite0 --scale 64 --optimizer adamw --precision bf16 --ema 0.9"
        " --mixup 0.2 --cutmix 1 --drop_path 0.1",
        "--precision fp16 --optimizer sgd",
    ],
)
def test_1_steady_step_never_waits_for_gpu(device, words):
    engine = engine_on(device, *words.split())
    batches = [batch_for(engine, step) for step in range(9)]
    for batch in batches[:4]:  # the optimizer's state, cuDNN's plans, and the first memory
        engine.train_step(batch)
    with no_read_back():
        for batch in batches[4:]:
            engine.train_step(batch)
    engine.settle()
    assert engine.guard.skipped == 0


@on_gpu
@pytest.mark.parametrize("tta", ["none", "x8"])
def test_2_steady_prediction_never_waits_for_gpu(device, tta):
    engine = engine_on(device)
    predictor = Predictor([Member(engine.model, engine.model.preprocess())], tta=tta)
    batches = [batch_for(engine, step) for step in range(8)]
    batches = [
        EvalBatch((batch.image,), batch.label, batch.index, torch.ones(6, dtype=torch.bool), ()) for batch in batches
    ]
    running = predictor.run(batches, "evaluating")
    for _ in range(2):  # whether a network is broken is looked at after the first batch
        predictor.combine(next(running)[1])
    with no_read_back():
        for _ in range(5):
            predictor.combine(next(running)[1])
    assert len(list(running)) == 1


# ------------------------------------------------------------------------ 3, 4: the same numbers


REAL = [
    pytest.param("--model ResNet50 --scale 128 -b 16", marks=on_gpu),
    pytest.param("--model EfficientNet-Lite0 --scale 128 -b 16", marks=on_gpu),
]


def loss_and_gradients(engine, double=False):
    """The loss of a batch, and the gradient of each parameter; `double`: all of it in fp64.

    Of batch 1: in batch 0, a value of timm:test_resnet is so near to 0 that rounding decides whether gradient flows.
    """
    images, targets = engine.prepare(batch_for(engine, 1))
    if double:
        engine.model.net.double()
        images = images.double()
    loss, _ = engine.model.update(images, targets, lambda loss: loss.backward())
    gradients = [parameter.grad for parameter in engine.model.net.parameters()]
    engine.zero_gradients()
    return float(loss), gradients


@pytest.mark.parametrize("words", ["", VIT, *REAL])
def test_3_fp32_step_equals_cpu(device, no_tf32, words):
    """Batch norm over a few pixels magnifies rounding: fp64 tells how far fp32 may be from the truth."""
    words += " --lr 0.001"
    ours, theirs, exact = (engine_on(where, *words.split()) for where in (device, CPU, CPU))
    (our_loss, our_gradients), (their_loss, their_gradients) = loss_and_gradients(ours), loss_and_gradients(theirs)
    exact_loss, exact_gradients = loss_and_gradients(exact, double=True)
    assert our_loss == pytest.approx(their_loss, rel=1e-4) and our_loss == pytest.approx(exact_loss, rel=1e-4)
    assert relative(our_gradients, exact_gradients) < max(1e-3, 2 * relative(their_gradients, exact_gradients))
    for engine in (ours, theirs):
        train(engine, range(3))
    now, before = (list(engine.model.net.parameters()) for engine in (theirs, engine_on(CPU, *words.split())))
    apart, moved = relative(ours.model.net.parameters(), now), relative(now, before)
    assert apart < 1e-3 and apart < 0.1 * moved


@pytest.mark.parametrize("words", ["", VIT, *REAL])
def test_4_bf16_logits_are_near_fp32(device, no_tf32, words):
    engine = engine_on(device, *words.split(), "--precision", "bf16")
    model, batch = engine.model, batch_for(engine)
    with torch.inference_mode(), model.evaluating():
        exact = model(batch.image)
        with model.autocast():
            rounded = model(batch.image)
    assert rounded.dtype == torch.bfloat16 and 0 < relative([rounded], [exact]) < 2e-2
    before = snapshot(list(model.net.parameters()))
    assert all(bool(loss.isfinite()) for loss in train(engine, range(3)))
    assert relative(model.net.parameters(), before) > 0 and engine.step_count == 3


# ------------------------------------------------------------------------ 5, 6: the same bits


TWICE = [
    "--drop_path 0.2 --mixup 0.4 --optimizer adamw --ema 0.9",
    f"{VIT} --optimizer adamw",
    "--head arcface",
    "--num_classes 50030",
    pytest.param("--model ResNet50 --scale 128 -b 16 --precision bf16", marks=on_gpu),
    pytest.param("--model EfficientNet-Lite0 --scale 128 -b 16 --optimizer adamw", marks=on_gpu),
    pytest.param(
        "--model timm:vit_tiny_patch16_224 --scale 224 -b 16 --optimizer adamw --precision bf16", marks=on_gpu
    ),
    pytest.param(
        "--model ResNet50 --scale 128 -b 16 --head arcface --num_classes 50030 --precision fp16", marks=on_gpu
    ),
]


@pytest.mark.parametrize("words", TWICE)
def test_5_deterministic_runs_are_equal(device, deterministic, words):
    states, losses = [], []
    for _ in range(2):
        engine = engine_on(device, *words.split())
        losses.append(torch.stack(train(engine, range(20 if device.type == "cuda" else 2))).tolist())
        states.append(snapshot(engine.state_dict()))
    assert losses[0] == losses[1]
    assert_equal(*states)


def test_6_run_cut_after_step_7_resumes_to_same_bits(device, script, tmp_path, monkeypatch, backends):
    """Through train.py, with workers, and with a checkpoint after every step, written while the next one runs."""
    tiny.write_images(tmp_path)
    words = (
        "--model timm:test_resnet --no-pretrained --preset original "
        "--scale 32 -b 2 -w 1 --epochs 2 --val_freq 2 --lr 0.001"
    )
    words += " --transform light --precision fp32 --optimizer adamw --drop_path 0.2 --mixup 0.4 --ema 0.9"
    words += " --deterministic --save_minutes 0"
    words = [*words.split(), "--data_root", tmp_path, *gpu_flag(device)]
    assert script("train.py", "--tag", "whole", *words).code == 0
    real, sent = Engine.is_step_boundary, []

    def is_step_boundary(self, done):
        if self.step_count == 7 and not sent:
            sent.append(done)
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, done)

    monkeypatch.setattr(Engine, "is_step_boundary", is_step_boundary)
    assert script("train.py", "--tag", "cut", *words).code == 128 + signal.SIGTERM
    assert checkpoint.load(tmp_path / "checkpoints/cut/last.pt")["training"]["step"] == 7
    assert script("train.py", "--tag", "cut", "--resume", *gpu_flag(device)).code == 0
    assert crash_test.differences(tmp_path, "whole", "cut") == []


def test_checkpoint_written_during_next_step_holds_its_moment(device, deterministic, tmp_path):
    words = ["--optimizer", "adamw", "--ema", 0.9, "--drop_path", 0.2]
    engine, writer = engine_on(device, *words, batches=2), AsyncCheckpointWriter()
    train(engine, range(2))
    now = snapshot(engine.state_dict())
    data = {
        "num_classes": 3,
        "class_names": None,
        "class_images": None,
        "preprocess": engine.model.preprocess().as_dict(),
    }
    run = {"model": engine.model.name, "opt": {}, "data": data, "epoch": 1, "history": [{"epoch": 1}], "within": None}
    writer.save(tmp_path / "last.pt", run | engine.state_dict())
    train(engine, range(2))  # of the next epoch, while the last one's end is written
    writer.wait()
    assert writer.error is None
    again = engine_on(device, *words, batches=2)
    content = checkpoint.load(tmp_path / "last.pt")
    assert_equal(content["training"], now["training"])
    again.model.net.load_state_dict(content["weights"])
    again.load_state_dict(content)
    train(again, range(2))
    assert_equal(snapshot(engine.state_dict()), snapshot(again.state_dict()))


def test_ddp_of_one_process_steps_as_without(device, deterministic, monkeypatch, tmp_path):
    """DistributedDataParallel over NCCL on a GPU, over gloo on the CPU, with --accumulate."""
    words = ["--accumulate", 2, "--optimizer", "adamw", "--clip_grad", 1, "--precision", "bf16"]
    alone = engine_on(device, *words)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"  # as utils.distributed starts them
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        with monkeypatch.context() as patch:
            patch.setenv("WORLD_SIZE", "2")  # which decides whether a network is wrapped
            patch.setattr("utils.distributed.all_reduce_max", lambda value: value)  # there is no second process
            grouped = engine_on(device, *words)
        assert isinstance(grouped.train_net, torch.nn.parallel.DistributedDataParallel)
        assert torch.equal(torch.stack(train(alone, range(4))), torch.stack(train(grouped, range(4))))
        assert_equal(snapshot(alone.state_dict()), snapshot(grouped.state_dict()))
        assert grouped.step_count == 2
    finally:
        torch.distributed.destroy_process_group()


# ------------------------------------------------------------------------ 7, 8, 9: steps


@on_gpu
def test_7_fp16_scale_too_large_halves_and_recovers(device):
    engine = engine_on(device, "--precision", "fp16", "--max_nan", 2)
    engine.scaler.load_state_dict(engine.scaler.state_dict() | {"scale": 2.0**30})
    start, scales = snapshot(engine.model.net.state_dict()), []
    taken = False
    while not taken:
        before = 2.0**30 if not scales else scales[-1]
        train(engine, [len(scales)])
        scales.append(engine.scaler.get_scale())
        taken = scales[-1] == before
        moved = (
            relative(engine.model.net.parameters(), [start[name] for name, _ in engine.model.net.named_parameters()])
            > 0
        )
        assert taken or scales[-1] == before / 2
        assert moved == taken and len(scales) < 40
    engine.settle()
    assert len(scales) > 3 and engine.guard.skipped == 0  # to look for the scale is no divergence
    momentum = [state["momentum_buffer"] for state in engine.optimizer.state.values()]
    assert momentum and all(bool(value.isfinite().all()) for value in momentum)
    content = snapshot(engine.state_dict())
    with torch.no_grad():
        engine.model.net.fc.weight[0, 0] = torch.nan
    with pytest.raises(Diverged, match=r"fc\.weight holds NaN"):
        for step in range(60):  # the scale falls to 1 first
            train(engine, [step])
    engine.model.net.load_state_dict(content["weights"])
    engine.load_state_dict(content)
    assert engine.scaler.get_scale() == scales[-1]
    train(engine, range(3))
    assert all(bool(parameter.isfinite().all()) for parameter in engine.model.net.parameters())


@pytest.mark.parametrize(
    "pair", ["bf16 fp32", pytest.param("bf16 fp16", marks=on_gpu), pytest.param("fp16 bf16", marks=on_gpu)]
)
def test_7_resume_in_another_precision_continues(device, pair):
    first, second = pair.split()
    before, after = (engine_on(device, "--precision", precision) for precision in (first, second))
    train(before, range(2))
    content = snapshot(before.state_dict())
    after.model.net.load_state_dict(content["weights"])
    after.load_state_dict(content)
    assert all(bool(loss.isfinite()) for loss in train(after, range(2, 4)))
    assert bool(after.state_dict()["training"]["scaler"]) == (second == "fp16")


@pytest.mark.parametrize(
    "words", ["--optimizer adamw", "--optimizer sgd", "--optimizer sgd --precision bf16", "--optimizer lion"]
)
def test_8_nan_batch_changes_only_skipped_count(device, deterministic, monkeypatch, words):
    engine, clean = (engine_on(device, *words.split(), "--ema", 0.9, "--scheduler", "none") for _ in range(2))
    for one in (engine, clean):
        train(one, range(2))
    before = snapshot(engine.state_dict())
    real = engine.prepare
    with monkeypatch.context() as patch:
        patch.setattr(engine, "prepare", lambda batch: (real(batch)[0] * torch.nan, real(batch)[1]))
        train(engine, [2])
        after = snapshot(engine.state_dict())
    assert after["training"].pop("step") == before["training"].pop("step") + 1 == 3
    assert after["training"].pop("skipped") == before["training"].pop("skipped") + 1 == 1
    # of batches that passed
    counters = [name for name, tensor in before["weights"].items() if not tensor.is_floating_point()]
    for state in (before, after):
        for weights in ("weights", "ema"):
            state[weights] = {name: tensor for name, tensor in state[weights].items() if name not in counters}
    assert_equal(after, before)
    clean.settle()
    clean.step_count = 3  # the schedule and the warm-up of --ema count a skipped step
    for one in (engine, clean):
        train(one, [3])
    for weights in ("raw", "ema"):
        ours, theirs = (one.net(weights).state_dict() for one in (engine, clean))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours if name not in counters)


@pytest.mark.parametrize("name", optimizers)
def test_9_optimizer_of_each_name_moves_weights(device, name):
    engine = engine_on(device, "--optimizer", name, "--lr", 0.001)
    before = snapshot(list(engine.model.net.parameters()))
    losses = train(engine, range(3))
    after = list(engine.model.net.parameters())
    assert all(bool(value.isfinite().all()) for value in [*losses, *after])
    assert relative(after, before) > 1e-6
    assert not torch.equal(after[0].cpu(), before[0]) and not torch.equal(after[-1].cpu(), before[-1])


# ------------------------------------------------------------------------ 10, 11: memory and batches


@contextlib.contextmanager
def memory_limit(device, size):
    """torch may take `size` bytes of the GPU beyond what it holds now."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + size) / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        torch.cuda.empty_cache()


def fits(engine, batch, batches):
    """Return whether `batches` steps fit into memory; a failed step's graph is freed with the handler."""
    try:
        for step in range(batches):
            engine.train_step(batch._replace(number=step))
        engine.settle()
    except torch.OutOfMemoryError:
        return False
    return True


@on_gpu
def test_10_out_of_memory_advises_largest_batch_that_fits(device):
    words = ["--model", "ResNet18", "--scale", 224]

    def trains(size, accumulate):
        torch.cuda.empty_cache()
        engine = engine_on(device, *words, "-b", size, "--accumulate", accumulate)
        fitted = fits(engine, batch_for(engine), 3 * accumulate)
        assert not fitted or engine.step_count == 3
        return fitted

    with memory_limit(device, 1 << 30):
        engine = engine_on(device, *words, "-b", 256)
        batch = batch_for(engine)
        assert not fits(engine, batch, 1)
        message = str(out_of_memory(engine, batch))
        del engine, batch
        gc.collect()
        size, accumulate = map(int, re.search(r"Give -b (\d+) --accumulate (\d+)", message).groups())
        assert trains(size, accumulate), message
        gc.collect()
        assert not trains(2 * size, accumulate), message
        gc.collect()


@on_gpu
def test_10_batch_auto_fits_and_twice_as_many_images_do_not(device, monkeypatch):
    monkeypatch.setattr(batch_size, "FREE_SHARE", 0.001)
    words = ["--model", "ResNet18", "--scale", 224, "--ema", 0.9]
    with memory_limit(device, 2 << 30):
        found = batch_size.largest_trial_batch(lambda: (engine_on(device, *words), 224), device, 1024)
        assert found is not None and 8 <= found < 1024
        assert torch.cuda.max_memory_reserved(device) == torch.cuda.memory_reserved(device)  # not the trials' peak
        for size, wanted in ((found, True), (2 * found, False)):
            engine = engine_on(device, *words, "-b", size)
            assert fits(engine, batch_for(engine), 3) == wanted
            del engine
            gc.collect()
            torch.cuda.empty_cache()


def checksum(images):
    """A sum in which each byte counts by its place, on the images' device."""
    places = torch.arange(images.numel(), device=images.device) % 65_521
    return (images.permute(0, 2, 3, 1).flatten().long() * places).sum()


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_11_network_input_equals_worker_output(device, tmp_path, monkeypatch, kind):
    """Page-locked memory is used again once a copy is done: too early, and a batch would hold parts of another."""
    tiny.write_images(tmp_path)
    epochs, workers = (500, 8) if device.type == "cuda" else (10, 2)  # an epoch is a batch
    engine = engine_on(
        device, "-b", 12, "-w", workers, "--epochs", epochs, "--transform", "light", "--data_root", tmp_path,
        "--loader", kind,
    )  # fmt: skip
    opt, model = engine.model.opt, engine.model
    loader = dataloader.train_loader(opt, dataloader.open_list(opt, "train"), model.preprocess())
    made, given, real = [], [], model.normalise

    def normalise(images):
        if images.dtype == torch.uint8:
            given.append(checksum(images))
        return real(images)

    monkeypatch.setattr(model, "normalise", normalise)
    for batch in loader.batches(1):
        assert batch.image.is_pinned() == batch.label.is_pinned() == (device.type == "cuda")
        made.append(int(checksum(batch.image)))
        engine.train_step(batch)
        del batch
    assert len(made) == len(set(made)) == epochs
    assert torch.stack(given).tolist() == made


# ------------------------------------------------------------------------ 12, 13: devices and --compile


def test_12_checkpoint_predicts_the_same_on_cpu_and_device(device, script, tmp_path, monkeypatch, backends):
    """Trained on either."""
    monkeypatch.setitem(network.models, "Tiny", tiny.Tiny)
    tiny.write_images(tmp_path)
    images = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    for trained, tag in ((CPU, "cpu"), (device, "device")):
        words = [*tiny.FLAGS, "--data_root", tmp_path, "--epochs", 1, *gpu_flag(trained)]
        assert script("train.py", "--tag", tag, *words).code == 0
        found = []
        for where in (CPU, device):
            opt = parse_eval(["--load", f"checkpoints/{tag}/last.pt", *gpu_flag(where)])
            predictor = load_predictor(opt, where).predictor
            with predictor.evaluating():
                found.append(predictor((images,)).cpu())
        assert torch.equal(found[0].argmax(dim=1), found[1].argmax(dim=1))
        assert float((found[0] - found[1]).abs().max()) < 1e-3


@on_gpu
@pytest.mark.parametrize(
    "words",
    ["", "--precision bf16 --ema 0.9", f"{VIT} --optimizer adamw --lr 0.0005 --precision bf16"],  # 0.01 is chaos
)
def test_13_compiled_network_trains_alike_and_compiles_once(device, words):
    torch._dynamo.reset()
    plain, fast = (engine_on(device, *words.split(), *more) for more in ([], ["--compile"]))
    expected, found = train(plain, range(6)), train(fast, range(2))
    with torch._dynamo.config.patch(error_on_recompile=True):
        found += train(fast, range(2, 6))
    assert torch.stack(found).tolist() == pytest.approx(torch.stack(expected).tolist(), rel=1e-2)
    for weights in ("weights", "ema"):
        ours, theirs = (engine.state_dict()[weights] or {} for engine in (fast, plain))
        assert list(ours) == list(theirs)
