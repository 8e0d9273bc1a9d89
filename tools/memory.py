"""Compute what a training needs of a GPU's memory, without a GPU, and the largest batch that fits.

    python -m tools.memory --model ResNeSt101 --num_classes 50030 --scale 224 -b 24 --precision bf16
    python -m tools.memory --model timm:convnext_tiny --num_classes 100 --precision fp32 --checkpoint_grad

Takes train.py's options. The network is built on the CPU with random weights, and takes whole steps over two small
batches. After each operation, the bytes that live are counted. They grow evenly with the batch, so the highest moment
of every other batch follows. Two numbers are rules of thumb: the memory of CUDA itself, and the share that stays free
for cuDNN and for gaps between tensors, which is that of `-b auto`. It reads no list and writes nothing.
"""

import sys
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from options import Options, build_parser
from options.choices import AUTO_BATCH
from options.defaults import fill_defaults
from options.parser import Parser
from options.wording import count_of
from utils.errors import UserError
from utils.run import run_tool

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from training.engine import Engine

CUDA_BYTES = 600 << 20  # of the context and the kernels, on a GPU of 2020 or later
BATCHES = (4, 8, 16, 32, 64)  # images; two that follow each other are compared
MAX_ERROR = 0.001  # of the highest moment of either batch
MIB = 1 << 20


