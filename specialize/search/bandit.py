"""A bandit for each gene (CMAB-NAS, Huang et al. 2021): rewards of an architecture's options add up.

An option's worth is its mean reward plus α·√(2·ln n / n_option); options without any evaluation come
first. A proposal takes the gene's most worthy option among those that leave something that fits,
gene by gene in random order. Every option of an evaluated architecture is credited with its score,
scaled to 0…1 over all scores so far; α falls by 5 % a step.

Deviations: no nested tree of simulations, since an evaluation is a real one; no final pick of the
best arms, since every proposal is evaluated.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from ...supernet.space import Arch, Space, Value
from .contract import Known, Proposals, Task
from .feasible import NEW_DRAWS, edited
from .random_search import begin, drawn_at_random

Arm = tuple[str, Value]


@dataclass(frozen=True, slots=True)
class Bandit:
    """`exploration` is α at the start, `decay` what it keeps a step."""

    exploration: float = 0.3
    decay: float = 0.95

    def __call__(self, task: Task, known: Known, rng: Random) -> Proposals:
        """Propose by the arms' worth; where that repeats itself, at random."""
        yield from begin(task)
        alpha = self.exploration
        while True:
            pulled: Counter[Arm] = Counter()
            batch: dict[Arch, None] = {}
            for _ in range(NEW_DRAWS * task.at_once):
                if len(batch) == task.at_once:
                    break
                arch = _pick(task, worth(known, alpha, pulled), rng)
                pulled.update(arch.items())
                if arch not in known:
                    batch[arch] = None
            proposed = list(batch) or drawn_at_random(task, known, task.at_once, rng)
            if not proposed:
                return
            yield proposed
            alpha *= self.decay


def worth(known: Known, alpha: float, pulled: Mapping[Arm, int]) -> dict[Arm, float]:
    """Upper confidence bound of each option that was tried or is on its way (`pulled`)."""
    scores = [one.score for one in known.values()]
    low, span = min(scores, default=0.0), max(scores, default=0.0) - min(scores, default=0.0)
    total: Counter[Arm] = Counter()
    times: Counter[Arm] = Counter(pulled)
    for one in known.values():
        reward = (one.score - low) / span if span else 0.5
        for arm in one.arch.items():
            total[arm] += reward  # type: ignore[assignment]
            times[arm] += 1
    of_gene: Counter[str] = Counter()
    for (gene, _), count in times.items():
        of_gene[gene] += count
    return {
        arm: total[arm] / count + alpha * math.sqrt(2 * math.log(of_gene[arm[0]]) / count)
        for arm, count in times.items()
    }


def _pick(task: Task, bounds: Mapping[Arm, float], rng: Random) -> Arch:
    """From the smallest, each gene set to its most worthy option that still fits."""
    arch, decided = task.space.smallest(), set[str]()
    options = _options(task.space)
    while pending := [gene for gene in arch if gene not in decided]:
        gene = rng.choice(pending)
        decided.add(gene)
        choices = [
            (bounds.get((gene, option), math.inf), rng.random(), changed)
            for option in options[gene]
            if task.fits(changed := edited(task.space, arch, gene, option))
        ]
        arch = max(choices, key=lambda choice: choice[:2])[2] if choices else arch
    return arch


def _options(space: Space) -> dict[str, tuple[Value, ...]]:
    return {gene.name: gene.options for gene in space.genes}
