"""Which samples make up which batch, and where randomness comes from: pure functions of (seed, epoch) and the step."""

import itertools
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dataloader
from dataloader.file_list import read_list
from dataloader.sampler import EvalSampler, SamplingConfig, TrainSampler, repeat_index
from options import parse_train
from utils.errors import UserError
from utils.preprocess import Preprocess
from utils.rng import order_rng, sample_rng, seed_batch
from utils.run import DEBUG_BATCHES

WAY = Preprocess(16, "squash", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LAST_SEED = 2**63 - 1
DRAWS = [
    SamplingConfig(3),
    SamplingConfig(3, "sqrt"),
    SamplingConfig(3, "class"),
    SamplingConfig(3, repeats=3),
    SamplingConfig(3, "class", 2),
]


def sampler(count, batch_size, epochs=3, draw=DRAWS[0], limit=None):
    labels = (np.arange(count) % 7 % 3).astype(np.int32)
    return TrainSampler(labels, batch_size, epochs, draw, limit)


def as_plain(keys):
    return [(key.epoch, key.number, key.indices.tolist(), key.repeat_index.tolist()) for key in keys]


def loader(photo_set, *words):
    opt = parse_train([*"--scale 16 -b 10 --epochs 3 --gpu -1 -w 0 --transform light".split(), *map(str, words)])
    return dataloader.train_loader(opt, read_list(photo_set / "train.txt"), WAY)


# ------------------------------------------------------------------------ training


@settings(max_examples=100, deadline=None, database=None)
@given(count=st.integers(2, 300), batch_size=st.integers(2, 400), seed=st.integers(0, LAST_SEED))
def test_train_sampler_epoch_shows_each_sample_once(count, batch_size, seed):
    made = sampler(count, batch_size, 2, SamplingConfig(seed))
    size = min(count, batch_size)
    keys = list(made)
    assert [(key.epoch, key.number) for key in keys] == [
        (epoch, step) for epoch in (1, 2) for step in range(count // size)
    ]
    for epoch in (1, 2):
        shown = [key.indices for key in keys if key.epoch == epoch]
        assert {len(indices) for indices in shown} == {size}
        assert len(np.unique(np.concatenate(shown))) == count // size * size
        assert np.array_equal(np.sort(made.order(epoch)), np.arange(count))
    assert not any(key.repeat_index.any() for key in keys)
    assert len(made) == count // size


def test_train_sampler_order_differs_by_epoch_and_seed():
    keys = list(itertools.product((0, 1, 42, LAST_SEED), range(1, 60)))
    orders = {sampler(50, 10, draw=SamplingConfig(seed)).order(epoch).tobytes() for seed, epoch in keys}
    assert len(orders) == len(keys)
    assert sampler(50, 10).order(7).tobytes() == sampler(50, 25, epochs=99).order(7).tobytes()


def test_train_sampler_dropped_rest_differs_by_epoch():
    made = sampler(103, 10, epochs=40)
    rests = [frozenset(made.order(epoch)[100:].tolist()) for epoch in range(1, 41)]
    assert len(set(rests)) == 40
    assert np.mean([sum(rest) / 3 for rest in rests]) == pytest.approx(51, abs=15)  # of 0 to 102, evenly


@pytest.mark.parametrize("draw", DRAWS, ids=str)
@pytest.mark.parametrize("limit", [None, 2])
def test_train_sampler_started_at_any_step_continues_the_same(draw, limit):
    whole = as_plain(sampler(40, 6, 3, draw, limit))
    made = sampler(40, 6, 3, draw, limit)
    for place, (epoch, step, *_) in enumerate(whole):
        assert as_plain(made.iterate(epoch, step)) == whole[place:]
    assert as_plain(made.iterate(4, 0)) == []


@pytest.mark.parametrize(("epoch", "step"), [(1, 0), (1, 2), (2, 0), (3, 1)])
def test_train_loader_started_at_any_step_continues_the_same(photo_set, epoch, step):
    whole = list(loader(photo_set).batches(1))
    assert [(batch.epoch, batch.number) for batch in whole] == list(itertools.product((1, 2, 3), (0, 1, 2)))
    rest = whole[(epoch - 1) * 3 + step :]
    again = list(loader(photo_set, "-w", 2).batches(epoch, step))
    assert len(again) == len(rest)
    for one, other in zip(again, rest, strict=True):
        assert (one.epoch, one.number) == (other.epoch, other.number)
        assert torch.equal(one.index, other.index)
        assert torch.equal(one.label, other.label)
        assert torch.equal(one.image, other.image)


def test_train_loader_read_again_from_another_step_is_the_same(photo_set):
    made = loader(photo_set)
    first = [batch.index.tolist() for batch in made.batches(1)]
    assert [batch.index.tolist() for batch in made.batches(2, 1)] == first[4:]
    assert [batch.index.tolist() for batch in made.batches(1)] == first


@pytest.mark.parametrize("how", [("-w", 0), ("-w", 2), ("-w", 1, "--loader", "process")], ids=str)
def test_train_loader_two_iterators_keep_their_own_starts(photo_set, how):
    made = loader(photo_set, *how)
    whole = [(batch.epoch, batch.number, batch.index.tolist()) for batch in loader(photo_set).batches(1)]
    first, second = made.batches(1), made.batches(2, 1)  # the second is asked for before the first gives a batch
    assert [(batch.epoch, batch.number, batch.index.tolist()) for batch in second] == whole[4:]
    assert [(batch.epoch, batch.number, batch.index.tolist()) for batch in first] == whole


def test_train_loader_debug_shows_first_batches_of_epoch(photo_set):
    words = ("-b", 4, "--epochs", 2)
    whole, few = loader(photo_set, *words), loader(photo_set, *words, "--debug")
    assert (len(whole), len(few)) == (9, DEBUG_BATCHES)
    wanted = [batch.index.tolist() for batch in whole.batches(1) if batch.number < DEBUG_BATCHES]
    assert [batch.index.tolist() for batch in few.batches(1)] == wanted
    assert len(loader(photo_set, "-b", 36, "--debug")) == 1


def test_train_loader_batch_above_list_is_the_list_and_logged(photo_set, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("classifier"), "propagate", True)
    made = loader(photo_set, "-b", 100)
    assert "36 images, fewer than a batch of 100: the batch is 36" in caplog.text
    batches = list(made.batches(1))
    assert [len(batch.label) for batch in batches] == [36, 36, 36]
    assert sorted(batches[0].index.tolist()) == list(range(36))


def test_train_loader_dropped_rest_is_logged(photo_set, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("classifier"), "propagate", True)
    caplog.set_level(logging.INFO)
    loader(photo_set, "-b", 12)
    assert "leaves out" not in caplog.text
    loader(photo_set, "-b", 10)
    assert "leaves out 6 of 36 images" in caplog.text


def test_train_loader_of_one_image_is_refused(photo_set, tmp_path):
    first = (photo_set / "train.txt").read_text().splitlines()[0]
    (tmp_path / "train.txt").write_text(first)
    with pytest.raises(UserError, match=r"train\.txt has 1 image.*2 or more"):
        dataloader.train_loader(parse_train([]), read_list(tmp_path / "train.txt"), WAY)


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_repeat_index_counts_equal_values_before(values):
    wanted = [values[:place].count(value) for place, value in enumerate(values)]
    assert repeat_index(np.array(values)).tolist() == wanted


def test_train_sampler_repeated_draws_have_own_copy_numbers():
    for draw in DRAWS[1:]:
        for epoch in (1, 2):
            keys = [key for key in sampler(40, 5, 2, draw) if key.epoch == epoch]
            drawn = [pair for key in keys for pair in zip(key.indices.tolist(), key.repeat_index.tolist(), strict=True)]
            assert len(set(drawn)) == len(drawn) == 40
            assert max(copy for _, copy in drawn) > 0


# ------------------------------------------------------------------------ evaluation


@pytest.mark.parametrize(
    ("count", "size", "sizes"), [(25, 8, [8, 8, 8, 1]), (24, 8, [8, 8, 8]), (1, 8, [1]), (8, 1, [1] * 8)]
)
def test_eval_sampler_covers_all_in_order(count, size, sizes):
    keys = list(EvalSampler(count, size))
    assert [len(key.indices) for key in keys] == sizes
    assert len(EvalSampler(count, size)) == len(sizes)
    assert np.concatenate([key.indices for key in keys]).tolist() == list(range(count))
    assert [key.number for key in keys] == list(range(len(sizes)))


def test_eval_loader_debug_shows_first_batches(photo_set):
    opt = parse_train(["-b", "5", "--gpu", "-1", "-w", "0", "--debug"])
    batches = list(dataloader.eval_loader(opt, read_list(photo_set / "train.txt"), (WAY,)))
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(5 * DEBUG_BATCHES))


def test_eval_loader_last_batch_of_one_is_kept(photo_set):
    opt = parse_train(["-b", "5", "--gpu", "-1", "-w", "2"])
    batches = list(dataloader.eval_loader(opt, read_list(photo_set / "train.txt"), (WAY,)))
    assert [len(batch.label) for batch in batches] == [5] * 7 + [1]
    assert batches[-1].images[0].shape == (1, 3, 16, 16)


# ------------------------------------------------------------------------ waiting


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_worker_timeout_zero_waits_without_limit(photo_set, kind):
    words = ("--worker_timeout", 0, "-w", 1, "--loader", kind, "--epochs", 1)
    assert len(list(loader(photo_set, *words).batches(1))) == 3


# ------------------------------------------------------------------------ streams


SEEDS = (0, 1, 42, 2**32, LAST_SEED)
EPOCHS = (1, 2, 3, 255, 256, 32767)
INDICES = (0, 1, 2, 65535, 65536, 2**32 - 1)
COPIES = (0, 1, 2, 65535)


def key(generator):
    """The 128-bit key of a stream."""
    return tuple(generator.bit_generator.state["state"]["key"].tolist())


def test_sample_rng_streams_are_distinct_from_all_others():
    streams = [sample_rng(*of) for of in itertools.product(SEEDS, EPOCHS, INDICES, COPIES)]
    streams += [order_rng(*of) for of in itertools.product(SEEDS, EPOCHS)]
    assert len({key(stream) for stream in streams}) == len(streams)
    assert len({stream.integers(2**63) for stream in streams}) == len(streams)


@settings(max_examples=300, deadline=None, database=None)
@given(
    st.integers(0, LAST_SEED),
    st.integers(1, 32767),
    st.integers(1, 32767),
    st.integers(0, 2**32 - 1),
    st.integers(0, 65535),
)
def test_sample_rng_key_differs_from_every_order_key(seed, epoch, other, index, copy):
    assert key(sample_rng(seed, epoch, index, copy)) != key(order_rng(seed, other))
    assert key(sample_rng(seed, epoch, index, copy))[0] == key(order_rng(seed, other))[0] == seed


def test_sample_rng_asked_again_starts_over():
    first = sample_rng(1, 2, 3).random(5)
    sample_rng(1, 2, 4).random(100)
    assert np.array_equal(sample_rng(1, 2, 3).random(5), first)


def test_sample_rng_neighbours_are_independent():
    draws = np.array([sample_rng(0, 1, index).random(20) for index in range(500)])
    links = (
        np.corrcoef(draws.T)[np.triu_indices(20, 1)],
        [np.corrcoef(draws[:-1, k], draws[1:, k])[0, 1] for k in range(20)],
    )
    assert np.abs(np.concatenate(links)).max() < 5 / np.sqrt(500)
    assert draws.mean() == pytest.approx(0.5, abs=0.02)


def test_seed_batch_repeats_per_batch_and_differs_between_batches():
    seen = {}
    for of in itertools.product((0, 1, LAST_SEED), (1, 2, 3), (0, 1, 2)):
        seed_batch(*of)
        seen[of] = torch.rand(4)
    assert len({tuple(values.tolist()) for values in seen.values()}) == len(seen)
    seed_batch(1, 2, 1)
    assert torch.equal(torch.rand(4), seen[1, 2, 1])
