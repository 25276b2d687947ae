"""An update as bytes, and back: the stages put together. The format is the package's docstring."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ...supernet.randomness import array_stream
from ...supernet.weights import Flat, Shapes
from .bits import Bytes, Reader, pack_bits, packed_size, unpack_numbers
from .config import CodecConfig
from .errors import CodecError
from .gaps import CLASS_BITS, Positions, join_gaps, split_gaps
from .levels import Halves, Levels, encode_levels, fit_levels, widened
from .streams import Outline, Stream, largest_streams, read_streams, write_streams
from .strongest import Plan, plan_of, strongest

S = TypeVar("S", np.float32, np.uint8)

VERSION = 1
LARGEST = 2e38
"""What is larger is refused: rounded to few bits it might be no number."""
_SENT_BYTES, _HALF_BYTES, _FLOAT_BYTES = 4, 2, 4


def encode(delta: Flat, shapes: Shapes, config: CodecConfig, seed: int) -> bytes:
    """The change `delta` of these tensors' values, in bytes; `seed` decides the chance roundings.

    Raises CodecError where a value is no number or beyond ±2e38, ValueError where the array is not
    of these tensors.
    """
    plan = plan_of(shapes, config)
    if delta.shape != (plan.size,) or delta.dtype != np.float32:
        raise ValueError(f"{delta.dtype} array of {delta.shape}; these tensors have {plan.size}")
    _check_numbers(delta, LARGEST)
    positions, counts, values = select(delta, plan)
    counts += [part.size for part in plan.whole]
    if config.levels == "float32":
        head, streams = b"", _planes(values)
    else:
        levels = fit_levels(values, counts, config)
        random = array_stream("codec", seed)
        codes = encode_levels(values, counts, levels, config, random)
        near, whole = np.split(codes, [len(positions)])
        # What was rounded to zero needs no position.
        positions, near = positions[near > 0], near[near > 0] - np.uint8(1)
        streams = [Stream(c, w) for c, w in zip((near, whole), _widths(config), strict=True)]
        head = levels.scales.astype("<u2").tobytes() + levels.codebook.astype("<u2").tobytes()
    classes, gaps = split_gaps(positions)
    streams = [Stream(classes, CLASS_BITS), *streams]
    return b"".join(
        [
            VERSION.to_bytes(1, "little"),
            len(positions).to_bytes(_SENT_BYTES, "little"),
            head,
            write_streams(streams, pack_bits(gaps, classes), code=config.entropy == "rans"),
        ]
    )


def select(delta: Flat, plan: Plan) -> tuple[Positions, list[int], Flat]:
    """Positions along the line of what is sent, how many of each sparse tensor, and all values.

    The values are those at the positions and then those of the whole tensors.
    """
    along, counts, positions, values = 0, [], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for part in plan.sparse:
        tensor = delta[part.begin : part.end]
        found = strongest(tensor, part.most)
        counts.append(len(found))
        positions.append(found + along)
        values.append(tensor[found])
        along += part.size
    values += [delta[part.begin : part.end] for part in plan.whole]
    return np.concatenate(positions), counts, np.concatenate(values)


def _planes(values: Flat) -> list[Stream]:
    """The four bytes of the values, each a stream of its own: signs and exponents repeat."""
    planes = values.astype("<f4").view(np.uint8).reshape(-1, _FLOAT_BYTES)
    return [Stream(np.ascontiguousarray(plane), 8) for plane in planes.T]


def decode(data: bytes | memoryview, shapes: Shapes, config: CodecConfig) -> Flat:
    """The change that these bytes say, every value a finite number.

    Raises CodecError for bytes that are no update of these tensors with this codec. Whatever they
    say, no more memory is taken than the array and a small multiple of `largest_bytes`.
    """
    most = largest_bytes(shapes, config)
    if len(data) > most:
        raise CodecError(f"update: {len(data)} bytes; these tensors take at most {most}")
    plan, reader = plan_of(shapes, config), Reader(memoryview(data))
    if (version := reader.number(1, "version")) != VERSION:
        raise CodecError(f"version {version}; this program reads {VERSION}")
    sent = reader.number(_SENT_BYTES, "sent")
    if sent > plan.sent_most:
        raise CodecError(f"sent: {sent} values; at most {plan.sent_most} of these tensors")
    levels = None if config.levels == "float32" else _read_levels(reader, plan, config)
    (classes, *coded), rest = read_streams(reader, _outlines(plan, config, sent))
    low = rest.take(packed_size(sent, classes), "gaps")
    rest.end()
    positions = join_gaps(classes, unpack_numbers(low, classes), plan.line)
    if levels is None:
        return _placed(plan, positions, _floats(coded), lambda _, values: values)
    codes, table, scales = _codes(coded, config), levels.table(config), widened(levels.scales)
    return _placed(plan, positions, codes, lambda place, part: table[part] * scales[place])


def _placed(
    plan: Plan, positions: Positions, sent: NDArray[S], values_of: Callable[[int, NDArray[S]], Flat]
) -> Flat:
    """The array: values at the positions and zeros between, then those of the whole tensors."""
    delta, begin, along = np.zeros(plan.size, np.float32), 0, 0
    with np.errstate(over="ignore"):
        for place, part in enumerate(plan.sparse):
            end = int(np.searchsorted(positions, along + part.size))
            where = positions[begin:end] + (part.begin - along)
            delta[where] = values_of(place, sent[begin:end])
            begin, along = end, along + part.size
        for place, part in enumerate(plan.whole, len(plan.sparse)):
            delta[part.begin : part.end] = values_of(place, sent[begin : begin + part.size])
            begin += part.size
    _check_numbers(delta, float(np.finfo(np.float32).max))
    return delta


def _check_numbers(delta: Flat, most: float) -> None:
    # Both are nan where any value is; no array of truth values is made.
    if not (delta.min(initial=0) >= -most and delta.max(initial=0) <= most):
        raise CodecError(f"update: a value is no number or beyond ±{most:g}")


def _codes(coded: Sequence[Bytes], config: CodecConfig) -> Bytes:
    near, whole = coded
    most = 2 * config.magnitudes()
    if near.max(initial=0) >= most or whole.max(initial=0) > most:
        raise CodecError(f"codes: one is beyond the {most} that there are")
    return np.concatenate([near + np.uint8(1), whole])


def _floats(planes: Sequence[Bytes]) -> Flat:
    joined = np.stack(planes, axis=1).reshape(-1).view("<f4")
    return joined.astype(np.float32, copy=False)


def _outlines(plan: Plan, config: CodecConfig, sent: int) -> list[Outline]:
    classes = Outline(sent, CLASS_BITS)
    if config.levels == "float32":
        return [classes, *[Outline(sent + plan.whole_size, 8)] * _FLOAT_BYTES]
    near_width, width = _widths(config)
    return [classes, Outline(sent, near_width), Outline(plan.whole_size, width)]


def _widths(config: CodecConfig) -> tuple[int, int]:
    """Bits of a code where the position says that it is not zero, and of one that may be zero."""
    most = 2 * config.magnitudes()
    return (most - 1).bit_length(), most.bit_length()


def _read_levels(reader: Reader, plan: Plan, config: CodecConfig) -> Levels:
    magnitudes = config.magnitudes() if config.levels == "clusters" else 0
    scales = _read_halves(reader, len(plan.sparse) + len(plan.whole), "scales")
    levels = Levels(scales, _read_halves(reader, magnitudes, "codebook"))
    levels.check()
    return levels


def _read_halves(reader: Reader, count: int, what: str) -> Halves:
    return np.frombuffer(reader.take(_HALF_BYTES * count, what), "<u2").astype(np.uint16)


def largest_bytes(shapes: Shapes, config: CodecConfig) -> int:
    """The length of the longest message that `encode` makes of such tensors, or a little more."""
    plan = plan_of(shapes, config)
    # n gaps that add up to at most the line: the sum of their logarithms is at most that of n
    # equal ones, and grows with n.
    sent = plan.sent_most
    gap_bits = sent * math.log2(plan.line / sent) if sent else 0
    head = 1 + _SENT_BYTES
    if config.levels != "float32":
        head += _HALF_BYTES * (len(plan.sparse) + len(plan.whole))
        head += _HALF_BYTES * config.magnitudes() * (config.levels == "clusters")
    return head + largest_streams(_outlines(plan, config, sent)) + math.ceil(gap_bits / 8) + 1
