"""The numbers for Prometheus, in a registry of this server alone."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counts requests, their latencies, batches, and the queue."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        """`waiting`: returns how many images are accepted and not answered yet."""
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("serve_requests", "Requests answered", ("path", "status"), registry=registry)
        self.latency = Histogram(
            "serve_request_seconds", "From the request to its answer", ("path",), buckets=SECONDS, registry=registry
        )
        self.batch_images = Histogram(
            "serve_batch_images", "Images per batch", ("model",), buckets=IMAGES, registry=registry
        )
        self.batch_seconds = Histogram(
            "serve_batch_seconds", "Time of a batch in the network", ("model",), buckets=SECONDS, registry=registry
        )
        queue = Gauge("serve_queue_images", "Images accepted and not answered yet", registry=registry)
        queue.set_function(waiting)

    def observer(self, model: str) -> Callable[[int, float], None]:
        """Return what a Batcher of the model `model` calls after each batch."""
        images, seconds = self.batch_images.labels(model), self.batch_seconds.labels(model)

        def observe(count: int, took: float) -> None:
            images.observe(count)
            seconds.observe(took)

        return observe

    def text(self) -> bytes:
        """Return all numbers in the text format of Prometheus."""
        return generate_latest(self.registry)


class MetricsMiddleware:
    """Counts each request of an ASGI application, with its path, its status and its time."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        """`paths`: those that are counted by name; the rest is "other", so that a client cannot make new rows."""
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and count it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500
        path = scope["path"] if scope["path"] in self.paths else "other"

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.latency.labels(path).observe(time.perf_counter() - began)
