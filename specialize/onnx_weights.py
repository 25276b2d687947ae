"""Weights as few bits in an ONNX file, in front of operators that compute with floats.

Each kernel becomes integers with a DequantizeLinear behind them. ONNX Runtime has no integer kernels
for 4 bits: so are held the layers of such a width, and all of them where activations stay floats.
Per channel in steps of max|w| / (2^(bits - 1) - 1), as `supernet.fake_quant` rounds; with a zero
point, from min(w, 0) to max(w, 0) in 2^bits - 1 steps.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..protos.inference import Floats
from .scheme import QuantScheme

OPSET = 21
"""Of the first that has 4 bits."""
LAYERS = ("Conv", "Gemm", "MatMul")


def weight_layers(model: Any) -> list[Any]:
    """The nodes with a constant kernel, in order: convolutions and linear layers."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [n for n in model.graph.node if n.op_type in LAYERS and n.input[1] in constants]


def hold_weights(model: Any, widths: Mapping[int, int], scheme: QuantScheme) -> None:
    """Replace kernels in a model, by place among the layers, by integers of so many bits."""
    import onnx

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    layers = weight_layers(model)
    for place, bits in widths.items():
        node = layers[place]
        name = node.input[1]
        kernel: Floats = onnx.numpy_helper.to_array(constants[name])
        axis = channel_axis(node) if scheme.per_channel else None
        steps, scale, zero = rounded(kernel, bits, axis, symmetric=scheme.weight_symmetric)
        made = [f"{name}.{place}.{part}" for part in ("steps", "scale", "zero", "real")]
        shape = [] if axis is None else [kernel.shape[axis]]
        graph.initializer.extend(
            [
                _integers(made[0], steps, kernel.shape, bits, signed=zero is None),
                onnx.numpy_helper.from_array(scale.reshape(shape), made[1]),
                *([] if zero is None else [_integers(made[2], zero, shape, bits, signed=False)]),
            ]
        )
        inputs = made[:2] if zero is None else made[:3]
        options: dict[str, Any] = {} if axis is None else {"axis": axis}
        graph.node.insert(
            list(graph.node).index(node),
            onnx.helper.make_node("DequantizeLinear", inputs, [made[3]], **options),
        )
        node.input[1] = made[3]
    used = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)


def channel_axis(node: Any) -> int:
    """Which dimension of a layer's kernel is that of its outputs."""
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else 1


def rounded(
    kernel: Floats, bits: int, axis: int | None, *, symmetric: bool
) -> tuple[NDArray[np.int64], Floats, NDArray[np.int64] | None]:
    """Integers, scale and zero point (None: 0), so that kernel ≈ (integers - zero) · scale.

    One scale for each index of `axis`, or one in all, with as many dimensions as the kernel.
    """
    dims = tuple(at for at in range(kernel.ndim) if at != axis)
    if symmetric:
        levels = 2 ** (bits - 1) - 1
        scale = np.abs(kernel).max(dims, keepdims=True) / np.float32(levels)
        scale = np.where(scale > 0, scale, np.float32(1))
        steps = np.clip(np.round(kernel / scale), -levels, levels)
        return steps.astype(np.int64), scale, None
    low = np.minimum(kernel.min(dims, keepdims=True), 0)
    high = np.maximum(kernel.max(dims, keepdims=True), 0)
    levels = 2**bits - 1
    scale = (high - low) / np.float32(levels)
    scale = np.where(scale > 0, scale, np.float32(1))
    zero = np.round(-low / scale)
    steps = np.clip(np.round(kernel / scale) + zero, 0, levels)
    return steps.astype(np.int64), scale, zero.astype(np.int64)


def _integers(name: str, values: NDArray[np.int64], shape: Any, bits: int, *, signed: bool) -> Any:
    import onnx

    kinds = {
        (8, True): onnx.TensorProto.INT8,
        (8, False): onnx.TensorProto.UINT8,
        (4, True): onnx.TensorProto.INT4,
        (4, False): onnx.TensorProto.UINT4,
    }
    held = (values.ravel() & (2**bits - 1)).astype(np.uint8)
    if bits == 4:  # two in a byte, the first in its low half
        held = np.append(held, np.zeros(len(held) % 2, np.uint8))
        held = held[::2] | held[1::2] << 4
    tensor = onnx.TensorProto(name=name, data_type=kinds[bits, signed], dims=shape)
    tensor.raw_data = held.tobytes()
    return tensor
