"""What a client did wrong, or must wait for: each becomes a JSON answer `{"error": {"code": …, "message": …}}`."""

from typing import Any


class ApiError(Exception):
    """A request cannot be answered.

    Attributes:
        status: of HTTP.
        code: a word for programs, such as "too_many_images".
        message: a sentence for people: the problem, the value, what is allowed.
        image: which image of the request is meant, from 0; None: the request as a whole.
        retry_seconds: when to try again; None: never.
    """

    def __init__(
        self, status: int, code: str, message: str, image: int | None = None, retry_seconds: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.image = status, code, message, image
        self.retry_seconds = retry_seconds

    def body(self) -> dict[str, Any]:
        """Return the JSON answer."""
        return error_body(self.code, self.message, self.image)

    def headers(self) -> dict[str, str]:
        """Return the headers that belong to the answer."""
        return {} if self.retry_seconds is None else {"Retry-After": str(self.retry_seconds)}


def error_body(code: str, message: str, image: int | None = None) -> dict[str, Any]:
    """Return the JSON of an error; `image` as in ApiError."""
    error: dict[str, Any] = {"code": code, "message": message}
    return {"error": error if image is None else error | {"image": image}}


class BadImageError(Exception):
    """An image cannot be decoded; the message says why."""
