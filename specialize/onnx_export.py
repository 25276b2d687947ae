"""ONNX export (torch.onnx): float files, small and the same each time."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..protos.inference import ACTIVATION
from ..protos.manifest import TensorSpec
from ..supernet.errors import ExportError
from .tflite import quiet

OPSET = 18
FLOAT = 1
FOLDED = 2**18
"""Elements up to which what is computed from constants is computed at export."""
CONV_DEFAULTS: Mapping[str, object] = MappingProxyType(
    {"auto_pad": b"NOTSET", "group": 1, "dilations": 1, "strides": 1, "pads": 0}
)
"""Of a list, the value of each element."""


def export_onnx(module: nn.Module, example: Tensor, path: Path) -> None:
    """Write a float32 file with a free batch dimension and short names.

    The same module always gives the same bytes. ExportError when the exporter refuses.
    """
    with quiet():
        import onnx
        import onnxscript.optimizer

        # A batch of one would be taken for a constant.
        pair = torch.cat([example, example])
        try:
            program = torch.onnx.export(
                module.eval(),
                (pair,),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
        except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
            raise ExportError(f"ONNX export: {error}") from error
        if program is None:
            raise ExportError("ONNX export: the exporter returned no model")
        # What is computed from weights alone must become a constant: others are not quantized.
        model = onnxscript.optimizer.optimize(
            program.model_proto, input_size_limit=FOLDED, output_size_limit=FOLDED
        )
        shorten(model)
        onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def observable(path: Path) -> bytes:
    """The float file with every activation as an output, for a device to observe."""
    import onnx

    model = onnx.load(str(path))
    known = {value.name for value in (*model.graph.input, *model.graph.output)}
    for name in sorted(activations(model) - known):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, FLOAT, None))
    return bytes(model.SerializeToString(deterministic=True))


def specs(path: Path) -> tuple[TensorSpec, TensorSpec]:
    """Input and output of a file; a free dimension counts 1."""
    import onnx

    graph = onnx.load(str(path)).graph
    return _spec(graph.input[0]), _spec(graph.output[0])


def _spec(value: Any) -> TensorSpec:
    dims = value.type.tensor_type.shape.dim
    return TensorSpec(name=value.name, shape=tuple(d.dim_value or 1 for d in dims), dtype="float32")


def activations(model: Any) -> set[str]:
    """Names of the float tensors that are no constants: an attention's sizes are integers."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    typed = (*graph.input, *graph.output, *graph.value_info)
    kinds = {value.name: value.type.tensor_type.elem_type for value in typed}
    found = {value.name for value in graph.input}
    for node in graph.node:
        if node.op_type != "Constant":
            found |= {name for name in node.output if name and kinds.get(name, FLOAT) == FLOAT}
    return found


def shorten(model: Any) -> None:
    """Short names by position, and nothing that no runtime needs: texts, metadata, shapes."""
    graph = model.graph
    _merge_equal_constants(graph)
    names: dict[str, str] = {"": ""}
    for place, tensor in enumerate(graph.initializer):
        names[tensor.name] = tensor.name = f"c{place}"
    for value in (*graph.input, *(o for node in graph.node for o in node.output)):
        name = value if isinstance(value, str) else value.name
        names.setdefault(name, f"{ACTIVATION}{len(names)}")
    for node in graph.node:
        node.name = node.doc_string = ""
        del node.metadata_props[:]
        _drop_defaults(node)
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    for value in (*graph.input, *graph.output):
        value.name, value.doc_string = names[value.name], ""
        del value.metadata_props[:]
    for tensor in graph.initializer:
        tensor.doc_string = ""
    del graph.value_info[:], model.metadata_props[:], graph.metadata_props[:]
    graph.name, graph.doc_string, model.doc_string = "g", "", ""
    model.producer_name = model.producer_version = ""


def _merge_equal_constants(graph: Any) -> None:
    """Keep one of several equal constants: the zero points of all layers of one width, mostly."""
    first: dict[bytes, str] = {}
    same: dict[str, str] = {}
    for tensor in list(graph.initializer):
        name, tensor.name = tensor.name, ""
        same[name] = first.setdefault(tensor.SerializeToString(deterministic=True), name)
        tensor.name = name
        if same[name] != name:
            graph.initializer.remove(tensor)
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]


def _drop_defaults(node: Any) -> None:
    """Leave out a convolution's attributes that say what the specification says anyway."""
    import onnx

    if node.op_type != "Conv":
        return
    for attribute in list(node.attribute):
        value = onnx.helper.get_attribute_value(attribute)
        usual = CONV_DEFAULTS.get(attribute.name)
        if value == usual or (isinstance(value, list) and set(value) == {usual}):
            node.attribute.remove(attribute)
