"""Memory that a run shares with its groups: an unnamed file, mapped by all, known by descriptor only.

Nothing names it, so nothing is left of it when the last process that has it ends, however it ends.
"""

import mmap
import os
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...supernet.errors import RunError

ALIGNED_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Room:
    """What lies in it, one after the other: the weights (float32), each group's sum, the slots.

    `values` is the supernet's size, `sums` the dtype of the sums. Each of the `slots` has room for an
    array of `slot_bytes`.
    """

    values: int
    groups: int
    sums: str
    slots: int
    slot_bytes: int

    @property
    def size_bytes(self) -> int:
        """All of it."""
        return self._slot_at(self.slots)

    def _sum_at(self, group: int) -> int:
        step = _aligned(self.values * np.dtype(self.sums).itemsize)
        return _aligned(4 * self.values) + group * step

    def _slot_at(self, slot: int) -> int:
        return self._sum_at(self.groups) + slot * _aligned(self.slot_bytes)


class Shared:
    """The memory as arrays; `descriptor` is passed to a process that is to have it too."""

    def __init__(self, room: Room, descriptor: int) -> None:
        self.room, self.descriptor = room, descriptor
        self._map = mmap.mmap(descriptor, room.size_bytes)

    @classmethod
    def new(cls, room: Room) -> "Shared":
        """Fresh memory; RunError where there is not so much."""
        descriptor = _unnamed()
        try:
            # Now, and not as a crash when it is first written to.
            os.posix_fallocate(descriptor, 0, room.size_bytes)
        except OSError as error:
            os.close(descriptor)
            raise RunError(
                f"round.groups: {room.size_bytes} bytes of shared memory cannot be had "
                f"({error.strerror}); use fewer groups, or none"
            ) from None
        return cls(room, descriptor)

    def weights(self) -> NDArray[np.float32]:
        """The shared weights, flat."""
        return self._array(0, np.dtype(np.float32), self.room.values)

    def sum_of(self, group: int) -> NDArray[Any]:
        """A group's sum, flat."""
        at = self.room._sum_at(group)
        return self._array(at, np.dtype(self.room.sums), self.room.values)

    def slot(self, number: int, dtype: str, size: int) -> NDArray[Any]:
        """The first `size` values of a slot."""
        return self._array(self.room._slot_at(number), np.dtype(dtype), size)

    def close(self) -> None:
        """Give up the descriptor; the memory is gone with the last array of it."""
        os.close(self.descriptor)

    def _array(self, at: int, dtype: "np.dtype[Any]", size: int) -> NDArray[Any]:
        return np.frombuffer(self._map, dtype, size, at)


def _unnamed() -> int:
    if sys.platform == "linux":
        return os.memfd_create("fedofa-groups", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _aligned(size: int) -> int:
    return -(-size // ALIGNED_BYTES) * ALIGNED_BYTES
