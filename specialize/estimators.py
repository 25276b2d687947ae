"""Which part of an activation's range to quantize: all of it, all but its tails, or the least error.

From histograms (`protos.histograms`), so from what devices may send. Tails cost precision: a range
twice as wide doubles the step for every value. What is cut off is clipped.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import add
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np

from ..protos.histograms import Histogram
from ..protos.inference import Ranges
from ..supernet.errors import ExportError, UsageError

Estimator = Literal["minmax", "percentile", "mse"]
ESTIMATORS: tuple[str, ...] = get_args(Estimator)
TAIL = 1e-4
"""Share of the values that a percentile leaves out at either end."""
CANDIDATES = 64
BINS = 512
"""Of the histograms that devices are asked for: twice the levels of 8 bits."""


def merged(parts: Sequence[Mapping[str, Histogram]], estimator: Estimator) -> Ranges:
    """A range for each tensor from several devices' histograms, for 8 bits.

    ExportError when there are none or when they name different tensors.
    """
    if not parts:
        raise ExportError("activation ranges: no device returned any")
    for part in parts:
        if differing := sorted(part.keys() ^ parts[0].keys()):
            raise ExportError(f"activation ranges name other tensors: {', '.join(differing[:3])}")
    return estimated({n: reduce(add, (p[n] for p in parts)) for n in parts[0]}, estimator)


def estimated(
    histograms: Mapping[str, Histogram], estimator: Estimator, activation_bits: int = 8
) -> Ranges:
    """A range for each tensor; UsageError lists the known estimators."""
    if estimator not in _ESTIMATES:
        raise UsageError(f"ranges = {estimator!r}; allowed: {', '.join(ESTIMATORS)}")
    steps = 2**activation_bits - 1
    return {name: _ESTIMATES[estimator](seen, steps) for name, seen in histograms.items()}


def minmax(seen: Histogram, _steps: int) -> tuple[float, float]:
    """All that was seen."""
    return seen.low, seen.high


def percentile(seen: Histogram, _steps: int) -> tuple[float, float]:
    """Outermost bins left out while they hold at most `TAIL` of the values at that end.

    Exact to one bin, and never less: an end stays where no whole bin can go.
    """
    edges, counts = seen.edges(), np.array(seen.counts)
    counts[-seen.first] += seen.zeros
    spare = TAIL * seen.total
    below = np.searchsorted(np.cumsum(counts), spare, side="right")
    above = np.searchsorted(np.cumsum(counts[::-1]), spare, side="right")
    low = min(max(seen.low, float(edges[below])), 0.0) if seen.low < 0 else seen.low
    high = (
        max(min(seen.high, float(edges[len(counts) - above])), 0.0) if seen.high > 0 else seen.high
    )
    return low, high


def mse(seen: Histogram, steps: int) -> tuple[float, float]:
    """The ends, each a multiple of 1/64 of what was seen, of the least expected squared error.

    Within the range a value's error is uniform over a step, step² / 12 in the mean, and 0 for an
    exact 0; beyond it, the distance to the end. As Choukroun et al. (2019) and torch's
    HistogramObserver weigh the two, with both ends free.
    """
    edges, counts = seen.edges(), np.array(seen.counts, np.float64)
    centers = np.clip((edges[1:] + edges[:-1]) / 2, seen.low, seen.high)
    shares = np.arange(1, CANDIDATES + 1) / CANDIDATES
    lows = shares * min(seen.low, 0.0) if seen.low < 0 else np.zeros(1)
    highs = shares * max(seen.high, 0.0) if seen.high > 0 else np.zeros(1)

    def beyond(ends: "np.ndarray", sign: float) -> "np.ndarray":
        over = np.maximum(sign * (centers[None] - ends[:, None]), 0)
        return np.asarray(np.square(over) @ counts)

    def outside(ends: "np.ndarray", sign: float) -> "np.ndarray":
        return np.asarray((sign * (centers[None] - ends[:, None]) > 0) @ counts)

    inside = counts.sum() - outside(lows, -1.0)[:, None] - outside(highs, 1.0)[None]
    noise = np.square((highs[None] - lows[:, None]) / steps) / 12 * inside
    errors = noise + beyond(lows, -1.0)[:, None] + beyond(highs, 1.0)[None]
    row, column = np.unravel_index(np.argmin(errors), errors.shape)
    low = float(lows[row]) if seen.low < 0 else seen.low
    high = float(highs[column]) if seen.high > 0 else seen.high
    return low, high


_ESTIMATES: Mapping[str, Callable[[Histogram, int], tuple[float, float]]] = MappingProxyType(
    {"minmax": minmax, "percentile": percentile, "mse": mse}
)
