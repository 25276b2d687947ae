"""A device's values in the order of cells, and the masks on them."""

from collections.abc import Mapping

import numpy as np

from ...protos.fixed_point import FixedPoint, Words
from ...protos.masks import mask
from ...protos.noise import Flat
from ...protos.secure_messages import Roster, SecrecyError, labels


def in_cells(values: Flat, own_runs: bytes, roster: Roster, holder: int) -> Words:
    """The values as integers, cell after cell and inside a cell by place: so on every device.

    SecrecyError when the roster's cells are not for these values, or one is no number.
    """
    place = labels(own_runs, len(values))
    sizes = np.bincount(place[place >= 0], minlength=len(roster.cells))
    expected = [cell.size if holder in cell.cover else 0 for cell in roster.cells]
    if sizes.tolist() != expected:
        raise SecrecyError("size", "the roster's cells are not those of this device's values")
    try:
        words = FixedPoint(roster.bound, roster.clients).encode(values)
    except ValueError as error:
        raise SecrecyError("non_finite", str(error)) from None
    # Labels of values in no cell are negative and come first.
    return words[np.argsort(place, kind="stable")[len(place) - sum(expected) :]]


def masked(
    words: Words,
    roster: Roster,
    holder: int,
    seeds: Mapping[int, bytes],
    keys: Mapping[int, bytes],
) -> Words:
    """The words of the cells that enough devices are left for, with every mask on them.

    `seeds` are this device's own by cell, `keys` those that it shares with the devices that are left.
    """
    kept, at, parts = roster.kept(frozenset((holder, *keys))), 0, [np.empty(0, np.uint32)]
    for number in roster.cells_of(holder):
        cell = roster.cells[number]
        part = words[at : at + cell.size]
        at += cell.size
        if number not in kept:
            continue
        part = part + mask(seeds[number], number, cell.size)
        for other in cell.cover:
            if other in keys:
                common = mask(keys[other], number, cell.size)
                # The lower number adds what the higher takes off.
                (np.add if holder < other else np.subtract)(part, common, out=part)
        parts.append(part)
    return np.concatenate(parts)
