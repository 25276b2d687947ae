"""A predictor's scores as chances and not as a ranking (EPNAS, Perez-Rua et al., BMVC 2018).

Of a pool of new architectures K are drawn without replacement with chances in proportion to
exp(score / T), scores standardised over the pool; T falls from step to step. At T → 0 these are the
best K, at T → ∞ any K. A predictor of few samples that is wrong is found out sooner this way.

Deviation: the paper grows architectures level by level; here every level is in the pool at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from ...supernet.space import Arch
from ..predictors.contract import Fit
from ..predictors.linear import fit as fit_linear
from .contract import Known, Proposals, Task
from .feasible import edits, new_ones, random_that_fits
from .predicted import spread_out
from .surrogate import learned


@dataclass(frozen=True, slots=True)
class SoftSampler:
    """`first` evaluations are spread out; then `temperature` keeps `decay` of itself a step."""

    fit: Fit = fit_linear
    first: int = 6
    pool: int = 100
    temperature: float = 0.5
    decay: float = 0.9

    def __call__(self, task: Task, known: Known, rng: Random) -> Proposals:
        """Draw from pools of random architectures and of edits of the best one."""
        yield spread_out(task, self.first, rng)
        temperature = self.temperature
        while pool := self._pool(task, known, rng):
            scores = learned(self.fit, task, known).predict(pool).score
            yield [pool[at] for at in softly(scores, temperature, task.at_once, rng)]
            temperature *= self.decay

    def _pool(self, task: Task, known: Known, rng: Random) -> list[Arch]:
        best = max(known.values(), key=lambda one: one.score)
        near = [edit.arch for edit in edits(task.space, best.arch) if task.fits(edit.arch)]
        drawn = new_ones(lambda: random_that_fits(task.space, task.fits, rng), self.pool, known, 2)
        return list(dict.fromkeys([*(arch for arch in near if arch not in known), *drawn]))


def softly(
    scores: Sequence[float] | NDArray[np.float64], temperature: float, count: int, rng: Random
) -> list[int]:
    """Up to `count` places without replacement, chances in proportion to exp(score / T).

    By Gumbel's trick: the best of score / T − ln(−ln u).
    """
    values = np.asarray(scores, dtype=np.float64)
    spread = float(values.std())
    scaled = (values - values.mean()) / (spread or 1.0) / temperature
    noise = np.array([-np.log(-np.log(rng.random() or 1e-300)) for _ in values])
    return [int(place) for place in np.argsort(-(scaled + noise), kind="stable")[:count]]
