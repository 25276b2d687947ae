"""An exported file's size from the layers' sizes, without building or exporting anything.

What grows with the network is exact, from the formats. With W weights, C output channels of all
convolutions and linear layers, B those with a bias (a folded normalization is one), and D the sum
of the distinct channel counts:

- float files: 4 bytes a weight and a bias; TFLite adds a bias where the network has none.
- int8 files: 1 byte a weight; 4 a bias, 4 a channel for the weight's scale, 4 for the bias's;
  zero points are all 0 and written once per channel count, as 8 bytes in TFLite and as 1 (weights)
  and 4 (biases) in ONNX.

- 4-bit files: half a byte a weight, but for kernels over one channel, which have one. TFLite's are
  else like int8 files; ONNX's keep float biases, and have 4 bytes a channel for the weight's scale.

The rest, operators and the tensors' descriptions, is counted per kind of operator. Those bytes were
fitted by least squares to 54 exported networks of the digits and small spaces and of random ones
(1.5 kB to 400 kB; litert-torch 0.10.0, ai-edge-quantizer 0.10.0, torch 2.13.0, onnxruntime 1.32.0):
within 1.6 % on all of them, and within 1.8 % on 27 when fitted to the other 27. Those of 4-bit ONNX
files were fitted to 42 networks of seven spaces (1 kB to 95 kB), residual, temporal and multilayer ones
among them: within 1.0 %, and within 2.9 % on every other when fitted to the rest; TFLite's are those of
int8 files, within 0.7 % on 24. Files of the residual
family with batch normalization are within 2.0 % of it (50 networks).

Vision transformers, whose tables state what a file holds of them (`stored`), have bytes per half of
a block instead, fitted to 65 random ones in the same way (5 kB to 400 kB): within 2.3 % on all,
within 5.2 % on either half when fitted to the other, and within 0.4 % on AutoFormer's tiny network,
whose files are about 50 times as large as the largest of them; of another twelve random ones one TFLite
int8 file was 6.4 % larger than predicted (98 kB, single heads and blocks without attention). Those of
4-bit files are int8's in TFLite, and in ONNX float files' with 75 bytes for each layer: within 2.3 % of
six more in ONNX, within 5.8 % in TFLite, where int8 files are as far off. Their values differ in three ways:
TFLite's converter folds a layer normalization into the linear layers that read all of it, and
ONNX's int8 files keep linear layers' biases and tables that are added as floats, and of a
normalization's two vectors 1 and 4 bytes an element.

Not covered: group normalization, and attention in a user's own network, are several operators each,
and such files are larger than predicted, up to several times. A file that breaks its class's bound
is still refused when it is published.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

from ..protos.manifest import INT4S, INTS, FileKind
from ..supernet.cost import LayerPlan
from .scheme import NARROW


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
        "tflite_int4": Overhead(file=745, layer=334, pool=272, activation=123, pad=246),
        "onnx_int4": Overhead(file=33, layer=255, pool=149, activation=-64, window=-32),
    }
)
SEPARATE: Mapping[FileKind, tuple[str, ...]] = MappingProxyType(
    {
        "tflite_fp32": ("hswish",),
        "tflite_int8": ("hswish",),
        "onnx_fp32": ("hswish", "relu", "hsigmoid"),
        "onnx_int8": ("hswish", "hsigmoid"),
        "tflite_int4": ("hswish",),
        "onnx_int4": ("hswish", "relu", "relu6", "hsigmoid"),
    }
)
"""Activations that are not merged into the layer before them (the gate's is in `layer`)."""


@dataclass(frozen=True, slots=True)
class TransformerOverhead:
    """Bytes of a file with patch embedding and head, of each attention (a norm, four layers, two
    products), each MLP (a norm, two layers), each reduction, and each attention's relative
    positions; `one_head` and `one_head_positions` are added where an attention has a single head,
    which need not be put in order.
    """

    file: int
    attention: int
    mlp: int
    reduction: int
    positions: int
    one_head: int
    one_head_positions: int


TRANSFORMER_OVERHEAD: Mapping[FileKind, TransformerOverhead] = MappingProxyType(
    {
        "tflite_fp32": TransformerOverhead(4150, 3614, 1773, 4222, 5526, -1154, -862),
        "tflite_int8": TransformerOverhead(5105, 4384, 2132, 5231, 7174, -1268, -1200),
        "onnx_fp32": TransformerOverhead(901, 1424, 516, 1364, 2342, -22, -99),
        "onnx_int8": TransformerOverhead(2420, 3671, 1363, 3547, 6216, 1, -174),
        "tflite_int4": TransformerOverhead(5105, 4384, 2132, 5231, 7174, -1268, -1200),
        "onnx_int4": TransformerOverhead(1051, 1724, 666, 1514, 2902, -22, -99),
    }
)


STATED_ERROR, TRANSFORMER_STATED_ERROR = 0.02, 0.065
"""The most that a file was larger than predicted, of all those above, as a part of the prediction."""
KERNELS = ("conv", "depthwise", "linear")
"""Kinds of layers that have weights of their own."""


def predicted_size_bytes(kind: FileKind, plans: Sequence[LayerPlan]) -> int:
    """Size of the file of that kind of a network with these layers."""
    if any(plan.stored is not None for plan in plans):
        return _transformer_values_bytes(kind, plans) + _transformer_overhead_bytes(kind, plans)
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


def stated_error(plans: Sequence[LayerPlan]) -> float:
    """How much larger than predicted a file of a network with these layers may be, as a part of it."""
    transformer = any(plan.stored is not None for plan in plans)
    return TRANSFORMER_STATED_ERROR if transformer else STATED_ERROR


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
    if kind == "tflite_int4":
        return _narrow_bytes(layers) + 12 * channels + 8 * distinct
    if kind == "onnx_int4":
        return _narrow_bytes(layers) + 4 * (channels + biased)
    return weights + 4 * channels + 8 * biased + 5 * distinct


def _narrow_bytes(layers: Sequence[LayerPlan]) -> int:
    """Of weights in 4 bits, two in a byte; kernels over one channel keep a byte each."""
    return sum(
        plan.weights if _is_over_one_channel(plan) else -(-plan.weights // 2) for plan in layers
    )


def _is_over_one_channel(plan: LayerPlan) -> bool:
    return plan.kind == "depthwise" or (plan.kind == "conv" and plan.in_per_group == 1)


def _transformer_overhead_bytes(kind: FileKind, plans: Sequence[LayerPlan]) -> int:
    each = TRANSFORMER_OVERHEAD[kind]
    attentions = [plan for plan in plans if plan.act == "softmax"]
    positions = [plan for plan in plans if plan.kind == "table" and plan.other_macs]
    return (
        each.file
        + each.attention * len(attentions)
        + each.mlp * sum(plan.act == "gelu" for plan in plans)
        + each.reduction * sum(plan.kind == "pool" for plan in plans)
        + each.positions * len(positions) // 2  # on keys and on values
        + each.one_head * sum(plan.out_channels == 1 for plan in attentions)
        + each.one_head_positions * sum(plan.out_channels == 1 for plan in positions)
    )


def _transformer_values_bytes(kind: FileKind, plans: Sequence[LayerPlan]) -> int:
    layers = [plan for plan in plans if plan.kind in ("conv", "linear")]
    weights = sum(plan.weights for plan in layers)
    channels = sum(plan.out_channels for plan in layers)
    distinct = sum({plan.out_channels for plan in layers})
    norms = sum(plan.other_params for plan in plans if plan.kind == "norm")
    added, multiplied = (
        sum(_stored(plan) for plan in plans if plan.kind == "table" and bool(plan.other_macs) is of)
        for of in (False, True)
    )
    if kind == "tflite_fp32":
        return 4 * (weights + channels + added + multiplied + _unfolded_norms(plans))
    if kind == "onnx_fp32":
        return 4 * (weights + channels + added + multiplied + norms)
    if kind == "onnx_int4":
        return _narrow_bytes(layers) + multiplied // 2 + 4 * (2 * channels + added + norms)
    if kind == "tflite_int4":
        held = _narrow_bytes(layers) + multiplied // 2
        return held + 12 * channels + 8 * distinct + added + _unfolded_norms(plans)
    if kind == "tflite_int8":
        tables = added + multiplied + _unfolded_norms(plans)
        return weights + 12 * channels + 8 * distinct + tables
    convolved = sum(plan.out_channels for plan in layers if plan.kind == "conv")
    vectors = 8 * channels + 4 * convolved + distinct
    return weights + vectors + 4 * added + multiplied + 5 * norms // 2


def _stored(plan: LayerPlan) -> int:
    return plan.other_params if plan.stored is None else plan.stored


def _unfolded_norms(plans: Sequence[LayerPlan]) -> int:
    """Parameters of the normalizations of which the next layer reads a part only."""
    return sum(
        norm.other_params
        for norm, after in pairwise(plans)
        if norm.kind == "norm"
        and not (
            after.kind == "linear" and after.in_elements == norm.out_elements == norm.in_elements
        )
    )


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


def largest_bytes(formats: Sequence[str], plans: Sequence[LayerPlan], bits: int) -> int:
    """Predicted size of the larger file of 8- or 4-bit weights of these formats (`tflite`, `onnx`)."""
    kinds = INT4S if bits == NARROW else INTS
    return max(predicted_size_bytes(kinds[form], plans) for form in formats)
