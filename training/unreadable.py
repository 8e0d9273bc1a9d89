"""Training images that cannot be read: each is named once, and too many end the run."""

from collections.abc import Iterable
from pathlib import Path

from training.state import RunState
from utils import distributed, tables
from utils.errors import UserError
from utils.files import atomic_write
from utils.logger import log

ALWAYS_TOLERATED = 10  # This many are tolerated in any list, however short.


class UnreadableImages:
    """Records each unreadable image once: in the log, in bad_images.csv, and in the run's state.

    Attributes:
        named: {place in the training list, as text: what is wrong, with the path}.
    """

    def __init__(self, path: Path, max_share: float, state: RunState) -> None:
        """`path`: bad_images.csv, which only the first process writes. `max_share`: of the list, by --max_bad."""
        self.path, self.max_share, self.state = path, max_share, state

    @property
    def named(self) -> dict[str, str]:
        """Return those that are known so far."""
        return self.state.unreadable

    def record(self, bad: Iterable[tuple[int, str]], of: int) -> None:
        """Record the new ones of `bad`; `of`: the number of images in the list.

        Raises:
            UserError: more than --max_bad of the list, and more than ten.
        """
        new = {str(index): reason for index, reason in bad if str(index) not in self.named}
        if not new:
            return
        self.named.update(new)
        for reason in new.values():
            log.warning(f"unreadable, skipped (the next image of the list replaces it): {reason}")
        self._write()
        if len(self.named) > max(ALWAYS_TOLERATED, self.max_share * of):
            raise UserError(
                f"{len(self.named)} of {of} images cannot be read, more than --max_bad {self.max_share:g}. "
                f"They are listed in {self.path}.\n"
                "Repair them or take them out of the list, or allow more with --max_bad."
            )

    def gather(self) -> None:
        """Share what each process has found; every process calls it at the end of an epoch."""
        for part in distributed.all_gather_object(self.named):
            self.named.update(part)
        if self.named:
            self._write()

    def log_summary(self) -> None:
        """Log at the end of the run how many there were."""
        if self.named:
            log.warning(f"{len(self.named)} images could not be read in training; they are named in {self.path}.")

    def _write(self) -> None:
        if not distributed.is_main():
            return
        with atomic_write(self.path, "w") as file:
            writer = tables.writer(file)
            writer.writerows([("index", "reason"), *self.named.items()])
