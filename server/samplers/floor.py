"""A coverage floor for every method: no weight waits longer than some rounds if one can train it.

A weight that has waited `rounds` rounds is overdue. For the longest overdue one, the smallest
architecture that holds it is found by shrinking the largest gene by gene; the first client that can
afford it, and has not been moved yet, trains it this round, grown to its budget. A weight that no
client could train at all is not waited for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...supernet.axes import layout, locate, put, regions, view
from ...supernet.space import Arch, Space
from .assigned import Assigned, Round

MOST_LOOKED_AT = 64
"""Overdue places that are looked at in one round, each a search of its own."""


@dataclass(frozen=True, slots=True)
class Place:
    """One weight: tensor and position."""

    tensor: str
    position: tuple[int, ...]


def with_floor(
    this: Round, chosen: Mapping[str, Assigned], ages: Mapping[str, Tensor], rounds: int
) -> dict[str, Assigned]:
    """The assignments, changed where a weight would wait longer than `rounds` rounds."""
    waiting = {name: age.to(torch.int32) + 1 for name, age in ages.items()}
    for assigned in chosen.values():
        _visit(this.space, assigned, waiting)
    result, moved = dict(chosen), set[str]()
    for place in _overdue(waiting, rounds):
        least = smallest_with(this.space, place)
        able = [c for c in this.clients if c.name not in moved and c.fits(least)]
        if not able:
            _give_up(this.space, least, waiting)
            continue
        client = able[0]
        moved.add(client.name)
        arch = this.space.grow_while(least, client.fits, this.stream("floor", client.name))
        # The window of a rolling method lies elsewhere; here it starts at the first channel.
        result[client.name] = replace(
            result[client.name], arch=arch, offset=0, students=None, weight=1.0
        )
        _visit(this.space, result[client.name], waiting)
    return result


def smallest_with(space: Space, place: Place) -> Arch:
    """An architecture that holds a weight, each gene as small as that allows, one after the other."""
    arch = space.largest()
    for gene in list(arch):
        while gene in arch and (smaller := space.step(arch, gene, -1)) is not None:
            if not _holds(space, smaller, place):
                break
            arch = smaller
    return arch


def _holds(space: Space, arch: Arch, place: Place) -> bool:
    region = locate(layout(space), space.select(arch)).get(place.tensor)
    if region is None:
        return False
    return all(
        index.start <= at < index.stop if isinstance(index, slice) else at in index
        for index, at in zip(region, place.position, strict=True)
    )


def _give_up(space: Space, least: Arch, waiting: Mapping[str, Tensor]) -> None:
    """Nobody can train `least`: what it holds and none of its smaller neighbours is not waited for."""
    smaller = [regions(space, arch) for arch in space.shrunk(least)]
    for name, region in regions(space, least).items():
        kept = waiting[name].clone()
        put(waiting[name], region, 0)
        for inner in smaller:
            if name in inner:
                put(waiting[name], inner[name], view(kept, inner[name]))


def _visit(space: Space, assigned: Assigned, waiting: Mapping[str, Tensor]) -> None:
    for name, region in assigned.regions(space).items():
        put(waiting[name], region, 0)


def _overdue(waiting: Mapping[str, Tensor], rounds: int) -> Iterator[Place]:
    """Overdue weights, longest waiting first, looked up anew after each change."""
    for _ in range(MOST_LOOKED_AT):
        name = max(waiting, key=lambda name: int(waiting[name].max()))
        if int(waiting[name].max()) < rounds:
            return
        flat = int(waiting[name].argmax())
        yield Place(
            name,
            tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), waiting[name].shape)),
        )
