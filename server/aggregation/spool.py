"""A round's updates on disk, for rules that must see all of them: read back one by one, or in blocks.

Memory does not grow with the number of clients: an update is written when it comes, in an unnamed
temporary file, and a rule looks at a few values of one shared tensor at a time, over all clients.
"""

import math
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ...supernet.axes import Index, shape_of
from ...supernet.weights import Flat, Shapes
from .update import Update

BLOCK_VALUES = 1 << 21
"""Of a block, over all updates; a block has at least one value of each."""
Values = NDArray[np.float32]
Runs = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the shared tensor `name`, contiguous in its memory, over all updates.

    `values` has shape (updates, *region's shape), float32, in the order in which they were added;
    NaN where an update does not have the value.
    """

    name: str
    region: Runs
    values: Values


@dataclass(frozen=True, slots=True)
class _Stored:
    light: Update
    at: int
    starts: dict[str, int]


class Spool:
    """Updates of one round, kept on disk."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = dict(shapes)
        self._stored: list[_Stored] = []

    @cached_property
    def _file(self) -> IO[bytes]:
        """Made when it is first needed; its space is given back with this object at the latest."""
        file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, file.close)
        return file

    def add(self, update: Update) -> None:
        """Keep an update."""
        starts, at = {}, 0
        for name, region in update.where.items():
            starts[name] = at
            at += math.prod(shape_of(region))
        begin = self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(update.delta).data)
        light = replace(update, delta=np.empty(0, np.float32))
        self._stored.append(_Stored(light, begin, starts))

    def __len__(self) -> int:
        return len(self._stored)

    def updates(self, order: Sequence[int] | None = None) -> Iterator[Update]:
        """All updates in the order in which they came, or these; one in memory at a time."""
        for stored in self._stored if order is None else [self._stored[k] for k in order]:
            size = sum(math.prod(shape_of(region)) for region in stored.light.where.values())
            yield replace(stored.light, delta=self._read(stored.at, size))

    def light(self) -> list[Update]:
        """All updates without their values."""
        return [stored.light for stored in self._stored]

    def blocks(self) -> Iterator[Block]:
        """The shared tensors that somebody trained, a part at a time, in their order."""
        for name, shape in self._shapes.items():
            if any(name in stored.starts for stored in self._stored):
                for region in _parts(shape, BLOCK_VALUES // len(self._stored)):
                    yield Block(name, region, self._block(name, region))

    def close(self) -> None:
        """Give the disk space back."""
        if self._stored:
            self._file.close()

    def _block(self, name: str, region: Runs) -> Values:
        found = np.full((len(self._stored), *shape_of(region)), np.nan, np.float32)
        for place, stored in enumerate(self._stored):
            if name not in stored.starts:
                continue
            own = stored.light.where[name]
            pairs = [_common(index, run) for index, run in zip(own, region, strict=True)]
            if not all(len(mine) for mine, _ in pairs):
                continue
            part = self._part(stored, name, [mine for mine, _ in pairs])
            if stored.light.scale != 1:
                part *= np.float32(stored.light.scale)
            at: Any = (place, *np.ix_(*(target for _, target in pairs)))
            found[at] = part
        return found

    def _part(self, stored: _Stored, name: str, mine: list[NDArray[np.int64]]) -> Values:
        """The values at positions `mine` of each dimension of an update's tensor.

        Read from the first to the last of them in the first dimension that has more than one: of a
        block's dimensions those before it have one, and those behind it are whole.
        """
        shape = shape_of(stored.light.where[name])
        single = 0
        at, row = stored.starts[name], math.prod(shape)
        for taken, size in zip(mine, shape, strict=True):
            row //= size
            at += int(taken[0]) * row
            if len(taken) > 1:
                break
            single += 1
        inner = mine[single:]
        rows = int(inner[0][-1] - inner[0][0]) + 1 if inner else 1
        read = self._read(stored.at + 4 * at, rows * row)
        if inner:
            read = read.reshape(rows, *shape[single + 1 :])
            chosen = np.ix_(inner[0] - inner[0][0], *inner[1:])
            read = read if read.size == math.prod(map(len, inner)) else read[chosen]
        return read.reshape([len(taken) for taken in mine])

    def _read(self, at: int, size: int) -> Flat:
        self._file.seek(at)
        return np.frombuffer(bytearray(self._file.read(4 * size)), np.float32)


def _parts(shape: tuple[int, ...], most: int) -> Iterator[Runs]:
    """Parts of a tensor of at most `most` values (at least 1), each contiguous in its memory."""
    if not shape:
        yield ()
        return
    first, *others = shape
    row = math.prod(others)
    if row > most and others:
        for at in range(first):
            yield from ((slice(at, at + 1), *inner) for inner in _parts(tuple(others), most))
        return
    step = max(1, most // max(row, 1))
    for begin in range(0, first, step):
        yield slice(begin, min(begin + step, first)), *(slice(0, size) for size in others)


def _common(index: Index, run: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which positions of an index lie in a run, ascending, and where in the run they lie."""
    if isinstance(index, slice):
        begin, end = max(index.start, run.start), min(index.stop, run.stop)
        taken = np.arange(begin, max(begin, end))
        return taken - index.start, taken - run.start
    taken = np.asarray(index)
    mine = np.flatnonzero((taken >= run.start) & (taken < run.stop))
    return mine, taken[mine] - run.start
