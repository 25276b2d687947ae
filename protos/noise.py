"""Clipping and Gaussian noise, for a device as for the server: numpy only."""

import math
import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Flat = NDArray[np.float32]
Entropy = Callable[[int], bytes]
"""Gives so many random bytes: `os.urandom`, or a test's `np.random.default_rng(0).bytes`."""
HEADROOM = 8.0
"""Standard deviations of noise that a fixed-point range leaves room for: beyond is 1 in 8·10^14."""
_GRID_BITS = 20


def norm_of(delta: Flat) -> float:
    """L2 norm, summed in float64."""
    return math.sqrt(float(np.sum(np.square(delta, dtype=np.float64))))


def clipped(delta: Flat, bound: float) -> Flat:
    """A copy of `delta`, scaled down to L2 norm `bound` where it is longer, float32.

    The norm never exceeds `bound`, rounding included: a guarantee is built on it. ValueError where a
    value is not a number, which no scaling could bound.
    """
    if not 0 < bound < math.inf:
        raise ValueError(f"bound = {bound}; a number above 0 is needed")
    norm = norm_of(delta)
    if not math.isfinite(norm):
        raise ValueError("delta holds values that are no finite numbers; clip what was validated")
    if norm <= bound:
        return delta.astype(np.float32, copy=True)
    # Rounding to float32 may lengthen each value by 2^-24 of itself: one part in 2^22 is left out.
    return (delta * np.float64(bound / norm * (1 - 2.0**-22))).astype(np.float32)


class GaussianNoise:
    """Independent normal numbers from bytes of `entropy`, by Box and Muller.

    In production these are the operating system's: noise drawn from a run's seed, which devices are
    told, could be subtracted again. Tests give a seeded generator's `bytes`. Tails end at 8.6 standard
    deviations (53 random bits), which happens once in 10^17 draws.
    """

    def __init__(self, entropy: Entropy = os.urandom) -> None:
        self._entropy = entropy

    def draw(self, size: int, std: float) -> NDArray[np.float64]:
        """`size` numbers of standard deviation `std`, float64."""
        pairs = (size + 1) // 2
        words = np.frombuffer(self._entropy(16 * pairs), dtype="<u8") >> np.uint64(11)
        # In (0, 1]: the logarithm of 0 does not exist.
        uniform = (words.reshape(2, pairs) + 1.0) * 2.0**-53
        radius = std * np.sqrt(-2.0 * np.log(uniform[0]))
        angle = 2.0 * math.pi * uniform[1]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]


def grid_of(std: float) -> float:
    """The grid that a noised value is rounded to: about a millionth of its noise.

    Noise made of floats betrays low bits of what it hides (Mironov 2012): they all lie below it.
    """
    return 2.0 ** (math.floor(math.log2(std)) - _GRID_BITS)


def share_std(bound: float, noise_multiplier: float, sharers: int) -> float:
    """Standard deviation of one device's share, where `sharers` shares make up the whole noise."""
    return noise_multiplier * bound / math.sqrt(sharers)


def fixed_point_range(bound: float, std: float = 0.0) -> float:
    """The largest value that a clipped update with noise of `std` holds, for its encoding."""
    return bound + HEADROOM * std


def longest(bound: float, std: float, size: int) -> float:
    """The largest L2 norm of a clipped update of `size` values with noise of `std`."""
    return bound + std * (math.sqrt(size) + HEADROOM)
