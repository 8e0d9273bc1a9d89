"""Each optimizer's path on a small problem, against a reference written out here in NumPy float64."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from network import get_model
from optimizer import OptimizerSettings, get_optimizer, load_optimizer_state, optimizers, parameter_groups
from options import choices, parse_train
from training.setup import optimizer_settings
from utils.errors import UserError

LR, DECAY, STEPS = 0.05, 0.02, 20
START = np.array([[1.0, -2.0, 0.5], [0.3, 2.0, -1.0]])
TARGET = np.array([[0.2, 0.1, -0.4], [1.0, -1.0, 0.6]])
CURVE = np.array([[1.0, 3.0, 0.5], [2.0, 0.2, 4.0]])


def gradient(w: np.ndarray) -> np.ndarray:
    """Of sum(CURVE * (w - TARGET)^2) / 2 + sum(w^4) / 40."""
    return CURVE * (w - TARGET) + w**3 / 10


def adam_moments(g, m, v, t):
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    return m, v, m / (1 - 0.9**t), v / (1 - 0.999**t)


def sgd(w):
    """Nesterov momentum, torch's form; L2 decay."""
    buffer = None
    while True:
        g = gradient(w) + DECAY * w
        buffer = g if buffer is None else 0.9 * buffer + g
        w = w - LR * (g + 0.9 * buffer)
        yield w


def adam(w, decoupled=False):
    """Kingma & Ba, 2015, algorithm 1; AdamW: Loshchilov & Hutter, 2019, algorithm 2."""
    m = v = np.zeros_like(w)
    t = 0
    while True:
        t += 1
        w = w * (1 - LR * DECAY) if decoupled else w
        g = gradient(w) if not decoupled else gradient(w / (1 - LR * DECAY))
        m, v, m_hat, v_hat = adam_moments(g if decoupled else g + DECAY * w, m, v, t)
        w = w - LR * m_hat / (np.sqrt(v_hat) + 1e-8)
        yield w


def radam(w):
    """Liu et al., 2020, algorithm 2."""
    m = v = np.zeros_like(w)
    longest = 2 / (1 - 0.999) - 1
    t = 0
    while True:
        t += 1
        g = gradient(w) + DECAY * w
        m, v, m_hat, _ = adam_moments(g, m, v, t)
        rho = longest - 2 * t * 0.999**t / (1 - 0.999**t)
        if rho > 5:
            scale = math.sqrt((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho))
            w = w - LR * m_hat * scale * math.sqrt(1 - 0.999**t) / (np.sqrt(v) + 1e-8)
        else:
            w = w - LR * m_hat
        yield w


def lookahead(inner):
    """Zhang et al., 2019, algorithm 1, k = 6, alpha = 0.5; the inner optimizer continues from the slow weights."""

    def path(w):
        slow, fast = w.copy(), w.copy()
        state: dict = {}
        t = 0
        while True:
            t += 1
            fast = inner(fast, state, t)
            if t % 6 == 0:
                slow = slow + 0.5 * (fast - slow)
                fast = slow.copy()
            yield fast

    return path


def adam_step(w, state, t):
    g = gradient(w) + DECAY * w
    state["m"], state["v"], m_hat, v_hat = adam_moments(g, state.get("m", 0), state.get("v", 0), t)
    return w - LR * m_hat / (np.sqrt(v_hat) + 1e-8)


def radam_step(w, state, t):
    g = gradient(w) + DECAY * w
    state["m"], state["v"], m_hat, _ = adam_moments(g, state.get("m", 0), state.get("v", 0), t)
    longest = 2 / (1 - 0.999) - 1
    rho = longest - 2 * t * 0.999**t / (1 - 0.999**t)
    if rho <= 5:
        return w - LR * m_hat
    scale = math.sqrt((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho))
    return w - LR * m_hat * scale * math.sqrt(1 - 0.999**t) / (np.sqrt(state["v"]) + 1e-8)


def lion(w):
    """Chen et al., 2023, algorithm 2: beta 0.9 and 0.99, decoupled decay."""
    m = np.zeros_like(w)
    while True:
        g = gradient(w)
        update = np.sign(0.9 * m + 0.1 * g)
        m = 0.99 * m + 0.01 * g
        w = w * (1 - LR * DECAY) - LR * update
        yield w


def lamb(w):
    """You et al., 2020, algorithm 2, with the gradient clipped to a global norm of 1 before (as timm does)."""
    m = v = np.zeros_like(w)
    t = 0
    while True:
        t += 1
        g = gradient(w)
        g = g / max(1.0, np.linalg.norm(g))
        m, v, m_hat, v_hat = adam_moments(g, m, v, t)
        update = m_hat / (np.sqrt(v_hat) + 1e-6) + DECAY * w
        w = w - LR * np.linalg.norm(w) / np.linalg.norm(update) * update
        yield w


