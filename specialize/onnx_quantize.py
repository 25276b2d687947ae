"""Quantization of an ONNX file with given ranges (onnxruntime, QDQ), by a scheme."""

from pathlib import Path
from typing import Any

from ..protos.inference import Ranges
from ..supernet.errors import ExportError
from .onnx_export import activations, shorten
from .onnx_weights import OPSET, hold_weights, weight_layers
from .ranges import with_width
from .scheme import FLOAT_BITS, INT8, QuantScheme, require, require_places
from .tflite import quiet


def quantize_onnx(source: Path, ranges: Ranges, target: Path, scheme: QuantScheme = INT8) -> None:
    """Write the quantized file of a float file: QDQ, float32 I/O.

    Weights of 8 bits beside integer activations keep 7: without VNNI, x86 processors add two products
    of 8 bits in 16, which overflows from 8-bit weights on (255 · 127 · 2 > 2¹⁵), and a file is to run
    on any device. ExportError names an activation without a range, and a scheme that the runtime
    lacks.
    """
    import onnx

    require(scheme, "onnx")
    model = onnx.load(str(source))
    static = scheme.activation_bits != FLOAT_BITS
    if static and (missing := sorted(activations(model) - ranges.keys())):
        raise ExportError(f"ONNX int8: no range for tensor {missing[0]}")
    layers = weight_layers(model)
    require_places(scheme, len(layers))
    apart = {
        place: scheme.bits(place)
        for place in range(len(layers))
        if not static or scheme.bits(place) != 8
    }
    names = [f"layer {place}" for place in apart]
    for place, name in zip(apart, names, strict=True):
        layers[place].name = name
    if scheme.activation_bits == 16 or any(bits == 4 for bits in apart.values()):
        with quiet():
            model = onnx.version_converter.convert_version(model, OPSET)
    hold_weights(model, {at: bits for at, bits in apart.items() if bits != FLOAT_BITS}, scheme)
    done = _with_integer_activations(model, ranges, names, scheme) if static else model
    shorten(done)
    target.write_bytes(done.SerializeToString(deterministic=True))


def kernel_shapes(source: Path) -> list[tuple[int, ...]]:
    """Of a file's convolutions and linear layers, in order."""
    import onnx

    model = onnx.load(str(source))
    dims = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return [dims[node.input[1]] for node in weight_layers(model)]


def _with_integer_activations(
    model: Any, ranges: Ranges, apart: list[str], scheme: QuantScheme
) -> Any:
    with quiet():
        import numpy as np
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.registry import QDQRegistry

        limits = {
            name: (np.float32(low), np.float32(high))
            for name, (low, high) in with_width(ranges).items()
        }
        wide, signed = scheme.activation_bits == 16, scheme.weight_symmetric
        options = {"ActivationSymmetric": True} if scheme.activation_symmetric else {}
        try:
            quantizer = QDQQuantizer(
                model,
                per_channel=scheme.per_channel,
                # In two bytes nothing is added by integer kernels; with a zero point, 8 bits fit.
                reduce_range=signed and not wide,
                weight_qType=QuantType.QInt8 if signed else QuantType.QUInt8,
                activation_qType=(
                    (QuantType.QInt16 if wide else QuantType.QInt8)
                    if signed
                    else (QuantType.QUInt16 if wide else QuantType.QUInt8)
                ),
                tensors_range=TensorsData(CalibrationMethod.MinMax, limits),
                nodes_to_quantize=[],
                nodes_to_exclude=apart,
                op_types_to_quantize=list(QDQRegistry),
                extra_options=options,
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()  # the format asks for it; the quantizer appends
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise ExportError(f"ONNX int8: {error}") from error
    return quantizer.model.model