class Need(NamedTuple):
    """What a step needs at one size of images, in bytes.

    Attributes:
        side: pixels.
        weights: also buffers, averages of the weights, and a teacher.
        state: that of the optimizer.
        fixed, per_image: int64 (N,); after operation i of a step over B images, fixed[i] + B * per_image[i] further
            bytes live.
    """

    side: int
    weights: int
    state: int
    fixed: np.ndarray
    per_image: np.ndarray

    def of_batch(self, images: int) -> int:
        """Return the bytes of a step over `images`, with CUDA itself."""
        return CUDA_BYTES + self.weights + self.state + self.highest(images)

    def highest(self, images: int) -> int:
        """Return the most bytes that gradients, activations and temporary tensors take at one moment."""
        return int((self.fixed + images * self.per_image).max())

    def largest_batch(self, memory: float) -> int:
        """Return how many images fit into `memory` bytes; 0 if none do."""
        free = int(memory) - CUDA_BYTES - self.weights - self.state - self.fixed
        growing = self.per_image > 0
        return max(0, int((free[growing] // self.per_image[growing]).min())) if (free >= 0).all() else 0


class Count(NamedTuple):
    """What a step took, in bytes: weights, the optimizer's state, and what else lived after each of its N operations.

    Attributes:
        names: of the operations.
        live: int64 (N,).
    """

    weights: int
    state: int
    names: list[str]
    live: np.ndarray


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, compute, print; return the exit code."""
    return run_tool(lambda: option_parser().parse(argv), run)


def option_parser() -> Parser:
    """Return the parser of this tool: train.py's flags, and the memory of the GPU."""
    parser = build_parser("train")
    parser.prog = "-m tools.memory"
    group = parser.group("memory")
    group("--gpu_memory", type=float, default=24.0, low=1.0, high=10_000.0, help="of the GPU, in GiB")
    group("--images", type=int, default=100_000, low=1, high=1 << 40, help="training images; defaults follow from it")
    return parser


def run(opt: Options) -> None:
    """Print what each size of images needs. Raises UserError if a flag does not fit."""
    from training.batch_size import FREE_SHARE

    batch, needs = compute(opt)
    memory = opt.gpu_memory * (1 << 30)
    for need in needs:
        images, total = count_of(batch, "image"), f"{need.of_batch(batch) / MIB:,.0f} MiB"
        print(f"{need.side} px, {opt.precision}, a step over {images}: {total}")
        parts = {"CUDA itself, about": CUDA_BYTES, "weights, and averages of them": need.weights}
        parts |= {"the optimizer's state": need.state, "gradients, activations, temporary": need.highest(batch)}
        for kind, size in parts.items():
            print(f"  {kind:34}{size / MIB:10,.0f} MiB")
        fits = need.largest_batch((1 - FREE_SHARE) * memory)
        print(f"  the largest batch within {1 - FREE_SHARE:.0%} of {opt.gpu_memory:g} GiB: {fits}")


def compute(opt: Options) -> tuple[int, list[Need]]:
    """Return the batch, and what a step needs at each size of --scale_schedule, or at --scale.

    Raises:
        UserError: --num_classes is missing, or a flag does not fit the network.
    """
    import torch

    from dataloader.transforms import build_stages
    from network import get_model
    from training.setup import build_engine
    from training.start import facts_of

    if not opt.num_classes:
        raise UserError("The classifier's size is missing: no list is read. Try: --num_classes 1000")
    given = [f"--{name}" for name in ("resume", "load", "probe_init") if getattr(opt, name)]
    if given:
        them = "them" if len(given) > 1 else "it"
        raise UserError(
            f"{', '.join(given)}: tools.memory reads no checkpoint, whose weights need no other memory. "
            f"Try: leave {them} out"
        )
    if opt.batch_size == AUTO_BATCH:
        raise UserError("-b auto asks the GPU. Give a number, such as -b 24: the largest batch is printed beside it.")
    if opt.precision == "auto":
        raise UserError("--precision auto depends on the GPU. Try: --precision bf16")
    if opt.precision == "fp16":
        raise UserError("The CPU computes no fp16. bf16 needs the same memory. Try: --precision bf16")
    model = get_model(opt.model)(opt.replace(pretrained=False))
    model.to_device(torch.device("cpu"))
    facts = facts_of(opt, opt.images, int(opt.num_classes), model.net)
    opt, _ = fill_defaults(opt, replace(facts, pretrained=bool(opt.pretrained)))  # the weights here are random
    model.set_precision(opt.precision)
    engine = build_engine(opt.replace(compile=False, max_nan=0), model, opt.images // int(opt.batch_size) or 1)
    pixels = sorted({pipeline.size for _, pipeline in build_stages(opt, model.preprocess())})
    return int(opt.batch_size), [_need(engine, side) for side in pixels]


def _need(engine: "Engine", side: int) -> Need:
    """Compare steps over two batches, the first two of which one tells the other's highest moment."""
    count_bytes(engine, side, 2)  # the optimizer has its state from now on
    few, before = BATCHES[0], count_bytes(engine, side, BATCHES[0])
    for many in BATCHES[1:]:
        after = count_bytes(engine, side, many)
        same = SequenceMatcher(None, before.names, after.names, autojunk=False).get_matching_blocks()
        less = np.concatenate([before.live[start : start + size] for start, _, size in same])
        more = np.concatenate([after.live[start : start + size] for _, start, size in same])
        per_image = (more - less) // (many - few)
        need = Need(side, after.weights, after.state, less - few * per_image, per_image)
        highest = [int(count.live.max()) for count in (before, after)]
        if np.allclose([need.highest(few), need.highest(many)], highest, rtol=MAX_ERROR):
            return need
        few, before = many, after
    raise UserError(
        "The steps of this network differ with the batch, so its memory cannot be computed.\n"
        f"Try: train.py -b {AUTO_BATCH} on the GPU, which measures it"
    )


def count_bytes(engine: "Engine", side: int, images: int) -> Count:
    """Take a step over `images`, and count."""
    import torch

    from training.batch_size import trial_targets
    from utils.batch import Batch

    nets = [engine.model.net, *(net.module for net in (engine.averages.ema, engine.averages.swa) if net is not None)]
    nets += [] if engine.teacher is None else [engine.teacher.model.net]
    weights = _storages(tensor for net in nets for tensor in net.state_dict(keep_vars=True).values())
    inner = getattr(engine.optimizer, "optimizer", None)  # of Lookahead
    states = [of for one in (engine.optimizer, inner) if one is not None for of in one.state.values()]
    state = _storages(value for of in states for value in of.values() if isinstance(value, torch.Tensor))
    numbers = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, 3, side, side), dtype=torch.uint8, generator=numbers)
    accumulate, before = engine.settings.accumulate, engine.step_count
    with _live_bytes([*weights, *state]) as live:
        for step in range(max(0, accumulate - 2), accumulate):  # gradients of an earlier batch live on
            of_step = pixels.contiguous(memory_format=torch.channels_last)
            engine.train_step(Batch(of_step, trial_targets(engine, images), torch.arange(images), 1, step, ()))
    assert engine.step_count == before + 1
    held, kept = (sum(one.nbytes() for one in of) for of in (weights, state))
    return Count(held, kept, live.names, np.array(live.after, np.int64))


def _storages(tensors: "Iterable[Tensor]") -> "list[torch.UntypedStorage]":
    """Return the memory of `tensors`, each once."""
    found = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return list(found.values())


def _live_bytes(before: "list[torch.UntypedStorage]") -> "Any":
    """Return a context that counts what operations allocate: their `names`, and what lives `after` each.

    Args:
        before: what lived before, and is not counted.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class LiveBytes(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen = weakref.WeakSet(before)
            self.live = 0
            self.names: list[str] = []
            self.after: list[int] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(result):
                if isinstance(tensor, torch.Tensor):
                    self.add(tensor.untyped_storage())
            self.names.append(str(func))
            self.after.append(self.live)
            return result

        def add(self, storage: torch.UntypedStorage) -> None:
            if storage not in self.seen:
                self.seen.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self.free, storage.nbytes())

        def free(self, size: int) -> None:
            self.live -= size

    return LiveBytes()


if __name__ == "__main__":
    sys.exit(main())
