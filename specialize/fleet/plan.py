"""Which subnet, as which kind of file, each device of a fleet gets.

For each kind of file the front of the candidates, lossless for its devices; which of it each device can
take, where the first row that fits is its best; and at most so many of all for the fleet (`opening.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...protos.manifest import FileKind
from ...supernet.space import Arch
from .demand import Demand
from .misses import Miss, miss
from .opening import Market, Place, opened
from .table import Mask, Table


@dataclass(frozen=True, slots=True)
class Artifact:
    """A subnet as one kind of file, its predicted accuracy and its columns."""

    kind: FileKind
    arch: Arch
    accuracy: float
    columns: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Placed:
    """A device's artifact (its place in the plan), and the accuracy that one of its own would have."""

    demand: Demand
    artifact: int
    best: float


@dataclass(frozen=True, slots=True)
class Refused:
    """A device that no candidate fits, and what stands between; None where there is no candidate."""

    demand: Demand
    miss: Miss | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What the fleet gets. `unserved` could take a candidate, but none of those that were chosen.

    `candidates` were looked at; `fronts` says how many of them each kind was chosen from, and `distinct`
    how many artifacts the devices would have with one of their own each.
    """

    artifacts: tuple[Artifact, ...]
    placed: tuple[Placed, ...]
    refused: tuple[Refused, ...]
    unserved: tuple[Demand, ...]
    candidates: int
    fronts: Mapping[FileKind, int]
    distinct: int

    @property
    def losses(self) -> NDArray[np.float64]:
        """(placed,) how far each device's artifact is predicted to be behind its own best; ≥ 0."""
        return np.array([p.best - self.artifacts[p.artifact].accuracy for p in self.placed])


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of file: its front, its devices that something fits, and what fits them (C, D)."""

    kind: FileKind
    front: Table
    demands: tuple[Demand, ...]
    fits: Mask


def plan_fleet(table: Table, demands: Sequence[Demand], most: int) -> Plan:
    """At most `most` artifacts for the devices; the same arguments give the same plan."""
    kinds, refused = [], []
    for kind in sorted({demand.kind for demand in demands}):
        mine = [demand for demand in demands if demand.kind == kind]
        front = table.front({"macs"}.union(*(demand.columns for demand in mine)))
        fits = front.fitting(mine)
        some: Mask = np.any(fits, axis=0)
        refused += [
            Refused(demand, miss(front, demand))
            for demand, fit in zip(mine, some, strict=True)
            if not fit
        ]
        kept = tuple(demand for demand, fit in zip(mine, some, strict=True) if fit)
        kinds.append(_Kind(kind, front, kept, fits[:, some]))
    chosen = opened([_market(one) for one in kinds], most)
    artifacts, placed, unserved = _placed(kinds, chosen)
    return Plan(
        artifacts,
        _in_order(demands, placed),
        tuple(refused),
        tuple(unserved),
        len(table.archs),
        {one.kind: len(one.front.archs) for one in kinds},
        sum(len(set(one.fits.argmax(axis=0).tolist())) for one in kinds),
    )


def _market(one: _Kind) -> Market:
    """Devices that can take the same candidates are one group; without devices there is none."""
    if not one.demands:
        none = np.empty(0)
        return Market(np.empty((0, 0), dtype=bool), none, none, none)
    packed = np.ascontiguousarray(np.packbits(one.fits, axis=0).T)
    _, first, group = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    weights = np.array([demand.weight for demand in one.demands])
    return Market(
        np.ascontiguousarray(one.fits[:, first]),
        one.front.accuracy,
        np.bincount(group).astype(np.float64),
        np.bincount(group, weights).astype(np.float64),
    )


def _placed(
    kinds: Sequence[_Kind], chosen: Sequence[Place]
) -> tuple[tuple[Artifact, ...], list[Placed], list[Demand]]:
    """Each device looks up the best chosen candidate that fits it."""
    artifacts: list[Artifact] = []
    placed: list[Placed] = []
    unserved: list[Demand] = []
    for number, one in enumerate(kinds):
        rows = np.array([c for n, c in chosen if n == number], dtype=np.intp)
        fits, begin = one.fits[rows], len(artifacts)
        artifacts += [_artifact(one, int(row)) for row in rows]
        best = one.front.accuracy[one.fits.argmax(axis=0)] if one.demands else np.empty(0)
        served: Mask = np.any(fits, axis=0)
        first = fits.argmax(axis=0) if len(rows) else np.zeros(len(one.demands), dtype=int)
        for at, demand in enumerate(one.demands):
            if served[at]:
                placed.append(Placed(demand, begin + int(first[at]), float(best[at])))
            else:
                unserved.append(demand)
    return tuple(artifacts), placed, unserved


def _artifact(one: _Kind, row: int) -> Artifact:
    columns = {name: float(values[row]) for name, values in one.front.columns.items()}
    return Artifact(one.kind, one.front.archs[row], float(one.front.accuracy[row]), columns)


def _in_order(demands: Iterable[Demand], placed: Iterable[Placed]) -> tuple[Placed, ...]:
    """As the devices were given."""
    order = {demand.device: place for place, demand in enumerate(demands)}
    return tuple(sorted(placed, key=lambda one: order[one.demand.device]))
