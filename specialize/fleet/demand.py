"""What a device can take, as upper bounds on columns of numbers that candidates are known by.

Devices say latency in milliseconds and energy in millijoules. What a device of its runtime was measured
with, scaled by the device's own speed, is a column times a factor; so every bound is

    column × factor ≤ limit,

and ten thousand devices with speeds of their own need no columns of their own.
"""

import math
from dataclasses import dataclass

from ...protos.manifest import FileKind
from ...supernet.errors import UsageError

LEAST, MOST = 1e-30, 1e30
"""Beyond these no quotient of two numbers is exact enough to be a bound."""


@dataclass(frozen=True, slots=True)
class Bound:
    """`name` as the device's owner knows it; a candidate spends `column` × `factor` of it."""

    name: str
    limit: float
    column: str
    factor: float = 1.0

    def __post_init__(self) -> None:
        for what, value in (("limit", self.limit), ("factor", self.factor)):
            if not LEAST <= value <= MOST:
                raise UsageError(
                    f"budget: {self.name}: {what} = {value:g}; a number from {LEAST:g} to {MOST:g} "
                    "expected"
                )

    def spent(self, value: float) -> float:
        """What a candidate with this value in the column spends, in the bound's unit."""
        return value * self.factor

    @property
    def most(self) -> float:
        """The largest value of the column that keeps the bound, to the last bit."""
        found = self.limit / self.factor
        while found * self.factor > self.limit:
            found = math.nextafter(found, 0.0)
        while (above := math.nextafter(found, math.inf)) * self.factor <= self.limit:
            found = above
        return found


@dataclass(frozen=True, slots=True)
class Demand:
    """One device, or one model of a gateway: the kind of file that it runs, and its bounds.

    `lacks` are columns that must be 0: how often an operator is used that its runtime has not.
    `weight` is what its accuracy counts.
    """

    device: str
    kind: FileKind
    bounds: tuple[Bound, ...]
    lacks: frozenset[str] = frozenset()
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise UsageError(
                f"device {self.device}: weight = {self.weight}; a finite number above 0 expected"
            )

    @property
    def columns(self) -> frozenset[str]:
        """The columns that decide whether a candidate fits."""
        return frozenset(bound.column for bound in self.bounds) | self.lacks

    @property
    def most(self) -> dict[str, float]:
        """Column → its largest value that keeps every bound on it; 0 for what the runtime lacks."""
        found: dict[str, float] = {}
        for bound in self.bounds:
            found[bound.column] = min(bound.most, found.get(bound.column, math.inf))
        return found | dict.fromkeys(self.lacks, 0.0)