def muon(w):
    """Jordan et al., 2024: Nesterov momentum 0.95, five Newton-Schulz steps; scaled by Liu et al., 2025, equation 4."""
    m = np.zeros_like(w)
    while True:
        g = gradient(w)
        m = 0.95 * m + 0.05 * g
        x = 0.05 * g + 0.95 * m
        x = x / np.linalg.norm(x)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        w = w * (1 - LR * DECAY) - LR * 0.2 * math.sqrt(max(w.shape)) * x
        yield w


REFERENCES = {
    "sgd": sgd,
    "adam": adam,
    "adamw": lambda w: adam(w, decoupled=True),
    "radam": radam,
    "lookahead": lookahead(adam_step),
    "ranger": lookahead(radam_step),
    "lamb": lamb,
    "lion": lion,
    "muon": muon,
}
COARSE = {"muon": 0.003}  # Newton and Schulz's steps are in bfloat16; a step goes 0.017


def test_optimizers_registry_has_references():
    assert set(REFERENCES) == set(optimizers) == set(choices.OPTIMIZERS)


class Weight(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(START, dtype=torch.float64))

    def loss(self) -> torch.Tensor:
        w = self.w
        return (torch.tensor(CURVE) * (w - torch.tensor(TARGET)) ** 2).sum() / 2 + (w**4).sum() / 40


def build(name):
    net = Weight()
    return net, get_optimizer(net, OptimizerSettings(name, LR, weight_decay=DECAY))


def step(net, optimizer):
    optimizer.zero_grad()
    net.loss().backward()
    optimizer.step()


@pytest.mark.parametrize("name", REFERENCES)
def test_optimizer_path_equals_its_paper(name):
    net, optimizer = build(name)
    for _, wanted in zip(range(STEPS), REFERENCES[name](START), strict=False):
        step(net, optimizer)
        assert np.abs(net.w.detach().numpy() - wanted).max() < COARSE.get(name, 1e-6)


@pytest.mark.parametrize("name", REFERENCES)
def test_optimizer_state_saved_and_loaded_continues_the_same(name, tmp_path):
    net, optimizer = build(name)
    for _ in range(8):
        step(net, optimizer)
    torch.save({"w": net.state_dict(), "o": optimizer.state_dict()}, tmp_path / "s.pt")
    state = torch.load(tmp_path / "s.pt", weights_only=True)
    other, again = build(name)
    other.load_state_dict(state["w"])
    again.load_state_dict(state["o"])
    for _ in range(8):
        step(net, optimizer)
        step(other, again)
    assert torch.equal(net.w, other.w)


def test_parameter_groups_norms_and_biases_do_not_decay():
    net = get_model("ResNet18")(parse_train(["--num_classes", "3", "--no-pretrained"])).net
    decayed, free = parameter_groups(net, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert free["weight_decay"] == 0
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(list(net.parameters()))
    assert any(p is net.fc.bias for p in free["params"])


def test_get_optimizer_unknown_name_suggests_near_ones():
    with pytest.raises(UserError, match=r"Did you mean .*adamw"):
        get_optimizer(Weight(), OptimizerSettings("adamv", LR))


@pytest.mark.parametrize("name", ["sgd", "adamw", "ranger"])
def test_load_optimizer_state_keeps_new_flags_and_old_state(name):
    def made(*words):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
        opt = parse_train(["--optimizer", name, "--lr", "0.1", *words])
        return net, get_optimizer(net, optimizer_settings(opt))

    def step(net, optimizer):
        optimizer.zero_grad()
        net(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()

    net, optimizer = made("--weight_decay", "0.3")
    step(net, optimizer)
    other_net, other = made("--weight_decay", "0.01", "--momentum", "0.5")
    other_net.load_state_dict(net.state_dict())
    state = copy.deepcopy(optimizer.state_dict())  # loading shares its tensors
    load_optimizer_state(other, copy.deepcopy(state), optimizer_settings(parse_train(["--optimizer", name])))
    assert sorted({group["weight_decay"] for group in other.param_groups}) == [0.0, 0.01]
    if name == "sgd":
        assert {group["momentum"] for group in other.param_groups} == {0.5}
    same_net, same = made("--weight_decay", "0.3")
    same_net.load_state_dict(net.state_dict())
    load_optimizer_state(same, state, optimizer_settings(parse_train(["--optimizer", name])))
    for pair in ((net, optimizer), (same_net, same)):
        step(*pair)
    assert all(torch.equal(one, two) for one, two in zip(net.parameters(), same_net.parameters(), strict=True))
