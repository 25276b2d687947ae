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
from .climb import ROUNDING, Climb
from .demand import Bound, Demand
from .misses import miss
from .plan import Refused
from .table import Mask, Table, Vector

AT_ONCE = ("peak_activation_bytes",)
"""Bounds on what only the model that runs needs; the others add up."""
LAST_BITS = 1e-12


@dataclass(frozen=True, slots=True)
class Hosted:
    """A model on a gateway: its own bounds, and the same names' columns that the gateway bounds.

    `shared`: bound name → (column, factor), as in `Bound`.
    """

    demand: Demand
    shared: Mapping[str, tuple[str, float]]


@dataclass(frozen=True, slots=True)
class _Model:
    """A model that something fits: its demand with what the gateway bounds at once, and what fits (C,)."""

    hosted: Hosted
    demand: Demand
    table: Table
    fits: Mask


def divided(
    gateway: str, limits: Mapping[str, float], hosted: Sequence[Hosted], tables: Sequence[Table]
) -> tuple[list[Demand], list[Refused]]:
    """Each model with its share of the gateway's bounds, and the models that nothing fits.

    `tables` are each one's candidates. A model that nothing fits leaves the budget to the others.
    UsageError names the bound, and by how much all models at their smallest exceed it.
    """
    able: list[_Model] = []
    refused: list[Refused] = []
    for one, table in zip(hosted, tables, strict=True):
        demand = replace(one.demand, bounds=(*one.demand.bounds, *_bounds(one, limits, AT_ONCE)))
        fits: Mask = table.fitting([demand])[:, 0]
        if fits.any():
            able.append(_Model(one, demand, table, fits))
        else:
            refused.append(Refused(demand, miss(table, demand)))
    adding = {name: limit for name, limit in limits.items() if name not in AT_ONCE}
    if not adding or not able:
        return [model.demand for model in able], refused
    spent = [_spent(model.hosted, model.table, adding) for model in able]
    chosen = _least(gateway, able, spent, adding)
    Climb(
        [model.demand.weight for model in able],
        [model.table.accuracy for model in able],
        spent,
        [model.fits for model in able],
    ).up(chosen)
    rows = np.stack([mine[place] for mine, place in zip(spent, chosen, strict=True)])
    left = np.maximum(1 - rows.sum(axis=0) - ROUNDING, 0.0) / len(able)
    rows = rows * (1 + LAST_BITS)  # what a model was given must fit its share, however that rounds
    return [
        replace(
            model.demand,
            bounds=(
                *model.demand.bounds,
                *_bounds(model.hosted, _shares(adding, row + left), adding),
            ),
        )
        for model, row in zip(able, rows, strict=True)
    ], refused


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
    gateway: str, able: Sequence[_Model], spent: Sequence[Vector], limits: Mapping[str, float]
) -> list[int]:
    """Of each model the candidate that spends least, of those that fit it."""
    chosen = [
        int(np.where(model.fits, mine.sum(axis=1), np.inf).argmin())
        for model, mine in zip(able, spent, strict=True)
    ]
    total = sum(mine[place] for mine, place in zip(spent, chosen, strict=True))
    for (name, limit), part in zip(limits.items(), np.atleast_1d(total), strict=True):
        if part > 1:
            raise UsageError(
                f"gateway {gateway}: budget.{name} = {limit:g}; its {len(able)} models need at least "
                f"{part * limit:g} together. Raise it, or take a model off the gateway"
            )
    return chosen
