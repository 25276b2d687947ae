"""Some values of the shared weights: those at the indices of each tensor that were ever touched.

A device has to do with another subnet every round. What is kept for it from round to round (what it
owes, holds, or keeps to itself) is kept where it belongs in the shared weights, in no more room than
the indices need that were seen so far.
"""

import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .axes import Index, Layout, Region, Regions, shape_of
from .errors import ArtifactError
from .weights import Flat, shapes_of, size_of

Places = tuple[NDArray[np.int32], ...]
NOTHING = 0.0
"""What stands where no value was put, of values that add up."""
UNKNOWN = math.nan
"""The same, of values that stand for themselves; a value that is no number counts as not there."""

_RUN, _CHECK = "run", "crc32"
_VALUES, _INDEX = "values", "index"


@dataclass(frozen=True, slots=True)
class Patch:
    """Values of one shared tensor at these indices of each of its dimensions, ascending.

    `fill` stands where no value was put.
    """

    places: Places
    values: Flat
    fill: float

    @classmethod
    def nothing(cls, dimensions: int, fill: float) -> "Patch":
        """No indices yet."""
        none = np.empty(0, np.int32)
        return cls((none,) * dimensions, np.zeros((0,) * dimensions, np.float32), fill)

    def read(self, wanted: Places) -> Flat:
        """The values at some indices, in their order."""
        found = np.full([len(index) for index in wanted], self.fill, np.float32)
        held = [np.isin(index, mine) for index, mine in zip(wanted, self.places, strict=True)]
        here = [index[mask] for index, mask in zip(wanted, held, strict=True)]
        found[_cells([np.flatnonzero(mask) for mask in held])] = self.values[self._cells(here)]
        return found

    def replaced(self, places: Places, values: Flat) -> "Patch":
        """A copy that is grown to these indices and has these values there."""
        grown = tuple(np.union1d(a, b) for a, b in zip(self.places, places, strict=True))
        copy = Patch(grown, self.read(grown), self.fill)
        copy.values[copy._cells(places)] = values
        return copy

    def _cells(self, places: Sequence[NDArray[np.int32]]) -> tuple[Any, ...]:
        return _cells([np.searchsorted(m, p) for m, p in zip(self.places, places, strict=True)])

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether these are values of a tensor of such a shape."""
        return (
            len(self.places) == len(shape)
            and self.values.shape == tuple(len(index) for index in self.places)
            and self.values.dtype == np.float32
            and not np.isinf(self.values).any()
            and (math.isnan(self.fill) or not np.isnan(self.values).any())
            and all(_ascending(index, size) for index, size in zip(self.places, shape, strict=True))
        )


Patches = Mapping[str, Patch]
"""Name of a shared tensor → what is there of it."""


def gathered(patches: Patches, where: Regions, fill: float) -> Flat:
    """The values in some regions as one flat array, `fill` where there is none."""
    parts = [
        patches.get(name, Patch.nothing(len(region), fill)).read(_places_of(region)).reshape(-1)
        for name, region in where.items()
    ]
    return np.concatenate([np.empty(0, np.float32), *parts])


def scattered(patches: Patches, where: Regions, flat: Flat, fill: float) -> Patches:
    """A copy with the values of a flat array in these regions.

    ValueError where the array is not of these weights.
    """
    if flat.shape != (size := size_of(shapes_of(where)),):
        raise ValueError(f"array of {flat.shape}; these weights have {size} values")
    after, begin = dict(patches), 0
    for name, region in where.items():
        shape = shape_of(region)
        end = begin + math.prod(shape)
        before = after.get(name, Patch.nothing(len(shape), fill))
        after[name] = before.replaced(_places_of(region), flat[begin:end].reshape(shape))
        begin = end
    return after


def _places_of(region: Region) -> Places:
    """The indices that a region takes, in its order."""
    return tuple(_positions(index) for index in region)


def _positions(index: Index) -> NDArray[np.int32]:
    if isinstance(index, slice):
        return np.arange(index.start, index.stop, dtype=np.int32)
    return np.array(index, np.int32)


def _cells(at: list[NDArray[np.intp]]) -> tuple[Any, ...]:
    """numpy's index of a grid of positions: slices, which are faster, where they are neighbours."""
    if all((np.diff(index) == 1).all() for index in at):
        return tuple(slice(index[0], index[-1] + 1) if len(index) else slice(0) for index in at)
    return np.ix_(*at)


def _ascending(index: NDArray[np.int32], size: int) -> bool:
    if index.dtype != np.int32 or index.ndim != 1:
        return False
    edges = np.concatenate([[-1], index, [size]])
    return bool((np.diff(edges) > 0).all())


def cells(patches: Patches) -> int:
    """How many values there is room for."""
    return sum(patch.values.size for patch in patches.values())


def digest(patches: Patches) -> str:
    """sha256 over names, indices and values, 64 hex digits: equal for equal ones on any machine."""
    found = hashlib.sha256()
    for key, array in sorted(_arrays(patches).items()):
        found.update(f"{key}{array.shape}".encode())
        found.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return found.hexdigest()


def to_bytes(patches: Patches, run: str) -> bytes:
    """One safetensors file: values and indices of each tensor, the run, a checksum."""
    tensors = _arrays(patches)
    return save(tensors, {_RUN: run, _CHECK: _checksum(tensors)})


def from_file(path: Path, run: str, layout: Layout, fill: float) -> Patches | None:
    """Read `to_bytes`'s form; None if it is another run's, ArtifactError if it is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            notes = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: {error}") from None
    if notes.get(_CHECK) != _checksum(tensors):
        raise ArtifactError(f"{path}: its checksum is wrong")
    if notes.get(_RUN) != run:
        return None
    names = [key.partition("/")[2] for key in tensors if key.startswith(f"{_VALUES}/")]
    found = {name: _patch(tensors, name, fill) for name in names}
    for name, patch in found.items():
        if name not in layout or not patch.fits(layout[name].shape):
            raise ArtifactError(f"{path}: {name} is no tensor of this run's space")
    return found


def _arrays(patches: Patches) -> dict[str, NDArray[np.generic]]:
    tensors: dict[str, NDArray[np.generic]] = {
        f"{_VALUES}/{name}": patch.values for name, patch in patches.items()
    }
    for name, patch in patches.items():
        tensors |= {f"{_INDEX}{dim}/{name}": index for dim, index in enumerate(patch.places)}
    return tensors


def _patch(tensors: Mapping[str, NDArray[np.generic]], name: str, fill: float) -> Patch:
    values = tensors[f"{_VALUES}/{name}"]
    places = (tensors.get(f"{_INDEX}{dim}/{name}", np.empty(0)) for dim in range(values.ndim))
    return Patch(tuple(places), values, fill)  # type: ignore[arg-type]


def _checksum(tensors: Mapping[str, NDArray[np.generic]]) -> str:
    check = 0
    for key in sorted(tensors):
        check = zlib.crc32(tensors[key].tobytes(), zlib.crc32(key.encode(), check))
    return str(check)
