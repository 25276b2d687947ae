"""Between our messages and Flower's records: the only place that knows the record's keys."""

import re
from typing import TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from .messages import Body, MessageError

B = TypeVar("B", bound=Body)
Values = NDArray[np.float32] | NDArray[np.float64] | NDArray[np.uint8]

BODY, VALUES, FLAT = "body", "values", "flat"
DTYPES = {"float32": "<f4", "float64": "<f8", "uint8": "|u1"}
# How every numpy writes a flat array (format 1.0): magic, length of the dictionary, dictionary.
HEADER = re.compile(
    rb"\x93NUMPY\x01\x00[\x00-\xff]{2}"
    rb"\{'descr': '(?P<descr>[<|][fu]\d)', 'fortran_order': False, 'shape': \((?P<length>\d{1,15}),\), \}"
    rb" *\n"
)


def to_record(body: Body, values: Values | None = None) -> RecordDict:
    """One message as Flower carries it: the body as JSON text, the values as one flat array.

    One array and not one per tensor: each costs Flower two HTTP objects and about 4 ms.
    """
    record = RecordDict({BODY: ConfigRecord({"json": body.to_json()})})
    if values is not None:
        record[VALUES] = ArrayRecord({FLAT: Array(np.ascontiguousarray(values))})
    return record


def from_record(kind: type[B], record: RecordDict) -> tuple[B, Values | None]:
    """Read and check a message; MessageError says what is wrong with it."""
    bodies, arrays = record.config_records, record.array_records
    if set(bodies) != {BODY} or not isinstance(text := bodies[BODY].get("json"), str):
        raise MessageError(f"{kind.__name__}: no body; records: {sorted(record)}")
    body = kind.from_json(text)
    if not arrays:
        return body, None
    if set(arrays) != {VALUES} or set(arrays[VALUES]) != {FLAT}:
        raise MessageError(f"{kind.__name__}: one array {VALUES}/{FLAT} expected")
    return body, _array(kind, arrays[VALUES][FLAT])


def _array(kind: type[Body], array: Array) -> Values:
    if array.dtype not in DTYPES or len(array.shape) != 1 or array.stype != "numpy.ndarray":
        raise MessageError(
            f"{kind.__name__}: array is {array.dtype}{tuple(array.shape)} ({array.stype}); "
            f"allowed: flat {', '.join(DTYPES)}"
        )
    # numpy's own reader would also evaluate a header's text, open archives, unpickle objects, and
    # reserve what a header claims: a stranger's bytes are only compared with what must be there.
    header = HEADER.match(array.data)
    size = array.shape[0] * np.dtype(array.dtype).itemsize
    declared = (DTYPES[array.dtype], array.shape[0])
    if header is None or (header["descr"].decode(), int(header["length"])) != declared:
        raise MessageError(f"{kind.__name__}: array is not what its header declares")
    if len(array.data) != header.end() + size:
        raise MessageError(f"{kind.__name__}: array has {len(array.data)} bytes, not {size}")
    # A copy: torch wants memory that may be written to.
    values: Values = np.frombuffer(array.data, array.dtype, offset=header.end()).copy()
    return values
