"""NSGA-II (Deb et al. 2002) on architectures, under hard bounds.

Written here and not taken from pymoo: that brings nine more distributions, one of them under the
LGPL, for one sort, one distance and a tournament, and its operators act on vectors of numbers
where ours keep to genes that matter and to budgets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from ...supernet.space import Arch, Space
from .contract import Fits
from .feasible import random_that_fits, shrunk_to_fit
from .pareto import Points, dominance

Objectives = Callable[[Sequence[Arch]], Points]
"""Architectures → (N, D), smaller is better."""


@dataclass(frozen=True, slots=True)
class Nsga2:
    """`mutation` is the chance that a gene of a mutated child is redrawn."""

    population: int = 40
    generations: int = 20
    mutation: float = 0.15

    def front(
        self, space: Space, fits: Fits, objectives: Objectives, rng: Random, start: Sequence[Arch]
    ) -> list[Arch]:
        """The last population, best first: by front, within one the least crowded first."""
        members = dict.fromkeys(arch for arch in start if fits(arch))
        for _ in range(4 * self.population):
            if len(members) >= self.population:
                break
            members[random_that_fits(space, fits, rng)] = None
        ranked = self._survivors(list(members), objectives)
        for _ in range(self.generations):
            children = [self._child(space, fits, ranked, rng) for _ in range(self.population)]
            ranked = self._survivors(list(dict.fromkeys([*ranked, *children])), objectives)
        return ranked

    def _survivors(self, members: Sequence[Arch], objectives: Objectives) -> list[Arch]:
        order = crowded_order(objectives(members))[: self.population]
        return [members[place] for place in order]

    def _child(self, space: Space, fits: Fits, ranked: Sequence[Arch], rng: Random) -> Arch:
        def parent() -> Arch:  # a tournament of two: places are ranks
            return ranked[min(rng.randrange(len(ranked)), rng.randrange(len(ranked)))]

        child = space.mutate(space.crossover(parent(), parent(), rng), self.mutation, rng)
        return shrunk_to_fit(space, child, fits, rng)


def fronts(points: Points) -> list[NDArray[np.intp]]:
    """Places by front: what nothing dominates, what then nothing dominates, and so on."""
    beaten = dominance(points)
    by_others = beaten.sum(axis=0)
    left = np.ones(len(points), dtype=bool)
    found = []
    while left.any():
        now = np.flatnonzero(left & (by_others == 0))
        found.append(now)
        left[now] = False
        by_others = by_others - beaten[now].sum(axis=0)
    return found


def crowding(points: Points) -> NDArray[np.float64]:
    """(N,) sum over dimensions of the gap between a point's neighbours; ends are infinite."""
    found = np.zeros(len(points))
    for values in points.T:
        order = np.argsort(values, kind="stable")
        found[order[[0, -1]]] = np.inf
        if span := values[order[-1]] - values[order[0]]:
            found[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / span
    return found


def crowded_order(points: Points) -> list[int]:
    """Places, best first: by front, within one the least crowded first."""
    order: list[int] = []
    for places in fronts(points):
        apart = crowding(points[places])
        order += [int(places[at]) for at in np.argsort(-apart, kind="stable")]
    return order
