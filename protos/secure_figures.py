"""Figures that devices add to a secure sum, so that the server learns their mean and no device's own.

They travel as values behind the supernet's own, which every device has, as shares of the sum's bound:
sums have one encoding (`fixed_point.py`).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .noise import Flat

MOST_LOSS = 100.0
"""A larger loss counts as this one."""
COUNT = 2


@dataclass(frozen=True, slots=True)
class Figures:
    """Mean loss on labels, and the share of values that were `cut`: beyond the sum's bound.

    Of one device, or in the mean over devices; no number where nobody's were summed.
    """

    loss: float
    cut: float

    def values(self, bound: float) -> Flat:
        """As values for a sum of this bound."""
        shares = (min(self.loss / MOST_LOSS, 1.0), self.cut)
        return np.asarray(shares, np.float32) * np.float32(bound)

    @classmethod
    def mean(cls, sums: Iterable[float], devices: int, bound: float) -> "Figures":
        """Of the sums over so many devices."""
        if not devices:
            return cls(math.nan, math.nan)
        loss, cut = (float(total) / (devices * bound) for total in sums)
        return cls(loss * MOST_LOSS, cut)


def share_beyond(values: Flat, bound: float) -> float:
    """The share of values that a sum of this bound cuts."""
    return float(np.count_nonzero(np.abs(values) > bound)) / max(len(values), 1)
