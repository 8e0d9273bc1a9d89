"""From images to probabilities: one network or several, one view or many."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.metrics import MOST_FLOATS, TINY, Predictions, Rows
from inference.blend import combine
from inference.tta import get_views, pool
from network.base_model import BaseModel
from utils import distributed
from utils.errors import NotFinite
from utils.logger import log, progress
from utils.preprocess import Preprocess

# Pixels of a forward pass. CPU: 8 images of 224 px, whose activations stay near the cache; measured, batches of 64 are
# 10 to 25 % slower an image. CUDA: 128 of them, so that the views of a small batch fill the card.
CPU_PIXELS, GPU_PIXELS = 8 * 224**2, 128 * 224**2


@dataclass(frozen=True)
class SavedMember:
    """Probabilities of every image of the list, float32 (N, C), or with `logs` their logarithms, float16, and their weight."""

    values: NDArray[Any]
    weight: float = 1.0
    logs: bool = False
    path: str = "the saved probabilities"

    def rows(self, index: Tensor) -> Tensor:
        """Probabilities of the images at `index` (B,): float32 (B, C)."""
        rows = torch.from_numpy(self.values[index.numpy()].astype(np.float32))
        return rows.softmax(dim=1) if self.logs else rows


@dataclass(frozen=True)
class Member:
    """One network of an ensemble, how its images are prepared, and its weight in the mean."""

    model: BaseModel
    way: Preprocess
    weight: float = 1.0
    path: str = ""  # its checkpoint; "": it is being trained


class Predictor:
    """Probabilities of the classes: those of the members, each the mean over its views, blended.

    `ways` are the distinct preparations of an image that some view wants; `dataloader.eval_loader(opt, files,
    predictor.ways)` gives batches that hold one tensor for each. `members` are the networks, `saved` what files hold.
    """

    def __init__(
        self, members: Sequence[Member], tta: str = "none", blend: str = "mean", saved: Sequence[SavedMember] = ()
    ) -> None:
        self.members, self.saved, self.blend = list(members), list(saved), blend
        self.views = [get_views(tta, member.way) for member in self.members]
        self.ways = tuple(dict.fromkeys(view.way for views in self.views for view in views))
        self.weights = [member.weight for member in self.members] + [one.weight for one in self.saved]
        self.temperature = 1.0  # of the blend: softmax(log p / T), which for one network is softmax(logits / T)
        self._shares: tuple[Any, Tensor] | None = None
        self.known: Tensor | None = (
            None  # bool (N,): for which images of the list every saved member has a row worth having
        )

    def readable(self, batch: Any) -> Tensor:
        """bool (B,): the images of an EvalBatch that all members could read."""
        return batch.readable if self.known is None else batch.readable & self.known[batch.index]

    @torch.inference_mode()
    def each(self, images: tuple[Tensor, ...], index: Tensor | None = None) -> Tensor:
        """uint8 (B, 3, S, S) for each of `ways`, and places in the list (B,) for `saved` -> float32 (M, B, C), networks first.

        Where a network's logits for an image are not all finite, its row is NaN.
        """
        device = self.members[0].model.device if self.members else torch.device("cpu")
        moved = {way: image.to(device, non_blocking=True) for way, image in zip(self.ways, images, strict=True)}
        found = []
        for member, views in zip(self.members, self.views, strict=True):
            logits = _logits(member.model, [view.change(moved[view.way]) for view in views])
            if self.blend == "logits":  # the views too
                blended = torch.stack(logits).mean(dim=0).softmax(dim=1)
            else:
                blended = pool([one.softmax(dim=1) for one in logits])
            finite = torch.stack([one.isfinite().all(dim=1) for one in logits]).all(dim=0)
            found.append(blended.masked_fill(~finite[:, None], torch.nan))
        for one in self.saved:
            assert index is not None, "saved probabilities are found by an image's place"
            found.append(one.rows(index).to(device))
        return torch.stack(found)

    def __call__(self, images: tuple[Tensor, ...], index: Tensor | None = None) -> Tensor:
        """As `each`, blended: float32 (B, C) on the device, rows summing to 1."""
        return self.blended(self.each(images, index))

    @torch.inference_mode()
    def blended(self, each: Tensor) -> Tensor:
        """float32 (M, B, C) of `each` -> float32 (B, C)."""
        blend = combine(each, self._share(each.device), self.blend)
        return blend if self.temperature == 1 else (blend.clamp_min(TINY).log() / self.temperature).softmax(dim=1)

    def _share(self, device: torch.device) -> Tensor:
        """Return the weights, float32 (M,), of sum 1; made once, since making it waits for the device."""
        of = (*self.weights, device)
        if self._shares is None or self._shares[0] != of:
            weights = torch.tensor(self.weights, device=device)
            self._shares = of, weights / weights.sum()
        return self._shares[1]

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """All networks in eval mode while the body runs: enter it outside of a loop over batches."""
        with contextlib.ExitStack() as stack:
            for member in self.members:
                stack.enter_context(member.model.evaluating())
            yield

    def over(self, loader: Any, what: str) -> Iterator[tuple[Any, Tensor]]:
        """Pass on each batch of `loader` (EvalBatch) with what `each` gives for it; `what` names the progress bar.

        All that uses a predictor's answers takes them from here, since an answer that is no number must not become a score.

        Raises:
            NotFinite: a member gave NaN or infinite logits; raised after the first batch, or else at the end, when all are counted.
        """
        broken = torch.zeros(len(self.weights), dtype=torch.long)
        seen = 0
        with self.evaluating():
            for batch in progress(loader, what, len(loader)):
                each = self.each(batch.images, batch.index)
                broken = broken.to(each.device) + each.isnan().any(dim=2).sum(dim=1)
                first, seen = seen == 0, seen + each.shape[1]
                if first and distributed.world_size() == 1:  # what is broken throughout is not run for hours
                    self._refuse_broken([count * (count == seen) for count in broken.tolist()], f"the first {seen}")
                yield batch, each
        counts = distributed.all_gather_object((broken.tolist(), seen))
        total = sum(part for _, part in counts)
        self._refuse_broken([sum(one) for one in zip(*(part for part, _ in counts), strict=True)], str(total))

    def _refuse_broken(self, broken: list[int], seen: str) -> None:
        """Raise NotFinite for the first member with answers that are no numbers."""
        who: list[tuple[str, BaseModel | None]] = [(member.path, member.model) for member in self.members]
        for (path, model), count in zip(who + [(one.path, None) for one in self.saved], broken, strict=True):
            if count and not path:
                which = "" if model is None or model.showing == "raw" else f" (its {model.showing} average)"
                raise NotFinite(
                    f"The network{which} gives NaN or infinite logits for {count} of {seen} validation images"
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


def _logits(model: BaseModel, shown: list[Tensor]) -> list[Tensor]:
    """Logits, float32 (B, C), of each of `shown`, uint8 (B, 3, S, S); those of one size share passes of a good size."""
    places: dict[int, list[int]] = {}
    for k, images in enumerate(shown):
        places.setdefault(images.shape[-1], []).append(k)
    found: dict[int, Tensor] = {}
    with model.evaluating() as net, model.autocast():
        for side, group in places.items():
            images = torch.cat([shown[k] for k in group]) if len(group) > 1 else shown[group[0]]
            most = max(len(shown[0]), GPU_PIXELS // side**2) if images.is_cuda else max(1, CPU_PIXELS // side**2)
            logits = torch.cat([net(model.normalise(part)).float() for part in images.split(most)])
            found.update(zip(group, logits.chunk(len(group)), strict=True))
    return [found[k] for k in range(len(shown))]


def predict(
    predictor: Predictor, loader: Any, keep: bool = False, rows: NDArray[np.int64] | None = None, features: Any = None
) -> tuple[Predictions, NDArray[np.float16] | None]:
    """Run the predictor over a loader of EvalBatch.

    Args:
        features: a inference.features.Features of the same predictor, which is then filled.
        rows: int64 (M,), ascending; of these images (places in the order of the loader) whole rows go into Predictions.rows.

    Returns:
        The predictions, and with `keep` the logarithms of all probabilities, float16 (N, C), NumPy; else None. Unreadable
        images are named in the log, and their rows hold no prediction worth having: see Predictions.readable.

    Raises:
        UserError: no image can be read.
        NotFinite: a member gave NaN or infinite logits.
    """
    columns: list[tuple[torch.Tensor, ...]] = []
    kept: NDArray[np.float16] | None = None
    done = 0
    whole = _Whole(rows)
    for batch, each in predictor.over(loader, "evaluating"):
        for _, reason in batch.bad:
            log.warning(f"unreadable, counts in no score: {reason}")
        probability = predictor.blended(each)
        top = probability.topk(min(5, probability.shape[1]))
        label = batch.label.to(probability.device, non_blocking=True)
        true = probability.gather(1, label.clamp_min(0)[:, None])[:, 0]
        columns.append((batch.index, batch.label, top.indices, top.values, true, predictor.readable(batch)))
        whole.add(probability)
        if keep:
            if kept is None:  # at once: parts would be held twice while they are joined
                kept = np.empty((len(loader.dataset), probability.shape[1]), np.float16)
            kept[done : done + len(label)] = probability.clamp_min(TINY).log().half().cpu().numpy()
        if features is not None:
            features.take(len(label))
        done += len(label)
    joined = distributed.gather_rows([torch.cat(column).cpu().numpy() for column in zip(*columns, strict=True)])
    predictions = Predictions(*joined)  # type: ignore[arg-type]
    predictions.rows = whole.rows()
    loader.dataset.files.check_readable(predictions.index, predictions.readable)
    return predictions, kept if kept is None else kept[:done]


class _Whole:
    """Gathers whole rows of probabilities as the batches pass."""

    def __init__(self, wanted: NDArray[np.int64] | None) -> None:
        self.wanted, self.passed, self.parts = wanted, 0, [np.zeros((0, 0), np.float32)]

    def add(self, probability: Tensor) -> None:
        """Keep what is wanted of the next batch, float32 (B, C)."""
        if self.wanted is not None:
            first, end = np.searchsorted(self.wanted, (self.passed, self.passed + len(probability)))
            places = torch.from_numpy(self.wanted[first:end] - self.passed).to(probability.device)
            self.parts.append(probability[places].cpu().numpy())
            self.passed += len(probability)

    def rows(self) -> Rows | None:
        """What was gathered; None where nothing was wanted."""
        if self.wanted is None:
            return None
        parts = self.parts[1:]
        probability = np.concatenate(parts) if parts else self.parts[0]
        return Rows(self.wanted[: len(probability)], probability)


def whole_rows(count: int, num_classes: int, sample: bool, seed: int = 0) -> NDArray[np.int64] | None:
    """Of which of `count` images to keep every probability: all, while that is MOST_FLOATS; else none, or a drawn `sample`."""
    if count * num_classes <= MOST_FLOATS:
        return np.arange(count)
    if not sample:
        return None
    drawn = np.random.default_rng([seed, 5]).choice(count, max(1, MOST_FLOATS // num_classes), replace=False)
    return np.sort(drawn)
