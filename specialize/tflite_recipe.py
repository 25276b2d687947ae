"""A scheme as ai-edge-quantizer's recipe, layer by layer where layers differ.

An operator is addressed by the name of its output, as the quantizer does it; a later entry counts
more than an earlier one, and one that the quantizer's policy does not have for an operator is passed
over. So is 4 bits for a depthwise convolution: those layers keep 8 (its kernel for 4 bits gives
wrong sums beside 16-bit activations).
"""

from collections.abc import Sequence
from typing import Any

from .scheme import FLOAT_BITS, QuantScheme
from .tflite_file import DEPTHWISE, code_of, weight_layers

LEAST_DEPTHWISE_BITS = 8


def recipe(model: Any, scheme: QuantScheme) -> list[dict[str, Any]]:
    """The recipe for a float model; `model` has its short names."""
    widths = layer_bits(model, scheme)
    graph = model.subgraphs[0]
    found = [_entry(".*", scheme, scheme.weight_bits)] if scheme.weight_bits != FLOAT_BITS else []
    for operator, bits in zip(weight_layers(model), widths, strict=True):
        if bits != scheme.weight_bits:
            name = graph.tensors[operator.outputs[0]].name.decode()
            found.append(_entry(f"^{name};", scheme, bits))
    if scheme.weight_bits < LEAST_DEPTHWISE_BITS and scheme.activation_bits != FLOAT_BITS:
        # What holds no weights is quantized by the activations' width alone.
        found.insert(0, _entry(".*", scheme, LEAST_DEPTHWISE_BITS))
        found[1] = {
            **found[1],
            "regex": ".+",
        }  # a second entry for the same scope replaces the first
    return found


def layer_bits(model: Any, scheme: QuantScheme) -> list[int]:
    """Width of each layer's weights as the file will hold them."""
    return [
        max(bits, LEAST_DEPTHWISE_BITS) if code_of(model, operator) == DEPTHWISE else bits
        for place, operator in enumerate(weight_layers(model))
        for bits in [scheme.bits(place)]
    ]


def steps(widths: Sequence[int]) -> list[int]:
    """Levels on either side of 0, of each width."""
    return [2 ** (min(bits, 8) - 1) - 1 for bits in widths]


def _entry(scope: str, scheme: QuantScheme, bits: int) -> dict[str, Any]:
    entry = {"regex": scope, "operation": "*"}
    if bits == FLOAT_BITS:
        return {**entry, "algorithm_key": "no_quantize", "op_config": {}}
    weights = {
        "num_bits": bits,
        "symmetric": scheme.weight_symmetric,
        "granularity": "CHANNELWISE" if scheme.per_channel else "TENSORWISE",
        "dtype": "INT",
    }
    config: dict[str, Any] = {
        "weight_tensor_config": weights,
        "compute_precision": "FLOAT",
        "explicit_dequantize": True,
        "skip_checks": False,
        "min_weight_elements": 0,
    }
    if scheme.activation_bits != FLOAT_BITS:
        config["activation_tensor_config"] = {
            "num_bits": scheme.activation_bits,
            "symmetric": scheme.activation_symmetric,
            "granularity": "TENSORWISE",
            "dtype": "INT",
        }
        config |= {"compute_precision": "INTEGER", "explicit_dequantize": False}
    return {**entry, "algorithm_key": "min_max_uniform_quantize", "op_config": config}
