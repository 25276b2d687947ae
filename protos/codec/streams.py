"""Several streams of symbols as bytes: each entropy-coded or plain, whichever is shorter."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .bits import Bytes, Reader, pack_bits, packed_size, unpack_symbols
from .errors import CodecError
from .frequencies import SYMBOLS, Parts, read_table, write_table
from .rans import (
    CARRIED_BYTES,
    STATE_BYTES,
    Coded,
    bound_bits,
    decode_symbols,
    encode_symbols,
    lanes_of,
)

_MODE_BYTES, _WORDS_BYTES = 1, 4


class Stream(NamedTuple):
    """Symbols below 2^width."""

    symbols: Bytes
    width: int


class Outline(NamedTuple):
    """How many symbols a stream has, and of how many bits each."""

    size: int
    width: int


def write_streams(streams: Sequence[Stream], tail: bytes, *, code: bool) -> bytes:
    """All streams and then `tail`; with `code` those are entropy-coded that this makes shorter."""
    heads, coded, plain = [], list[Coded](), []
    for stream in streams:
        table, parts = _table(stream) if code and len(stream.symbols) else (b"", None)
        if parts is None:
            heads.append(b"\0")
            plain.append(pack_bits(stream.symbols, stream.width))
        else:
            heads.append(b"\1" + table)
            coded.append(Coded(stream.symbols, parts))
    rest = b"".join([*plain, tail])
    ranges, words = encode_symbols(coded, rest)
    carried = CARRIED_BYTES * lanes_of(sum(len(stream.symbols) for stream in coded))
    return b"".join([*heads, words.to_bytes(_WORDS_BYTES, "little"), ranges, rest[carried:]])


def _table(stream: Stream) -> tuple[bytes, Parts | None]:
    """The stream's table, if with it the stream is shorter than plain."""
    counts = np.bincount(stream.symbols, minlength=SYMBOLS)
    table = write_table(counts)
    parts = read_table(Reader(memoryview(table)), SYMBOLS)
    states = STATE_BYTES * lanes_of(len(stream.symbols))
    coded = len(table) + bound_bits(counts, parts) / 8 + states
    plain = packed_size(len(stream.symbols), stream.width)
    return (table, parts) if coded < plain else (b"", None)


def read_streams(reader: Reader, outlines: Sequence[Outline]) -> tuple[list[Bytes], Reader]:
    """The symbols of each stream, and a reader of the tail that takes it to the message's end.

    CodecError where the bytes are not those of such streams.
    """
    tables = [_read_head(reader, outline.width) for outline in outlines]
    words = reader.number(_WORDS_BYTES, "words")
    coded = [
        (outline.size, t) for outline, t in zip(outlines, tables, strict=True) if t is not None
    ]
    symbols, carried = decode_symbols(reader, words, [c for c, _ in coded], [t for _, t in coded])
    left = reader.take(len(reader.data) - reader.at, "rest")
    rest = Reader(memoryview(carried + left), padding=0 if left else len(carried))
    decoded = iter(symbols)
    streams = [
        _plain(rest, outline) if table is None else next(decoded)
        for outline, table in zip(outlines, tables, strict=True)
    ]
    return streams, rest


def _read_head(reader: Reader, width: int) -> Parts | None:
    mode = reader.number(_MODE_BYTES, "stream")
    if mode > 1:
        raise CodecError(f"stream: mode {mode}; allowed: 0, 1")
    return read_table(reader, 1 << width) if mode else None


def _plain(reader: Reader, outline: Outline) -> Bytes:
    data = reader.take(packed_size(outline.size, outline.width), "symbols")
    return unpack_symbols(data, outline.size, outline.width)


def largest_streams(outlines: Sequence[Outline]) -> int:
    """The most bytes that `write_streams` makes of such streams."""
    lanes = lanes_of(sum(outline.size for outline in outlines))
    plain = sum(packed_size(outline.size, outline.width) for outline in outlines)
    return len(outlines) * _MODE_BYTES + _WORDS_BYTES + STATE_BYTES * lanes + plain
