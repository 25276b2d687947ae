"""Evolution under a hard budget (the search of SPOS, Guo et al. 2020, and of once-for-all).

The better half of a population are parents; children come by crossover and by mutation, half and
half, and are shrunk until they fit. A child that was evaluated before is drawn again: a known one
tells nothing new.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random

from ...supernet.space import Arch
from .contract import Known, Proposals, Task
from .feasible import random_that_fits, shrunk_to_fit

# In a tight budget there may be nothing new to find.
CHILD_DRAWS = 8


@dataclass(frozen=True, slots=True)
class Evolution:
    """`mutation` is the chance that a gene of a mutated child is redrawn.

    The population is smaller where the evaluations would not suffice for two.
    """

    population: int = 12
    mutation: float = 0.2

    def __call__(self, task: Task, known: Known, rng: Random) -> Proposals:
        """A first population with the architectures to start from, then one generation at a time."""
        size = min(self.population, max(4, task.evaluations // 2))
        population = [arch for arch in task.start if task.fits(arch)]
        while len(population) < size:
            population.append(random_that_fits(task.space, task.fits, rng))
        yield population
        while True:
            parents = sorted(
                dict.fromkeys(population), key=lambda arch: known[arch].score, reverse=True
            )[: max(2, size // 2)]
            children: list[Arch] = []
            while len(parents) + len(children) < size:
                children.append(self._child(task, parents, (known, children), rng))
            yield children
            population = [*parents, *children]

    def _child(
        self, task: Task, parents: Sequence[Arch], taken: Sequence[Collection[Arch]], rng: Random
    ) -> Arch:
        for _ in range(CHILD_DRAWS):
            if rng.random() < 0.5:
                child = task.space.mutate(rng.choice(parents), self.mutation, rng)
            else:
                child = task.space.crossover(rng.choice(parents), rng.choice(parents), rng)
            child = shrunk_to_fit(task.space, child, task.fits, rng)
            if not any(child in those for those in taken):
                break
        return child
