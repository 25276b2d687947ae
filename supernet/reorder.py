"""Channels sorted by importance, so that the first ones, which every subnet has, matter most.

Importance of a channel is the L1 norm of all kernels that make it or read it (outgoing and incoming
weights), as in ViT-ResNAS (Liao et al. 2021) and once-for-all (Cai et al. 2020); DεpS (Annavajjala
et al. 2024) sorts once, when shrinking starts. One permutation per axis, applied to every tensor
that bears the axis, leaves the network's function as it was.

Not every axis may be sorted: heads are pieces of one axis, joined tensors keep their order, a kernel
has a centre. So an axis is sorted only where a trial shows that its order does not matter: random
weights, the first two channels exchanged, all moved on by one, the same outputs. Every other order
is made of those two. What a family states by `structure` is followed: features
after flattening move with their channel, channels of a normalization group together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .axes import Weights, layout, prefix
from .randomness import stream
from .space import Arch, Space
from .structure import kernel_axes, positions_of, structure_of
from .subnet import static
from .weights import check_shared, initial

Order = Mapping[str, tuple[int, ...]]
TRIALS = 8
SAME = 1e-9
"""Largest relative difference of outputs in double precision that is rounding."""


@dataclass(frozen=True)
class Reordered:
    """Weights with sorted channels, the order (axis → old positions), and the sorted importances.

    `order` is what `permuted` needs to sort what else has the weights' shapes, such as momentum.
    """

    weights: Weights
    order: Order
    importance: Mapping[str, Tensor]


def reorder(space: Space, weights: Mapping[str, Tensor]) -> Reordered:
    """Sort the channels of every axis that may be sorted, the most important first.

    UsageError names a tensor that is not the space's.
    """
    check_shared(space, weights)
    units = structure_of(space).units
    found = importance(space, weights)
    order: dict[str, tuple[int, ...]] = {}
    ranked: dict[str, Tensor] = {}
    for axis in sortable(space):
        unit = units.get(axis, 1)
        groups = found[axis].view(-1, unit).sum(dim=1)
        values, places = torch.sort(groups, descending=True, stable=True)
        order[axis], ranked[axis] = _channels(places.tolist(), unit), values
    return Reordered(permuted(space, weights, order), order, ranked)


def importance(space: Space, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Axis → L1 norm of each channel over all kernels and matrices that bear the axis, (channels,)."""
    composed = structure_of(space).composed
    found: dict[str, Tensor] = {}

    def add(axis: str, values: Tensor) -> None:
        found[axis] = found[axis] + values if axis in found else values

    for name, tensor in layout(space).items():
        if len(tensor.shape) < 2:
            continue
        size = weights[name].detach().double().abs()
        for dim, axis in enumerate(tensor.axes):
            if axis is None:
                continue
            per_position = size.sum(dim=[d for d in range(size.dim()) if d != dim])
            if axis not in composed:
                add(axis, per_position)
                continue
            parts = per_position.split([stretch.positions for stretch in composed[axis]])  # type: ignore[no-untyped-call]
            for stretch, part in zip(composed[axis], parts, strict=True):
                if stretch.axis is not None:
                    add(stretch.axis, part.view(stretch.channels, stretch.repeat).sum(dim=1))
    return found


def permuted(space: Space, values: Mapping[str, Tensor], order: Order) -> Weights:
    """The same tensors with each axis in the given order; axes without one stay."""
    composed, shared = structure_of(space).composed, layout(space)
    full = _full(space)
    chosen: dict[str, Sequence[int]] = {axis: range(size) for axis, size in full.items()}
    chosen.update(order)
    found = {}
    for name, value in values.items():
        for dim, axis in enumerate(shared[name].axes):
            if axis is None:
                continue
            stretches = composed.get(axis)
            places = chosen[axis] if stretches is None else positions_of(stretches, chosen, full)
            value = value.index_select(dim, torch.tensor(places))
        found[name] = value.detach().clone()
    return found


@lru_cache(maxsize=64)
def sortable(space: Space) -> tuple[str, ...]:
    """The axes whose order does not matter, found by trial; a property of the space alone."""
    structure = structure_of(space)
    units, still = structure.units, kernel_axes(space) | structure.ordered
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: value + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in initial(space, 0).items()
    }
    arch = _cheap(space)
    shape = space.input_shape(arch)
    x = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    before = _outputs(space, arch, weights, x)

    def same(order: Order) -> bool:
        after = _outputs(space, arch, permuted(space, weights, order), x)
        return float((after - before).abs().max()) <= SAME * float(before.abs().max())

    moves = {
        axis: _moves(size, units.get(axis, 1))
        for axis, size in _full(space).items()
        if axis not in still and _taken_by_prefix(space, axis)
    }
    if all(same(order) for order in _joint(moves)):
        return tuple(moves)
    return tuple(a for a, orders in moves.items() if all(same({a: order}) for order in orders))


def _moves(size: int, unit: int) -> tuple[tuple[int, ...], ...]:
    """An axis with its first two units exchanged, and moved on by one: both generate every order."""
    groups = list(range(size // unit))
    return tuple(
        _channels(to, unit) for to in (groups[1::-1] + groups[2:], groups[1:] + groups[:1])
    )


def _joint(moves: Mapping[str, tuple[tuple[int, ...], ...]]) -> Iterator[Order]:
    """Few trials for many axes: each axis is moved both ways, and of any two once only one is.

    Two names of the same channels would pass if they were always moved alike.
    """
    numbered = dict(enumerate(moves, 1))
    for bit in range(len(moves).bit_length()):
        for way in (0, 1):
            yield {a: moves[a][way] for number, a in numbered.items() if number >> bit & 1}


def _full(space: Space) -> dict[str, int]:
    """Axis → its size, for those that are made of no others."""
    composed = structure_of(space).composed
    return {
        axis: size
        for tensor in layout(space).values()
        for axis, size in zip(tensor.axes, tensor.shape, strict=True)
        if axis is not None and axis not in composed
    }


def _channels(groups: Sequence[int], unit: int) -> tuple[int, ...]:
    return tuple(group * unit + k for group in groups for k in range(unit))


def _taken_by_prefix(space: Space, axis: str) -> bool:
    """Whether subnets take the first channels: else none is worth more for being in front."""
    for arch in (space.smallest(), *_samples(space)):
        index = space.select(arch).index.get(axis, prefix(0))
        if not isinstance(index, slice) or index.start != 0:
            return False
    return True


@lru_cache(maxsize=64)
def _samples(space: Space) -> tuple[Arch, ...]:
    rng = stream("reorder")
    return tuple(space.sample(rng) for _ in range(TRIALS))


def _cheap(space: Space) -> Arch:
    """The largest architecture, at the lowest resolution where that varies."""
    largest = space.largest()
    genes = {gene.name: gene.options for gene in space.genes}
    if "resolution" not in genes:
        return largest
    return space.arch({**largest, "resolution": genes["resolution"][0]})


def _outputs(space: Space, arch: Arch, weights: Weights, x: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = static(space, arch, weights).eval().double()(x)
    return found
