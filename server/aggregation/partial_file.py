r"""A partial sum as a file: what an aggregator of some devices hands on to the next one.

    MAGIC · length of HEAD (8 bytes) · HEAD · the sum's values · sha256 of all before (32 bytes)

Numbers are little-endian. HEAD is JSON (`_Head`): which space, run and round the updates belong to,
which updates they are, how much weight each region of each tensor received, and the shared tensors'
shapes, from which the length of all that follows. The file has exactly that length, or is refused
before anything is allocated for it. Values are finite numbers.
"""

import hashlib
import itertools
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ...protos import durable
from ...supernet.axes import Index, Region, positions
from ...supernet.errors import ArtifactError
from ...supernet.weights import Shapes, size_of
from .overlap_mean import Partial

MAGIC = b"fedofa partial 1\n"
LENGTH_BYTES, DIGEST_BYTES, CHUNK_BYTES = 8, 32, 1 << 22
MOST_HEAD_BYTES = 1 << 26
MOST_VALUES = 1 << 32
"""No file with more is read, whatever it declares: 16 or 32 GiB of values."""
MOST_UPDATES, MOST_DIMS = 1_000_000, 8
DTYPES = {"float32": torch.float32, "float64": torch.float64}

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=300)]
UpdateId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$")]
Weight = Annotated[float, Field(gt=0)]
Size = Annotated[int, Field(ge=1, le=MOST_VALUES)]
Sum = NDArray[Any]
Position = Annotated[int, Field(ge=0, lt=MOST_VALUES)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Origin(_Part):
    """What the updates are changes of: a space (`space_digest`), a run and its round."""

    space: Sha256
    run: Name
    round: int = Field(ge=1)


class _Run(_Part):
    """Positions `start` to `stop`, without `stop`."""

    start: Position
    stop: int = Field(ge=1, le=MOST_VALUES)


class _Counted(_Part):
    """The weight that a region received: a run or a list of positions for each dimension."""

    region: tuple[_Run | tuple[Position, ...], ...] = Field(max_length=MOST_DIMS)
    weight: Weight


class _Head(_Part):
    origin: Origin
    dtype: Literal["float32", "float64"]
    shapes: dict[Name, Annotated[tuple[Size, ...], Field(max_length=MOST_DIMS)]]
    updates: tuple[UpdateId, ...] = Field(min_length=1, max_length=MOST_UPDATES)
    weight: Weight
    counted: dict[Name, tuple[_Counted, ...]]


@dataclass(frozen=True, slots=True)
class Parcel:
    """A partial sum with what it needs to be merged by somebody else.

    `updates` are the ids of the updates in it: within a run and a round, device names.
    """

    origin: Origin
    shapes: Shapes
    updates: frozenset[str]
    partial: Partial

    @classmethod
    def of(cls, origin: Origin, shapes: Shapes, updates: frozenset[str], partial: Partial) -> Self:
        """ValueError unless the ids are those of the partial sum's updates, by their number."""
        if len(updates) != partial.updates:
            raise ValueError(f"{len(updates)} ids of {partial.updates} updates")
        return cls(origin, dict(shapes), updates, partial)


def write(path: Path, parcel: Parcel) -> None:
    """Write the file, whole or not at all."""
    total = parcel.partial.total.numpy()
    if not _finite(total):
        raise ValueError("a partial sum has a value that is no number")
    head = _head_of(parcel).model_dump_json().encode()
    if len(head) > MOST_HEAD_BYTES:
        raise ValueError(f"a head of {len(head)} bytes; at most {MOST_HEAD_BYTES} are read back")
    values = np.ascontiguousarray(total, total.dtype.newbyteorder("<")).data.cast("B")
    draft, digest = path.with_name(f".{path.name}.{os.getpid()}.draft"), hashlib.sha256()
    try:
        with draft.open("wb") as file:
            for part in (MAGIC, len(head).to_bytes(LENGTH_BYTES, "little"), head, values):
                digest.update(part)
                file.write(part)
            file.write(digest.digest())
        durable.move(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def read(path: Path) -> Parcel:
    """Read and check a file; ArtifactError says what is wrong with it.

    Whatever the file says, no more memory is taken than a small multiple of its own size.
    """
    try:
        with path.open("rb") as file:
            return _read(file)
    except OSError as error:
        raise ArtifactError(f"partial sum {path} cannot be read: {error.strerror}") from None
    except _Wrong as wrong:
        raise ArtifactError(f"partial sum {path}: {wrong}; have it sent again") from None


class _Wrong(Exception):
    """What is wrong with a file."""


def _read(file: IO[bytes]) -> Parcel:
    size, digest = os.fstat(file.fileno()).st_size, hashlib.sha256()
    start = _take(file, len(MAGIC) + LENGTH_BYTES, digest)
    if not start.startswith(MAGIC):
        raise _Wrong("it is no partial sum of this version")
    length = int.from_bytes(start[len(MAGIC) :], "little")
    if length > min(MOST_HEAD_BYTES, size):
        raise _Wrong(f"a head of {length} bytes in a file of {size}; at most {MOST_HEAD_BYTES}")
    head = _parsed(_take(file, length, digest))
    count = size_of(head.shapes)
    if count > MOST_VALUES:
        raise _Wrong(f"shapes of {count} values; at most {MOST_VALUES}")
    dtype = np.dtype(head.dtype)
    whole = len(start) + length + count * dtype.itemsize + DIGEST_BYTES
    if size != whole:
        raise _Wrong(f"{size} bytes; its head says {whole}")
    counted = _checked(head)
    values = _values(file, count, dtype, digest)
    if file.read(DIGEST_BYTES + 1) != digest.digest():
        raise _Wrong("its sha256 is not that of its bytes")
    if not _finite(values):
        raise _Wrong("a value is no number")
    _check_rest(head, counted, values)
    partial = Partial(torch.from_numpy(values), counted, len(head.updates), head.weight)
    return Parcel(head.origin, head.shapes, frozenset(head.updates), partial)


def _take(file: IO[bytes], size: int, digest: "hashlib._Hash") -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise _Wrong("it is cut short")
    digest.update(data)
    return data


def _values(file: IO[bytes], count: int, dtype: "np.dtype[Any]", digest: "hashlib._Hash") -> Sum:
    values = np.empty(count, dtype.newbyteorder("<"))
    room = values.data.cast("B")
    for at in range(0, len(room), CHUNK_BYTES):
        part = room[at : at + CHUNK_BYTES]
        if file.readinto(part) != len(part):  # type: ignore[attr-defined]
            raise _Wrong("it is cut short")
        digest.update(part)
    return values.astype(dtype, copy=False)


def _parsed(data: bytes) -> _Head:
    try:
        return _Head.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part)[:80] for part in first["loc"]) or "head"
        raise _Wrong(f"{where}: {first['msg']}") from None


