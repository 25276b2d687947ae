"""Numbers as integers modulo 2^32, whose masked sums are exact.

A value x in [-bound, bound] becomes trunc(x / bound · steps) with steps = ⌊(2^31 - 1) / clients⌋, as an
unsigned 32-bit number in two's complement.

No overflow: each integer lies in [-steps, steps], so a sum over at most `clients` of them lies in
[-(2^31 - 1), 2^31 - 1], which 32 bits hold with their sign. Masks wrap, sums of values do not.

Error: truncating moves a value by less than bound / steps towards 0, so a sum over k clients is off by
less than k · bound / steps = k · clients · bound / (2^31 - 1): 2·10^-7 of the bound for 20 clients, as
fine as float32 itself. Truncated, not rounded, because no value grows by it: an update that was clipped
to an L2 norm still is.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
MOST_CLIENTS = 1024


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """The encoding of values within `bound` for sums over at most `clients`."""

    bound: float
    clients: int

    def __post_init__(self) -> None:
        if not 0 < self.bound < math.inf:
            raise ValueError(f"bound = {self.bound}; a number above 0 is needed")
        if not 1 <= self.clients <= MOST_CLIENTS:
            raise ValueError(f"clients = {self.clients}; 1 to {MOST_CLIENTS}")

    @property
    def steps(self) -> int:
        """The integer that stands for `bound`."""
        return (2**31 - 1) // self.clients

    @property
    def step(self) -> float:
        """The value of one unit: one client's error is less than this."""
        return self.bound / self.steps

    def encode(self, values: NDArray[np.float32] | NDArray[np.float64]) -> Words:
        """The integers; values beyond the bound count as the bound. ValueError for what is no number."""
        if not np.isfinite(values).all():
            raise ValueError("values that are no finite numbers cannot be summed")
        scaled = np.clip(values.astype(np.float64) / self.bound, -1.0, 1.0)
        scaled *= self.steps
        return scaled.astype(np.int32).view(np.uint32)

    def decode(self, sums: Words) -> NDArray[np.float64]:
        """The sums as numbers."""
        return sums.view(np.int32).astype(np.float64) * self.step
