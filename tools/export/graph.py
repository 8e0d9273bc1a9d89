"""The graph that is exported: images to probabilities, for one network or for several, in fp32."""

import copy
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from inference.blend import combine, with_temperature
from inference.predictor import Predictor
from inference.tta import View, mean_over_views
from utils.errors import UserError
from utils.preprocess import Preprocess
from utils.task import CORN, LINEAR, POSITION, ordered_probabilities, predictions_of

EXAMPLES = 2  # images of the example batch; a batch of 1 would be taken as a constant


class Graph(nn.Module):
    """Computes what a Predictor computes, in operations that can be exported.

    `forward` takes one uint8 (B, 3, S, S) for each of `preprocesses`. It gives float32 (B, C): probabilities, numbers
    in the units of the training list, or the logits of the only network's only view. With `normalised` it takes floats
    that are normalised already.
    """

    shares: Tensor  # the members' weights, float32 (M,), of sum 1

    def __init__(self, predictor: Predictor, logits: bool = False, normalised: bool = False) -> None:
        super().__init__()
        nets = (copy.deepcopy(member.model.net).eval().requires_grad_(False) for member in predictor.members)
        self.nets = nn.ModuleList(net.to(memory_format=torch.contiguous_format) for net in nets)
        self.views, self.blend = predictor.views, predictor.blend
        self.preprocesses = predictor.preprocesses
        self.temperature, self.task = predictor.temperature, predictor.task
        self.logits, self.normalised = logits, normalised
        self.activations = [member.model.settings.activation for member in predictor.members]
        self.ordered = [member.model.ordered_classes for member in predictor.members]
        weights = torch.tensor(predictor.weights)
        self.register_buffer("shares", weights / weights.sum())
        for k, member in enumerate(predictor.members):
            self.register_buffer(f"scale{k}", member.model._scale[:, None, None].clone())
            self.register_buffer(f"shift{k}", member.model._shift[:, None, None].clone())
            for name, units in zip(("mean", "std"), member.model.target_units or (), strict=False):
                self.register_buffer(f"target_{name}{k}", units.clone())
        self.eval()  # an exporter puts back the mode that it found, for the networks too

    def forward(self, *images: Tensor) -> Tensor:
        """Return the probabilities, numbers or logits of a batch, float32 (B, C)."""
        shown = dict(zip(self.preprocesses, images, strict=True))
        found = []
        for k, views in enumerate(self.views):
            logits = [self._logits(k, view, shown) for view in views]
            if self.logits:
                return logits[0]
            if self.blend == "logits":
                found.append(self._predictions(k, torch.stack(logits).mean(dim=0)))
            else:
                found.append(mean_over_views([self._predictions(k, one) for one in logits]))
        mean = found[0] if len(found) == 1 else combine(torch.stack(found), self.shares, self.blend, self.task)
        return with_temperature(mean, self.temperature, self.task)

    def _predictions(self, k: int, logits: Tensor) -> Tensor:
        """Return what BaseModel.predictions of member k returns."""
        if self.activations[k] == CORN:
            return corn_probabilities(logits)
        found = predictions_of(self.activations[k], logits)
        if self.activations[k] not in (LINEAR, POSITION):
            return found
        found = found * getattr(self, f"target_std{k}") + getattr(self, f"target_mean{k}")
        known = self.ordered[k]
        return found if known is None else ordered_probabilities(found[:, 0], known.count, known.cut_points)

    def _logits(self, k: int, view: View, shown: dict[Preprocess, Tensor]) -> Tensor:
        images = view.transform(shown[view.preprocess])
        if not self.normalised:
            images = images.float() * getattr(self, f"scale{k}") + getattr(self, f"shift{k}")
        return self.nets[k](images).float()

    @property
    def output_name(self) -> str:
        """Return what `forward` gives."""
        return "logits" if self.logits else "values" if self.activations[0] == LINEAR else "probabilities"

    def examples(self) -> tuple[Tensor, ...]:
        """Return example inputs, (EXAMPLES, 3, S, S) for each of `preprocesses`: uint8, or float if `normalised`."""
        draw = torch.Generator().manual_seed(0)
        shapes = [(EXAMPLES, 3, way.scale, way.scale) for way in self.preprocesses]
        images = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw) for shape in shapes]
        return tuple(one.float() / 128 - 1 if self.normalised else one for one in images)


def corn_probabilities(logits: Tensor) -> Tensor:
    """Return the probabilities (B, C) of CORN's logits (B, C - 1).

    utils.task.predictions_of does the same by a running product, which ONNX lacks.
    """
    above = [torch.ones_like(logits[:, :1])]
    for step in logits.sigmoid().split(1, dim=1):
        above.append(above[-1] * step)
    return torch.cat(above, dim=1) - torch.cat([*above[1:], torch.zeros_like(above[0])], dim=1)


def export_program(graph: Graph) -> "torch.export.ExportedProgram":
    """Return the graph as torch.export has it, for batches of any size.

    Raises:
        UserError: torch.export cannot follow the network.
    """
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    shapes = {"images": tuple({0: batch} for _ in graph.preprocesses)}
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(graph, graph.examples(), dynamic_shapes=shapes)
        except Exception as error:  # torch.export raises nearly anything
            reason = str(error).strip().splitlines()[0][:300]
            raise UserError(
                f"torch.export cannot follow this network ({type(error).__name__}: {reason}).\n"
                "Most often its Python code branches on the values of a tensor."
            ) from error


def input_names(count: int) -> Sequence[str]:
    """Return the names of `count` inputs of an exported graph."""
    return ["images"] if count == 1 else [f"images_{k}" for k in range(count)]


def describe_inputs(graph: Graph) -> str:
    """Return the names and shapes of the inputs, in words."""
    kind = "float32" if graph.normalised else "uint8"
    names = input_names(len(graph.preprocesses))
    return ", ".join(
        f"{name} {kind} (B, 3, {way.scale}, {way.scale})" for name, way in zip(names, graph.preprocesses, strict=True)
    )
