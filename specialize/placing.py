"""Finding a network's layers in its exported files, so that a device can write others there.

Converters rename, reorder and merge constants, and say nothing of it. So a layer is looked for by its
values: the bytes of its kernel in a float file, in any order of its dimensions; in an int8 file the one
layer whose integers stand for it. One that is not found exactly once is not placed, and devices
leave it as it is.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..protos.file_layers import FLOAT, Layer, Layers, Placed, Steps, along_outputs, check
from ..protos.manifest import FileEntry
from ..protos.trainable import Trainable
from ..supernet.called_layers import WeightLayer
from ..supernet.errors import ArtifactError
from . import tflite_file

TFLITE_TYPES = {np.dtype(np.int8): 9, np.dtype(np.int32): 2}
"""The schema's numbers."""
ZEROS: Mapping[np.dtype[Any], Literal[0, 128]] = {np.dtype(np.int8): 0, np.dtype(np.uint8): 128}
"""What stands for 0 in symmetric weights of a type."""
MOST_LEVELS = 127
ROUNDED = 0.51
"""How far a weight may lie from the integer that stands for it, in steps."""


def trainable_of(module: nn.Module, entries: Sequence[FileEntry], folder: Path) -> Trainable:
    """What a device needs to train a network on: its values, and where they lie in these files."""
    values = {name: _array(value) for name, value in module.state_dict().items()}
    layers = layers_of(module)
    contents = {entry.kind: (folder / entry.name).read_bytes() for entry in entries}
    floats = {
        kind.partition("_")[0]: in_floats(content, layers)
        for kind, content in contents.items()
        if kind.endswith("fp32")
    }
    placed: dict[str, Mapping[str, Placed]] = {}
    for kind, content in contents.items():
        form = kind.partition("_")[0]
        found = floats[form]
        if kind.endswith("int8"):
            held = tflite_held(content) if form == "tflite" else onnx_held(content)
            found = in_integers(content, layers, found, held)
        placed[kind] = _apart(found, layers, len(content))
    ends = {entry.kind: logits_of(entry, contents[entry.kind]) for entry in entries}
    limits: dict[str, tuple[float, float]] = {k: v for k, v in ends.items() if v is not None}
    return Trainable(values, placed, limits)


def logits_of(entry: FileEntry, content: bytes) -> tuple[float, float] | None:
    """The least and the greatest logit that an int8 file can give; None for a float file.

    TFLite files end in integers; ONNX files turn them into float as their last step.
    """
    if not entry.kind.endswith("int8"):
        return None
    if entry.kind.startswith("onnx"):
        import onnx

        graph = onnx.load_from_string(content).graph
        constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
        last = next(node for node in graph.node if graph.output[0].name in node.output)
        if last.op_type != "DequantizeLinear" or not set(last.input[1:3]) <= constants.keys():
            return None
        step, zero = (constants[name] for name in last.input[1:3])
        return _span(zero.dtype.name, float(step), int(zero))
    spec = entry.outputs[0]
    if spec.scale is None or spec.zero_point is None:
        return None
    return _span(spec.dtype, spec.scale, spec.zero_point)


def _span(dtype: str, step: float, zero: int) -> tuple[float, float]:
    info = np.iinfo(dtype)
    return (info.min - zero) * step, (info.max - zero) * step


def layers_of(module: nn.Module) -> dict[str, Layer]:
    """The values of a folded network's convolutions and linear layers, by name."""
    return {
        name: Layer(_array(layer.weight), None if layer.bias is None else _array(layer.bias))
        for name, layer in module.named_modules()
        if isinstance(layer, WeightLayer)
    }


def in_floats(content: bytes, layers: Layers) -> dict[str, Placed]:
    """The layers whose kernel and bias, if any, each stand once in a float file."""
    found = {}
    for name, layer in layers.items():
        kernel = _in_some_order(content, layer.kernel)
        bias = None if layer.bias is None else _once(content, layer.bias.astype(FLOAT))
        if kernel is not None and (layer.bias is None or bias is not None):
            found[name] = Placed(kernel=kernel[0], order=kernel[1], bias=bias)
    return found


@dataclass(frozen=True, slots=True)
class Held:
    """A layer as an int8 file holds it: integers and their scales, one for each output channel.

    `zero` is the integer that stands for 0 in every channel.
    """

    kernel: NDArray[np.int8] | NDArray[np.uint8]
    scale: NDArray[np.float32]
    bias: NDArray[np.int32] | None
    bias_scale: NDArray[np.float32] | None
    input_scale: float
    zero: Literal[0, 128] = 0

    @property
    def differences(self) -> NDArray[np.float32]:
        """The integers less the one that stands for 0."""
        return self.kernel.astype(np.float32) - self.zero


def in_integers(
    content: bytes, layers: Layers, floats: Mapping[str, Placed], held: Sequence[Held]
) -> dict[str, Placed]:
    """The layers for which the integers of exactly one layer of the file stand.

    A file of the same format has the same order of dimensions as its float file, `floats`.
    """
    found = {}
    for name, place in floats.items():
        layer = layers[name]
        fitting = [each for each in held if _stands_for(each, layer, place)]
        if len(fitting) == 1 and (placed := _placed(content, fitting[0], layer, place)) is not None:
            found[name] = placed
    return found


