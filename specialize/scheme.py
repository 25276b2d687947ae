"""How a network's numbers are held in an exported file, and what each runtime takes of it.

What runs was found by running it: ai-edge-quantizer 0.10.0 with ai-edge-litert 2.3.0, onnxruntime
1.32.0; docs/quantization.md has the table. Refused is also what a converter accepts and then leaves
float without a word, as TFLite's does with integer arithmetic on asymmetric weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from ..supernet.errors import ExportError, UsageError

Format = Literal["tflite", "onnx"]
FLOAT_BITS = 32
WEIGHT_BITS = (FLOAT_BITS, 8, 4)
ACTIVATION_BITS = (FLOAT_BITS, 16, 8)
WIDE, NARROW = 8, 4
"""The widths that published files hold weights in, beside float."""


def _check(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if type(value) not in {type(one) for one in allowed} or value not in allowed:
        raise UsageError(f"{name} = {value!r}; allowed: {', '.join(map(str, allowed))}")


@dataclass(frozen=True, slots=True)
class QuantScheme:
    """Widths of weights and activations; 32 is float. The default is int8 as every runtime has it.

    `layers` gives layers weights of another width than `weight_bits`, by their place among the
    convolutions and linear layers in the order in which the file runs them. Symmetric means that a
    real 0 is the integer 0. Biases are int32 beside integer activations, else float.
    """

    weight_bits: int = 8
    per_channel: bool = True
    weight_symmetric: bool = True
    activation_bits: int = 8
    activation_symmetric: bool = False
    layers: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, allowed in (("weight_bits", WEIGHT_BITS), ("activation_bits", ACTIVATION_BITS)):
            _check(name, getattr(self, name), allowed)
        for name in ("per_channel", "weight_symmetric", "activation_symmetric"):
            _check(name, getattr(self, name), (False, True))
        for place, bits in self.layers.items():
            if type(place) is not int or place < 0:
                raise UsageError(f"layers: {place!r}; the place of a layer is expected, from 0 on")
            _check(f"layers: {place}", bits, WEIGHT_BITS)

    def bits(self, place: int) -> int:
        """Width of a layer's weights."""
        return self.layers.get(place, self.weight_bits)

    def __str__(self) -> str:
        def sign(symmetric: bool) -> str:
            return "" if symmetric else "a"

        per = "channel" if self.per_channel else "tensor"
        mixed = f", {len(self.layers)} layers otherwise" if self.layers else ""
        return (
            f"w{self.weight_bits}{sign(self.weight_symmetric)}/{per} "
            f"a{self.activation_bits}{sign(self.activation_symmetric)}{mixed}"
        )


INT8 = QuantScheme()


@dataclass(frozen=True, slots=True)
class _Gap:
    """A combination that a runtime lacks: the field to blame, and what to do instead."""

    field: str
    lacks: Callable[[QuantScheme], bool]
    instead: str


_GAPS: Mapping[Format, tuple[_Gap, ...]] = MappingProxyType(
    {
        "tflite": (
            _Gap(
                "weight_symmetric",
                lambda s: not s.weight_symmetric and s.activation_bits != FLOAT_BITS,
                "LiteRT's integer kernels take no zero point of a weight; use "
                "weight_symmetric = true, or activation_bits = 32",
            ),
            _Gap(
                "activation_symmetric",
                lambda s: s.activation_bits == 16 and not s.activation_symmetric,
                "LiteRT's 16-bit kernels take no zero point; use activation_symmetric = true",
            ),
        ),
        "onnx": (
            _Gap(
                "activation_symmetric",
                lambda s: (
                    s.activation_bits == 8 and not s.weight_symmetric and s.activation_symmetric
                ),
                "ONNX Runtime's kernels for weights with a zero point take unsigned activations; use "
                "activation_symmetric = false, or weight_symmetric = true",
            ),
        ),
    }
)


def require(scheme: QuantScheme, form: Format) -> None:
    """ExportError names runtime, field and way out where the runtime lacks the scheme."""
    runtime = {"tflite": "LiteRT", "onnx": "ONNX Runtime"}[form]
    if scheme.activation_bits != FLOAT_BITS and scheme.weight_bits == FLOAT_BITS:
        raise ExportError(
            f"{runtime}: weight_bits = 32 beside activation_bits = {scheme.activation_bits}; no "
            "kernel mixes them: use weight_bits = 8 or 4, or activation_bits = 32"
        )
    for gap in _GAPS[form]:
        if gap.lacks(scheme):
            value = getattr(scheme, gap.field)
            raise ExportError(f"{runtime}: {gap.field} = {value} in {scheme}; {gap.instead}")


def require_places(scheme: QuantScheme, layers: int) -> None:
    """ExportError where `layers` names one that the network does not have."""
    if beyond := sorted(place for place in scheme.layers if place >= layers):
        raise ExportError(f"layers: {beyond[0]}; the network has the layers 0 to {layers - 1}")
