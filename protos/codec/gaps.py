"""Positions of the values that are sent: each as the gap after the one before.

A gap g, counted from 1, is its class, the b with 2^b ≤ g < 2^(b+1), which is entropy-coded, and the
b bits below its leading one, which are sent as they are (Elias 1975). Large values of real updates
lie close together, in the channels that a device's data excite: their classes take about a quarter
less room than a code for evenly strewn positions, such as Golomb's.
"""

import numpy as np
from numpy.typing import NDArray

from .bits import Bytes
from .errors import CodecError

Positions = NDArray[np.int64]
CLASS_BITS = 5


def split_gaps(positions: Positions) -> tuple[Bytes, NDArray[np.uint32]]:
    """Class of each gap, and the gap: its lowest bits, as many as the class says, are to be sent."""
    gaps = np.diff(positions, prepend=-1)
    classes = (np.frexp(gaps.astype(np.float64))[1] - 1).astype(np.uint8)
    return classes, gaps.astype(np.uint32)


def join_gaps(classes: Bytes, low: NDArray[np.uint32], line: int) -> Positions:
    """The positions, ascending; CodecError where they go beyond a line of so many values."""
    gaps = (np.uint32(1) << classes.astype(np.uint32)) | low
    positions = np.cumsum(gaps, dtype=np.int64) - 1
    if len(positions) and positions[-1] >= line:
        raise CodecError(f"positions: one is {positions[-1]}, the tensors have {line} values")
    return positions
