"""An exported file's size from the layers' sizes, without building or exporting anything.

What grows with the network is exact, from the formats. With W weights, C output channels of all
convolutions and linear layers, B those with a bias (a folded normalization is one), and D the sum
of the distinct channel counts:

- float files: 4 bytes a weight and a bias; TFLite adds a bias where the network has none.
- int8 files: 1 byte a weight; 4 a bias, 4 a channel for the weight's scale, 4 for the bias's;
  zero points are all 0 and written once per channel count, as 8 bytes in TFLite and as 1 (weights)
  and 4 (biases) in ONNX.

The rest, operators and the tensors' descriptions, is counted per kind of operator. Those bytes were
fitted by least squares to 54 exported networks of the digits and small spaces and of random ones
(1.5 kB to 400 kB; litert-torch 0.10.0, ai-edge-quantizer 0.10.0, torch 2.13.0, onnxruntime 1.32.0):
within 1.6 % on all of them, and within 1.8 % on 27 when fitted to the other 27. Files of the residual
family with batch normalization are within 2.0 % of it (50 networks).

Not covered: layer and group normalization, attention and its tables are several operators each, and
files of such networks are larger than predicted, up to several times. A file that breaks its class's
bound is still refused when it is published.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ..protos.manifest import FileKind
from ..supernet.cost import LayerPlan


@dataclass(frozen=True, slots=True)
class Overhead:
    """Bytes of a file itself, of each layer with weights, each pooling, and each activation that
    is an operator of its own; `pad` of each explicit padding (TFLite), `window` of each kernel
    larger than 1×1 (ONNX).
    """

    file: int
    layer: int
    pool: int
    activation: int
    pad: int = 0
    window: int = 0


OVERHEAD: Mapping[FileKind, Overhead] = MappingProxyType(
    {
        "tflite_fp32": Overhead(file=698, layer=275, pool=185, activation=74, pad=235),
        "tflite_int8": Overhead(file=745, layer=334, pool=272, activation=123, pad=246),
        "onnx_fp32": Overhead(file=94, layer=86, pool=144, activation=39, window=47),
        "onnx_int8": Overhead(file=-28, layer=375, pool=179, activation=155, window=137),
    }
)
SEPARATE: Mapping[FileKind, tuple[str, ...]] = MappingProxyType(
    {
        "tflite_fp32": ("hswish",),
        "tflite_int8": ("hswish",),
        "onnx_fp32": ("hswish", "relu", "hsigmoid"),
        "onnx_int8": ("hswish", "hsigmoid"),
    }
)
"""Activations that are not merged into the layer before them (the gate's is in `layer`)."""


KERNELS = ("conv", "depthwise", "linear")
"""Kinds of layers that have weights of their own."""


def predicted_size_bytes(kind: FileKind, plans: Sequence[LayerPlan]) -> int:
    """Size of the file of that kind of a network with these layers."""
    layers = [plan for plan in plans if plan.kind in KERNELS]
    pools = sum(plan.kind == "pool" for plan in plans)
    each = OVERHEAD[kind]
    return (
        _values_bytes(kind, layers)
        + each.file
        + each.layer * len(layers)
        + each.pool * pools
        + each.activation * sum(plan.act in SEPARATE[kind] for plan in layers)
        + each.pad * sum(_is_padded(plan) for plan in layers)
        + each.window * sum(plan.kernel_area > 1 for plan in layers)
    )


def _values_bytes(kind: FileKind, layers: Sequence[LayerPlan]) -> int:
    weights = sum(plan.weights for plan in layers)
    channels = sum(plan.out_channels for plan in layers)
    biased = sum(plan.out_channels for plan in layers if plan.bias or plan.norm)
    distinct = sum({plan.out_channels for plan in layers})
    if kind == "tflite_fp32":
        return 4 * (weights + channels)
    if kind == "onnx_fp32":
        return 4 * (weights + biased)
    if kind == "tflite_int8":
        return weights + 12 * channels + 8 * distinct
    return weights + 4 * channels + 8 * biased + 5 * distinct


def _is_padded(plan: LayerPlan) -> bool:
    """Whether TFLite's 'same' padding is not what torch pads, k // 2 on both sides.

    They differ where a stride meets an even number of pixels: a padding operator comes before it.
    """
    if plan.kernel_area <= 1:
        return False
    kernel = math.isqrt(plan.kernel_area)
    channels = plan.out_channels if plan.kind == "depthwise" else plan.in_per_group
    pixels_in = math.isqrt(plan.in_elements // channels)
    pixels_out = math.isqrt(plan.out_elements // plan.out_channels)
    stride = -(-pixels_in // pixels_out)
    same = max((pixels_out - 1) * stride + kernel - pixels_in, 0)
    return same != 2 * (kernel // 2)


def largest_int8_bytes(formats: Sequence[str], plans: Sequence[LayerPlan]) -> int:
    """Predicted size of the larger int8 file of these formats (`tflite`, `onnx`)."""
    kinds: dict[str, FileKind] = {"tflite": "tflite_int8", "onnx": "onnx_int8"}
    return max(predicted_size_bytes(kinds[form], plans) for form in formats)
