"""The schema of a checkpoint of train.py: every key with its type and range, checked when a file is read.

Other keys may hold any tensors and plain data. Only the consistency of the file itself is checked here. Whether its
weights fit a network, and its optimizer state fits the weights, is checked where the network is built.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

import torch
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
    with_config,
)
from typing_extensions import TypedDict

from options import problems_of_saved
from utils.classes import counted
from utils.tensors import check_dense

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

MAX_DEPTH = 16  # of nested plain data; deeper data could exhaust the stack
MAX_CLASSES = 10_000_000
MAX_POINTS = 2000  # as in training.step_curves
SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}
MAX_OPTION_PROBLEMS = 3  # listed in a message
OPEN = ConfigDict(extra="allow", arbitrary_types_allowed=True)

# ------------------------------------------------------------------------------------------------ leaves


def _tensor(value: object) -> torch.Tensor:
    """Return a dense tensor with its own memory, not one that repeats a few numbers to an enormous size."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"a {type(value).__name__}; allowed: a tensor")
    check_dense(value)
    return value


def _plain(value: object, depth: int = 0) -> object:
    """Return a value that consists of tensors, numbers, text, None, lists and dicts."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str | int | tuple):
                raise ValueError(f"a key that is a {type(key).__name__}; allowed: text")
            _plain(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _plain(item, depth + 1)
    elif isinstance(value, torch.Tensor):
        _tensor(value)
    elif not (value is None or isinstance(value, bool | int | float | str)):
        raise ValueError(f"a {type(value).__name__}; allowed: tensors and plain data")
    return value


def _sums(value: object) -> torch.Tensor:
    """Return the sums of an epoch, as training.epoch keeps them; older checkpoints have fewer."""
    tensor = _tensor(value)
    if tensor.ndim != 1 or not 1 <= len(tensor) <= 6 or not tensor.is_floating_point():
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} and {tensor.dtype}; allowed: up to 6 floats")
    return tensor


def _points(value: Any) -> torch.Tensor:
    """Return the sums of the points of a run by step, (points, 6) in fp32."""
    tensor = _tensor(value)
    if tensor.ndim != 2 or tensor.shape[1] != 6 or len(tensor) > MAX_POINTS or tensor.dtype != torch.float32:
        raise ValueError(
            f"a tensor of shape {tuple(tensor.shape)} and {tensor.dtype}; allowed: up to {MAX_POINTS} rows of 6 floats"
        )
    return tensor


def _rates(value: Any) -> torch.Tensor:
    """Return the learning rates of the points of a run by step, (points,) in fp64."""
    tensor = _tensor(value)
    if tensor.ndim != 1 or tensor.dtype != torch.float64:
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} and {tensor.dtype}; allowed: a row of doubles")
    return tensor


def _curves(value: Any) -> Any:
    """Return the points of a run by step: as many sums in each process, and rates, as its steps fill."""
    count = -(-value["step"] // value["stride"])
    if any(len(part) != count for part in (*value["sums"], value["lr"])):
        raise ValueError(f"{value['step']} steps by {value['stride']} with other than {count} points")
    return value


def _options(value: dict[str, object]) -> dict[str, object]:
    problems = problems_of_saved(value)
    if problems:
        raise ValueError("; ".join(problems[:MAX_OPTION_PROBLEMS]))
    return value


def _scaler(value: dict[str, float]) -> dict[str, float]:
    """Return the state of torch.amp.GradScaler, {} without one."""
    if value and (set(value) != SCALER or value["scale"] <= 0 or any(part < 0 for part in value.values())):
        raise ValueError(f"{str(value)[:100]}; allowed: {', '.join(sorted(SCALER))}, the scale above 0")
    return value


def _row(value: object) -> dict[str, Any]:
    """Return the scores of an epoch: {name: number}, among them the epoch, from 1."""
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"a {type(value).__name__}; allowed: {{name of a score: number}}")
    wrong = [name for name, score in value.items() if isinstance(score, bool) or not isinstance(score, int | float)]
    if wrong:
        raise ValueError(f"{wrong[0]} is {str(value[wrong[0]])[:60]!r}; allowed: a number")
    if not isinstance(value.get("epoch"), int) or value["epoch"] < 1:
        raise ValueError(f"the epoch is {value.get('epoch')!r}; allowed: 1 and more")
    return value


Tensor = Annotated[Any, BeforeValidator(_tensor)]
Plain = Annotated[Any, BeforeValidator(_plain)]
Text = Annotated[str, Strict()]
Whole = Annotated[int, Strict()]
Count = Annotated[Whole, Field(ge=0)]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Seconds = Annotated[Number, Field(ge=0)]
Weights = dict[Text, Tensor]
Task = Literal["single", "multilabel", "regression", "ordinal"]

# ------------------------------------------------------------------------------------------------ parts


@with_config(OPEN)
class Preprocessing(TypedDict):
    """See utils.preprocess."""

    scale: Annotated[Whole, Field(ge=1, le=16384)]
    fit: Literal["squash", "crop", "pad"]
    mean: Annotated[list[Number], Field(min_length=3, max_length=3)]
    std: Annotated[list[Annotated[Number, Field(gt=0)]], Field(min_length=3, max_length=3)]


@with_config(OPEN)
class SeenList(TypedDict):
    """A list that the network has learned from; see utils.seen_lists. None, or nothing: it is not known."""

    path: NotRequired[Text | None]
    fingerprint: NotRequired[Text | None]
    task: NotRequired[Task]


@with_config(OPEN)
class Data(TypedDict):
    """The classes (utils.classes.Classes.as_dict), the preprocessing and the lists."""

    num_classes: Annotated[Whole, Field(ge=1, le=MAX_CLASSES)]
    class_names: list[Text] | None
    class_images: list[Count] | None
    task: NotRequired[Task]
    target_mean: NotRequired[list[Number]]
    target_std: NotRequired[list[Annotated[Number, Field(gt=0)]]]
    cut_points: NotRequired[list[Number]]
    preprocess: NotRequired[Preprocessing]
    train_list: NotRequired[Text]
    val_list: NotRequired[Text]
    lists: NotRequired[dict[Text, Text] | None]
    seen: NotRequired[list[SeenList]]


@with_config(OPEN)
class Within(TypedDict):
    """How far an epoch is; training.epoch.EpochTracker.state_dict."""

    epoch: Annotated[Whole, Field(ge=1)]
    done: Count
    counted: Count
    images: Count
    waited: Seconds
    lr: Number
    spent: Seconds
    ended: Annotated[bool, Strict()]
    totals: Annotated[list[Annotated[Any, BeforeValidator(_sums)]], Field(min_length=1)]


@with_config(OPEN)
class Curves(TypedDict):
    """training.step_curves.StepCurves.state_dict."""

    step: Count
    stride: Annotated[Whole, Field(ge=1)]
    per_epoch: Annotated[Whole, Field(ge=1)]
    sums: Annotated[list[Annotated[Any, BeforeValidator(_points)]], Field(min_length=1)]
    lr: Annotated[Any, BeforeValidator(_rates)]


@with_config(OPEN)
class Swa(TypedDict):
    """training.averages.Averages.swa_state."""

    count: Count
    ready: Annotated[bool, Strict()]


@with_config(OPEN)
class Lora(TypedDict):
    """training.lora.Adapters.state_dict, whose `split` checks that it fits the network."""

    rank: Annotated[Whole, Field(ge=1)]
    weights: Annotated[Weights, Field(min_length=1)]
    ema: NotRequired[Weights | None]


@with_config(OPEN)
class Clock(TypedDict):
    """The time of --hours; training.hours.TimedLength.state_dict."""

    hours: Annotated[Number, Field(gt=0)]
    used: Seconds
    trained: Seconds
    steps: Count
    step_seconds: Seconds
    pause: Seconds | None
    share: Annotated[Number, Field(ge=0, le=1)]
    planned: Seconds
    over: Annotated[bool, Strict()]


@with_config(OPEN)
class Training(TypedDict):
    """What --resume needs, from training.engine.Engine.state_dict. load_optimizer_state checks the optimizer's part."""

    step: Count
    optimizer: Annotated[dict[Text, Any], BeforeValidator(_plain)]
    scaler: Annotated[dict[Text, Number], AfterValidator(_scaler)]
    swa: NotRequired[Swa]
    skipped: NotRequired[Count]
    lora: NotRequired[Lora]
    clock: NotRequired[Clock]
    teacher: NotRequired[Text]


