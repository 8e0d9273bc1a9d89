"""The HTTP application: /predict, /gradcam, /models, /health, /metrics, and the page."""

import asyncio
import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from .admission import Admission
from .answers import MAX_TOP, Answers, Health, Models, answer_of, failures, info_of
from .batching import Batcher
from .draining import DrainMiddleware
from .errors import ApiError, BadImageError, error_body
from .metrics import Metrics, MetricsMiddleware
from .served import Inputs, Model, Row
from .settings import Settings
from .uploads import FIELD, Upload, read_images

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob: data:; connect-src 'self'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
PATHS = frozenset({"/", "/predict", "/gradcam", "/models", "/health/live", "/health/ready", "/metrics"})
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "additionalProperties": False,
                    "properties": {
                        FIELD: {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "string", "format": "binary"},
                        }
                    },
                }
            }
        },
    }
}
REFUSALS = (400, 404, 408, 413, 415, 422, 500, 503)
ModelName = Annotated[str | None, Query(description="a name of /models; by default the first one")]


class Service:
    """The models with their threads, and the application that answers for them."""

    def __init__(self, models: Sequence[Model], settings: Settings) -> None:
        """Start a thread per model, and one more per worker."""
        self.settings = settings
        self.models = {model.name: model for model in models}
        self.admission = Admission(settings.max_queue, self._seconds_per_image)
        self.metrics = Metrics(lambda: self.admission.images)
        self.batchers = {
            model.name: Batcher(
                model.run, settings.max_batch, settings.max_delay / 1000, self.metrics.observer(model.name)
            )
            for model in models
        }
        self.decoders = ThreadPoolExecutor(settings.workers, thread_name_prefix="decode")
        self.app = _application(self)

    def _seconds_per_image(self) -> float:
        return max(batcher.seconds_per_image() for batcher in self.batchers.values())

    def model(self, name: str | None) -> Model:
        """Return the model that a request names, by default the first. Raises ApiError (404) where there is none."""
        known = list(self.models)
        if name is not None and name not in self.models:
            raise ApiError(404, "no_such_model", f"There is no model {name[:200]!r}; allowed: {', '.join(known)}.")
        return self.models[known[0] if name is None else name]

    async def prepare(self, model: Model, upload: Upload, place: int) -> Inputs:
        """Return an image as the model needs it. Raises ApiError, which names its place in the request."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self.decoders, model.prepare, upload.data)
        except BadImageError as error:
            raise ApiError(422, "unreadable_image", f"{upload.name}: {error}", place) from None
        except MemoryError:
            raise ApiError(503, "no_memory", "The server has no memory left for it.", place, retry_seconds=5) from None

    async def predict(self, model: Model, inputs: Inputs, place: int) -> Row:
        """Return what the model predicts of a prepared image, float32 (C,). Raises ApiError."""
        row = await asyncio.wrap_future(self.batchers[model.name].submit(inputs))
        if not np.isfinite(row).all():
            raise ApiError(500, "not_finite", f"{model.name} gives NaN or infinite numbers for it.", place)
        return row

    def is_ready(self) -> bool:
        """Return whether the server takes requests."""
        return not self.admission.draining and all(batcher.is_alive() for batcher in self.batchers.values())

    def close(self) -> None:
        """End the threads."""
        for batcher in self.batchers.values():
            batcher.close()
        self.decoders.shutdown()


def _application(service: Service) -> FastAPI:
    """Return the application of a service."""
    app = FastAPI(
        title="Image classification",
        version="1",
        description="Each image of a request is answered by the model as if it came alone.",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(DrainMiddleware)
    app.add_middleware(MetricsMiddleware, metrics=service.metrics, paths=PATHS)
    _add_errors(app)
    _add_predictions(app, service)
    _add_information(app, service)
    return app


def _add_predictions(app: FastAPI, service: Service) -> None:
    """Add /predict and /gradcam."""

    @app.post("/predict", responses=failures(*REFUSALS), openapi_extra=BODY, response_model_exclude_none=True)
    async def predict(
        request: Request, model: ModelName = None, top: Annotated[int, Query(ge=1, le=MAX_TOP)] = 5
    ) -> Answers:
        """Predict images."""
        _check_parameters(request, "model", "top")
        with service.admission.enter() as ticket:
            chosen = service.model(model)
            uploads = await read_images(request, service.settings, ticket.grow_to)
            inputs = await _all([service.prepare(chosen, upload, place) for place, upload in enumerate(uploads)])
            rows = await _all([service.predict(chosen, one, place) for place, one in enumerate(inputs)])
            answers = [answer_of(chosen, one.name, row, top) for one, row in zip(uploads, rows, strict=True)]
            return Answers(model=chosen.name, task=chosen.task, answers=answers)

    @app.post(
        "/gradcam",
        responses=failures(*REFUSALS) | {200: {"content": {"image/png": {}}}},
        openapi_extra=BODY,
        response_class=Response,
    )
    async def gradcam(
        request: Request, model: ModelName = None, label: Annotated[int | None, Query(ge=0)] = None
    ) -> Response:
        """Draw where a model looked, over what it saw of one image: Grad-CAM of a class, by default of the first."""
        _check_parameters(request, "model", "label")
        with service.admission.enter():
            chosen = service.model(model)
            if not chosen.has_gradcam:
                raise ApiError(422, "no_gradcam", f"{chosen.name} gives no Grad-CAM; see /models.")
            if label is not None and label >= len(chosen.classes):
                raise ApiError(422, "no_such_label", f"label is {label}; allowed: 0 to {len(chosen.classes) - 1}.")
            (upload,) = await read_images(request, dataclasses.replace(service.settings, max_images=1), lambda _: None)
            inputs = await service.prepare(chosen, upload, 0)
            batcher = service.batchers[chosen.name]
            if label is None:
                label = int((await asyncio.wrap_future(batcher.submit(inputs))).argmax())
            shown = await asyncio.wrap_future(batcher.call(lambda: chosen.explain(inputs, label)))
            return Response(shown, media_type="image/png")


def _check_parameters(request: Request, *known: str) -> None:
    """Raise ApiError (422) for a parameter behind the `?` that the path does not know, such as a mistyped one."""
    unknown = next((name for name in request.query_params if name not in known), None)
    if unknown is not None:
        raise ApiError(422, "bad_parameter", f"There is no parameter {unknown[:200]!r}; allowed: {', '.join(known)}.")


async def _all(tasks: Sequence[Any]) -> list[Any]:
    """Return the results of all tasks, once none of them runs any more; raise what the first one raised."""
    found = await asyncio.gather(*tasks, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return found


def _add_information(app: FastAPI, service: Service) -> None:
    """Add everything that takes no image."""
    page = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    limits = service.settings

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=PAGE_HEADERS)

    @app.get("/models", responses=failures(500))
    async def models() -> Models:
        """List the models with their classes, and the limits of a request."""
        return Models(
            models=[info_of(model) for model in service.models.values()],
            max_images=limits.max_images,
            max_image_bytes=limits.max_image_bytes,
            max_request_bytes=limits.max_request_bytes,
            max_pixels=limits.max_pixels,
        )

    @app.get("/health/live")
    async def live() -> Health:
        """Say that the process answers."""
        return Health(status="live")

    @app.get("/health/ready", responses=failures(503))
    async def ready() -> Health:
        """Say whether the server takes requests: 503 while it shuts down."""
        if not service.is_ready():
            raise ApiError(503, "not_ready", "The server takes no requests.", retry_seconds=1)
        return Health(status="ready")

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Return the numbers for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_errors(app: FastAPI) -> None:
    """Let every error be JSON of one form."""

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, error.headers())

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        headers = dict(error.headers or {})
        return JSONResponse(error_body(code, f"{error.detail}."), error.status_code, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        wrong = [f"{one['loc'][-1]}: {one['msg']}" for one in error.errors()]
        return JSONResponse(error_body("bad_parameter", "; ".join(wrong)), 422)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(error_body("internal", "The server failed; its log says why."), 500)
