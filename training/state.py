"""How far a run is: what a checkpoint holds beside the engine's state."""

from dataclasses import dataclass, field
from typing import Any

from evaluation.ranking import best_row

Scores = dict[str, float]  # of an epoch, by name


@dataclass
class RunState:
    """What a run has done.

    Attributes:
        epochs_done: whole epochs.
        history: the scores of each of them.
        within: the position within the next epoch (EpochTracker.state_dict), or None at its start.
        curves: the points by step of the checkpoint (StepCurves.state_dict), or None.
        unreadable: {place in the training list, as text: what is wrong with the image, with its path}.
        metric: what makes an epoch the best.
        scored_from: the first epoch whose scores are of the present validation images; earlier ones are not compared.
            The rows of the history hold it from that epoch on, for whoever reads the history alone.
        continued: no epoch was validated since the state was loaded.
    """

    epochs_done: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    within: dict[str, Any] | None = None
    curves: dict[str, Any] | None = None
    unreadable: dict[str, str] = field(default_factory=dict)
    metric: str = "top1"
    scored_from: int = 1
    continued: bool = False

    @property
    def next_epoch(self) -> int:
        """Return the epoch to train next, from 1."""
        return self.epochs_done + 1

    @property
    def next_batch(self) -> tuple[int, int]:
        """Return the batch to train next: its epoch, from 1, and its number in that epoch, from 0."""
        if self.within and self.within["ended"]:
            return self.next_epoch + 1, 0
        return self.next_epoch, self.within["done"] if self.within else 0

    def best(self) -> dict[str, Any] | None:
        """Return the scores of the best validated epoch (the first of equals); None before any validation."""
        return best_row((row for row in self.history if row["epoch"] >= self.scored_from), self.metric)

    def is_best(self, epoch: int) -> bool:
        """Return whether `epoch` is the best of those that were validated."""
        best = self.best()
        return best is not None and best["epoch"] == epoch

    def is_out_of_patience(self, patience: int) -> bool:
        """Return whether the last `patience` validations were all no better than one before them; 0: never."""
        best = self.best()
        if not patience or best is None:
            return False
        later = [row for row in self.history if row["epoch"] > best["epoch"] and f"val_{self.metric}" in row]
        return len(later) >= patience

    def add_epoch(self, epoch: int, scores: Scores) -> None:
        """Record that `epoch` is done, with these scores.

        If it is the first validation since a resume, and scored another number of images than the one before,
        `scored_from` becomes `epoch`. While a run goes on, images may be unreadable for a while, which changes nothing.
        """
        if "val_count" in scores:
            if self.continued and self.last_count() not in (None, scores["val_count"]):
                self.scored_from = epoch
            self.continued = False
        self.history.append({"epoch": epoch, **scores, **self._mark()})
        self.epochs_done, self.within = epoch, None

    def last_count(self) -> float | None:
        """Return how many images the last validation scored; None before any on the present list, or if unknown."""
        rows = [row for row in self.history if row["epoch"] >= self.scored_from]
        return next((row["val_count"] for row in reversed(rows) if "val_count" in row), None)

    def _mark(self) -> dict[str, int]:
        """Return what `scored_from` adds to a row of the history, and to a checkpoint: nothing in most runs."""
        return {"scored_from": self.scored_from} if self.scored_from > 1 else {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        kept = {"epoch": self.epochs_done, "history": self.history, "within": self.within, "bad": self.unreadable}
        return kept | self._mark()

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Continue where `state_dict` was called; what an older checkpoint does not hold is empty."""
        self.epochs_done = content.get("epoch", 0)
        self.within = content.get("within")
        self.curves = content.get("curves")
        self.unreadable = dict(content.get("bad", {}))
        self.scored_from = content.get("scored_from", 1)
        rows = content.get("history", [])
        # Earlier versions did not mark the rows.
        self.history = [row | self._mark() if row["epoch"] >= self.scored_from else row for row in rows]
        self.continued = True
