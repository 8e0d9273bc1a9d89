"""The formats of an export: what writes each, and what it needs."""

import importlib.util
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.errors import UserError
from utils.logger import log
from utils.run import DISK_ERRNOS

if TYPE_CHECKING:
    from tools.export.graph import Graph

OPSET = 20


class Format(NamedTuple):
    """A format of --to.

    Attributes:
        suffix: of the model's file, by which shipped/predict.py opens it.
        needs: the packages that write it, beside torch.
        runtimes: the packages that predict with it, beside NumPy and Pillow.
        write: writes the graph to a path with this suffix.
    """

    suffix: str
    needs: tuple[str, ...]
    runtimes: tuple[str, ...]
    write: "Callable[[Graph, Path], None]"


def write_onnx(graph: "Graph", path: Path) -> None:
    """Write the graph as ONNX, with inputs `images`, or `images_0` and so on, and one output.

    The graph is traced, which takes a tenth of the time of torch.export; torch.export follows where tracing fails. What
    a trace got wrong shows in the comparison with PyTorch, which every export makes.

    Raises:
        UserError: the network has an operation that ONNX lacks.
        OSError: the disk is full.
    """
    import torch

    from tools.export.graph import input_names

    inputs, outputs = input_names(len(graph.preprocesses)), [graph.output_name]
    names: dict[str, Any] = {"input_names": inputs, "output_names": outputs, "opset_version": OPSET, "verbose": False}
    axes = {name: {0: "batch"} for name in (*inputs, *outputs)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(graph, graph.examples(), str(path), dynamo=False, dynamic_axes=axes, **names)
        except Exception as failure:  # the tracer raises nearly anything
            if isinstance(failure, OSError) and failure.errno in DISK_ERRNOS:
                raise
            path.unlink(missing_ok=True)
            log.info(f"The network cannot be traced ({type(failure).__name__}); torch.export follows it instead.")
            _write_with_dynamo(graph, path, names)


def _write_with_dynamo(graph: "Graph", path: Path, names: dict[str, Any]) -> None:
    """Write the graph as ONNX through torch.export, which needs onnxscript."""
    import torch

    from tools.export.graph import export_program

    if importlib.util.find_spec("onnxscript") is None:
        raise UserError("This network is written by torch.export, which needs onnxscript.\nTry: pip install onnxscript")
    program: Any
    try:
        program = torch.onnx.export(export_program(graph), dynamo=True, **names)
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip()[:300]
        raise UserError(f"The network cannot be written as ONNX: {reason}\nTry: --to torch_export") from error
    program.save(str(path))


def write_torch(graph: "Graph", path: Path) -> None:
    """Write the graph as torch.export's archive. Raises OSError where the disk is full."""
    import torch

    from tools.export.graph import export_program

    archive = io.BytesIO()  # torch's own writer ends the process on a full disk
    torch.export.save(export_program(graph), archive)
    path.write_bytes(archive.getbuffer())


def write_openvino(graph: "Graph", path: Path) -> None:
    """Write the graph as OpenVINO's IR, in fp32; `path` ends in .xml, and the weights are beside it.

    Raises:
        UserError: OpenVINO cannot convert the network, or write it; its errors are of no class of their own.
    """
    import openvino

    between = path.with_suffix(".onnx")
    write_onnx(graph, between)
    try:
        model = openvino.convert_model(str(between))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"OpenVINO cannot convert this network: {reason}\nTry: --to onnx") from error
    try:
        openvino.save_model(model, str(path), compress_to_fp16=False)
    except RuntimeError as error:  # "iostream error" where the disk is full
        raise UserError(
            f"OpenVINO could not write {path.name} ({error}).\nFree some space (`df -h {path.parent.parent}`)."
        ) from error
    del model
    between.unlink()


FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxruntime"), ("onnxruntime",), write_onnx),
    "torch_export": Format(".pt2", (), ("torch",), write_torch),
    "openvino": Format(".xml", ("onnx", "openvino"), ("openvino",), write_openvino),
}