def _stands_for(held: Held, layer: Layer, place: Placed) -> bool:
    dims = [size for size in held.kernel.shape if size != 1]
    kernel = layer.kernel.transpose(place.order)
    if dims != [size for size in kernel.shape if size != 1] or len(held.scale) != len(layer.kernel):
        return False
    scale = along_outputs(held.scale, layer.kernel.ndim).transpose(place.order)
    real = held.differences.reshape(kernel.shape) * scale
    return bool((np.abs(real - kernel) <= ROUNDED * scale).all())


def _placed(content: bytes, held: Held, layer: Layer, place: Placed) -> Placed | None:
    kernel, scale = _once(content, held.kernel), _once(content, held.scale)
    levels = min(int(np.abs(held.differences).max()), MOST_LEVELS)
    if kernel is None or scale is None or not levels or (layer.bias is None) != (held.bias is None):
        return None
    if held.bias is None or held.bias_scale is None:
        return Placed(
            kernel=kernel,
            order=place.order,
            steps=Steps(levels=levels, zero=held.zero, scale=scale),
        )
    bias, bias_scale = _once(content, held.bias), _once(content, held.bias_scale)
    if bias is None or bias_scale is None:
        return None
    steps = Steps(
        levels=levels, zero=held.zero, scale=scale, bias_scale=bias_scale,
        input_scale=held.input_scale,
    )  # fmt: skip
    return Placed(kernel=kernel, order=place.order, bias=bias, steps=steps)


def _apart(placed: Mapping[str, Placed], layers: Layers, size_bytes: int) -> dict[str, Placed]:
    """Without layers that share bytes with another: writing one would change the other."""
    shared: set[str] = set()
    for pair in combinations(placed, 2):
        try:
            check(placed, {name: layers[name].kernel.shape for name in pair}, size_bytes)
        except ArtifactError:
            shared.update(pair)
    return {name: place for name, place in placed.items() if name not in shared}


def tflite_held(content: bytes) -> list[Held]:
    """The layers of an int8 TFLite file that have a scale for each channel."""
    model = tflite_file.read(content)
    graph, found = model.subgraphs[0], []
    for operator in tflite_file.weight_layers(model):
        inputs: list[Any] = [graph.tensors[at] if at >= 0 else None for at in operator.inputs]
        source, kernel, *rest = inputs
        integers = _tflite_array(model, kernel, np.int8)
        if integers is None:
            continue
        bias = _tflite_array(model, rest[0], np.int32) if rest and rest[0] is not None else None
        found.append(
            Held(
                integers,
                kernel.quantization.scale.astype(FLOAT),
                bias,
                None if bias is None else rest[0].quantization.scale.astype(FLOAT),
                float(source.quantization.scale[0]),
            )
        )
    return found


def _tflite_array(model: Any, tensor: Any, kind: Any) -> NDArray[Any] | None:
    """A constant's values; None where it is none, or of another type, or without scales."""
    data = model.buffers[tensor.buffer].data
    if data is None or tensor.type != TFLITE_TYPES[np.dtype(kind)] or tensor.quantization is None:
        return None
    if tensor.quantization.scale is None:
        return None
    return np.frombuffer(np.asarray(data, np.uint8).tobytes(), kind).reshape(tensor.shape)


def onnx_held(content: bytes) -> list[Held]:
    """The layers of an int8 ONNX file (QDQ) that have a scale for each channel."""
    import onnx

    graph = onnx.load_from_string(content).graph
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    found = []
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        source, kernel, *rest = (_dequantized(makers.get(name), constants) for name in node.input)
        if kernel is None or source is None or kernel[0] is None:
            continue
        zero = ZEROS.get(kernel[0].dtype)
        if zero is None or not (kernel[2] == zero).all():
            continue
        bias = rest[0] if rest else None
        if rest and (bias is None or bias[0] is None or bias[0].dtype != np.int32):
            continue
        found.append(
            Held(
                kernel[0],
                kernel[1].ravel().astype(FLOAT),
                None if bias is None else bias[0],
                None if bias is None else bias[1].ravel().astype(FLOAT),
                float(source[1].ravel()[0]),
                zero,
            )
        )
    return found


def _dequantized(
    node: Any, constants: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[Any] | None, NDArray[Any], NDArray[Any]] | None:
    """What a DequantizeLinear reads, where that is constant, its scale and its zero point; None for
    another node.
    """
    if node is None or node.op_type != "DequantizeLinear" or node.input[1] not in constants:
        return None
    zero = constants[node.input[2]] if len(node.input) > 2 else np.zeros(1)
    return constants.get(node.input[0]), constants[node.input[1]], zero


def _in_some_order(
    content: bytes, kernel: NDArray[np.float32]
) -> tuple[int, tuple[int, ...]] | None:
    for order in _orders(kernel.shape):
        at = _once(content, np.ascontiguousarray(kernel.transpose(order)).astype(FLOAT))
        if at is not None:
            return at, order
    return None


def _orders(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Every order of the dimensions that gives other bytes, the network's own first."""
    seen = set()
    for order in permutations(range(len(shape))):
        moving = tuple(dim for dim in order if shape[dim] != 1)
        if moving not in seen:
            seen.add(moving)
            yield order


def _once(content: bytes, values: NDArray[Any]) -> int | None:
    """Where these bytes stand in the file; None unless they stand there once."""
    data = np.ascontiguousarray(values).tobytes()
    at = content.find(data)
    return None if at < 0 or content.find(data, at + 1) >= 0 else at


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    return tensor.detach().numpy().astype(np.float32)
