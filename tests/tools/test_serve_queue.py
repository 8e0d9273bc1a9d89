"""The queue of the server, and its batches, with a model that waits until the test lets it go."""

import asyncio
import threading

import numpy as np
import pytest

httpx = pytest.importorskip("httpx")
for name in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(name)

from tools.serve.shipped.app import Service  # noqa: E402
from tools.serve.shipped.batching import Batcher  # noqa: E402
from tools.serve.shipped.errors import BadImageError  # noqa: E402
from tools.serve.shipped.settings import Settings  # noqa: E402

PNG = b"\x89PNG\r\n\x1a\n"


class Held:
    """A model whose answer is the first byte after PNG's; a batch waits for `go`."""

    name, task, classes, thresholds, about, has_gradcam = "held", "regression", ["byte"], None, "", False

    def __init__(self):
        self.go, self.begun, self.sizes = threading.Event(), threading.Semaphore(0), []

    def prepare(self, data):
        if data == PNG + b"bad":
            raise BadImageError("bad")
        return (np.frombuffer(data[len(PNG) :], np.uint8),)

    def run(self, batch):
        self.sizes.append(len(batch))
        self.begun.release()
        assert self.go.wait(600)
        rows = np.array([[one[0][0]] for one in batch], np.float32)
        if 13 in rows:
            raise RuntimeError("13")
        return np.where(rows == 77, np.nan, rows)

    def explain(self, inputs, label):
        raise NotImplementedError


@pytest.fixture
def held():
    model = Held()
    yield model
    model.go.set()


def rows(futures):
    return [future.result(600)[0] for future in futures]


def one(value):
    return (np.array([value], np.uint8),)


# ------------------------------------------------------------------------------------------------ batches


def test_batcher_images_that_wait_form_batches_of_at_most_max_batch_in_order(held):
    seen = []
    batcher = Batcher(held.run, 4, 0.0, lambda images, seconds: seen.append(images))
    futures = [batcher.submit(one(0))]
    assert held.begun.acquire(timeout=600)  # the first one went alone; these wait for it
    futures += [batcher.submit(one(k)) for k in range(1, 11)]
    held.go.set()
    assert rows(futures) == list(range(11))
    batcher.close()
    assert held.sizes == seen == [1, 4, 4, 2]


def test_batcher_full_batch_does_not_wait_for_the_delay(held):
    held.go.set()
    batcher = Batcher(held.run, 3, 1e6)
    assert rows([batcher.submit(one(k)) for k in range(3)]) == [0, 1, 2]
    assert held.sizes == [3]
    waiting = batcher.submit(one(9))
    batcher.close()  # answers what waits, at once
    assert waiting.result(0)[0] == 9


def test_batcher_image_that_fails_fails_alone(held):
    batcher = Batcher(held.run, 8, 0.0)
    first = batcher.submit(one(1))
    assert held.begun.acquire(timeout=600)
    futures = [batcher.submit(one(k)) for k in (2, 13, 3)]
    held.go.set()
    assert rows([first, futures[0], futures[2]]) == [1, 2, 3]
    with pytest.raises(RuntimeError, match="13"):
        futures[1].result(600)
    assert rows([batcher.submit(one(4))]) == [4] and batcher.is_alive()
    batcher.close()


