"""The best of each size, chosen without search (PreNAS, Wang et al., ICML 2023).

A score that needs no evaluation (the task's `prior`) grows with size, so it is compared only among
architectures of about the same MACs: the budget's range is cut into bins of equal ratio, and the best
of each bin is evaluated, from the largest bin on. Nothing is asked after that.

Deviation: the paper narrows candidates down by a score for each layer; here a pool is drawn and each
is scored.
"""

import math
from dataclasses import dataclass
from random import Random

from ...supernet.errors import UsageError
from ...supernet.space import Arch
from .contract import Known, Proposals, Task
from .feasible import new_ones, random_that_fits
from .random_search import begin


@dataclass(frozen=True, slots=True)
class Preselect:
    """At most `bins` architectures, fewer where the evaluations do not suffice, of a drawn `pool`."""

    bins: int = 8
    pool: int = 400

    def __call__(self, task: Task, known: Known, rng: Random) -> Proposals:
        """One architecture of each bin. UsageError without a prior score."""
        if task.prior is None:
            raise UsageError("search: preselect needs a score that needs no evaluation (`prior`)")
        yield from begin(task)
        drawn = new_ones(lambda: _any(task, rng), self.pool, known, 2)
        count = min(self.bins, task.evaluations)
        low = math.log(min(map(task.size, drawn), default=1))
        width = (math.log(max(map(task.size, drawn), default=1)) - low) / count
        best: dict[int, tuple[float, Arch]] = {}
        for arch in drawn:
            place = int((math.log(task.size(arch)) - low) / width) if width else 0
            place, score = min(place, count - 1), task.prior(arch)
            if place not in best or score > best[place][0]:
                best[place] = score, arch
        yield [best[place][1] for place in sorted(best, reverse=True)]


def _any(task: Task, rng: Random) -> Arch:
    """Anywhere within the budget or at its edge, half and half."""
    arch = random_that_fits(task.space, task.fits, rng)
    return task.space.grow_while(arch, task.fits, rng) if rng.random() < 0.5 else arch
