"""tools.memory: the bytes of a step, counted on the CPU, and the largest batch for a GPU."""

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from network import get_model
from options import parse_train
from tools import memory
from training.setup import build_engine
from utils.batch import Batch

WORDS = ["--model", "ResNet18", "--num_classes", "7", "--scale", "32", "--preset", "original", "--no-pretrained"]
WORDS += ["--precision", "fp32", "--gpu", "-1", "--images", "1000", "-b", "24", "--optimizer", "sgd"]


def need_of(*words: str) -> memory.Need:
    (need,) = memory.compute(memory.option_parser().parse([*WORDS, *words]))[1]
    return need


@pytest.fixture(scope="module")
def plain() -> memory.Need:
    return need_of()


def test_need_of_a_batch_is_what_its_step_takes(plain):
    opt = parse_train([*WORDS[:-6], "-b", "24", "--optimizer", "sgd"])
    model = get_model(opt.model)(opt)
    model.to_device(torch.device("cpu"))
    model.set_precision("fp32")
    engine = build_engine(opt, model, 10)
    memory.count_bytes(engine, 32, 2)
    for images in (24, 40):
        count = memory.count_bytes(engine, 32, images)
        taken = count.weights + count.state + count.live.max()
        assert plain.of_batch(images) - memory.CUDA_BYTES == pytest.approx(taken, rel=0.01)
    tracker = MemTracker()
    tracker.track_external(model.net, engine.optimizer)
    batch = Batch(torch.zeros(40, 3, 32, 32, dtype=torch.uint8), torch.arange(40) % 7, torch.arange(40), 1, 0, ())
    with tracker:
        engine.train_step(batch)
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    assert taken == pytest.approx(peak["Total"], rel=0.01)


def test_need_counts_weights_state_and_averages(plain):
    assert plain.weights == pytest.approx(4 * 11_180_103 + 4 * 9_600, rel=0.001)  # parameters, then statistics
    assert plain.state == pytest.approx(4 * 11_180_103, rel=0.001)  # the momentum of SGD
    averaged = need_of("--ema", "0.9", "--optimizer", "adamw")
    assert averaged.weights == 2 * plain.weights
    assert averaged.state == pytest.approx(2 * plain.state, rel=0.001)


def test_need_with_accumulation_counts_the_state_and_the_step(plain):
    need = need_of("--accumulate", "3")
    assert need.state == plain.state and need.highest(24) >= plain.highest(24)


@pytest.mark.parametrize(("name", "copies"), [("ranger", 3), ("radam", 2)])
def test_need_counts_the_whole_state_of_an_optimizer(plain, name, copies):
    assert need_of("--optimizer", name).state == pytest.approx(copies * plain.state, rel=0.001)


@pytest.mark.parametrize("words", [["--checkpoint_grad"], ["--freeze", "3"], ["--scale", "16"]], ids=str)
def test_need_falls_with_what_saves_memory(plain, words):
    assert need_of(*words).highest(1000) < 0.8 * plain.highest(1000)


def test_largest_batch_fits_and_one_more_does_not(plain):
    limit = plain.of_batch(333)
    assert plain.largest_batch(limit) == 333
    assert plain.largest_batch(limit - 1) == 332
    assert plain.largest_batch(1000) == 0


def test_largest_batch_of_a_frozen_network_counts_the_forward_pass():
    """Nothing is kept for the backward pass, and at small batches the classifier's gradient takes the most."""
    need = need_of("--freeze", "-1", "--num_classes", "2000")
    image = 4 * 64 * 16 * 16  # bytes of the first convolution's output
    assert need.of_batch(10_001) - need.of_batch(10_000) >= 2 * image


def test_need_of_many_classes_is_found_though_operations_differ_with_the_batch():
    need = need_of("--num_classes", "50030", "--precision", "bf16")
    assert need.per_image.max() > 50_030 * 2  # the logits


def test_memory_prints_each_size_of_the_schedule(capsys):
    assert memory.main([*WORDS, "--scale_schedule", "1:32,2:48", "--gpu_memory", "16"]) == 0
    out = capsys.readouterr().out
    assert "32 px, fp32, a step over 24 images" in out and "48 px, fp32" in out
    assert out.count("the largest batch within 90% of 16 GiB:") == 2


def test_memory_commands_of_its_help_parse():
    for line in memory.__doc__.splitlines():
        if "-m tools.memory" in line:
            memory.option_parser().parse(line.split()[3:])


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--model", "ResNet18", "--precision", "bf16"], "--num_classes 1000"),
        ([*WORDS, "-b", "auto"], "-b 24"),
        ([*WORDS, "--precision", "auto"], "--precision bf16"),
        ([*WORDS, "--precision", "fp16"], "--precision bf16"),
        ([*WORDS, "--load", "a.pt"], "--load: tools.memory reads no checkpoint"),
        ([*WORDS, "--load", "a.pt", "--resume"], "Try: leave them out"),
    ],
    ids=str,
)
def test_memory_refuses_what_it_cannot_compute(words, part, capfd):
    assert memory.main(words) == 2
    assert part in capfd.readouterr().err