@with_config(OPEN)
class Calibration(TypedDict):
    """evaluation.calibration.FittedTemperature, and the views, size and fit that it was fitted with."""

    temperature: Annotated[Number, Field(gt=0)]
    tta: Text
    scale: NotRequired[Whole]
    fit: NotRequired[Text]


@with_config(OPEN)
class Thresholds(TypedDict):
    """evaluation.thresholds.FittedThresholds, and the views, size and fit that they were fitted with."""

    rule: Literal["one", "per_label"]
    values: Annotated[list[Annotated[Number, Field(ge=0, le=1)]], Field(min_length=1)]
    tta: Text
    scale: NotRequired[Whole]
    fit: NotRequired[Text]


@with_config(OPEN)
class Checkpoint(TypedDict):
    """A whole checkpoint. A file of weights alone lacks `model` and what follows it."""

    format: Annotated[Whole, Field(ge=1)]
    weights: Annotated[Weights, Field(min_length=1)]
    model: NotRequired[Annotated[Text, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:+-]{0,99}$")]]
    epoch: NotRequired[Count]
    opt: NotRequired[Annotated[dict[Text, Any], BeforeValidator(_plain), AfterValidator(_options)]]
    data: NotRequired[Data]
    history: NotRequired[list[Annotated[Any, BeforeValidator(_row)]]]
    within: NotRequired[Within | None]
    curves: NotRequired[Annotated[Curves, AfterValidator(_curves)] | None]
    bad: NotRequired[dict[Text, Text]]
    scored_from: NotRequired[Annotated[Whole, Field(ge=1)]]
    ema: NotRequired[Weights | None]
    swa: NotRequired[Weights | None]
    showing: NotRequired[Literal["raw", "ema", "swa"]]
    training: NotRequired[Training]
    calibration: NotRequired[Calibration | None]
    thresholds: NotRequired[Thresholds | None]
    probe: NotRequired[Annotated[dict[Text, Any], BeforeValidator(_plain)]]
    average: NotRequired[Annotated[dict[Text, Any], BeforeValidator(_plain)]]
    long_tail: NotRequired[Annotated[dict[Text, Any], BeforeValidator(_plain)]]


FOR_RESUME = ("model", "epoch", "opt", "data", "history", "showing")
_adapter: list[TypeAdapter[Checkpoint]] = []  # built when the first checkpoint is read


def problems(content: dict[str, Any]) -> list[str]:
    """Return the problems of a checkpoint, as lines like "data.num_classes: …"."""
    if not _adapter:
        _adapter.append(TypeAdapter(Checkpoint))
    try:
        _adapter[0].validate_python(content)
        _plain({name: value for name, value in content.items() if name not in Checkpoint.__annotations__})
        return _contradictions(content)
    except ValidationError as error:
        return [
            f"{'.'.join(str(place) for place in one['loc'])[:100]}: {_reason(one)}"
            for one in error.errors(include_url=False)
        ]
    except (ValueError, RecursionError) as error:
        return [str(error)[:300]]


def _reason(one: "ErrorDetails") -> str:
    text = one["msg"].removeprefix("Value error, ")
    return text if one["type"] == "value_error" else f"{text[:1].lower()}{text[1:]}, got {str(one['input'])[:60]!r}"


def _contradictions(content: dict[str, Any]) -> list[str]:
    """Return problems across keys."""
    found = []
    for name in ("ema", "swa"):
        average = content.get(name)
        if average is not None and _shapes(average) != _shapes(content["weights"]):
            found.append(f"{name}: its tensors differ in name or shape from weights")
    showing = content.get("showing", "raw")
    if showing != "raw" and content.get(showing) is None:
        found.append(f"showing: {showing!r}, but there is no {showing}")
    data = content.get("data") or {}
    predicted = counted(data.get("num_classes", 0), data.get("task", "single"))
    lists = [
        name for name in ("class_names", "class_images", "target_mean", "target_std") if data.get(name) is not None
    ]
    found += [
        f"data.{name}: {len(data[name])} for {predicted}" for name in lists if len(data[name]) != data["num_classes"]
    ]
    thresholds = content.get("thresholds")
    if thresholds and data.get("task") != "multilabel":
        found.append("thresholds: only a network of several labels per image has them")
    elif thresholds and len(thresholds["values"]) != data["num_classes"]:
        found.append(f"thresholds.values: {len(thresholds['values'])} for {predicted}")
    cut_points = data.get("cut_points")
    if cut_points is not None and data.get("task") != "ordinal":
        found.append("data.cut_points: only ordered classes have them")
    elif cut_points is not None and (len(cut_points) != data["num_classes"] - 1 or cut_points != sorted(cut_points)):
        found.append(f"data.cut_points: {len(cut_points)} for {predicted}; allowed: one less, ascending")
    if data.get("task") == "regression" and not {"target_mean", "target_std"} <= data.keys():
        found.append("data: a regression without target_mean and target_std")
    return found + (_of_training(content) if "training" in content else [])


def _of_training(content: dict[str, Any]) -> list[str]:
    """Return what is missing or contradictory for --resume."""
    missing = [name for name in FOR_RESUME if name not in content]
    if missing:
        return [f"training: there is no {', '.join(missing)} beside it"]
    found = [] if "preprocess" in content["data"] else ["data.preprocess: missing"]
    if content.get("swa") is not None and "swa" not in content["training"]:
        found.append("training.swa: missing")
    epochs = [row["epoch"] for row in content["history"]]
    if epochs != sorted(set(epochs)) or (epochs[-1] if epochs else 0) != content["epoch"]:
        found.append(f"history: epochs {str(epochs)[:60]} for a checkpoint of epoch {content['epoch']}")
    within = content.get("within")
    if within and within["epoch"] != content["epoch"] + 1:
        found.append(f"within.epoch: {within['epoch']} after epoch {content['epoch']}")
    return found


def _shapes(weights: dict[str, torch.Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}
