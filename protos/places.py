"""Where a subnet's values lie in the supernet's flat array: one number for each value."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..supernet.axes import Regions
from ..supernet.weights import Shapes

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
    """Device → places, worked out when asked for: those of all would take 8 bytes a value."""

    shared: Shapes
    where: Mapping[str, Regions]

    def __getitem__(self, name: str) -> Places:
        return places(self.shared, self.where[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.where)

    def __len__(self) -> int:
        return len(self.where)
