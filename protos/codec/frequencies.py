"""How often each symbol occurs, in one byte a symbol, and as parts of 4096 that add up exactly.

A table is the first symbol that occurs, the last one, and a byte for each from the first to the last:
0 where it does not occur, else m·2^e, e being the byte's upper half and m, from 16 to 31, 16 more than
its lower one. Both sides turn the bytes into parts of 4096 with whole numbers only,
so that every processor finds the same ones. A table always adds up, whatever its bytes say.
"""

import numpy as np
from numpy.typing import NDArray

from .bits import Reader
from .errors import CodecError

PARTS_BITS = 12
PARTS = 1 << PARTS_BITS
SYMBOLS = 256
Parts = NDArray[np.uint32]

_FACTOR_BITS = 4
_LARGEST = 31 << 15


def write_table(counts: NDArray[np.int64]) -> bytes:
    """A table of these counts per symbol, of which at least one is not 0."""
    used = np.flatnonzero(counts)
    first, last = int(used[0]), int(used[-1])
    shares = counts[first : last + 1] * (_LARGEST / int(counts.max()))
    exponents = np.maximum(np.frexp(shares)[1] - 1 - _FACTOR_BITS, 0)
    factors = np.rint(shares / 2.0**exponents).astype(np.int64)
    carried = factors == 2 << _FACTOR_BITS
    exponents, factors = exponents + carried, np.where(carried, 1 << _FACTOR_BITS, factors)
    codes = (exponents << _FACTOR_BITS) + factors - (1 << _FACTOR_BITS)
    # 0 means absent; what is rarer than the smallest share is taken for the next one.
    codes = np.where(counts[first : last + 1] > 0, np.maximum(codes, 1), 0)
    return bytes([first, last]) + codes.astype(np.uint8).tobytes()


def read_table(reader: Reader, symbols: int) -> Parts:
    """Parts of 4096 per symbol; CodecError where none occurs, or one that is not below `symbols`."""
    first, last = reader.take(2, "table")
    if not first <= last < symbols:
        raise CodecError(f"table: of symbols {first} to {last}; there are {symbols}")
    codes = np.frombuffer(reader.take(last - first + 1, "table"), np.uint8).astype(np.int64)
    factor = (codes & ((1 << _FACTOR_BITS) - 1)) + (1 << _FACTOR_BITS)
    weights = np.where(codes > 0, factor << (codes >> _FACTOR_BITS), 0)
    if not weights.any():
        raise CodecError("table: no symbol occurs")
    parts = np.zeros(SYMBOLS, np.uint32)
    parts[first : last + 1] = _parts(weights)
    return parts


def _parts(weights: NDArray[np.int64]) -> Parts:
    """Shares of 4096 as the weights are, at least 1 where a weight is not 0."""
    used = np.cumsum(weights > 0)
    edges: NDArray[np.int64] = np.cumsum(weights) * (PARTS - used[-1]) // weights.sum() + used
    return np.diff(edges, prepend=0).astype(np.uint32)
