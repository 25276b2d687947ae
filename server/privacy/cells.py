"""Cells: the values of the supernet sorted by which devices cover them.

Devices train unequal regions, so that a sum over devices means another set of them from value to value.
A cell holds all values that the same devices cover; inside it every device has every value, and what
hides a value is worked out, checked and revealed cell by cell.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...protos.places import Places
from ...protos.secure_messages import LEFT_OUT, MOST_CELLS, Cell, Labels, runs

PlacesOf = Callable[[int], Places]
_HOLDERS_AT_ONCE = 30


@dataclass(frozen=True, slots=True)
class CellMap:
    """The cells of one round.

    `order` lists the places of all values in cells, cell after cell, ascending in each; `starts` says
    where each cell begins in it. `left_out` counts values that some device covers and no cell holds.
    """

    cells: tuple[Cell, ...]
    order: Places
    starts: tuple[int, ...]
    label: Labels
    left_out: int

    def runs_of(self, places: Places) -> bytes:
        """What a device is told of its own values: their cells in ascending order of place."""
        return runs(self.label[np.sort(places)])

    def span(self, cell: int) -> slice:
        """Where a cell lies in `order`."""
        return slice(self.starts[cell], self.starts[cell] + self.cells[cell].size)


def cell_map(
    size: int,
    holders: Sequence[int],
    places: PlacesOf,
    least_cover: int,
    most_cells: int = MOST_CELLS,
) -> CellMap:
    """The cells of a supernet of `size` values; `places` gives those of a device, by its number.

    Values that fewer than `least_cover` devices cover belong to none: their sum would say what one
    device's value is. Nor do those of the smallest cells beyond `most_cells`; what all devices cover
    counts as the largest, so that figures which they add for a mean are never left out.
    """
    which = _numbered(size, holders, places)
    some = np.zeros(int(which.max(initial=0)) + 1, np.int64)
    some[which] = np.arange(size)
    counts = np.bincount(which, minlength=len(some))
    covers = _covers(size, some, holders, places)
    enough = [n for n in range(len(some)) if len(covers[n]) >= least_cover]
    everybody = len(holders)
    ranked = sorted(enough, key=lambda n: (len(covers[n]) < everybody, -int(counts[n]), n))
    chosen = ranked[:most_cells]
    number = np.full(len(some), LEFT_OUT, np.int16)
    number[chosen] = np.arange(len(chosen))
    label = number[which]
    sizes = [int(counts[n]) for n in chosen]
    covered = sum(int(counts[n]) for n in range(len(some)) if covers[n])
    return CellMap(
        cells=tuple(Cell(size=int(counts[n]), cover=covers[n]) for n in chosen),
        order=np.argsort(label, kind="stable")[size - sum(sizes) :],
        starts=tuple(int(at) for at in np.cumsum([0, *sizes])[:-1]),
        label=label,
        left_out=covered - sum(sizes),
    )


def _numbered(size: int, holders: Sequence[int], places: PlacesOf) -> NDArray[np.int64]:
    """For each value a number that it has in common with those that the same devices cover."""
    which = np.zeros(size, np.int64)
    for at in range(0, len(holders), _HOLDERS_AT_ONCE):
        which <<= _HOLDERS_AT_ONCE
        for bit, holder in enumerate(holders[at : at + _HOLDERS_AT_ONCE]):
            which[places(holder)] |= 1 << bit
        # Dense again, so that the next devices' bits find room.
        which = np.unique(which, return_inverse=True)[1].reshape(-1)
    return which


def _covers(
    size: int, some: NDArray[np.int64], holders: Sequence[int], places: PlacesOf
) -> list[tuple[int, ...]]:
    """For each kind of value, of which `some` has one, the devices that cover it."""
    # Marked and looked up: a search for each of so few values would sort all of the device's.
    mark, has = np.zeros(size, bool), dict[int, NDArray[np.bool_]]()
    for holder in sorted(holders):
        found = places(holder)
        mark[found] = True
        has[holder] = mark[some]
        mark[found] = False
    return [tuple(h for h, found in has.items() if found[n]) for n in range(len(some))]
