"""Several bounds at once, and how far something exceeds them (NASAIC, Yang et al., DAC 2020).

    overshoot = Σ max(spent − bound, 0) / (worst − bound)

over the bounds, `worst` being what the space reaches at most: 0 exactly where all are kept, and the
same in every unit. A bound that even the worst keeps is exceeded in parts of itself.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...supernet.errors import UsageError


@dataclass(frozen=True, slots=True)
class Gate:
    """Upper bounds by name (`latency_ms`, `macs`, …), and the space's worst where it is known."""

    bounds: Mapping[str, float]
    worst: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, bound in self.bounds.items():
            if not (math.isfinite(bound) and bound > 0):
                raise UsageError(f"budget: {name} = {bound}; a finite number above 0 expected")
        for name, value in self.worst.items():
            if not math.isfinite(value):
                raise UsageError(f"budget: the worst {name} is {value}; a finite number expected")

    def excess(self, spent: Mapping[str, float]) -> list[str]:
        """The bounds that are broken, as `name have > bound`; a NaN keeps none."""
        return [
            f"{name} {value:g} > {bound:g}"
            for name, bound in self.bounds.items()
            if not (value := self._of(spent, name)) <= bound
        ]

    def fits(self, spent: Mapping[str, float]) -> bool:
        """Whether every bound is kept."""
        return not self.excess(spent)

    def overshoot(self, spent: Mapping[str, float]) -> float:
        """0 where everything is kept; infinite where a measurement is no number."""
        total = 0.0
        for name, bound in self.bounds.items():
            value = self._of(spent, name)
            if math.isnan(value):
                return math.inf
            room = self.worst.get(name, 0.0) - bound
            total += max(value - bound, 0.0) / (room if room > 0 else bound)
        return total

    @staticmethod
    def _of(spent: Mapping[str, float], name: str) -> float:
        if name not in spent:
            raise UsageError(f"budget: {name} is bounded and was not measured; measure it")
        return spent[name]
