"""What an architecture costs, computed from its layer sizes without building any weight.

MACs count convolutions and linear layers, squeeze-and-excitation included, not normalization or
activations (the count that the once-for-all and AttentiveNAS tables use).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Literal

from .errors import UsageError
from .space import Arch, Space

FLOAT_BYTES = 4
KEEPS_OUTPUT = ("hswish", "hsigmoid", "silu", "gelu", "softmax")
"""Activations that autograd differentiates with a tensor of their own, besides the next input."""


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """Sizes of one executed layer, for one example.

    `in_per_group` and `kernel_area` are 0 for what has no kernel: a pooling, a layer normalization
    of its own (`norm`), a product of two activations (`matmul`), a learned table that is added
    (`table`). Such a layer states its parameters and multiplications in `other_params` and
    `other_macs`. `held` counts the elements of other tensors that must stay alive while the layer
    runs (a residual's input, the tensor that squeeze-and-excitation will scale). `norm` and `act`
    say what follows in place; `reread`, that a pooling's input is read again later, so that
    autograd keeps it. `kept` states the elements that autograd keeps where that is anything else
    than the input and what normalization and activation saw: an input that several layers share is
    kept once. `stored` states the elements that an exported file holds where those are not
    `other_params`: a table that is spread out there.
    """

    name: str
    kind: Literal["conv", "depthwise", "linear", "pool", "norm", "matmul", "table"]
    out_channels: int
    in_per_group: int
    kernel_area: int
    in_elements: int
    out_elements: int
    bias: bool = False
    norm: bool = False
    act: str = ""
    held: int = 0
    reread: bool = False
    other_params: int = 0
    other_macs: int = 0
    kept: int | None = None
    stored: int | None = None

    @property
    def weights(self) -> int:
        """Elements of the layer's kernel."""
        return self.out_channels * self.in_per_group * self.kernel_area

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one example."""
        positions = self.out_elements // self.out_channels
        return self.weights * positions + self.other_macs

    @property
    def params(self) -> int:
        """Kernel, bias, the two vectors of the normalization that follows, and the others."""
        vectors = int(self.bias) + 2 * int(self.norm)
        return self.weights + vectors * self.out_channels + self.other_params


@dataclass(frozen=True, slots=True)
class Cost:
    """MACs and parameters of one example's forward pass, and memory in bytes.

    `peak_activation_bytes`: float32, batch 1, the largest sum of tensors alive at once, with
    normalization, activation, scaling and addition done in place. `train_memory_bytes`: weights,
    gradients and momentum, and the activations kept for the backward pass, per `batch` examples.
    """

    macs: int
    params: int
    peak_activation_bytes: int
    train_activation_bytes: int

    def train_memory_bytes(self, batch: int) -> int:
        """Memory to train with this batch size, with one momentum buffer."""
        return 3 * FLOAT_BYTES * self.params + batch * self.train_activation_bytes

    def to_dict(self) -> dict[str, int]:
        """Plain numbers, for reports."""
        return asdict(self)


@lru_cache(maxsize=65536)
def cost(space: Space, arch: Arch) -> Cost:
    """The exact cost of one architecture."""
    plans = space.layers(arch)
    return Cost(
        macs=sum(plan.macs for plan in plans),
        params=sum(plan.params for plan in plans),
        peak_activation_bytes=FLOAT_BYTES
        * max(plan.in_elements + plan.out_elements + plan.held for plan in plans),
        train_activation_bytes=FLOAT_BYTES * sum(_kept(plan) for plan in plans),
    )


def _kept(plan: LayerPlan) -> int:
    """Elements that autograd keeps: the layer's input, and what normalization and activation saw.

    A ReLU keeps its output only, which is the next layer's input and counted there; a mean keeps
    nothing.
    """
    if plan.kept is not None:
        return plan.kept
    keeps_input = plan.reread or plan.kind not in ("pool", "table")
    inputs = plan.in_elements if keeps_input else 0
    outputs = int(plan.norm) + int(plan.act in KEEPS_OUTPUT)
    return inputs + outputs * plan.out_elements


@dataclass(frozen=True, slots=True)
class Budget:
    """Upper bounds on a subnet; None is no bound. Memory is for training with `batch` examples.

    `latency_ms` is of one run on one example, on the device; every other bound is a whole number.
    """

    macs: int | None = None
    params: int | None = None
    train_memory_bytes: int | None = None
    peak_activation_bytes: int | None = None
    file_bytes: int | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            bound = getattr(self, field.name)
            if bound is None:
                continue
            if field.name == "latency_ms":
                if not (isinstance(bound, int | float) and 0 < bound < math.inf):
                    raise UsageError(f"budget: latency_ms = {bound!r}; a number above 0 expected")
            elif not isinstance(bound, int) or bound <= 0:
                raise UsageError(
                    f"budget: {field.name} = {bound!r}; a whole number above 0 expected"
                )

    def excess(
        self,
        spent: Cost,
        batch: int = 1,
        file_bytes: int | None = None,
        latency_ms: float | None = None,
    ) -> list[str]:
        """The bounds that a cost breaks, as `name have > bound`; empty when it fits.

        What is not known is not compared.
        """
        have: dict[str, float | None] = {
            "macs": spent.macs,
            "params": spent.params,
            "train_memory_bytes": spent.train_memory_bytes(batch),
            "peak_activation_bytes": spent.peak_activation_bytes,
            "file_bytes": file_bytes,
            "latency_ms": latency_ms,
        }
        return [
            f"{name} {value:.6g} > {bound}"
            if isinstance(value, float)
            else f"{name} {value} > {bound}"
            for name, value in have.items()
            if value is not None and (bound := getattr(self, name)) is not None and value > bound
        ]

    def fits(self, spent: Cost, batch: int = 1, file_bytes: int | None = None) -> bool:
        """Whether a cost breaks no bound."""
        return not self.excess(spent, batch, file_bytes)

    def tightened(self, other: "Budget") -> "Budget":
        """The smaller of both bounds, field by field."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return Budget(
            **{
                name: min((b for b in bounds if b is not None), default=None)
                for name, bounds in pairs.items()
            }
        )

    def to_dict(self) -> dict[str, int | float]:
        """The bounds that are set."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}

    @classmethod
    def from_dict(cls, bounds: Mapping[str, int | float]) -> "Budget":
        """Read `to_dict`'s form; UsageError names an unknown bound."""
        known = [field.name for field in fields(cls)]
        for name in bounds:
            if name not in known:
                raise UsageError(f"budget: unknown bound {name!r}; known: {', '.join(known)}")
        return cls(**bounds)  # type: ignore[arg-type]
