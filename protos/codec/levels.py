"""Values on few levels: codes of one byte, a scale a tensor, and what a code stands for.

Code 0 is zero, 2k - 1 the k-th magnitude and 2k the same one, negative; a magnitude counts in the
tensor's scale. Zero is always a level, so that what is zero stays zero (FedZip's centroids are means,
which turns its pruned zeros into small values). Scales and magnitudes are bfloat16.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...supernet.weights import Flat
from .bits import Bytes
from .config import CodecConfig
from .errors import CodecError

Halves = NDArray[np.uint16]

_FITTED_MOST, _FIT_STEPS = 1 << 16, 40


@dataclass(frozen=True, slots=True)
class Levels:
    """Each tensor's scale and the magnitudes in scales, as they travel."""

    scales: Halves
    codebook: Halves

    def magnitudes(self, config: CodecConfig) -> Flat:
        """The levels above zero, ascending, in scales."""
        if config.levels == "clusters":
            return widened(self.codebook)
        most = config.magnitudes()
        return (np.arange(1, most + 1) / most).astype(np.float32)

    def table(self, config: CodecConfig) -> Flat:
        """What each code stands for, in scales."""
        magnitudes = self.magnitudes(config)
        table = np.zeros(2 * len(magnitudes) + 1, np.float32)
        table[1::2], table[2::2] = magnitudes, -magnitudes
        return table

    def check(self) -> None:
        """CodecError where a stranger's scales or magnitudes are no such thing."""
        for name, halves in (("scales", self.scales), ("codebook", self.codebook)):
            # As whole numbers: below infinity there are all numbers that are not negative.
            if (halves >= _half_infinity).any():
                raise CodecError(f"{name}: one is negative or no finite number")
        if (np.diff(self.codebook.astype(np.int32)) < 0).any():
            raise CodecError("codebook: its magnitudes do not ascend")


_half_infinity = 0x7F80
REACH_MOST = 3e38
"""In bfloat16 still a number."""


def fit_levels(values: Flat, counts: Sequence[int], config: CodecConfig) -> Levels:
    """Scales of tensors with so many values each, and a codebook if there is one."""
    begin, scales = 0, np.zeros(len(counts), np.float32)
    typical = 0.0 if config.step is None else _typical(values)
    for place, count in enumerate(counts):
        magnitudes = np.abs(values[begin : begin + count])
        if config.levels == "uniform":
            scales[place] = _reach(magnitudes, typical, config)
        elif used := np.count_nonzero(magnitudes):
            scales[place] = magnitudes.sum(dtype=np.float64) / used
        begin += count
    # Rounded up, so that no value lies beyond the last level; else half a unit costs less.
    halves = _narrowed(scales, 0xFFFF if config.levels == "uniform" else 0x8000)
    if config.levels != "clusters":
        return Levels(halves, np.empty(0, np.uint16))
    in_scales = _in_scales(np.abs(values), halves, counts)
    return Levels(halves, _narrowed(_clusters(in_scales, config.magnitudes()), 0x8000))


def _reach(magnitudes: Flat, typical: float, config: CodecConfig) -> float:
    """How far uniform levels reach: no value lies beyond, and none overflows where it is rounded."""
    largest = float(magnitudes.max(initial=0))
    if config.step is None or not largest:
        return largest
    return min(max(largest, config.magnitudes() * config.step * typical), REACH_MOST)


def _typical(values: Flat) -> float:
    """Root mean square."""
    largest = float(np.abs(values).max(initial=0))
    if not largest:
        return 0.0
    # Of the shares of the largest: their squares are neither too large nor all too small. By numpy's
    # own sum: how a library for matrices adds up depends on the processor and the threads.
    shares = values / np.float32(largest)
    return largest * math.sqrt(float(np.square(shares).mean(dtype=np.float64)))


def encode_levels(
    values: Flat,
    counts: Sequence[int],
    levels: Levels,
    config: CodecConfig,
    random: np.random.Generator,
) -> Bytes:
    """A code for each value."""
    if config.levels == "sign":
        places: NDArray[np.integer] = (values != 0).astype(np.uint8)
    else:
        in_scales = _in_scales(np.abs(values), levels.scales, counts)
        if config.levels == "clusters":
            magnitudes = levels.magnitudes(config)
            places = np.searchsorted(_middles(magnitudes), in_scales).astype(np.uint8)
        else:
            places = _uniform(in_scales, config, random)
    codes = (2 * places).astype(np.uint8)
    codes -= ((values > 0) & (places > 0)).astype(np.uint8)
    return codes


def _uniform(in_scales: Flat, config: CodecConfig, random: np.random.Generator) -> Bytes:
    most = config.magnitudes()
    in_scales *= most
    if config.rounding == "nearest":
        in_scales += np.float32(0.5)
    else:
        in_scales += random.random(len(in_scales), dtype=np.float32)
    # A sum just below most + 1 may have been rounded to it.
    return np.minimum(in_scales, most).astype(np.uint8)


def _in_scales(magnitudes: Flat, halves: Halves, counts: Sequence[int]) -> Flat:
    """Magnitudes divided by their tensor's scale, in place."""
    begin = 0
    for scale, count in zip(widened(halves), counts, strict=True):
        if scale > 0:
            magnitudes[begin : begin + count] /= scale
        begin += count
    return magnitudes


def _clusters(in_scales: Flat, count: int) -> Flat:
    """So many magnitudes for these values, by Lloyd's k-means with zero held as one more mean.

    From evenly spaced quantiles on; on every n-th value where there are many.
    """
    values = np.sort(in_scales[in_scales > 0][:: 1 + len(in_scales) // _FITTED_MOST])
    if not len(values):
        return np.ones(count, np.float32)
    means = values[(np.arange(1, count + 1) * 2 - 1) * len(values) // (2 * count)].astype(float)
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    for _ in range(_FIT_STEPS):
        edges = np.append(np.searchsorted(values, _middles(means)), len(values))
        sizes = np.diff(edges)
        found = np.where(sizes > 0, np.diff(sums[edges]) / np.maximum(sizes, 1), means)
        if np.array_equal(found, means):
            break
        means = found
    return np.sort(means).astype(np.float32)


def _middles(magnitudes: NDArray[np.floating]) -> NDArray[np.floating]:
    """Between neighbouring levels, the first of which is zero."""
    before = np.concatenate([[0], magnitudes[:-1]]).astype(magnitudes.dtype)
    return before + (magnitudes - before) / 2


def _narrowed(values: Flat, half_unit: int) -> Halves:
    """bfloat16, as the upper halves of float32."""
    return ((values.view(np.uint32) + np.uint32(half_unit)) >> np.uint32(16)).astype(np.uint16)


def widened(halves: Halves) -> Flat:
    """float32 of bfloat16."""
    return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)
