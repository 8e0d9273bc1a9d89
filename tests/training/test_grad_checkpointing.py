"""--checkpoint_grad changes the memory of a step and nothing else: the same losses, weights and statistics."""

import pytest
import torch
from torch import nn

from network import get_model
from network.base_model import BaseModel, Step
from options import parse_train
from options.choices import MODELS
from training.engine import Engine
from training.grad_checkpointing import enable_grad_checkpointing
from training.setup import build_engine
from utils.batch import Batch
from utils.errors import UserError

FLAG = "--checkpoint_grad"
WORDS = "--num_classes 5 --no-pretrained --gpu -1 --precision fp32 --lr 0.01 --optimizer sgd --epochs 2".split()
OURS = ("ResNet18", "ResNeXt50", "ResNeSt50", "Res2Net50", "iResNet50", "EfficientNet-Lite0")
OF_TIMM = ("timm:convnext_atto", "timm:densenet121", "timm:regnetx_002", "timm:test_vit", "timm:mobilenetv3_small_050")


def batch(step: int, size: int = 4, scale: int = 32) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (size, 3, scale, scale), dtype=torch.uint8, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    return Batch(images, torch.randint(0, 5, (size,), generator=generator), torch.arange(size), 1, step, ())


def engine_for(name: str, *words: str, kind: type[BaseModel] | None = None) -> Engine:
    opt = parse_train([*WORDS, "--model", name, "--scale", "160" if "vit" in name else "32", *words])
    torch.manual_seed(1)
    model = kind(opt, name) if kind is not None else get_model(name)(opt)
    model.to_device(torch.device("cpu"))
    model.set_precision(opt.precision)
    return build_engine(opt, model, 4)


class SavedBytes:
    """Counts the bytes that a forward pass keeps for the backward pass, each storage once, without the parameters."""

    def __init__(self, net: nn.Module) -> None:
        self.own = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
        self.seen: dict[int, int] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def total(self) -> int:
        return sum(self.seen.values())


def trained(engine: Engine, steps: int = 4) -> tuple[list[torch.Tensor], dict[str, torch.Tensor], int]:
    """Losses and gradient norms by step, the state at the end (averages too), and the bytes kept by a forward pass."""
    scale, found, kept = engine.model.settings.scale, [], 0
    for step in range(steps):
        count = SavedBytes(engine.model.net)
        with count.hooks:
            found.append(engine.train_step(batch(step, scale=scale)).loss)
        kept = max(kept, count.total)
        if engine.grad_norm is not None:
            found.append(engine.grad_norm)
    engine.settle()
    state = dict(engine.model.net.state_dict())
    if engine.averages.ema is not None:
        state |= {f"ema.{name}": value for name, value in engine.averages.ema.module.state_dict().items()}
    return found, state, kept


def check_equal(plain: Engine, ours: Engine) -> None:
    (losses, state, kept), (our_losses, our_state, our_kept) = trained(plain), trained(ours)
    assert all(map(torch.equal, losses, our_losses)) and len(losses) == len(our_losses)
    assert state.keys() == our_state.keys()
    assert [name for name in state if not torch.equal(state[name], our_state[name])] == []
    assert our_kept < 0.75 * kept, f"{our_kept} of {kept} bytes"


@pytest.mark.parametrize("name", OURS + OF_TIMM)
def test_checkpoint_grad_any_family_equals_plain_run_to_the_bit(name):
    drops = ["--drop", "0.3"] + ["--drop_path", "0.3"] * (name in (*OF_TIMM[:1], "timm:test_vit", "ResNet18"))
    check_equal(engine_for(name, *drops), engine_for(name, *drops, FLAG))


@pytest.mark.parametrize(
    "words",
    [
        "--accumulate 2 --ema 0.9",
        "--sam 0.05 --clip_grad 1",
        "--precision bf16 --optimizer adamw",
        "--precision fp16",
        "--freeze 1 --layer_decay 0.7",
        "--mixup 0.4 --max_nan 0",
    ],
)
def test_checkpoint_grad_with_other_flags_equals_plain_run_to_the_bit(words):
    words = ["--drop_path", "0.3", *words.split()]
    check_equal(engine_for("ResNet18", *words), engine_for("ResNet18", *words, FLAG))


class Counting(nn.Module):
    """Counts its passes in a buffer that torch knows nothing of, and keeps the last mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        self.mean.mul_(0.9).add_(x.detach().mean((0, 2, 3)))
        return x + self.conv(x).tanh().exp()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Counting(), Counting(), Counting())
        self.fc = nn.Linear(3, 5)
        self.on = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.on = enable

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False) if self.on else block(x)
        return self.fc(x.mean((2, 3)))


class Own(BaseModel):
    def build(self, arch: str) -> nn.Module:
        return Net()

    def update(self, images: torch.Tensor, targets: torch.Tensor, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self(images)
        loss = self.criterion(logits, targets)
        step(loss)
        return loss.detach(), logits.detach()


def test_checkpoint_grad_keeps_buffers_of_any_kind():
    plain, ours = engine_for("X", kind=Own), engine_for("X", FLAG, kind=Own)
    check_equal(plain, ours)
    assert ours.model.net.on and ours.model.net.blocks[1].passes == 4


def test_checkpoint_grad_leaves_averages_without_it():
    engine = engine_for("X", FLAG, "--ema", "0.9", "--swa", "1", kind=Own)
    assert engine.model.net.on and not engine.averages.ema.module.on and not engine.averages.swa.module.on


def test_checkpoint_grad_without_the_method_is_refused():
    with pytest.raises(UserError, match=r"--checkpoint_grad: X has no gradient checkpointing.*-b with --accumulate"):
        enable_grad_checkpointing(nn.Linear(1, 1), "X")
    with torch.device("meta"):
        net = get_model("timm:vgg11")(parse_train([*WORDS, "--model", "timm:vgg11"])).net
    with pytest.raises(UserError, match="timm:vgg11"):
        enable_grad_checkpointing(net, "timm:vgg11")


def test_checkpoint_grad_families_without_it_are_those_of_the_documentation():
    smallest = {family: name for name, (family, _) in reversed(MODELS.items())}
    refused = []
    for family, name in smallest.items():
        with torch.device("meta"):
            net = get_model(name)(parse_train([*WORDS, "--model", name, "--scale", "32"])).net
        try:
            enable_grad_checkpointing(net, name)
        except UserError:
            refused.append(family)
    assert refused == ["Airbench"]


def test_checkpoint_grad_error_of_the_method_is_not_hidden():
    net = Net()
    net.set_grad_checkpointing = lambda enable: net.no_such_attribute
    with pytest.raises(AttributeError, match="no_such_attribute"):
        enable_grad_checkpointing(net, "X")
