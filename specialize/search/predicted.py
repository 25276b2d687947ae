"""Measure some, predict the rest, measure the best of those (Neural Predictor, Wen et al. 2020).

The first evaluations are spread out, half anywhere within the budget and half at its edge, where the
best usually are. Then a predictor is fitted to all that is known, evolution looks for what it
ranks highest, and the best new ones are evaluated, again and again until the budget is spent.
Deviation: the paper fits once and scores a random pool; with `at_once` as large as the rest of the
budget this fits once too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from ...supernet.space import Arch
from ..predictors.contract import Fit, Predictor
from ..predictors.linear import fit as fit_linear
from .contract import Known, Method, Proposals, Scored, Task
from .evolution import Evolution
from .feasible import random_that_fits
from .loop import search
from .random_search import drawn_at_random, opening
from .surrogate import learned, optimistic

LOOKING_AHEAD = Evolution(population=24, mutation=0.15)


@dataclass(frozen=True, slots=True)
class Predicted:
    """`share` of the evaluations are spread out before the first fit; `looks` predictions a fit.

    `optimism` adds so many times the predicted spread to a score: above 0 it also looks where
    little is known.
    """

    fit: Fit = fit_linear
    share: float = 0.5
    optimism: float = 0.0
    looks: int = 150
    within: Method = LOOKING_AHEAD

    def __call__(self, task: Task, known: Known, rng: Random) -> Proposals:
        """Spread out, then follow the predictor."""
        yield spread_out(task, max(1, round(self.share * task.evaluations)), rng)
        while True:
            best = sorted(known.values(), key=lambda one: one.score, reverse=True)
            start = tuple(one.arch for one in best[: task.at_once])
            predictor = learned(self.fit, task, known)

            def predict(archs: Sequence[Arch], predictor: Predictor = predictor) -> list[Scored]:
                return optimistic(predictor, archs, self.optimism)

            inner = Task(task.space, task.fits, self.looks, start=start)
            ranked = search(self.within, inner, predict, rng).ranked
            chosen = [one.arch for one in ranked if one.arch not in known][: task.at_once]
            proposed = chosen or drawn_at_random(task, known, task.at_once, rng)
            if not proposed:
                return
            yield proposed


def spread_out(task: Task, count: int, rng: Random) -> list[Arch]:
    """The architectures to start with, and drawn ones, every other one grown to the budget's edge."""
    drawn = 0

    def draw() -> Arch:
        nonlocal drawn
        drawn += 1
        arch = random_that_fits(task.space, task.fits, rng)
        return arch if drawn % 2 else task.space.grow_while(arch, task.fits, rng)

    return opening(task, count, draw)
