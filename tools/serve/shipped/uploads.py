"""Reads the images of a request under limits: its type, its size, how long it takes, how many images."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from .errors import ApiError
from .settings import Settings

FIELD = "images"
KINDS = "JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"
MAX_FIELDS = 8  # texts beside the images, all of which are refused with a message
MAX_NAME_LETTERS = 200
TAIL_BYTES = 1024  # hold the last boundary, of at most 70 bytes, and what a client may write after it


@dataclass(frozen=True)
class Upload:
    """An image of a request: its file name, and its bytes."""

    name: str
    data: bytes


async def read_images(request: Request, limits: Settings, grow_to: Callable[[int], None]) -> list[Upload]:
    """Return the images of a multipart request, in their order.

    Args:
        grow_to: is told the number of images as soon as it is known, and may raise.

    Raises:
        ApiError: the request exceeds a limit, or holds anything but images.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise ApiError(415, "not_multipart", f"The body is {kind or 'of no type'}; allowed: multipart/form-data.")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.max_request_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.upload_seconds):
            form = await _parse(request, limits)
    except TimeoutError:
        raise ApiError(408, "slow_upload", f"The upload took longer than {limits.upload_seconds:g} seconds.") from None
    try:
        return await _images_of(form, limits, grow_to)
    finally:
        await form.close()


async def _parse(request: Request, limits: Settings) -> FormData:
    """Return the parsed body. Raises ApiError where it is too large, or not multipart."""
    body = _Body(request.receive, limits)
    try:
        form = await Request(request.scope, body.receive).form(max_files=limits.max_images + 1, max_fields=MAX_FIELDS)
    except HTTPException as error:
        if "Too many files" in str(error.detail):
            raise _too_many(f"over {limits.max_images}", limits) from None
        raise ApiError(400, "bad_multipart", f"The body is not valid: {error.detail}") from None
    except ValueError as error:  # of the character sets that it names
        raise ApiError(400, "bad_multipart", f"The body is not valid: {error}") from None
    except ClientDisconnect:
        raise ApiError(400, "disconnected", "The client closed the connection during the upload.") from None
    boundary = parse_options_header(request.headers["content-type"])[1][b"boundary"]
    if b"--" + boundary + b"--" not in body.tail:  # the parser would leave out an image that is cut short
        await form.close()
        raise ApiError(400, "bad_multipart", "The body is not valid: it is cut short, without its last boundary.")
    return form


class _Body:
    """Receives a body: raises ApiError once it exceeds its limit, and keeps its last bytes in `tail`."""

    def __init__(self, receive: Receive, limits: Settings) -> None:
        self._receive, self._limits, self._bytes, self.tail = receive, limits, 0, b""

    async def receive(self) -> Message:
        """Return the next message of the body."""
        message = await self._receive()
        body = message.get("body", b"")
        self._bytes += len(body)
        if self._bytes > self._limits.max_request_bytes:
            raise _too_large(self._limits)
        self.tail = (self.tail + body[-TAIL_BYTES:])[-TAIL_BYTES:]
        return message


async def _images_of(form: FormData, limits: Settings, grow_to: Callable[[int], None]) -> list[Upload]:
    """Return the images of a form. Raises ApiError where one is too large or of no known type, or there are none."""
    files = []
    for field, value in form.multi_items():
        if field != FIELD or not isinstance(value, UploadFile):
            raise ApiError(
                422, "unknown_field", f"There is a field {_clean(field)!r}; allowed: files in {FIELD!r} alone."
            )
        files.append(value)
    if not files:
        raise ApiError(422, "no_image", f"The request holds no image; give 1 to {limits.max_images} in {FIELD!r}.")
    if len(files) > limits.max_images:
        raise _too_many(str(len(files)), limits)
    grow_to(len(files))
    found = []
    for place, file in enumerate(files):
        name = _clean(file.filename or f"image {place}")
        if (file.size or 0) > limits.max_image_bytes:
            raise ApiError(
                413, "image_too_large", f"{name} has {file.size} bytes; allowed: {limits.max_image_bytes}.", place
            )
        data = await file.read()
        if not _is_image(data):
            raise ApiError(415, "not_an_image", f"{name} is no image; allowed: {KINDS}.", place)
        found.append(Upload(name, data))
    return found


def _too_large(limits: Settings) -> ApiError:
    return ApiError(413, "request_too_large", f"The request has over {limits.max_request_bytes} bytes, its limit.")


def _too_many(count: str, limits: Settings) -> ApiError:
    return ApiError(413, "too_many_images", f"The request has {count} images; allowed: 1 to {limits.max_images}.")


def _is_image(data: bytes) -> bool:
    """Return whether a file begins as one of KINDS does; a format that needs another program is none of them."""
    starts = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")
    is_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return data.startswith(starts) or is_webp or data[4:12] in (b"ftypavif", b"ftypavis")


def _clean(name: str) -> str:
    """Return a name as text that UTF-8 can hold, cut to MAX_NAME_LETTERS."""
    return name[:MAX_NAME_LETTERS].encode("utf-8", "replace").decode("utf-8")
