"""Iterated predictor and NSGA-II for a Pareto front (LINAS, Cummings et al. 2022).

Evaluate a population; fit a predictor to everything evaluated; let NSGA-II find the predicted front;
its best new members are the next population. Objectives besides the score are exact and cheap here,
so only the score is predicted. `pareto.front_of` gives the front of what was evaluated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from ...supernet.space import Arch
from ..predictors.contract import Fit, Predictor
from ..predictors.linear import fit as fit_linear
from .contract import Known, Proposals, Task
from .nsga2 import Nsga2
from .pareto import Points
from .predicted import spread_out
from .random_search import drawn_at_random
from .surrogate import learned

LOOKING_AHEAD = Nsga2()


@dataclass(frozen=True, slots=True)
class Linas:
    """`population` architectures are evaluated between two fits, at most half of all."""

    fit: Fit = fit_linear
    population: int = 10
    within: Nsga2 = LOOKING_AHEAD

    def __call__(self, task: Task, known: Known, rng: Random) -> Proposals:
        """Populations, each from the front that the former ones predict."""
        size = min(self.population, max(4, task.evaluations // 2))
        yield spread_out(task, size, rng)
        while True:
            predictor = learned(self.fit, task, known)

            def objectives(archs: Sequence[Arch], predictor: Predictor = predictor) -> Points:
                costs = np.array([task.keep_small(arch) for arch in archs], dtype=np.float64)
                return np.column_stack([-predictor.predict(archs).score, costs])

            start = sorted(known.values(), key=lambda one: one.score, reverse=True)
            begun = [one.arch for one in start[: self.within.population // 2]]
            ranked = self.within.front(task.space, task.fits, objectives, rng, begun)
            new = [arch for arch in ranked if arch not in known][:size]
            proposed = new or drawn_at_random(task, known, size, rng)
            if not proposed:
                return
            yield proposed
