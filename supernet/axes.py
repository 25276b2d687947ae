"""Named axes: from one selection, where a subnet's tensors lie inside the shared weights.

Every dimension of every shared tensor bears the name of an axis, or None where it is always taken
whole. A `Selection` names the indices that an architecture takes on each axis and the blocks that
it leaves out. Regions, and with them training, transport, aggregation and extraction, follow from
that and from nothing else.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .space import Arch, Space

Index = slice | tuple[int, ...]
Region = tuple[Index, ...]
Regions = Mapping[str, Region]
Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Selection:
    """Axis name → indices taken on it, and the module prefixes of blocks that are left out."""

    index: Mapping[str, Index]
    absent: frozenset[str] = frozenset()

    def size(self, axis: str) -> int:
        """How many indices are taken on an axis."""
        return length(self.index[axis])

    def has(self, parameter: str) -> bool:
        """Whether the block that this parameter belongs to is used."""
        return not any(parameter.startswith(prefix + ".") for prefix in self.absent)


@dataclass(frozen=True, slots=True)
class SharedTensor:
    """Shape and axis names of one shared tensor."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]


Layout = Mapping[str, SharedTensor]


def length(index: Index) -> int:
    """Number of positions an index takes."""
    return index.stop - index.start if isinstance(index, slice) else len(index)


def indices(positions: Sequence[int]) -> Index:
    """The index of these positions: a slice where they are contiguous and ascending."""
    first = positions[0]
    if list(positions) == list(range(first, first + len(positions))):
        return slice(first, first + len(positions))
    return tuple(positions)


def prefix(size: int) -> Index:
    """The first `size` positions of an axis."""
    return slice(0, size)


def centred(size: int, full: int) -> Index:
    """The middle `size` of `full` positions: a 3×3 kernel inside a 7×7."""
    start = (full - size) // 2
    return slice(start, start + size)


def tag(layer: nn.Module, **axes: tuple[str | None, ...]) -> nn.Module:
    """Remember the axis names of a layer's own tensors, for `layout_of`; returns the layer."""
    layer.axes = dict(axes)  # type: ignore[assignment]
    return layer


def tag_std(layer: nn.Module, **stds: float) -> nn.Module:
    """Remember with which standard deviation a layer's tensors are drawn; 0 is zeros."""
    layer.stds = dict(stds)  # type: ignore[assignment]
    return layer


def layout_of(module: nn.Module) -> dict[str, SharedTensor]:
    """Shape and axes of every parameter of a tagged module, in the module's order.

    Raises ValueError for a parameter without axes: it would silently never be shared.
    """
    found = {}
    for path, layer in module.named_modules():
        axes = getattr(layer, "axes", {})
        for name, parameter in layer.named_parameters(recurse=False):
            if name not in axes or len(axes[name]) != parameter.dim():
                raise ValueError(f"{path}.{name}: no axis names for its {parameter.dim()} dims")
            found[f"{path}.{name}" if path else name] = SharedTensor(
                tuple(parameter.shape), tuple(axes[name])
            )
    return found


@lru_cache(maxsize=64)
def layout(space: Space) -> Layout:
    """The shared tensors of a space: those of its largest architecture, without values."""
    with torch.device("meta"):
        return layout_of(space.build(space.largest()))


@lru_cache(maxsize=4096)
def regions(space: Space, arch: Arch) -> Regions:
    """Where this architecture's tensors lie inside the shared weights."""
    return locate(layout(space), space.select(arch))


@lru_cache(maxsize=4096)
def rolled_regions(space: Space, arch: Arch, offset: int) -> Regions:
    """The architecture's regions with every channel axis moved on by `offset`, wrapping round.

    Channel axes are those on which some tensor has its outputs (its first dimension); positions of
    kernels stay. Axes that an architecture takes whole keep their order.
    """
    shared, selection = layout(space), space.select(arch)
    full = {
        tensor.axes[0]: tensor.shape[0]
        for tensor in shared.values()
        if tensor.axes and tensor.axes[0] is not None
    }
    index = {
        axis: _rolled(taken, full[axis], offset) if axis in full else taken
        for axis, taken in selection.index.items()
    }
    return locate(shared, Selection(index, selection.absent))


