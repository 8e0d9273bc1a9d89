"""Which requests are accepted: a bounded number of images, and none after the server was told to end."""

import math
from collections.abc import Callable

from .errors import ApiError

MAX_RETRY_SECONDS = 60


class Admission:
    """Counts the images that are accepted and not answered yet. Only the event loop uses it.

    Attributes:
        draining: whether the server is about to end: accepted requests are answered, new ones are refused.
        accepted: requests that were accepted since the start.
        answered: those among them that have their answer, whatever it is.
    """

    def __init__(self, max_images: int, seconds_per_image: Callable[[], float]) -> None:
        """`seconds_per_image`: returns how long an image takes now, from which Retry-After follows."""
        self.max_images, self.seconds_per_image = max_images, seconds_per_image
        self.images = self.accepted = self.answered = 0
        self.draining = False

    def enter(self) -> "Ticket":
        """Accept a request, as one image. Raises ApiError (503) where the server is full or ends."""
        if self.draining:
            raise ApiError(503, "shutting_down", "The server is shutting down.", retry_seconds=1)
        ticket = Ticket(self)
        ticket.grow_to(1)
        self.accepted += 1
        return ticket


class Ticket:
    """The place of an accepted request in the queue; a context, which gives the place back."""

    def __init__(self, admission: Admission) -> None:
        self.admission, self.images = admission, 0

    def grow_to(self, images: int) -> None:
        """Take the places of `images` images in all. Raises ApiError (503) where there are too few."""
        more, admission = images - self.images, self.admission
        if admission.images + more > admission.max_images:
            seconds = math.ceil(admission.images * admission.seconds_per_image())
            raise ApiError(
                503,
                "busy",
                f"{admission.images} of at most {admission.max_images} images wait; this request has {images}.",
                retry_seconds=min(max(1, seconds), MAX_RETRY_SECONDS),
            )
        admission.images += more
        self.images = images

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(self, *_: object) -> None:
        self.admission.images -= self.images
        self.admission.answered += 1
