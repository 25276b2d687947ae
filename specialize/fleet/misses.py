"""Why nothing fits a device: the bounds that the nearest candidate breaks, and how far.

Nearest is what overshoots least, normalised as NASAIC has it (`search/gate.py`). Where each bound alone is
kept by some candidate and all together by none, the bounds contradict each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..search.gate import Gate
from .demand import Demand
from .table import Mask, Table, Vector


@dataclass(frozen=True, slots=True)
class Miss:
    """What stands between a device and the nearest candidate.

    `broken` are the bounds that it breaks, as `name have > bound`; `overshoot` their normalised sum.
    `lacking` are operators without which there is no candidate at all. `contradict` says that no
    single bound, and no lacking operator, is to blame.
    """

    overshoot: float
    broken: tuple[str, ...]
    lacking: tuple[str, ...]
    contradict: bool


def miss(table: Table, demand: Demand) -> Miss:
    """Why none of the candidates fits; the device must be one that nothing fits."""
    runs = _runs(table, demand)
    if not runs.any():
        lacking = tuple(sorted(_without_which_nothing(table, demand)))
        return Miss(float("inf"), (), lacking, contradict=False)
    spent, worst = _spent(table, demand)
    limits: dict[str, float] = {}
    for bound in demand.bounds:  # a gateway's share may bound what the device bounds itself
        limits[bound.name] = min(bound.limit, limits.get(bound.name, bound.limit))
    gate = Gate(limits, worst)
    apart = np.where(runs, overshoots(gate, spent), np.inf)
    nearest = int(apart.argmin())
    broken = gate.excess({name: float(values[nearest]) for name, values in spent.items()})
    alone = [runs & (spent[name] <= limit) for name, limit in gate.bounds.items()]
    return Miss(
        float(apart[nearest]), tuple(broken), (), contradict=all(kept.any() for kept in alone)
    )


def overshoots(gate: Gate, spent: dict[str, Vector]) -> Vector:
    """(C,): `Gate.overshoot` of many candidates at once; `spent` holds (C,) of each bound."""
    total = np.zeros(len(next(iter(spent.values()))))
    for name, bound in gate.bounds.items():
        room = gate.worst.get(name, 0.0) - bound
        total += np.maximum(spent[name] - bound, 0.0) / (room if room > 0 else bound)
    return total


def _spent(table: Table, demand: Demand) -> tuple[dict[str, Vector], dict[str, float]]:
    """Of each bound what candidates spend, and the most that any does."""
    spent = {b.name: table.columns[b.column] * b.factor for b in demand.bounds}
    return spent, {name: float(values.max()) for name, values in spent.items()}


def _runs(table: Table, demand: Demand) -> Mask:
    """Candidates (C,) without an operator that the device's runtime lacks."""
    found = np.ones(len(table.archs), dtype=bool)
    for column in demand.lacks:
        found &= table.columns[column] == 0
    return found


def _without_which_nothing(table: Table, demand: Demand) -> Sequence[str]:
    """The lacking operators that every candidate has; all of them where it takes several."""
    always = [column for column in demand.lacks if (table.columns[column] > 0).all()]
    return always or list(demand.lacks)
