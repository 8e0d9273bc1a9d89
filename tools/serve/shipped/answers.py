"""The JSON answers, as the OpenAPI description shows them."""

from typing import Any

from pydantic import BaseModel, Field

from .served import Model, Row

MAX_TOP = 1000


class Choice(BaseModel):
    """A class, or a label, with its probability."""

    name: str
    label: int = Field(description="its number, from 0")
    probability: float
    predicted: bool | None = Field(default=None, description="of several labels: whether it reaches its threshold")


class Number(BaseModel):
    """A number that a regression predicts."""

    name: str
    value: float


class Answer(BaseModel):
    """What a model says of one image: `top` of classes and labels, `values` of a regression."""

    image: str = Field(description="the name of the file")
    top: list[Choice] | None = Field(default=None, description="the likeliest first")
    values: list[Number] | None = None


class Answers(BaseModel):
    """The answers to a request, in the order of its images."""

    model: str
    task: str
    answers: list[Answer]


class ModelInfo(BaseModel):
    """A model that the server has."""

    name: str
    task: str
    num_classes: int
    classes: list[str]
    about: str
    gradcam: bool


class Models(BaseModel):
    """The models of the server, and what a request may hold."""

    models: list[ModelInfo]
    max_images: int
    max_image_bytes: int
    max_request_bytes: int
    max_pixels: int


class Health(BaseModel):
    """Whether the server lives, or takes requests."""

    status: str


class Problem(BaseModel):
    """What was wrong."""

    code: str
    message: str
    image: int | None = Field(default=None, description="which image of the request is meant, from 0")


class Failure(BaseModel):
    """The answer to a request that cannot be answered otherwise."""

    error: Problem


def answer_of(model: Model, image: str, row: Row, top: int) -> Answer:
    """Return the answer for an image from the row that the model gave, float32 (C,)."""
    if model.task == "regression":
        return Answer(
            image=image,
            values=[Number(name=name, value=value) for name, value in zip(model.classes, row.tolist(), strict=True)],
        )
    best = (-row).argsort(kind="stable")[:top].tolist()  # the first of equal ones
    limits = model.thresholds
    choices = [
        Choice(
            name=model.classes[label],
            label=label,
            probability=float(row[label]),
            predicted=None if limits is None else float(row[label]) >= limits[label],
        )
        for label in best
    ]
    return Answer(image=image, top=choices)


def info_of(model: Model) -> ModelInfo:
    """Return what the server tells of a model."""
    return ModelInfo(
        name=model.name,
        task=model.task,
        num_classes=len(model.classes),
        classes=model.classes,
        about=model.about,
        gradcam=model.has_gradcam,
    )


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the part of an OpenAPI description that says which errors a path may answer with."""
    return {status: {"model": Failure} for status in statuses}
