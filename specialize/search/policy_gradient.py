"""Policy gradient with the rejection corrected (TabNAS, Yang et al., NeurIPS 2022).

One softmax for each gene. What is drawn and does not fit is rejected and teaches nothing. So the
policy's real distribution is conditional, P(y | V) = P(y) / P(V) with V the set that fits, and its
gradient needs that of P(V) too, which is estimated from N draws z of P:

    step = (reward − baseline) · ∇(log P(y) − log P̂(V)),   P̂(V) = (1/N)·Σ 1[z in V]

    ∇log P̂(V) = Σ 1[z in V]·∇log P(z) / Σ 1[z in V]

Deviations: rewards are standardised by those seen so far, and steps are plain ascent, since there
are tens of evaluations and not thousands. A draw that was evaluated before costs nothing and
teaches again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from ...supernet.space import Arch, Space
from .contract import Evaluated, Fits, Known, Proposals, Task
from .feasible import shrunk_to_fit
from .random_search import begin, drawn_at_random

Logits = Mapping[str, NDArray[np.float64]]
REJECTIONS = 200
REPEATS = 8
"""So many known draws in a row say that the policy has settled."""


@dataclass(frozen=True, slots=True)
class PolicyGradient:
    """`rate` of a step; `draws` (N) for the share that fits; `memory` of the baseline."""

    rate: float = 0.4
    draws: int = 64
    memory: float = 0.8

    def __call__(self, task: Task, known: Known, rng: Random) -> Proposals:
        """Draw, evaluate, learn; a settled policy spends the rest on random draws."""
        yield from begin(task)
        logits = {g.name: np.zeros(len(g.options)) for g in task.space.genes}
        baseline, repeats = 0.0, 0
        while True:
            drawn = [self._draw(task, logits, rng) for _ in range(task.at_once)]
            repeats = repeats + 1 if all(arch in known for arch, _ in drawn) else 0
            if repeats > REPEATS:
                elsewhere = drawn_at_random(task, known, task.at_once, rng)
                if not elsewhere:
                    return
                yield elsewhere
                continue
            evaluated = yield [arch for arch, _ in drawn]
            share = feasible_gradient(task.space, task.fits, logits, self.draws, rng)
            for (arch, by_policy), one in zip(drawn, evaluated, strict=True):
                if by_policy:  # one that was shrunk is not the policy's own
                    reward = _standardised(one, known)
                    self._step(task.space, logits, arch, reward - baseline, share)
                    baseline = self.memory * baseline + (1 - self.memory) * reward

    def _draw(self, task: Task, logits: Logits, rng: Random) -> tuple[Arch, bool]:
        """One that fits, and whether the policy itself drew it."""
        chances = chances_of(logits)
        for _ in range(REJECTIONS):
            arch = draw(task.space, chances, rng)
            if task.fits(arch):
                return arch, True
        return shrunk_to_fit(task.space, arch, task.fits, rng), False

    def _step(
        self, space: Space, logits: Logits, arch: Arch, advantage: float, share: Logits
    ) -> None:
        own = log_gradient(space, logits, arch)
        for gene, values in logits.items():
            values += self.rate * advantage * (own[gene] - share[gene])


def chances_of(logits: Logits) -> dict[str, list[float]]:
    """Gene → chances of its options."""
    return {gene: probabilities(values).tolist() for gene, values in logits.items()}


def draw(space: Space, chances: Mapping[str, Sequence[float]], rng: Random) -> Arch:
    """One architecture of the policy."""
    return space.arch_of(lambda gene: rng.choices(gene.options, chances[gene.name])[0])


def probabilities(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Softmax."""
    powers = np.exp(logits - logits.max())
    found: NDArray[np.float64] = powers / powers.sum()
    return found


def log_gradient(space: Space, logits: Logits, arch: Arch) -> dict[str, NDArray[np.float64]]:
    """Gradient of log P(arch) by each gene's logits; 0 for genes that do not matter in it."""
    found = {}
    for gene in space.genes:
        found[gene.name] = np.zeros(len(gene.options))
        if gene.name in arch:
            found[gene.name] -= probabilities(logits[gene.name])
            found[gene.name][gene.options.index(arch[gene.name])] += 1
    return found


def feasible_gradient(
    space: Space, fits: Fits, logits: Logits, draws: int, rng: Random
) -> dict[str, NDArray[np.float64]]:
    """Monte-Carlo gradient of log P(V), V the set that fits; 0 where no draw fits."""
    total = {gene: np.zeros_like(values) for gene, values in logits.items()}
    inside, chances = 0, chances_of(logits)
    for _ in range(draws):
        arch = draw(space, chances, rng)
        if fits(arch):
            inside += 1
            for gene, part in log_gradient(space, logits, arch).items():
                total[gene] += part
    return {gene: part / max(1, inside) for gene, part in total.items()}


def _standardised(one: Evaluated, known: Known) -> float:
    scores: Sequence[float] = [each.score for each in known.values()]
    spread = float(np.std(scores))
    return (one.score - float(np.mean(scores))) / spread if spread > 0 else 0.0
