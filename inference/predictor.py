"""From images to probabilities: one network or several, one view or many."""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dataloader import check_readable
from dataloader.prefetch import BatchLoader
from evaluation.metrics import MAX_ROW_VALUES, MAX_TOP, MIN_PROBABILITY, Predictions, ProbabilityRows
from inference.blend import combine, with_temperature
from inference.row_store import RowStore
from inference.tta import get_views, mean_over_views
from network.base_model import BaseModel
from utils import distributed
from utils.batch import EvalBatch, Unreadable
from utils.errors import NotFinite
from utils.logger import log, progress
from utils.preprocess import Preprocess
from utils.tensors import likeliest
from utils.turns import in_turns

if TYPE_CHECKING:
    from inference.features import Features

# Pixels per forward pass. CPU: 8 images of 224 px, whose activations stay near the cache; batches of 64 were measured
# to be 10 to 25 % slower per image. CUDA: 128 of them, so that the views of a small batch fill the GPU.
CPU_PIXELS, GPU_PIXELS = 8 * 224**2, 128 * 224**2
Part = TypeVar("Part", bound=tuple[object, ...])  # what is taken of a batch


@dataclass(frozen=True)
class SavedMember:
    """A member whose probabilities come from a file: float32 (N, C), or with `is_log` their float16 logarithms."""

    values: NDArray[np.float32] | NDArray[np.float16]
    weight: float = 1.0
    is_log: bool = False
    path: str = "the saved probabilities"

    def rows(self, index: Tensor) -> Tensor:
        """Return the probabilities of the images at `index` (B,): float32 (B, C)."""
        rows = torch.from_numpy(self.values[index.numpy()].astype(np.float32))
        return rows.softmax(dim=1) if self.is_log else rows


@dataclass(frozen=True)
class Member:
    """One network of an ensemble, how its images are prepared, and its weight in the mean.

    Attributes:
        net: the network with an average of its weights, "ema" or "swa" as `which` says; None is `model.net`.
    """

    model: BaseModel
    preprocess: Preprocess
    weight: float = 1.0
    path: str = ""  # its checkpoint; "": it is being trained
    net: nn.Module | None = None
    which: str = "raw"

    def evaluating(self) -> contextlib.AbstractContextManager[nn.Module]:
        """Return the context in which the network is in eval mode; it yields the network."""
        return self.model.evaluating(self.net)