def _checked(head: _Head) -> dict[str, list[tuple[Region, float]]]:
    """The regions; refused where one lies outside its tensor or takes a position twice."""
    if len(set(head.updates)) < len(head.updates):
        raise _Wrong("updates: one is named twice")
    found: dict[str, list[tuple[Region, float]]] = {}
    for name, entries in head.counted.items():
        shape = head.shapes.get(name)
        if shape is None:
            raise _Wrong(f"counted: there is no tensor {name!r}")
        for entry in entries:
            region = tuple(
                slice(i.start, i.stop) if isinstance(i, _Run) else i for i in entry.region
            )
            if len(region) != len(shape) or not all(map(_inside, region, shape)):
                raise _Wrong(f"counted: a region outside {name!r} of shape {shape}")
            found.setdefault(name, []).append((region, entry.weight))
    return found


def _inside(index: Index, size: int) -> bool:
    if isinstance(index, slice):
        return bool(0 <= index.start < index.stop <= size)
    return bool(index) and len(index) == len(set(index)) and max(index) < size


def _finite(values: Sum) -> bool:
    # Both are nan where any value is; no array of truth values is made.
    return math.isfinite(float(values.min(initial=0))) and math.isfinite(
        float(values.max(initial=0))
    )


def _head_of(parcel: Parcel) -> _Head:
    partial = parcel.partial
    counted = {
        name: tuple(
            _Counted(region=tuple(map(_described, region)), weight=weight)
            for region, weight in entries
        )
        for name, entries in partial.counted.items()
    }
    return _Head(
        origin=parcel.origin,
        dtype="float64" if partial.total.dtype == torch.float64 else "float32",
        shapes={name: tuple(shape) for name, shape in parcel.shapes.items()},
        updates=tuple(sorted(parcel.updates)),
        weight=partial.weight,
        counted=counted,
    )


def _described(index: Index) -> _Run | tuple[int, ...]:
    if isinstance(index, slice):
        return _Run(start=index.start, stop=index.stop)
    return tuple(positions(index))


def values_trained(parcel: Parcel) -> int:
    """How many of the shared values some update in it trained."""
    found = parcel.partial.counted
    return sum(int(_mask(parcel.shapes[name], found[name]).sum()) for name in found)


def _mask(shape: tuple[int, ...], entries: list[tuple[Region, float]]) -> NDArray[np.bool_]:
    mask = np.zeros(shape, np.bool_)
    for region, _ in entries:
        mask[np.ix_(*(list(positions(index)) for index in region))] = True
    return mask


def _check_rest(
    head: _Head, counted: Mapping[str, list[tuple[Region, float]]], values: Sum
) -> None:
    """What nobody trained has no change: divided by its weight of nothing it would be infinite."""
    at = 0
    for name, shape in head.shapes.items():
        part = values[at : at + math.prod(shape)].reshape(shape)
        at += part.size
        if (part[~_mask(shape, counted.get(name, []))] != 0).any():
            raise _Wrong(f"a value of {name!r} that no update trained is not 0")


def shapes_equal(one: Mapping[str, tuple[int, ...]], other: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether both say the same tensors in the same order: values lie in that order."""
    return all(a == b for a, b in itertools.zip_longest(one.items(), other.items()))
