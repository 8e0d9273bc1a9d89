"""Schedules: the tables to the epoch, the curves against torch's, all as pure functions."""

import math

import pytest
import torch

from scheduler import Span, find_table, get_schedule, run_length, schedulers, tables
from utils.errors import UserError

PER = 10  # steps an epoch


def by_epoch(name, epochs, **settings):
    rate = get_schedule(name, Span(epochs * PER, PER, **settings))
    return [rate(epoch * PER) for epoch in range(epochs)]


DROPS = {
    "1x": (12, 7, 10),
    "2x": (24, 14, 20),
    "3x": (36, 21, 30),
    "10x": (120, 70, 100),
    "20e": (20, 16, 19),
    "100e": (100, 60, 90),
}


@pytest.mark.parametrize("name", DROPS)
def test_table_schedule_drops_after_its_epochs(name):
    epochs, *drops = DROPS[name]
    assert run_length(name, 5, given=False) == epochs
    rates = by_epoch(name, epochs)
    for epoch, rate in enumerate(rates, 1):
        assert rate == pytest.approx(0.1 ** sum(epoch > drop for drop in drops))
    rate = get_schedule(name, Span(epochs * PER, PER))
    assert rate(drops[0] * PER - 1) == 1.0  # the last step of the epoch still has the full rate
    assert rate(drops[0] * PER) == pytest.approx(0.1)


def test_run_length_of_curve_keeps_epochs():
    assert run_length("cos", 7, given=True) == 7


def test_run_length_of_table_overrides_epochs_with_message(capfd):
    from utils.logger import start_logging

    start_logging()
    assert run_length("2x", 20, given=True) == 24
    assert "--scheduler 2x sets 24 epochs; --epochs 20 is not used" in capfd.readouterr().out


def reference(maker, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = maker(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_cosine_schedule_equals_torch():
    rate = get_schedule("cos", Span(100, PER, floor=0.1))
    wanted = reference(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 100, eta_min=0.1), 100)
    assert [rate(k) for k in range(100)] == pytest.approx(wanted, abs=1e-9)


def test_onecycle_schedule_equals_torch():
    rate = get_schedule("onecycle", Span(100, PER))
    wanted = reference(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, total_steps=100), 99)
    assert [rate(k) for k in range(99)] == pytest.approx(wanted, abs=1e-9)
    assert rate(99) == pytest.approx(1 / 25e4, abs=1e-9)


def test_poly_and_step_schedules_equal_formulas():
    poly = get_schedule("poly", Span(100, PER))
    assert [poly(k) for k in (0, 50, 99)] == pytest.approx([1, 0.5**0.9, 0.01**0.9])
    assert by_epoch("step", 6, step_size=2) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert by_epoch("none", 3) == [1, 1, 1]


@pytest.mark.parametrize("name", [*schedulers, "1x"])
def test_warmup_of_any_schedule_rises_linearly(name):
    span = Span(120, PER, warmup=4)
    rate, plain = get_schedule(name, span), get_schedule(name, Span(120, PER, warmup=0))
    assert rate(0) == pytest.approx(0.25 * rate(3), rel=0.5)
    assert [rate(k) <= rate(k + 1) + 1e-12 for k in range(3)] == [True] * 3
    if name != "onecycle":
        assert rate(3) == pytest.approx(1.0, abs=0.01)
    assert math.isfinite(plain(119))


@pytest.mark.parametrize("name", [*schedulers, *tables])
def test_schedule_of_short_run_is_within_0_and_1(name):
    for steps in (1, 2, 3):
        rate = get_schedule(name, Span(steps, 1))
        assert all(0 <= rate(k) <= 1 for k in range(steps + 2))


def test_schedule_unknown_name_or_long_warmup_is_refused():
    with pytest.raises(UserError, match="There is no scheduler 'cosinus'. Did you mean cos"):
        find_table("cosinus")
    with pytest.raises(UserError, match="--warmup takes 100 steps of a run of 100"):
        get_schedule("cos", Span(100, PER, warmup=100))
    for name in ("0x", "x", "-1x", "1.5x"):
        with pytest.raises(UserError):
            find_table(name)