def _rolled(index: Index, size: int, offset: int) -> Index:
    if length(index) == size:
        return index
    return indices([(position + offset) % size for position in positions(index)])


def locate(shared: Layout, selection: Selection) -> dict[str, Region]:
    """Parameter name → index per dimension, for the parameters that the selection has."""
    return {
        name: tuple(
            slice(0, size) if axis is None else selection.index[axis]
            for axis, size in zip(tensor.axes, tensor.shape, strict=True)
        )
        for name, tensor in shared.items()
        if selection.has(name)
    }


def without(where: Regions, names: Collection[str]) -> Regions:
    """The regions of the other tensors; `where` itself where it has none of these."""
    if not any(name in names for name in where):
        return where
    return {name: region for name, region in where.items() if name not in names}


def relative(outer: Selection, inner: Selection) -> Selection:
    """`inner` as positions inside `outer`, for a device that holds only `outer`'s values.

    Raises ValueError where `inner` takes what `outer` does not have.
    """
    index = {}
    for axis, wanted in inner.index.items():
        if axis not in outer.index:
            raise ValueError(f"axis {axis}: the outer selection does not have it")
        index[axis] = _position(axis, outer.index[axis], wanted)
    return Selection(index, inner.absent)


def _position(axis: str, outer: Index, inner: Index) -> Index:
    if isinstance(outer, slice) and isinstance(inner, slice):
        if inner.start < outer.start or inner.stop > outer.stop:
            raise ValueError(f"axis {axis}: {inner} lies outside {outer}")
        return slice(inner.start - outer.start, inner.stop - outer.start)
    place = {position: at for at, position in enumerate(positions(outer))}
    try:
        return indices([place[position] for position in positions(inner)])
    except KeyError as missing:
        raise ValueError(f"axis {axis}: position {missing} is not in the outer selection") from None


def positions(index: Index) -> Iterator[int]:
    """The positions that an index takes, in its order."""
    return iter(range(index.start, index.stop) if isinstance(index, slice) else index)


def shape_of(region: Region) -> tuple[int, ...]:
    """Shape of what a region takes."""
    return tuple(length(index) for index in region)


def view(tensor: Tensor, region: Region) -> Tensor:
    """The region of a tensor, differentiable; shares memory where every index is a slice."""
    if all(isinstance(index, slice) for index in region):
        return tensor[region]
    for dim, index in enumerate(region):
        if isinstance(index, slice):
            tensor = tensor.narrow(dim, index.start, index.stop - index.start)
        else:
            tensor = tensor.index_select(dim, torch.tensor(index, device=tensor.device))
    return tensor


def cut(tensor: Tensor, region: Region) -> Tensor:
    """The region of a tensor, differentiable: a copy, but the tensor itself where taken whole.

    Slices are cut by padding with negative widths: one operation, and one backward. Slicing would
    make and fill a tensor once for every dimension that is not taken whole.
    """
    edges: list[int] = []
    for index, size in zip(reversed(region), reversed(tensor.shape), strict=True):
        if not isinstance(index, slice):
            return view(tensor, region)
        edges += (-index.start, index.stop - size)
    return pad(tensor, edges) if any(edges) else tensor


def take(weights: Mapping[str, Tensor], where: Regions) -> Weights:
    """A copy of the selected values, contiguous."""
    return {
        name: view(weights[name], region).detach().clone(memory_format=torch.contiguous_format)
        for name, region in where.items()
    }


def accumulate(total: Tensor, region: Region, values: Tensor, scale: float) -> None:
    """total[region] += scale · values, in place, without a temporary where indices are slices."""
    if tuple not in map(type, region):
        # Slicing costs as much as adding up a few thousand values.
        part = total if values.shape == total.shape else total[region]
        part.add_(values, alpha=scale)
        return
    total.index_put_(index_grid(region), (values * scale).to(total.dtype), accumulate=True)


def put(target: Tensor, region: Region, values: Tensor | float) -> None:
    """target[region] = values, in place."""
    if all(isinstance(index, slice) for index in region):
        target[region] = values
        return
    target[index_grid(region)] = values


def index_grid(region: Region) -> tuple[Tensor, ...]:
    """The region as one index tensor for each dimension, each of the region's shape."""
    return tuple(torch.meshgrid(*(torch.tensor(list(positions(i))) for i in region), indexing="ij"))
