"""A gateway that hosts several models divides one budget among them.

Its models run one after the other: what they spend adds up, but for working memory, where the largest
counts. Which model gets how much is a multiple-choice knapsack with several constraints; it is filled
greedily: each model begins with the candidate that spends least, summed over the bounds as parts of them,
and then the step up that brings the most weighted accuracy for what it spends more is taken, again and
again until none fits. What is left over is divided equally. From then on each model is a device with
bounds of its own, whose sum is the gateway's.

The smallest subnet spends least of everything that the cost model counts. Where a predicted latency says
otherwise, so that no candidate is least in every bound, a gateway that would just fit may be refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...supernet.errors import UsageError
from .demand import Bound, Demand
from .table import Mask, Table, Vector

AT_ONCE = ("peak_activation_bytes",)
"""Bounds on what only the model that runs needs; the others add up."""
ROUNDING, LAST_BITS = 1e-9, 1e-12


@dataclass(frozen=True, slots=True)
class Hosted:
    """A model on a gateway: its own bounds, and the same names' columns that the gateway bounds.

    `shared`: bound name → (column, factor), as in `Bound`.
    """

    demand: Demand
    shared: Mapping[str, tuple[str, float]]


def divided(
    gateway: str, limits: Mapping[str, float], hosted: Sequence[Hosted], tables: Sequence[Table]
) -> list[Demand]:
    """Each model with its share of the gateway's bounds; `tables` are each one's candidates.

    UsageError names the bound, and by how much all models at their smallest exceed it, or the model
    that nothing fits.
    """
    own = [
        replace(one.demand, bounds=(*one.demand.bounds, *_bounds(one, limits, AT_ONCE)))
        for one in hosted
    ]
    adding = {name: limit for name, limit in limits.items() if name not in AT_ONCE}
    if not adding:
        return own
    spent = [_spent(one, table, adding) for one, table in zip(hosted, tables, strict=True)]
    chosen = _least(gateway, own, tables, spent, adding)
    while _stepped_up(chosen, own, tables, spent):
        pass
    rows = np.stack([mine[place] for mine, place in zip(spent, chosen, strict=True)])
    left = np.maximum(1 - rows.sum(axis=0) - ROUNDING, 0.0) / len(own)
    rows = rows * (1 + LAST_BITS)  # what a model was given must fit its share, however that rounds
    return [
        replace(demand, bounds=(*demand.bounds, *_bounds(one, _shares(adding, row + left), adding)))
        for one, demand, row in zip(hosted, own, rows, strict=True)
    ]


def _bounds(
    one: Hosted, limits: Mapping[str, float], names: Sequence[str] | Mapping[str, float]
) -> list[Bound]:
    return [
        Bound(name, limits[name], *one.shared[name])
        for name in names
        if name in limits and name in one.shared
    ]


def _shares(limits: Mapping[str, float], parts: Vector) -> dict[str, float]:
    return {
        name: limit * float(part) for (name, limit), part in zip(limits.items(), parts, strict=True)
    }


def _spent(one: Hosted, table: Table, limits: Mapping[str, float]) -> Vector:
    """(C, B): what each candidate takes of each shared bound, as a part of it."""
    columns = []
    for name, limit in limits.items():
        column, factor = one.shared[name]
        columns.append(table.columns[column] * factor / limit)
    return np.stack(columns, axis=1)


def _least(
    gateway: str,
    own: Sequence[Demand],
    tables: Sequence[Table],
    spent: Sequence[Vector],
    limits: Mapping[str, float],
) -> list[int]:
    chosen = []
    for demand, table, mine in zip(own, tables, spent, strict=True):
        fits: Mask = table.fitting([demand])[:, 0]
        if not fits.any():
            raise UsageError(
                f"gateway {gateway}: no subnet keeps the bounds of its model {demand.device} alone; "
                "raise them, or take the model off the gateway"
            )
        chosen.append(int(np.where(fits, mine.sum(axis=1), np.inf).argmin()))
    total = sum(mine[place] for mine, place in zip(spent, chosen, strict=True))
    for (name, limit), part in zip(limits.items(), np.atleast_1d(total), strict=True):
        if part > 1:
            raise UsageError(
                f"gateway {gateway}: budget.{name} = {limit:g}; its {len(own)} models need at least "
                f"{part * limit:g} together. Raise it, or take a model off the gateway"
            )
    return chosen


def _stepped_up(
    chosen: list[int], own: Sequence[Demand], tables: Sequence[Table], spent: Sequence[Vector]
) -> bool:
    """Take the step up that brings most for what it spends, in place; False where none fits."""
    total = np.sum([mine[place] for mine, place in zip(spent, chosen, strict=True)], axis=0)
    best, step = 0.0, None
    for number, (demand, table, mine) in enumerate(zip(own, tables, spent, strict=True)):
        now = chosen[number]
        gain = demand.weight * (table.accuracy - table.accuracy[now])
        more = mine - mine[now]
        fits = (gain > 0) & ((total + more) <= 1).all(axis=1) & table.fitting([demand])[:, 0]
        if not fits.any():
            continue
        worth = np.where(fits, gain / np.maximum(more.sum(axis=1), ROUNDING), 0.0)
        place = int(worth.argmax())
        if worth[place] > best:
            best, step = float(worth[place]), (number, place)
    if step is None:
        return False
    chosen[step[0]] = step[1]
    return True
