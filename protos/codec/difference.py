"""Values as the difference from others that the receiver holds: what brings a device up to date.

    code     of the difference, by the codec (the package's docstring), 0 where nothing is held
    values   4 bytes each, float32: those of which nothing is held, as they are

Both sides add the decoded difference to what is held, in float32 and by this code, so that they end
with equal bits. What the code loses is part of the next difference: the error after any number of
rounds is that of the last one alone, `bounds.worst_error` of its difference and two float32 roundings.
"""

import numpy as np

from ...supernet.weights import Flat, Shapes
from .bits import Bytes
from .config import CodecConfig
from .errors import CodecError
from .wire import decode, encode

_VALUE_BYTES = 4


def encode_difference(
    held: Flat, now: Flat, shapes: Shapes, config: CodecConfig, seed: int
) -> Bytes:
    """What makes `now` of what is held of these tensors, nan where nothing is.

    CodecError where a difference is beyond what can be encoded.
    """
    known = ~np.isnan(held)
    with np.errstate(over="ignore"):
        delta = np.where(known, now - held, np.float32(0))
    code = encode(delta, shapes, config, seed)
    return np.frombuffer(code + now[~known].astype("<f4").tobytes(), np.uint8)


def decode_difference(held: Flat, data: Bytes, shapes: Shapes, config: CodecConfig) -> Flat:
    """The values that these bytes make of what is held, every one a finite number.

    CodecError for bytes that are no such difference; no more memory is taken than `decode` takes.
    """
    fresh = np.isnan(held)
    end = len(data) - _VALUE_BYTES * int(np.count_nonzero(fresh))
    if end < 0:
        raise CodecError(f"difference: {len(data)} bytes; {-end} more expected for new values")
    values = decode(data[:end].data, shapes, config)
    with np.errstate(over="ignore"):
        values += held
    values[fresh] = np.frombuffer(data[end:].data, "<f4")
    if not np.isfinite(values).all():
        raise CodecError("difference: a value becomes no number")
    return values
