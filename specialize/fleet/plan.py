"""Which subnet, as which kind of file, each device of a fleet gets.

For each kind of file the front of the candidates, lossless for its devices; which of it each device can
take, where the first row that fits is its best; and at most so many of all for the fleet (`opening.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...protos.manifest import FileKind
from ...supernet.errors import UsageError
from ...supernet.space import Arch
from .demand import Demand
from .misses import Miss, miss
from .opening import Market, Place, opened
from .table import Mask, Table

MOST_NEEDS = 100_000
"""Different sets of bounds: what fits each of them is a byte for each candidate of a front."""


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
    """One kind of file: its front, its devices that something fits (D), and what fits them.

    `need` (D,) is the place of a device's bounds among the different ones (N); `fits` is (C, N).
    """

    kind: FileKind
    front: Table
    demands: tuple[Demand, ...]
    need: NDArray[np.intp]
    fits: Mask


def plan_fleet(table: Table, demands: Sequence[Demand], most: int) -> Plan:
    """At most `most` artifacts for the devices; the same arguments give the same plan.

    UsageError for devices of more different bounds than `MOST_NEEDS`.
    """
    kinds: list[_Kind] = []
    refused: list[Refused] = []
    mine: dict[FileKind, list[Demand]] = {}
    for demand in demands:
        mine.setdefault(demand.kind, []).append(demand)
    needs = {kind: _needs(of_kind) for kind, of_kind in sorted(mine.items())}
    if (count := sum(len(first) for first, _ in needs.values())) > MOST_NEEDS:
        raise UsageError(
            f"the fleet's devices have {count:,} different sets of bounds; at most {MOST_NEEDS:,} are "
            "planned for. Round bounds and slowdowns, or split the file"
        )
    for kind, (first, need) in needs.items():
        found, without = _kind(table, kind, first, need, mine[kind])
        kinds.append(found)
        refused += without
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


def _needs(demands: Sequence[Demand]) -> tuple[list[Demand], NDArray[np.intp]]:
    """One demand for each different set of bounds, and (D,) which of them each demand has."""
    found: dict[frozenset[tuple[str, float]], int] = {}
    first: list[Demand] = []
    need = np.empty(len(demands), dtype=np.intp)
    for at, demand in enumerate(demands):
        need[at] = found.setdefault(frozenset(demand.most.items()), len(first))
        if need[at] == len(first):
            first.append(demand)
    return first, need


def _kind(
    table: Table,
    kind: FileKind,
    first: Sequence[Demand],
    need: NDArray[np.intp],
    demands: Sequence[Demand],
) -> tuple[_Kind, list[Refused]]:
    """What fits the devices of a kind, and those that nothing fits; `first` and `need` as of `_needs`."""
    front = table.front({"macs"}.union(*(demand.columns for demand in first)))
    fits = front.fitting(first)
    some: Mask = np.any(fits, axis=0)
    served = some[need]
    refused = [
        Refused(demand, miss(front, demand))
        for demand, fit in zip(demands, served, strict=True)
        if not fit
    ]
    kept = tuple(demand for demand, fit in zip(demands, served, strict=True) if fit)
    place = np.cumsum(some) - 1
    return _Kind(kind, front, kept, place[need[served]], fits[:, some]), refused


def _market(one: _Kind) -> Market:
    """Devices that can take the same candidates are one group; without devices there is none."""
    if not one.demands:
        none = np.empty(0)
        return Market(np.empty((0, 0), dtype=bool), none, none, none)
    packed = np.ascontiguousarray(np.packbits(one.fits, axis=0).T)
    _, first, group = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    group = group[one.need]
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
    """Each device looks up the best chosen candidate that fits it; one that none looks up is dropped."""
    artifacts: list[Artifact] = []
    placed: list[Placed] = []
    unserved: list[Demand] = []
    for number, one in enumerate(kinds):
        rows = np.array([c for n, c in chosen if n == number], dtype=np.intp)
        fits, begin = one.fits[rows], len(artifacts)
        if not one.demands:
            continue
        best = one.front.accuracy[one.fits.argmax(axis=0)][one.need]
        served: Mask = np.any(fits, axis=0)[one.need]
        first = fits.argmax(axis=0)[one.need] if len(rows) else np.zeros(len(served), dtype=int)
        used, place = np.unique(first[served], return_inverse=True)
        first[served] = place
        artifacts += [_artifact(one, int(row)) for row in rows[used]]
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