class Predictor:
    """Gives probabilities of the classes, or what another task predicts (utils/task.py).

    It is each member's mean over its views, blended over the members.

    `members` are networks, `saved` are probabilities from files. `preprocesses` are the distinct ways to prepare an
    image that some view needs: a batch of `dataloader.eval_loader(opt, files, predictor.preprocesses)` has one tensor
    for each of them.
    """

    def __init__(
        self,
        members: Sequence[Member],
        tta: str = "none",
        blend: str = "mean",
        saved: Sequence[SavedMember] = (),
        task: str = "single",
    ) -> None:
        self.members, self.saved, self.blend, self.task = list(members), list(saved), blend, task
        self.views = [get_views(tta, member.preprocess) for member in self.members]
        self.preprocesses = tuple(dict.fromkeys(view.preprocess for views in self.views for view in views))
        self.weights = [member.weight for member in self.members] + [one.weight for one in self.saved]
        self.temperature = 1.0  # of the blend: see inference.blend.with_temperature
        self._normalised: tuple[tuple[object, ...], Tensor] | None = None  # the weights on the device, and their key
        # bool (N,): for which images of the list every saved member has a valid row; None: there is no saved member
        self.saved_readable: Tensor | None = None

    def from_saved(self, saved: Sequence[SavedMember], readable: Tensor | None) -> "Predictor":
        """Return a predictor without networks, which looks up what the members of this one have predicted for a list.

        Args:
            saved: one per member, in their order, or none: a process that shares a list may have no row of it.
            readable: bool (N,), which images of the list all members could read.
        """
        predictor = Predictor((), blend=self.blend, saved=saved, task=self.task)
        predictor.weights, predictor.temperature, predictor.saved_readable = self.weights, self.temperature, readable
        return predictor

    def readable(self, batch: EvalBatch) -> Tensor:
        """Return bool (B,): which images of the batch all members could read."""
        return batch.readable if self.saved_readable is None else batch.readable & self.saved_readable[batch.index]

    @torch.inference_mode()
    def member_probabilities(self, images: tuple[Tensor, ...], index: Tensor | None = None) -> Tensor:
        """Return each member's probabilities, float32 (M, B, C), networks first.

        Where a network's logits for an image are not all finite, its row is NaN.

        Args:
            images: uint8 (B, 3, S, S) for each of `preprocesses`.
            index: int64 (B,), their places in the list; needed for `saved`.
        """
        device = self.members[0].model.device if self.members else torch.device("cpu")
        moved = {key: image.to(device, non_blocking=True) for key, image in zip(self.preprocesses, images, strict=True)}
        probabilities = []
        for member, views in zip(self.members, self.views, strict=True):
            logits = _logits(member, [view.transform(moved[view.preprocess]) for view in views])
            if self.blend == "logits":  # the views too
                blended = member.model.predictions(torch.stack(logits).mean(dim=0))
            else:
                blended = mean_over_views([member.model.predictions(one) for one in logits])
            finite = torch.stack([one.isfinite().all(dim=1) for one in logits]).all(dim=0)
            probabilities.append(blended.masked_fill(~finite[:, None], torch.nan))
        for one in self.saved:
            assert index is not None, "saved probabilities are found by an image's place"
            probabilities.append(one.rows(index).to(device))
        return torch.stack(probabilities)

    def __call__(self, images: tuple[Tensor, ...], index: Tensor | None = None) -> Tensor:
        """Return the blend of `member_probabilities`: float32 (B, C) on the device, rows summing to 1."""
        return self.combine(self.member_probabilities(images, index))

    @torch.inference_mode()
    def combine(self, each: Tensor) -> Tensor:
        """Blend members' probabilities, float32 (M, B, C) -> float32 (B, C), and apply the temperature."""
        blend = combine(each, self._normalised_weights(each.device), self.blend, self.task)
        return with_temperature(blend, self.temperature, self.task)

    def _normalised_weights(self, device: torch.device) -> Tensor:
        """Return the weights, float32 (M,), of sum 1. They are cached: a copy to the device waits for it."""
        key = (*self.weights, device)
        if self._normalised is None or self._normalised[0] != key:
            weights = torch.tensor(self.weights, device=device)
            self._normalised = key, weights / weights.sum()
        return self._normalised[1]

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Keep all networks in eval mode while the body runs. Enter it outside of a loop over batches."""
        with contextlib.ExitStack() as stack:
            for member in self.members:
                stack.enter_context(member.evaluating())
            yield

    def run(self, loader: BatchLoader[EvalBatch], title: str) -> Iterator[tuple[EvalBatch, Tensor]]:
        """Yield each EvalBatch of `loader` and its `member_probabilities`, float32 (M, B, C).

        No process waits for another.

        Raises:
            NotFinite: as `share` says.
        """
        parts = self._parts(loader, title, lambda batch, each: (batch, each))
        broken, seen = yield from self._checked(parts)
        self._refuse_broken(broken, str(seen))

    def share(
        self, loader: BatchLoader[EvalBatch], title: str, take: Callable[[EvalBatch, Tensor], Part]
    ) -> Iterator[Part]:
        """Yield `take(batch, member_probabilities)` for each batch of `loader`, in order, under a progress bar.

        Several processes share the batches: each predicts its own and calls `take` for them. The main process yields
        the parts of all, in the order of the list; the others yield none. All of them must exhaust the iterator.

        Whatever uses a predictor's answers must take them from here: NaN must never become a score.

        Args:
            take: is given a batch and float32 (M, B, C); it returns a tuple as utils.turns.in_turns wants it. With
                several processes, its tensors are yielded on the CPU.

        Raises:
            NotFinite: a member gave NaN or infinite logits. It is raised after the first batch if all of that batch is
                broken, else at the end.
            UserError: another process raised it.
            ProcessLost: another process has ended.
        """
        broken, seen = yield from self._checked(in_turns(self._parts(loader, title, take)))
        distributed.broadcast_from_main(lambda: self._refuse_broken(broken, str(seen)))

    def _checked(self, parts: Iterator[tuple[Tensor, int, Part]]) -> Generator[Part, None, tuple[list[int], int]]:
        """Yield the parts of `_parts`; return how many rows each member broke, (M,), and how many rows there were."""
        broken = torch.zeros(len(self.weights), dtype=torch.long)
        seen = 0
        for counted, size, part in parts:
            broken = broken.to(counted.device) + counted
            first, seen = seen == 0, seen + size
            if first:  # do not run a network for hours that is broken throughout
                self._refuse_broken([count * (count == seen) for count in broken.tolist()], f"the first {seen}")
            yield part
        return broken.tolist(), seen

    def _parts(
        self, loader: BatchLoader[EvalBatch], title: str, take: Callable[[EvalBatch, Tensor], Part]
    ) -> Iterator[tuple[Tensor, int, Part]]:
        """Yield for each batch of this process: how many of its rows each member broke, int64 (M,), its size, its part.

        The batches of other processes are yielded by them.
        """
        with self.evaluating():
            for batch in progress(loader, title, len(loader)):
                each = self.member_probabilities(batch.images, batch.index)
                yield each.isnan().any(dim=2).sum(dim=1), each.shape[1], take(batch, each)

    def _refuse_broken(self, broken: list[int], seen: str) -> None:
        """Raise NotFinite for the first member that gave NaN or infinite logits."""
        everyone: list[Member | SavedMember] = [*self.members, *self.saved]
        for member, count in zip(everyone, broken, strict=True):
            path, model = member.path, member.model if isinstance(member, Member) else None
            if count and not path:
                which = member.which if isinstance(member, Member) else "raw"
                average = "" if which == "raw" else f" (its {which} average)"
                raise NotFinite(
                    f"The network{average} gives NaN or infinite logits for {count} of {seen} validation images"
                )
            if count:
                half = model is not None and model.dtype is not None
                hint = (
                    "Half precision may overflow: add --precision fp32."
                    if half
                    else "Its weights are broken: give another checkpoint."
                )
                raise NotFinite(
                    f"{path} gives NaN or infinite logits for {count} of {seen} images. Nothing was written.\n{hint}"
                )


def _logits(member: Member, shown: list[Tensor]) -> list[Tensor]:
    """Return the logits, float32 (B, C), of each tensor of `shown`, uint8 (B, 3, S, S).

    Images of one size share forward passes, of CPU_PIXELS or GPU_PIXELS each.
    """
    places: dict[int, list[int]] = {}
    for k, images in enumerate(shown):
        places.setdefault(images.shape[-1], []).append(k)
    logits_of: dict[int, Tensor] = {}
    model = member.model
    with member.evaluating() as net, model.autocast():
        for side, group in places.items():
            images = torch.cat([shown[k] for k in group]) if len(group) > 1 else shown[group[0]]
            batch_size = max(len(shown[0]), GPU_PIXELS // side**2) if images.is_cuda else max(1, CPU_PIXELS // side**2)
            logits = torch.cat([net(model.normalise(part)).float() for part in images.split(batch_size)])
            logits_of.update(zip(group, logits.chunk(len(group)), strict=True))
    return [logits_of[k] for k in range(len(shown))]


class _Answer(NamedTuple):
    """What `predict` takes of a batch of B images.

    Attributes:
        columns: those of Predictions, from index to readable, (B, ...).
        rows: float32 (R, C), the wanted rows of probabilities.
        log_probability: float16 (B, C).
        features: float32 (B, D).
    """

    columns: tuple[Tensor, ...]
    bad: Unreadable
    rows: Tensor | None
    log_probability: Tensor | None
    features: Tensor | None


def predict(
    predictor: Predictor,
    loader: BatchLoader[EvalBatch],
    keep: bool = False,
    rows: NDArray[np.int64] | None = None,
    features: "Features | None" = None,
) -> tuple[Predictions, NDArray[np.float16] | None]:
    """Run the predictor over a loader. Several processes share the batches; the main one gets the predictions.

    Args:
        keep: whether to return all probabilities too.
        rows: int64 (M,), ascending: places in the loader of the images whose every probability goes into
            Predictions.rows.
        features: those of the same predictor, which this fills.

    Returns:
        The predictions, and with `keep` the logarithms of all probabilities, float16 (N, C), NumPy; else None. Many are
        in a temporary file: see RowStore. Unreadable images are named in the log, and their rows mean nothing: see
        Predictions.readable. In the other processes there are no predictions: N is 0.

    Raises:
        UserError: no image can be read.
        NotFinite: a member gave NaN or infinite logits.
    """

    def answer(batch: EvalBatch, each: Tensor) -> _Answer:
        probability = predictor.combine(each)
        top_values, top = likeliest(probability, min(MAX_TOP, probability.shape[1]))
        label = batch.label.to(probability.device, non_blocking=True)
        true = probability.gather(1, label.clamp_min(0)[:, None])[:, 0]
        return _Answer(
            (batch.index, batch.label, top, top_values, true, predictor.readable(batch)),
            batch.bad,
            rows=_wanted(rows, batch.index, probability),
            log_probability=probability.clamp_min(MIN_PROBABILITY).log().half() if keep else None,
            features=features.take(len(label)) if features is not None else None,
        )

    columns: list[tuple[Tensor, ...]] = []
    row_parts: list[NDArray[np.float32]] = []
    kept = RowStore(len(loader.dataset), np.float16) if keep else None
    labelled = loader.dataset.files.is_labelled()
    for part in predictor.share(loader, "evaluating", answer):
        warn_unreadable(part.bad, labelled)
        columns.append(part.columns)
        if part.rows is not None:
            row_parts.append(part.rows.cpu().numpy())
        if kept is not None and part.log_probability is not None:
            kept.append(part.log_probability.cpu().numpy())
        if features is not None and part.features is not None:
            features.add(part.features)
    predictions = _joined(columns)
    if rows is not None:
        probability = np.concatenate(row_parts) if row_parts else np.zeros((0, 0), np.float32)
        predictions.rows = ProbabilityRows(rows[: len(probability)], probability)
    files = loader.dataset.files
    distributed.broadcast_from_main(lambda: check_readable(files, predictions.index, predictions.readable))
    return predictions, None if kept is None else kept.array()


def _joined(columns: list[tuple[Tensor, ...]]) -> Predictions:
    """Return the predictions of the batches in `columns`."""
    if not columns:
        none, values = np.zeros(0, np.int64), np.zeros((0, 1), np.float32)
        return Predictions(none, none, values.astype(np.int64), values, values[:, 0], none.astype(bool))
    joined = [torch.cat(column).cpu().numpy() for column in zip(*columns, strict=True)]
    return Predictions(*joined)  # type: ignore[arg-type]


def _wanted(wanted: NDArray[np.int64] | None, index: Tensor, probability: Tensor) -> Tensor | None:
    """Return the rows of a batch, float32 (B, C) of the images `index`, whose places are among `wanted`."""
    if wanted is None:
        return None
    start = int(index[0])
    first, end = np.searchsorted(wanted, (start, start + len(index)))
    return probability[torch.from_numpy(wanted[first:end] - start).to(probability.device)]


def warn_unreadable(bad: Unreadable, labelled: bool) -> None:
    """Log the images of a batch that cannot be read; those of a list that is not `labelled` have no score."""
    for _, reason in bad:
        log.warning(f"unreadable, {'counts in no score' if labelled else 'so not predicted'}: {reason}")


def rows_to_keep(count: int, num_classes: int, sample: bool, seed: int = 0) -> NDArray[np.int64] | None:
    """Return which of `count` images to keep every probability of, int64, ascending.

    All of them while that is at most MAX_ROW_VALUES numbers. Beyond it: with `sample` a random choice, else None.
    """
    if count * num_classes <= MAX_ROW_VALUES:
        return np.arange(count)
    if not sample:
        return None
    drawn = np.random.default_rng([seed, 5]).choice(count, max(1, MAX_ROW_VALUES // num_classes), replace=False)
    return np.sort(drawn)
