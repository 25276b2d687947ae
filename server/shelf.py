"""Arrays that wait on disk, and the good updates of a round that is still open."""

import heapq
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import IO

import numpy as np

from ..supernet.weights import Flat
from .intake import Good


@dataclass(frozen=True, slots=True)
class Place:
    """Where an array lies."""

    number: int
    values: int


class Shelf:
    """Flat float32 arrays of at most `most_values`, in an unnamed temporary file.

    A place that became free is used again, the first one first: the file holds as many arrays of the
    largest size as ever lay in it at once, whatever went through.
    """

    def __init__(self, most_values: int) -> None:
        self._step_bytes = 4 * most_values
        self._free: list[int] = []
        self._made = 0

    def __len__(self) -> int:
        return self._made - len(self._free)

    @property
    def most_bytes(self) -> int:
        """How large the file can have become."""
        return self._made * self._step_bytes

    @cached_property
    def _file(self) -> IO[bytes]:
        file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, file.close)
        return file

    def put(self, values: Flat) -> Place:
        """Keep an array."""
        if values.dtype != np.float32 or values.nbytes > self._step_bytes:
            raise ValueError(f"{values.size} values of {values.dtype} do not fit on this shelf")
        if self._free:
            number = heapq.heappop(self._free)
        else:
            number, self._made = self._made, self._made + 1
        self._file.seek(number * self._step_bytes)
        self._file.write(np.ascontiguousarray(values).data)
        return Place(number, values.size)

    def take(self, place: Place) -> Flat:
        """The array, whose place is free then."""
        self._file.seek(place.number * self._step_bytes)
        # A bytearray: torch wants memory that may be written to.
        values = np.frombuffer(bytearray(self._file.read(4 * place.values)), np.float32)
        heapq.heappush(self._free, place.number)
        return values


class Buffer:
    """Good updates; what they changed waits on disk until all that will count are known."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._kept: list[tuple[Good, Place]] = []

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, good: Good) -> None:
        """Keep an update."""
        if good.delta is None:
            raise ValueError(f"the update of {good.asked.member.name} is in a group's sum already")
        place = self._shelf.put(good.delta)
        self._kept.append((replace(good, delta=None), place))

    def emptied(self) -> Iterator[Good]:
        """The updates in order of device name, with one array in memory at a time; empties it."""
        kept, self._kept = self._kept, []
        for light, place in sorted(kept, key=lambda entry: entry[0].asked.member.name):
            yield replace(light, delta=self._shelf.take(place))
