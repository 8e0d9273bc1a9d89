"""Dynamic batching: one thread per model runs the images of several requests together."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .served import Inputs, Row

T = TypeVar("T")
MAX_RECENT_BATCHES = 50  # of which the mean time per image is taken


@dataclass
class _Waiting:
    inputs: Inputs
    arrived: float = field(default_factory=time.monotonic)
    answer: "Future[Row]" = field(default_factory=Future)


class Batcher:
    """Runs a model in its own thread.

    A batch starts when `max_batch` images wait, or when the oldest has waited for `max_delay_seconds`. Images that come
    meanwhile form the next one. Each image's answer goes to its own future. A future that is cancelled before its batch
    is not computed; later it cannot be cancelled. If the thread ends by an error, all answers raise RuntimeError.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Inputs]], NDArray[np.float32]],
        max_batch: int,
        max_delay_seconds: float,
        observe: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        """Start the thread.

        Args:
            run: takes a batch of B images and returns their predictions, float32 (B, C).
            observe: is called after each batch with its number of images, and its seconds.
        """
        self._run, self._max_batch, self._max_delay, self._observe = run, max_batch, max_delay_seconds, observe
        self._waiting: deque[_Waiting] = deque()
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._recent: deque[tuple[int, float]] = deque(maxlen=MAX_RECENT_BATCHES)
        self._changed = threading.Condition()
        self._closing = False
        self._death: BaseException | None = None  # what ended the thread before its time
        self._running: list[_Waiting] = []
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def submit(self, inputs: Inputs) -> "Future[Row]":
        """Return the future of one image's row, float32 (C,)."""
        one = _Waiting(inputs)
        with self._changed:
            self._waiting.append(one)
            self._changed.notify()
            self._fail_if_dead()
        return one.answer

    def call(self, job: Callable[[], T]) -> "Future[T]":
        """Return the future of what `job()` returns in the model's thread, between two batches."""
        answer: Future[T] = Future()
        with self._changed:
            self._jobs.append((job, answer))
            self._changed.notify()
            self._fail_if_dead()
        return answer

    def seconds_per_image(self) -> float:
        """Return the mean time per image of the recent batches; 0 before the first one."""
        recent = list(self._recent)
        return sum(seconds for _, seconds in recent) / max(1, sum(images for images, _ in recent))

    def is_alive(self) -> bool:
        """Return whether the thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Answer everything that waits, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        """Run batches and jobs until `close`. Nobody may wait forever for a thread that an error ends."""
        try:
            self._run_batches()
        except BaseException as error:
            with self._changed:
                self._death = error
                self._fail_if_dead()
            raise  # its traceback is printed

    def _fail_if_dead(self) -> None:
        """Let all answers that nobody will compute raise RuntimeError, if the thread has died; hold `_changed`."""
        if self._death is None:
            return
        answers: list[Future[Any]] = [one.answer for one in (*self._running, *self._waiting)]
        answers += [answer for _, answer in self._jobs]
        self._running = []
        self._waiting.clear()
        self._jobs.clear()
        for answer in answers:
            if not answer.done() and (answer.running() or answer.set_running_or_notify_cancel()):
                error = RuntimeError(f"The thread of the model has ended: {self._death!r}")
                answer.set_exception(error)

    def _run_batches(self) -> None:
        while True:
            batch = [one for one in self._next_batch() if one.answer.set_running_or_notify_cancel()]
            self._running = batch
            while self._jobs:
                job, answer = self._jobs[0]
                _settle(answer, job)
                self._jobs.popleft()
            if batch:
                began = time.perf_counter()
                self._answer(batch)
                seconds = time.perf_counter() - began
                self._recent.append((len(batch), seconds))
                self._observe(len(batch), seconds)
            elif self._closing and not self._waiting and not self._jobs:
                return

    def _next_batch(self) -> list[_Waiting]:
        """Wait for a batch and return it; an empty one where there is a job, or nothing more will come."""
        with self._changed:
            while not (self._waiting or self._jobs or self._closing):
                self._changed.wait()
            while self._waiting and len(self._waiting) < self._max_batch and not (self._jobs or self._closing):
                left = self._waiting[0].arrived + self._max_delay - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            return [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]

    def _answer(self, batch: list[_Waiting]) -> None:
        """Run the model, and hand each image its row. If a batch fails, each of its images is run alone."""
        try:
            rows = self._run([one.inputs for one in batch])
            assert len(rows) == len(batch), f"{len(rows)} rows for {len(batch)} images"
        except Exception as error:  # it belongs to the request: the thread must live
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            for one in batch:
                self._answer([one])
            return
        for one, row in zip(batch, rows, strict=True):
            one.answer.set_result(row)


def _settle(answer: "Future[T]", job: Callable[[], T]) -> None:
    """Run the job, and put what it returns or raises into `answer`; where that was cancelled, do nothing."""
    if not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(job())
    except Exception as error:  # the caller's
        answer.set_exception(error)
