"""Entropy coding of symbols by asymmetric numeral systems (Duda 2013, arXiv:1311.2540), in numpy.

A coder's state x is one whole number. To code a symbol that takes f of 4096 parts, the first of them
being c, is x → (x div f)·4096 + c + x mod f, which makes it 4096/f times larger; decoding goes back
the same way. States stay in [2^16, 2^32): before one grows beyond, its low 16 bits are put out as a
word. Many states, the lanes, work side by side: lane i has the symbols i, i + lanes, i + 2·lanes and
so on of all streams laid end to end. The encoder goes from the last symbol to the first, so that the
decoder goes forward; it ends with no word left and with every state where the encoder began, between
2^16 and 2^17. The 16 bits that tell these beginnings apart carry 2 bytes a lane of what is not coded
at all, so that a lane costs about one byte.

On the wire: the states, 4 bytes each, then the words. How many lanes there are follows from the number
of symbols.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .bits import Bytes, Reader
from .errors import CodecError
from .frequencies import PARTS, PARTS_BITS, SYMBOLS, Parts

_WORD_BITS = 16
_LOWEST = 1 << _WORD_BITS
STATE_BYTES, CARRIED_BYTES = 4, 2


class Coded(NamedTuple):
    """A stream of symbols and the parts of 4096 that each symbol takes."""

    symbols: Bytes
    parts: Parts


class _Piece(NamedTuple):
    """Symbols of one stream that neighbouring lanes code in one step."""

    stream: int
    begin: int
    end: int
    lane: int


def lanes_of(symbols: int) -> int:
    """How many lanes code so many symbols.

    A step takes some 10 µs however few lanes it has, and a lane takes bytes: this keeps both small.
    """
    return min(-(-symbols // 256), 1 + math.isqrt(symbols) * 3 // 4)


def bound_bits(counts: NDArray[np.int64], parts: Parts) -> float:
    """What so many of each symbol take at most, without the states.

    A step multiplies a state by at most 4096/f + (4096 - f)/x, and x is at least 2^16.
    """
    used = counts > 0
    f = parts[used].astype(np.float64)
    return float(counts[used] @ np.log2(PARTS / f + (PARTS - f) / _LOWEST))


def encode_symbols(streams: Sequence[Coded], carried: bytes) -> tuple[bytes, int]:
    """States and words, and the number of words; every symbol takes at least one part.

    The states carry the first bytes of `carried`, as many as `CARRIED_BYTES` of each lane, or zeros
    after its end.
    """
    sizes = [len(stream.symbols) for stream in streams]
    firsts = [(np.cumsum(parts) - parts).astype(np.uint32) for _, parts in streams]
    size = CARRIED_BYTES * lanes_of(sum(sizes))
    first = np.frombuffer(carried[:size].ljust(size, b"\0"), "<u2")
    states, words = first.astype(np.uint32) + np.uint32(_LOWEST), []
    for stream, begin, end, lane in reversed(list(_pieces(sizes))):
        symbols, parts = streams[stream].symbols[begin:end], streams[stream].parts
        x, f = states[lane : lane + end - begin], parts[symbols]
        full = np.flatnonzero((x >> (32 - PARTS_BITS)) >= f)
        words.append(x[full].astype("<u2"))
        x[full] >>= _WORD_BITS
        # (x div f)·4096 + x mod f
        x += (x // f) * (PARTS - f)
        x += firsts[stream][symbols]
    written = b"".join(part.tobytes() for part in reversed(words))
    return states.astype("<u4").tobytes() + written, len(written) // 2


def decode_symbols(
    reader: Reader, word_count: int, sizes: Sequence[int], tables: Sequence[Parts]
) -> tuple[list[Bytes], bytes]:
    """The streams' symbols, so many of each, and what the states carried.

    CodecError where states and words are not theirs.
    """
    lanes = lanes_of(sum(sizes))
    states = np.frombuffer(reader.take(STATE_BYTES * lanes, "states"), "<u4").astype(np.uint32)
    words = np.frombuffer(reader.take(2 * word_count, "words"), "<u2").astype(np.uint32)
    looks = [_Look.of(parts) for parts in tables]
    streams = [np.empty(size, np.uint8) for size in sizes]
    at = 0
    for stream, begin, end, lane in _pieces(sizes):
        look, x = looks[stream], states[lane : lane + end - begin]
        slot = x & (PARTS - 1)
        streams[stream][begin:end] = look.symbol[slot]
        x >>= PARTS_BITS
        x *= look.part[slot]
        x += look.offset[slot]
        low = np.flatnonzero(x < _LOWEST)
        if at + len(low) > len(words):
            raise CodecError(f"words: all {len(words)} are used before the last symbol")
        x[low] = (x[low] << _WORD_BITS) | words[at : at + len(low)]
        at += len(low)
    if at != len(words) or not (states >> _WORD_BITS == 1).all():
        raise CodecError("words: the symbols do not end where their encoder began")
    return streams, states.astype("<u2").tobytes()


class _Look(NamedTuple):
    """Of each of the 4096 parts: its symbol, how many the symbol has, and its place among them."""

    symbol: Bytes
    part: Parts
    offset: Parts

    @classmethod
    def of(cls, parts: Parts) -> "_Look":
        symbol = np.repeat(np.arange(SYMBOLS, dtype=np.uint8), parts)
        firsts = np.cumsum(parts) - parts
        offset = np.arange(PARTS) - firsts[symbol]
        return cls(symbol, parts[symbol], offset.astype(np.uint32))


def _pieces(sizes: Sequence[int]) -> Iterator[_Piece]:
    """The streams end to end, cut at the ends of streams and of steps."""
    lanes, at = lanes_of(sum(sizes)), 0
    for stream, size in enumerate(sizes):
        begin = 0
        while begin < size:
            lane = (at + begin) % lanes
            end = min(begin + lanes - lane, size)
            yield _Piece(stream, begin, end, lane)
            begin = end
        at += size
