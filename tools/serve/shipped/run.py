"""Starts the server, and ends it without losing a request."""

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import uvicorn

from .app import Service
from .served import Model
from .settings import Settings

FORCED = 130  # exit code after a second Ctrl-C


def bind(settings: Settings) -> socket.socket:
    """Return a socket at the address of the settings; nobody can connect yet. Raises OSError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    place = socket.socket(family, socket.SOCK_STREAM)
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind((settings.host, settings.port))
    except OSError:
        place.close()
        raise
    return place


def serve(models: Sequence[Model], settings: Settings, place: socket.socket, say: Callable[[str], None]) -> int:
    """Answer requests at `place` until SIGTERM or SIGINT; then answer those that are accepted.

    Returns:
        The exit code: 0, or FORCED after a second SIGINT.
    """
    service = Service(models, settings)
    config = uvicorn.Config(
        service.app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{place.getsockname()[1]}"
    server = _Server(config, lambda: say(f"Serving on {url} (Ctrl-C ends it)"), service)
    server.run(sockets=[place])
    if server.force_exit:
        return FORCED
    service.close()
    counts = service.admission
    say(f"Ended: {counts.accepted} requests accepted, {counts.answered} answered")
    return 0


class _Server(uvicorn.Server):
    """A uvicorn server that ends with exit code 0, and refuses new requests from the signal on."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None], service: Service) -> None:
        super().__init__(config)
        self.announce, self.service = announce, service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        self.announce()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals while the body runs; uvicorn itself would raise them again afterwards."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Refuse new requests, and end when the accepted ones are answered; a second SIGINT ends at once."""
        self.service.admission.draining = True
        super().handle_exit(sig, frame)
