"""A round's updates on disk, for rules that must see all of them: read back one by one, or in blocks.

Memory does not grow with the number of clients: an update is written when it comes, in an unnamed
temporary file, and a rule looks at a few rows of one shared tensor at a time, over all clients.
"""

import math
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ...supernet.axes import Index, Region, length, positions, shape_of
from ...supernet.weights import Flat, Shapes
from .update import Update

BLOCK_VALUES = 1 << 21
Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Block:
    """Rows `rows` of the shared tensor `name` over all updates.

    `values` has shape (updates, *rows' shape), float32, in the order in which they were added; NaN
    where an update does not have the value.
    """

    name: str
    rows: slice
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
        """The shared tensors that somebody trained, a few rows at a time."""
        for name, shape in self._shapes.items():
            holders = [s for s in self._stored if name in s.starts]
            if not holders:
                continue
            row = len(self._stored) * math.prod(shape[1:])
            step = max(1, BLOCK_VALUES // row)
            for begin in range(0, shape[0], step):
                rows = slice(begin, min(begin + step, shape[0]))
                yield Block(name, rows, self._block(name, shape, rows))

    def close(self) -> None:
        """Give the disk space back."""
        if self._stored:
            self._file.close()

    def _block(self, name: str, shape: tuple[int, ...], rows: slice) -> Values:
        found = np.full((len(self._stored), length(rows), *shape[1:]), np.nan, np.float32)
        for place, stored in enumerate(self._stored):
            if name not in stored.starts:
                continue
            region = stored.light.where[name]
            mine, target = _rows(region[0], rows)
            if not len(target):
                continue
            part = self._part(stored, name, region, mine)
            if stored.light.scale != 1:
                part *= np.float32(stored.light.scale)
            others = [np.asarray(list(positions(index))) for index in region[1:]]
            found[place][np.ix_(target, *others)] = part
        return found

    def _part(self, stored: _Stored, name: str, region: Region, mine: NDArray[np.int64]) -> Values:
        """The rows `mine` of an update's tensor."""
        shape = shape_of(region)
        row = math.prod(shape[1:])
        first, last = int(mine[0]), int(mine[-1]) + 1
        at = stored.at + 4 * (stored.starts[name] + first * row)
        read = self._read(at, (last - first) * row).reshape(last - first, *shape[1:])
        return read if len(mine) == last - first else read[mine - first]

    def _read(self, at: int, size: int) -> Flat:
        self._file.seek(at)
        return np.frombuffer(bytearray(self._file.read(4 * size)), np.float32)


def _rows(index: Index, rows: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which rows of an update lie in a block, and where in it; both ascending in the update."""
    taken = np.asarray(list(positions(index)))
    mine = np.flatnonzero((taken >= rows.start) & (taken < rows.stop))
    return mine, taken[mine] - rows.start
