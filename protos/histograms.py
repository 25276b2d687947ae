"""Histograms of activations whose merging is exact; no torch in here.

A bin is [n · 2^level, (n + 1) · 2^level), the same in every histogram, and the level is the least at
which what was seen takes at most so many bins, 0 included. Two bins of a level make up one of the
next. So histograms of one size limit merge, in any order, to that of all the values in one place, and
what travels is bounded whatever the activations are: at most `bins` counts a tensor.

Exact zeros are counted apart: they cost nothing to quantize, and after a ReLU they are the most.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..supernet.errors import UsageError

LEAST_LEVEL = -149
"""Of float32's least number above 0."""
MOST_BINS = 4096


@dataclass(frozen=True, slots=True)
class Histogram:
    """Of one tensor: bin `first` + i holds `counts`[i] values; `low` and `high` are exact.

    `bins` is the limit, not the number in use. The range of values, 0 with it, decides the level.
    """

    bins: int
    low: float
    high: float
    level: int
    first: int
    counts: tuple[int, ...]
    zeros: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.bins <= MOST_BINS:
            raise UsageError(f"histogram: bins = {self.bins}; allowed: 2 to {MOST_BINS}")
        if not -math.inf < self.low <= self.high < math.inf:
            raise UsageError(f"histogram: {self.low} to {self.high} is no finite range")
        if (self.level, self.first, len(self.counts)) != _places(self.low, self.high, self.bins):
            raise UsageError("histogram: its bins are not those of its range")
        if min(self.zeros, *self.counts) < 0 or self.total < 1:
            raise UsageError("histogram: counts from 0 on expected, and at least one value")

    @classmethod
    def of(cls, values: NDArray[Any], bins: int) -> Self:
        """Of finite float32 values, at least one; a NaN or an infinity is a UsageError."""
        flat = np.asarray(values, np.float64).ravel()
        if not len(flat) or not np.isfinite(flat).all():
            raise UsageError("histogram: finite values expected, and at least one")
        low, high = float(flat.min()), float(flat.max())
        level, first, size = _places(low, high, bins)
        other = flat[flat != 0]
        at = np.floor(np.ldexp(other, -level)).astype(np.int64) - first
        counts = np.bincount(at, minlength=size)
        zeros = len(flat) - len(other)
        return cls(bins, low, high, level, first, tuple(counts.tolist()), zeros)

    @classmethod
    def with_range(
        cls, bins: int, ends: tuple[float, float], counts: tuple[int, ...], zeros: int
    ) -> Self:
        """From what travels: the range decides the rest."""
        low, high = ends
        if not -math.inf < low <= high < math.inf:
            raise UsageError(f"histogram: {low} to {high} is no finite range")
        level, first, _ = _places(low, high, bins)
        return cls(bins, low, high, level, first, counts, zeros)

    def __add__(self, other: "Histogram") -> "Histogram":
        """That of both histograms' values; UsageError where their limits differ."""
        if self.bins != other.bins:
            raise UsageError(f"histogram: {self.bins} and {other.bins} bins do not add up")
        low, high = min(self.low, other.low), max(self.high, other.high)
        level, first, size = _places(low, high, self.bins)
        counts = np.zeros(size, np.int64)
        for part in (self, other):
            places = np.arange(part.first, part.first + len(part.counts)) >> (level - part.level)
            np.add.at(counts, places - first, part.counts)
        zeros = self.zeros + other.zeros
        return Histogram(self.bins, low, high, level, first, tuple(counts.tolist()), zeros)

    @property
    def total(self) -> int:
        """How many values, zeros too."""
        return self.zeros + sum(self.counts)

    def edges(self) -> NDArray[np.float64]:
        """The bins' ends, one more than there are bins."""
        places = np.arange(self.first, self.first + len(self.counts) + 1, dtype=np.float64)
        return np.ldexp(places, self.level)


def _places(low: float, high: float, bins: int) -> tuple[int, int, int]:
    """Level, first bin and number of bins of a range."""
    low, high = min(low, 0.0), max(high, 0.0)
    span = high - low
    level = max(LEAST_LEVEL, math.frexp(span / bins)[1] - 1) if span else LEAST_LEVEL
    while True:
        first, last = (math.floor(math.ldexp(end, -level)) for end in (low, high))
        if last - first < bins:
            return level, first, last - first + 1
        level += 1
