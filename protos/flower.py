"""Between our messages and Flower's records: the only place that knows the record's keys."""

from typing import TypeVar

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray

from .messages import Body, MessageError

B = TypeVar("B", bound=Body)
Values = NDArray[np.float32] | NDArray[np.float64] | NDArray[np.uint8]

BODY, JSON, DTYPE, VALUES = "body", "json", "dtype", "values"
DTYPES = {"float32": "<f4", "float64": "<f8", "uint8": "|u1"}
# What does not fit beside the body goes into records of its own: no HTTP request is much larger.
PART_BYTES = 4 * 1024 * 1024


def to_record(body: Body, values: Values | None = None) -> RecordDict:
    """One message as Flower carries it: the body as JSON text, the values as one flat array.

    The array's bytes travel beside the body and not as one of Flower's arrays: such an array is
    three more objects on both ways, each a request of its own, stored, sent, confirmed and deleted.
    """
    if values is None:
        return RecordDict({BODY: ConfigRecord({JSON: body.to_json()})})
    kind = values.dtype.name
    data = memoryview(np.ascontiguousarray(values, DTYPES[kind]).tobytes())
    parts = [bytes(data[at : at + PART_BYTES]) for at in range(0, max(len(data), 1), PART_BYTES)]
    first = ConfigRecord({JSON: body.to_json(), DTYPE: kind, VALUES: parts[0]})
    record = RecordDict({BODY: first})
    for number, part in enumerate(parts[1:], 1):
        record[_part(number)] = ConfigRecord({VALUES: part})
    return record


def from_record(kind: type[B], record: RecordDict) -> tuple[B, Values | None]:
    """Read and check a message; MessageError says what is wrong with it."""
    # Not by the record's own `config_records`: that view refers to itself and to the record, so that
    # the message's bytes would stay until Python's next collection of garbage.
    found = {name: part for name, part in record.items() if isinstance(part, ConfigRecord)}
    names = [BODY, *(_part(number) for number in range(1, len(record)))]
    if set(record) != set(names) or set(found) != set(names):
        raise MessageError(f"{kind.__name__}: no body; records: {sorted(record)}")
    first = found[BODY]
    wanted = {JSON} if len(found) == 1 and DTYPE not in first else {JSON, DTYPE, VALUES}
    if set(first) != wanted or not isinstance(text := first[JSON], str):
        raise MessageError(f"{kind.__name__}: no body; keys: {sorted(first)}")
    body = kind.from_json(text)
    if DTYPE not in first:
        return body, None
    return body, _array(kind, first[DTYPE], [found[name].get(VALUES) for name in names])


def _array(kind: type[Body], dtype: object, parts: list[object]) -> Values:
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise MessageError(f"{kind.__name__}: array of {dtype!r}; allowed: {', '.join(DTYPES)}")
    # A stranger's bytes are only counted: no header is read, nothing is opened or unpacked.
    whole = [part for part in parts if isinstance(part, bytes)]
    if len(whole) < len(parts):
        other = next(part for part in parts if not isinstance(part, bytes))
        raise MessageError(f"{kind.__name__}: array's bytes are a {type(other).__name__}")
    size, length = np.dtype(dtype).itemsize, sum(map(len, whole))
    if length % size:
        raise MessageError(f"{kind.__name__}: array of {length} bytes, no multiple of {size}")
    # numpy's own memory: it may be written to, as torch wants, and is made of large pages.
    data, at = np.empty(length, np.uint8), 0
    for part in whole:
        data[at : at + len(part)] = np.frombuffer(part, np.uint8)
        at += len(part)
    values: Values = data.view(DTYPES[dtype]).astype(dtype, copy=False)
    return values


def _part(number: int) -> str:
    return f"{VALUES}-{number}"