def test_batcher_job_runs_in_the_models_thread_between_batches(held):
    batcher = Batcher(held.run, 8, 0.0)
    first = batcher.submit(one(1))
    assert held.begun.acquire(timeout=600)
    job = batcher.call(lambda: (threading.current_thread().name, len(held.sizes)))
    held.go.set()
    assert rows([first]) == [1] and job.result(600) == ("batches", 1)
    failing = batcher.call(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.result(600)
    batcher.close()


def test_batcher_survives_what_is_cancelled_before_and_during_its_batch(held):
    batcher = Batcher(held.run, 8, 0.0)
    running = batcher.submit(one(1))
    assert held.begun.acquire(timeout=600)
    assert not running.cancel()  # its batch runs: the answer comes, and nobody need read it
    waiting, job = batcher.submit(one(2)), batcher.call(lambda: held.sizes.append(99))
    assert waiting.cancel() and job.cancel()
    held.go.set()
    assert rows([running, batcher.submit(one(3))]) == [1, 3]
    assert batcher.is_alive() and held.sizes == [1, 1]
    batcher.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_batcher_whose_thread_dies_fails_everything_that_waits_and_comes_later(held):
    def run(batch):
        held.run(batch)
        raise SystemExit

    batcher = Batcher(run, 1, 0.0)
    running = batcher.submit(one(1))
    assert held.begun.acquire(timeout=600)
    futures = [running, batcher.submit(one(2)), batcher.call(lambda: None)]
    held.go.set()
    for future in futures:
        with pytest.raises(RuntimeError, match="thread of the model has ended: SystemExit"):
            future.result(60)
    with pytest.raises(RuntimeError, match="has ended"):
        batcher.submit(one(3)).result(60)
    batcher.close()
    assert not batcher.is_alive()


# ------------------------------------------------------------------------------------------------ the queue


def served(held, act, **settings):
    """Run `await act(post, service)` with the application in this process; `post(*values)` predicts these bytes."""
    service = Service([held], Settings(max_delay=0, **settings))

    async def main():
        transport = httpx.ASGITransport(service.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=None) as client:

            async def post(*values):
                files = [("images", ("a.png", PNG + (v if isinstance(v, bytes) else bytes([v])))) for v in values]
                return await client.post("/predict", files=files)

            service.client = client
            return await act(post, service)

    try:
        return asyncio.run(main())
    finally:
        held.go.set()
        service.close()


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


def test_server_full_queue_refuses_with_retry_after_and_serves_again(held):
    async def act(post, service):
        first = asyncio.create_task(post(1, 2))
        await until(lambda: service.admission.images == 2)
        second = asyncio.create_task(post(3, 4))
        await until(lambda: service.admission.images == 4)
        refused = await post(5)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "busy"
        assert int(refused.headers["Retry-After"]) >= 1
        assert service.admission.images == 4  # the refused one took no place
        held.go.set()
        values = [[row["values"][0]["value"] for row in (await task).json()["answers"]] for task in (first, second)]
        assert values == [[1, 2], [3, 4]] and service.admission.images == 0
        assert (await post(6)).status_code == 200

    served(held, act, max_queue=4, max_images=3)


def test_server_request_with_more_images_than_places_is_refused_whole(held):
    async def act(post, service):
        first = asyncio.create_task(post(1, 2))
        await until(lambda: service.admission.images == 2)
        assert (await post(3, 4)).json()["error"]["code"] == "busy"
        assert service.admission.images == 2
        held.go.set()
        assert (await first).status_code == 200

    served(held, act, max_queue=3, max_images=3)


def test_server_places_come_back_after_every_kind_of_failure(held):
    held.go.set()

    async def act(post, service):
        statuses = [(await post(*values)).status_code for values in ([b"bad"], [1, b"bad"], [77], [13], [1, 13], [1])]
        assert statuses == [422, 422, 500, 500, 500, 200]
        assert service.admission.images == 0 and service.admission.accepted == service.admission.answered == 6
        error = (await post(77)).json()["error"]
        assert error["code"] == "not_finite" and error["image"] == 0

    served(held, act)


def test_server_that_drains_is_not_ready_and_refuses(held):
    async def act(post, service):
        first = asyncio.create_task(post(1))
        await until(lambda: service.admission.images == 1)
        service.admission.draining = True
        assert (await service.client.get("/health/live")).status_code == 200
        assert (await service.client.get("/health/ready")).status_code == 503
        assert (await post(2)).json()["error"]["code"] == "shutting_down"
        held.go.set()
        assert (await first).status_code == 200

    served(held, act)
