"""Where a subnet's values lie in the supernet's flat array: one number for each value."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..supernet.axes import Regions
from ..supernet.weights import Shapes, size_of

Places = NDArray[np.int64]


def places(shared: Shapes, where: Regions) -> Places:
    """Places in the order in which the values travel (`gather`), tensors one after another.

    Secure sums want values in ascending order of place. They are, unless a region wraps round (rolled
    windows): `flat[np.argsort(places)]` is right for all.
    """
    starts, at = {}, 0
    for name, shape in shared.items():
        starts[name] = at
        at += math.prod(shape)
    parts = [np.empty(0, np.int64)]
    for name, region in where.items():
        found, stride = np.full((), starts[name], np.int64), math.prod(shared[name])
        for index, size in zip(region, shared[name], strict=True):
            stride //= size
            taken = np.arange(index.start, index.stop) if isinstance(index, slice) else index
            found = found[..., None] + np.asarray(taken, np.int64) * stride
        parts.append(found.reshape(-1))
    return np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class PlacesOfDevices(Mapping[str, Places]):
    """Device → places, worked out when asked for: those of all would take 8 bytes a value.

    Behind the supernet's own values lie so many `figures`, which every device has.
    """

    shared: Shapes
    where: Mapping[str, Regions]
    figures: int = 0

    @property
    def size(self) -> int:
        """How many values there are, the figures too."""
        return size_of(self.shared) + self.figures

    def __getitem__(self, name: str) -> Places:
        behind = np.arange(self.size - self.figures, self.size)
        return np.concatenate([places(self.shared, self.where[name]), behind])

    def __iter__(self) -> Iterator[str]:
        return iter(self.where)

    def __len__(self) -> int:
        return len(self.where)
