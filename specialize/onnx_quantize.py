"""Quantization of an ONNX file with given ranges (onnxruntime, QDQ), by a scheme."""

from pathlib import Path
from typing import Any

from ..protos.inference import Ranges
from ..supernet.errors import ExportError
from .onnx_export import activations, shorten
from .onnx_weights import OPSET, channel_axis, hold_weights, rounded, weight_layers
from .ranges import with_width
from .scheme import FLOAT_BITS, INT8, QuantScheme, require, require_places
from .tflite import quiet

MIDDLE = 128
"""What stands for 0 in symmetric weights of unsigned bytes."""
LARGEST_BIAS = 0.99 * 2**31


def quantize_onnx(source: Path, ranges: Ranges, target: Path, scheme: QuantScheme = INT8) -> None:
    """Write the quantized file of a float file: QDQ, float32 I/O.

    Weights of 8 bits are symmetric about 128, beside unsigned activations. Signed ones would keep 7 bits:
    without VNNI, x86 processors add two products of an unsigned and a signed number in 16 bits, which
    overflows from 8-bit weights on (255 · 127 · 2 > 2¹⁵), and a file is to run on any device. ONNX Runtime
    multiplies two unsigned ones otherwise. ExportError names an activation without a range, and a scheme
    that the runtime lacks.
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


def _about_the_middle(
    model: Any, apart: list[str], ranges: Ranges, *, per_channel: bool
) -> dict[str, Any]:
    """Steps of max|w| / 127 about 128 for each kernel, also of channels whose weights are all 0.

    The quantizer's own would be 0.4 % larger, and 0 stand for 0 in such channels; integer kernels take
    one zero point for all channels. Nor would it, with a zero point, see to it that a bias, which is
    counted in steps of input times kernel, fits four bytes: a channel of nearly no weights has larger ones.
    """
    import numpy as np
    from onnx import numpy_helper
    from onnxruntime.quantization import QuantType

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, Any] = {}
    for node in weight_layers(model):
        if node.name in apart:
            continue
        kernel = numpy_helper.to_array(constants[node.input[1]])
        axis = channel_axis(node) if per_channel else None
        _, scale, _ = rounded(kernel, 8, axis, symmetric=True)
        steps = scale.ravel()
        if len(node.input) > 2 and node.input[2] in constants:
            low, high = ranges[node.input[0]]
            most = LARGEST_BIAS * (max(high, 0.0) - min(low, 0.0)) / 255
            bias = np.abs(numpy_helper.to_array(constants[node.input[2]])).ravel() / most
            steps = np.maximum(steps, (bias if per_channel else bias.max()).astype(np.float32))
        of = {"quant_type": QuantType.QUInt8, "zero_point": MIDDLE}
        where = {} if axis is None else {"axis": axis}
        found[node.input[1]] = [{**of, **where, "scale": step} for step in steps]
    return found


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
        wide, symmetric = scheme.activation_bits == 16, scheme.weight_symmetric
        # Unsigned on both sides unless a scheme has no zero points at all: see `quantize_onnx`.
        signed = symmetric and (wide or scheme.activation_symmetric)
        options: dict[str, Any] = {"ActivationSymmetric": scheme.activation_symmetric}
        if symmetric and not signed:
            steps = _about_the_middle(
                model, apart, with_width(ranges), per_channel=scheme.per_channel
            )
            options["TensorQuantOverrides"] = steps
        try:
            quantizer = QDQQuantizer(
                model,
                per_channel=scheme.per_channel,
                # In two bytes nothing is added by integer kernels; unsigned, 8 bits fit.
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
