"""Reads what is left of a request's body before an answer: many clients read no answer while they still send."""

import asyncio
import contextlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BYTES, MAX_SECONDS = 16_000_000, 5.0  # a client that sends more may see a closed connection instead


class DrainMiddleware:
    """Discards the rest of a body, within limits, before the answer of an ASGI application begins."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        ended = False
        # a client that asks before it sends gets its answer at once
        asks = any(name == b"expect" for name, _ in scope["headers"])

        async def noting() -> Message:
            nonlocal ended, asks
            message = await receive()
            ended = message["type"] != "http.request" or not message.get("more_body", False)
            asks = False
            return message

        async def draining(message: Message) -> None:
            if message["type"] == "http.response.start" and not asks:
                left = MAX_BYTES
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(MAX_SECONDS):
                        while not ended and left > 0:
                            left -= len((await noting()).get("body", b""))
            await send(message)

        await self.app(scope, noting, draining)
