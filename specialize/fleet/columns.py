"""What a subnet is known by when a fleet is planned: numbers under names, each worked out once.

`macs`, `params`, `peak_activation_bytes` are the cost model's; `file_bytes:KIND` is the most that a file of
that kind is reckoned to have; `operator:NAME` how many layers use an operator. `latency_ms:RUNTIME` and
`energy_mj:RUNTIME` are a runtime's own, as its measurements and its energy per operation say.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...protos.manifest import FileKind
from ...supernet.cost import Cost, LayerPlan, cost
from ...supernet.space import Arch, Space
from ..filesize import predicted_size_bytes, stated_error
from .table import Vector

EXACT = ("macs", "params", "peak_activation_bytes")
VALUE_BYTES: Mapping[FileKind, tuple[float, float]] = {
    "tflite_int8": (1, 1),
    "onnx_int8": (1, 1),
    "tflite_int4": (0.5, 1),
    "onnx_int4": (0.5, 4),
    "tflite_fp32": (4, 4),
    "onnx_fp32": (4, 4),
}
"""Of a parameter, and of an activation; the few kernels of 8 bits in a file of 4 are not told apart."""
PJ_PER_MJ = 1e9
BEYOND = 1e90
"""Stands for a prediction that is no number of 0 or more: more than any bound allows."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A subnet with its layers and its cost, which most columns are made of."""

    arch: Arch
    plans: tuple[LayerPlan, ...]
    cost: Cost


Figure = Callable[[Seen], float]


def file_bytes(kind: FileKind, measured: float = 0.0) -> Figure:
    """The most bytes that a file of that kind is reckoned to have: its predicted size and the error.

    The best subnet under a bound lies right at it, where every second file would be too large without.
    `measured`: the most that an exported file was, over its predicted size; where that is beyond the
    stated error, prediction is off as a whole, and the error comes on top of it.
    """

    def of(seen: Seen) -> float:
        room = 1 + stated_error(seen.plans)
        more = room * measured if measured > room else room
        return float(math.ceil(predicted_size_bytes(kind, seen.plans) * more))

    return of


def operator(name: str) -> Figure:
    """How many layers are of that kind, or followed by that activation."""
    return lambda seen: float(sum(name in (plan.kind, plan.act) for plan in seen.plans))


def operators(space: Space) -> tuple[str, ...]:
    """The operators of the space's largest and smallest subnet."""
    plans = [*space.layers(space.largest()), *space.layers(space.smallest())]
    return tuple(sorted({name for p in plans for name in (p.kind, p.act) if name}))


def latency(predict_s: Callable[[Arch], float]) -> Figure:
    """Milliseconds, of a predictor of seconds."""
    return lambda seen: 1e3 * predict_s(seen.arch)


def energy(kind: FileKind, pj_per_mac: float, pj_per_byte: float) -> Figure:
    """Millijoules of one run: an estimate by counting (Horowitz, ISSCC 2014).

        pj_per_mac · MACs + pj_per_byte · (bytes of parameters + bytes that layers read and write)

    with 1 byte a value for int8 files and 4 for float ones; a parameter of 4 bits has half a byte. Every parameter and activation is counted as
    moved once for each layer that uses it; caches, idle power and the processor's other work are not seen.
    """
    parameter_bytes, value_bytes = VALUE_BYTES[kind]

    def of(seen: Seen) -> float:
        moved = sum(plan.in_elements + plan.out_elements for plan in seen.plans)
        traffic_bytes = parameter_bytes * seen.cost.params + value_bytes * moved
        return (pj_per_mac * seen.cost.macs + pj_per_byte * traffic_bytes) / PJ_PER_MJ

    return of


@dataclass(slots=True)
class Columns:
    """Works out and remembers the columns of subnets; `figures`: further columns by name."""

    space: Space
    figures: Mapping[str, Figure]
    _known: dict[Arch, tuple[float, ...]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """All columns, the exact ones first."""
        return (*EXACT, *self.figures)

    def of(self, arch: Arch) -> tuple[float, ...]:
        """Every column of one subnet.

        What is predicted as no number of 0 or more counts as `BEYOND`: it keeps the subnet from those
        devices only that bound that column.
        """
        if arch not in self._known:
            spent = cost(self.space, arch)
            seen = Seen(arch, self.space.layers(arch), spent)
            exact = [float(getattr(spent, name)) for name in EXACT]
            told = (figure(seen) for figure in self.figures.values())
            others = (value if 0 <= value < BEYOND else BEYOND for value in told)
            self._known[arch] = (*exact, *others)
        return self._known[arch]

    def some(self, names: Iterable[str]) -> Callable[[Arch], tuple[float, ...]]:
        """These columns of a subnet."""
        places = [self.names.index(name) for name in names]

        def of(arch: Arch) -> tuple[float, ...]:
            row = self.of(arch)
            return tuple(row[place] for place in places)

        return of

    def table(self, archs: Sequence[Arch]) -> dict[str, Vector]:
        """Column → (C,)."""
        rows = np.array([self.of(arch) for arch in archs], dtype=np.float64)
        return dict(zip(self.names, rows.T, strict=True))
