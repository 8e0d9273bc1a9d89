"""What the server allows, and the flags that set it."""

import argparse
import os
from dataclasses import dataclass
from typing import Any

MEGABYTE = 1_000_000
# flag: (lowest value, highest value, help); the defaults are those of Settings
FLAGS: dict[str, tuple[float, float, str]] = {
    "max_batch": (1, 65_536, "images of several requests that go through a network together; 1: each alone"),
    "max_delay": (0, 60_000, "milliseconds that an image waits for others to join its batch"),
    "max_queue": (1, 1_000_000, "images that are accepted and not answered yet; beyond it: 503 and Retry-After"),
    "max_images": (1, 1_000_000, "images per request"),
    "max_mb": (0.001, 100_000, "megabytes per image"),
    "max_request_mb": (0.001, 100_000, "megabytes per request"),
    "max_pixels": (1, 100_000_000_000, "pixels per image, by its header; more are not decoded"),
    "upload_seconds": (0.1, 86_400, "how long the upload of a request may take"),
    "workers": (1, 1024, "threads that decode images"),
}


@dataclass(frozen=True)
class Settings:
    """Where the server listens, and its limits; FLAGS describes them."""

    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: int = 64
    max_delay: float = 5.0
    max_queue: int = 256
    max_images: int = 32
    max_mb: float = 20.0
    max_request_mb: float = 100.0
    max_pixels: int = 50_000_000
    upload_seconds: float = 60.0
    workers: int = 2

    @property
    def max_image_bytes(self) -> int:
        """Return the largest size of an image file in bytes."""
        return int(self.max_mb * MEGABYTE)

    @property
    def max_request_bytes(self) -> int:
        """Return the largest size of the body of a request in bytes."""
        return int(self.max_request_mb * MEGABYTE)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of all settings to a parser."""
    defaults = Settings()
    parser.add_argument("--host", default=defaults.host, help="address to listen at; 0.0.0.0: every network")
    parser.add_argument("--port", type=int, default=defaults.port, help="0: a free one")
    for name, (_, _, text) in FLAGS.items():
        default: Any = getattr(defaults, name)
        parser.add_argument(f"--{name}", type=type(default), default=default, help=text)


def settings_of(opt: argparse.Namespace) -> Settings:
    """Return the settings that parsed flags give. Raises ValueError with a line for each value that is not allowed."""
    wrong = [
        f"--{name} is {getattr(opt, name)}; allowed: {low} to {high}"
        for name, (low, high, _) in FLAGS.items()
        if not low <= getattr(opt, name) <= high
    ]
    if not 0 <= opt.port <= 65535:
        wrong.append(f"--port is {opt.port}; allowed: 0 to 65535")
    if opt.max_images > opt.max_queue:
        wrong.append(f"--max_images {opt.max_images} and --max_queue {opt.max_queue} contradict: a request must fit")
    if wrong:
        raise ValueError(os.linesep.join(wrong))
    return Settings(**{name: getattr(opt, name) for name in ("host", "port", *FLAGS)})
