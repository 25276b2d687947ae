"""Shared weights from a trained network that is as large as the supernet, or larger.

Weight selection (Xu et al. 2024, "Initializing Models with Larger Ones"): of each axis of the larger
network take evenly spaced elements, every k-th where the sizes divide, else round(linspace(0, D - 1,
d)); the classifier's outputs are left out. Here the selection is made once per named axis, so that
a layer's outputs are what its readers expect, through additions and concatenations too. Deviations:
kernels give their centre; channels of group normalization are taken in whole groups, and those of
attention in whole heads; an embedding that the next stage's begins with gives its first elements;
from a source that is a supernet itself the first elements are taken, since it was trained to have
its prefixes used and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn

from .axes import SharedTensor, Weights, layout
from .errors import UsageError
from .space import Space
from .structure import Structure, kernel_axes, positions_of, structure_of
from .weights import initial

Positions = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class WarmStart:
    """Shared weights, and where they come from.

    `taken` maps each axis that is smaller than the source's to the positions taken there; `fresh`
    names the tensors that were drawn anew, `unused` the source's that nothing was taken from.
    """

    weights: Weights
    taken: Positions
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """The selection as plain values, for a manifest."""
        return {
            "taken": {axis: list(positions) for axis, positions in self.taken.items()},
            "fresh": list(self.fresh),
            "unused": list(self.unused),
        }


def warm_start(
    space: Space,
    source: nn.Module | Mapping[str, Tensor],
    *,
    fresh: Sequence[str] = (),
    nested: bool = False,
    seed: int = 0,
) -> WarmStart:
    """Shared weights of a space out of a trained module, or its tensors by name.

    `fresh` are names or patterns of tensors to draw anew (as `weights.initial` does with `seed`),
    such as a classifier for other classes; `nested` says that the source is a supernet. UsageError
    names a tensor that is missing, of another rank, or smaller than the space's.
    """
    found = dict(source.named_parameters()) if isinstance(source, nn.Module) else dict(source)
    shared, structure = layout(space), structure_of(space)
    for pattern in fresh:
        if not any(fnmatchcase(name, pattern) for name in shared):
            near = get_close_matches(pattern, shared, n=1)
            raise UsageError(
                f"warm start: fresh: {pattern!r} matches no tensor; "
                + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(shared)}")
            )
    anew = tuple(name for name in shared if any(fnmatchcase(name, p) for p in fresh))
    wanted = {name: tensor for name, tensor in shared.items() if name not in anew}
    if not wanted:
        raise UsageError(f"warm start: fresh = {list(fresh)} leaves no tensor to take")
    theirs = _source_sizes(wanted, found, structure)
    taken = _chosen(space, wanted, theirs, nested=nested)
    drawn = initial(space, seed)
    weights = {
        name: _selected(name, wanted[name], found[name], (taken, theirs, structure))
        if name in wanted
        else drawn[name]
        for name in shared
    }
    smaller = {axis: p for axis, p in taken.items() if len(p) < theirs[axis]}
    return WarmStart(weights, smaller, anew, tuple(sorted(found.keys() - wanted.keys())))


def evenly(full: int, size: int) -> list[int]:
    """`size` evenly spaced positions out of `full`."""
    if full % size == 0:
        return list(range(0, full, full // size))
    return [int(p) for p in np.round(np.linspace(0, full - 1, size))]


def _source_sizes(
    wanted: Mapping[str, SharedTensor], source: Mapping[str, Tensor], structure: Structure
) -> dict[str, int]:
    """Size of each axis in the source; UsageError where two tensors disagree."""
    sizes: dict[str, int] = {}
    first: dict[str, str] = {}
    for name, tensor in wanted.items():
        if name not in source:
            raise UsageError(
                f"warm start: the source has no tensor {name}; name it in `fresh` to draw it anew"
            )
        if source[name].dim() != len(tensor.shape):
            raise UsageError(
                f"warm start: {name} is {tuple(source[name].shape)} in the source, and "
                f"{tensor.shape} here; name it in `fresh` to draw it anew"
            )
        for axis, mine, size in zip(tensor.axes, tensor.shape, source[name].shape, strict=True):
            if axis is None and size != mine:
                raise UsageError(
                    f"warm start: {name} is {tuple(source[name].shape)} in the source, and "
                    f"{tensor.shape} here, in a dimension that does not vary; name it in `fresh` "
                    "to draw it anew"
                )
            if axis is None or axis in structure.composed:
                continue
            if size < mine:
                raise UsageError(
                    f"warm start: {name}: axis {axis} has {size} elements in the source; at least "
                    f"{mine} are needed"
                )
            if sizes.setdefault(axis, size) != size:
                raise UsageError(
                    f"warm start: axis {axis} has {sizes[axis]} elements in the source's "
                    f"{first[axis]} and {size} in its {name}"
                )
            first.setdefault(axis, name)
    return sizes


def _chosen(
    space: Space,
    wanted: Mapping[str, SharedTensor],
    theirs: Mapping[str, int],
    *,
    nested: bool,
) -> dict[str, list[int]]:
    """Axis → positions taken in the source."""
    kernels, structure = kernel_axes(space), structure_of(space)
    mine = {
        axis: size
        for tensor in wanted.values()
        for axis, size in zip(tensor.axes, tensor.shape, strict=True)
        if axis is not None
    }
    taken = {}
    for axis, full in theirs.items():
        size, unit = mine[axis], structure.units.get(axis, 1)
        if axis in kernels:
            if (full - size) % 2:
                raise UsageError(
                    f"warm start: axis {axis}: a kernel of {size} has no centre in one of {full}"
                )
            taken[axis] = list(range((full - size) // 2, (full + size) // 2))
        elif nested or axis in structure.ordered:
            taken[axis] = list(range(size))
        elif full % unit:
            raise UsageError(
                f"warm start: axis {axis} has {full} elements in the source; a multiple of {unit} "
                "is needed, the channels of one group of a normalization or of one head"
            )
        else:
            groups = evenly(full // unit, size // unit)
            taken[axis] = [group * unit + k for group in groups for k in range(unit)]
    return taken


def _selected(
    name: str,
    tensor: SharedTensor,
    source: Tensor,
    selection: tuple[Positions, Mapping[str, int], Structure],
) -> Tensor:
    taken, theirs, structure = selection
    part = source.detach().to("cpu", torch.float32)
    for dim, axis in enumerate(tensor.axes):
        if axis is None:
            continue
        if axis in structure.composed:
            stretches = structure.composed[axis]
            if missing := [s.axis for s in stretches if s.axis and s.axis not in taken]:
                raise UsageError(
                    f"warm start: {name} reads {missing[0]}, which is drawn anew; then it must be too"
                )
            positions = positions_of(stretches, taken, theirs)
            whole = sum((theirs[s.axis] if s.axis else s.channels) * s.repeat for s in stretches)
        else:
            positions, whole = list(taken[axis]), theirs[axis]
        if part.shape[dim] != whole:
            raise UsageError(
                f"warm start: {name}: axis {axis} has {part.shape[dim]} elements in the source; "
                f"{whole} follow from its other tensors"
            )
        part = part.index_select(dim, torch.tensor(positions))
    return part.clone(memory_format=torch.contiguous_format)
