"""What is owed of the shared weights, kept for the indices that were ever trained, and as a file."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ...supernet.axes import Index, Layout, Region
from ...supernet.errors import ArtifactError
from ...supernet.weights import Flat

Places = tuple[NDArray[np.int32], ...]

_RUN, _CHECK = "run", "crc32"
_VALUES, _INDEX = "values", "index"


@dataclass(frozen=True, slots=True)
class Owed:
    """Residual of one shared tensor: at these indices of each of its dimensions, ascending."""

    places: Places
    values: Flat

    @classmethod
    def nothing(cls, dimensions: int) -> "Owed":
        """No indices yet."""
        none = np.empty(0, np.int32)
        return cls((none,) * dimensions, np.zeros((0,) * dimensions, np.float32))

    def read(self, wanted: Places) -> Flat:
        """The residual at some indices, in their order; zero where there is none."""
        found = np.zeros([len(index) for index in wanted], np.float32)
        held = [np.isin(index, mine) for index, mine in zip(wanted, self.places, strict=True)]
        here = [index[mask] for index, mask in zip(wanted, held, strict=True)]
        found[_cells([np.flatnonzero(mask) for mask in held])] = self.values[self._cells(here)]
        return found

    def replaced(self, places: Places, values: Flat) -> "Owed":
        """A copy that is grown to these indices and has these values there."""
        grown = tuple(np.union1d(a, b) for a, b in zip(self.places, places, strict=True))
        copy = Owed(grown, self.read(grown))
        copy.values[copy._cells(places)] = values
        return copy

    def _cells(self, places: Sequence[NDArray[np.int32]]) -> tuple[Any, ...]:
        return _cells([np.searchsorted(m, p) for m, p in zip(self.places, places, strict=True)])

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether this is a residual of a tensor of such a shape."""
        return (
            len(self.places) == len(shape)
            and self.values.shape == tuple(len(index) for index in self.places)
            and self.values.dtype == np.float32
            and bool(np.isfinite(self.values).all())
            and all(_ascending(index, size) for index, size in zip(self.places, shape, strict=True))
        )


Residual = Mapping[str, Owed]


def places_of(region: Region) -> Places:
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


def to_bytes(residual: Residual, run: str) -> bytes:
    """One safetensors file: values and indices of each tensor, the run, a checksum."""
    tensors: dict[str, NDArray[np.generic]] = {
        f"{_VALUES}/{name}": owed.values for name, owed in residual.items()
    }
    for name, owed in residual.items():
        tensors |= {f"{_INDEX}{dim}/{name}": index for dim, index in enumerate(owed.places)}
    return save(tensors, {_RUN: run, _CHECK: _checksum(tensors)})


def from_file(path: Path, run: str, layout: Layout) -> Residual | None:
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
    found = {name: _owed(tensors, name) for name in names}
    for name, owed in found.items():
        if name not in layout or not owed.fits(layout[name].shape):
            raise ArtifactError(f"{path}: {name} is no tensor of this run's space")
    return found


def _owed(tensors: Mapping[str, NDArray[np.generic]], name: str) -> Owed:
    values = tensors[f"{_VALUES}/{name}"]
    places = (tensors.get(f"{_INDEX}{dim}/{name}", np.empty(0)) for dim in range(values.ndim))
    return Owed(tuple(places), values)  # type: ignore[arg-type]


def _checksum(tensors: Mapping[str, NDArray[np.generic]]) -> str:
    check = 0
    for key in sorted(tensors):
        check = zlib.crc32(tensors[key].tobytes(), zlib.crc32(key.encode(), check))
    return str(check)
