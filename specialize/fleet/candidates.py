"""The subnets that a fleet is served from: what a search looked at, for each runtime its own front.

One search for each runtime, on the predicted accuracy and on the columns that its devices bound: NSGA-II
to begin with, then Pareto local search (Paquete, Chiarandini and Stützle 2004), which looks at every
single edit of what is on the front. What any of them looked at is a candidate for all: a subnet costs
the same whoever looked at it first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from ...supernet.errors import UsageError
from ...supernet.randomness import stream
from ...supernet.space import Arch, Space
from ..predictors.contract import Fit, Sample, Vector
from ..search.feasible import edits
from ..search.nsga2 import Nsga2
from ..search.pareto import Points, nondominated
from .columns import Columns
from .table import Table, table_of

FEWEST = 10
"""Below so many measured subnets no predictor can be judged, and none is used."""
LOOKS, LEAST_LOOKS = 6000, 600
"""New subnets that all searches together look at, and each of them at least."""
FIRST_SHARE = 0.4
"""Of a search's looks so many go to NSGA-II at most, and all others to what is beside its front."""
GENERATIONS = 10
LEAST_POPULATION = 24
AT_ONCE = 16
"""So many of a front are edited before it is worked out anew."""

Score = Callable[[Sequence[Arch]], Vector]


@dataclass(frozen=True, slots=True)
class Accuracies:
    """A way to predict, and the measured subnets that it learns from."""

    fit: Fit
    samples: Sequence[Sample]

    def scorer(self, space: Space) -> Score:
        """(N,) scores of architectures. UsageError for too few measured subnets."""
        measured = {sample.arch for sample in self.samples}
        if len(measured) < FEWEST:
            raise UsageError(
                f"{len(measured)} subnets were measured; a predictor needs at least {FEWEST}"
            )
        predictor = self.fit(space, self.samples)
        return lambda archs: predictor.predict(archs).score

    def level(self, score: Score) -> float:
        """What makes scores accuracies: the mean over the measured of accuracy less score.

        Scores only rank, and devices' examples differ from class to class; in a loss it cancels.
        """
        known = score([sample.arch for sample in self.samples])
        return float(np.mean([sample.accuracy for sample in self.samples] - known))


def candidates(
    columns: Columns, accuracies: Accuracies, bounded: Mapping[str, Sequence[str]], seed: int
) -> Table:
    """Every subnet that a search looked at; `bounded`: runtime → the columns its devices bound.

    The smallest, the largest and the measured subnets are among them, and take nothing from the looks:
    how many are measured decides how well accuracies are predicted, and not how well is searched. The
    same arguments give the same table. UsageError for too few measured subnets.
    """
    score = accuracies.scorer(columns.space)
    start = dict.fromkeys([columns.space.smallest(), columns.space.largest()])
    start |= dict.fromkeys(sample.arch for sample in accuracies.samples)
    looked = dict(start)
    # Runtimes that bound the same columns have the same front.
    wanted = sorted({tuple(sorted({*names, "macs"})) for names in bounded.values()})
    for names in wanted:
        looks = max(LEAST_LOOKS, LOOKS // len(wanted))
        search = _Search(columns, score, names, looks)
        looked |= dict.fromkeys(search.run(tuple(start), stream(seed, "fleet", *names)))
    archs = list(looked)
    return table_of(archs, accuracies.level(score) + score(archs), columns.table(archs))


@dataclass(frozen=True, slots=True)
class _Search:
    """Looks for subnets that are accurate and spend little of the named columns."""

    columns: Columns
    score: Score
    names: tuple[str, ...]
    looks: int

    def run(self, start: Sequence[Arch], rng: Random) -> list[Arch]:
        """All that was looked at, and `start`: a part of the looks by NSGA-II, the others beside its
        front.

        There is a population for each generation, and one to begin with.
        """
        looked: dict[Arch, None] = {}

        def objectives(archs: Sequence[Arch]) -> Points:
            looked.update(dict.fromkeys(archs))
            return self._points(archs)

        first = int(FIRST_SHARE * self.looks)
        population = max(LEAST_POPULATION, first // (GENERATIONS + 1))
        search = Nsga2(population, min(GENERATIONS, max(0, first // population - 1)))
        search.front(self.columns.space, lambda _: True, objectives, rng, start)
        known = len(set(start))
        return self._beside(list(looked), known + self.looks, rng)

    def _points(self, archs: Sequence[Arch]) -> Points:
        some = self.columns.some(self.names)
        return np.column_stack([-self.score(archs), [some(arch) for arch in archs]])

    def _beside(self, looked: list[Arch], most: int, rng: Random) -> list[Arch]:
        """Look at what is one edit away from the front, until there is nothing or as many are known."""
        points, tried, known = self._points(looked), set[Arch](), set(looked)
        while len(looked) < most:
            front = [looked[place] for place in np.flatnonzero(nondominated(points))]
            untried = [arch for arch in front if arch not in tried]
            if not untried:
                break
            few = rng.sample(untried, min(len(untried), AT_ONCE))
            tried.update(few)
            near = {edit.arch for arch in few for edit in edits(self.columns.space, arch)} - known
            new = sorted(near, key=lambda arch: sorted(arch.items()))
            rng.shuffle(new)
            new = new[: most - len(looked)]
            known.update(new)
            looked += new
            points = np.vstack([points, self._points(new)]) if new else points
        return looked
