"""Training images that cannot be read: each is named once, and too many end the run."""

from collections.abc import Iterable
from pathlib import Path

from options.wording import count_of
from training.state import RunState
from utils import distributed, tables
from utils.errors import UserError
from utils.files import atomic_write
from utils.logger import log

ALWAYS_TOLERATED = 10  # This many are tolerated in any list, however short.


class UnreadableImages:
    """Records each unreadable image once: in the log, in bad_images.csv, and in the run's state.

    Several processes share what each has found: see `has_unshared`.

    Attributes:
        named: {place in the training list, as text: what is wrong, with the path}, the same in every process.
    """

    def __init__(self, path: Path, max_share: float, images: int, state: RunState) -> None:
        """`path`: bad_images.csv, which only the first process writes. `max_share`: of `images`, by --max_bad."""
        self.path, self.max_share, self.images, self.state = path, max_share, images, state
        self._unshared: dict[str, str] = {}

    @property
    def named(self) -> dict[str, str]:
        """Return those that are known so far."""
        return self.state.unreadable

    @property
    def has_unshared(self) -> bool:
        """Return whether this process has found some that the others do not know yet, so that all should `share`."""
        return bool(self._unshared)

    def record(self, bad: Iterable[tuple[int, str]]) -> None:
        """Record the new ones of `bad`: at once in a run of one process, else at the next `share`.

        Raises:
            UserError: as `share`.
        """
        self._unshared |= {str(index): reason for index, reason in bad if str(index) not in self.named}
        if self._unshared and distributed.world_size() == 1:
            self.share()

    def share(self) -> None:
        """Record what any process has found. Every process calls it at the same point.

        Raises:
            UserError: in every process; more than --max_bad of the list, and more than ten.
        """
        found: dict[str, str] = {}
        for part in distributed.all_gather_object(self._unshared):
            found |= part
        self._unshared = {}
        new = {index: reason for index, reason in found.items() if index not in self.named}
        self.named.update(new)
        for reason in new.values():
            log.warning(f"unreadable, skipped (the next image of the list replaces it): {reason}")
        if self.named:
            self._write()
        if new and len(self.named) > max(ALWAYS_TOLERATED, self.max_share * self.images):
            error = UserError(
                f"{len(self.named)} of {self.images} images cannot be read, more than --max_bad {self.max_share:g}. "
                f"They are listed in {self.path}.\n"
                "Repair them or take them out of the list, or allow more with --max_bad."
            )
            error.printed_elsewhere = not distributed.is_main()
            raise error

    def log_summary(self) -> None:
        """Log at the end of the run how many there were."""
        if self.named:
            count = count_of(len(self.named), "image")
            log.warning(f"{count} could not be read in training, as {self.path} says.")

    def _write(self) -> None:
        if not distributed.is_main():
            return
        with atomic_write(self.path, "w") as file:
            writer = tables.writer(file)
            writer.writerows([("index", "reason"), *self.named.items()])
