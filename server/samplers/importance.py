"""Importance sampling of paths (PA&DA, Lu et al. 2023), unbiased.

An option o of a gene is drawn with p(o) = φ·u + (1-φ)·(τ·ĝ(o)/Σĝ + (1-τ)·u), u uniform, φ =
`floor`, ĝ a running mean of the size of updates from subnets that had it (for one step at a
learning rate of 1, in place of the gradient's), τ = (t-1)/(T-1). The update of a subnet drawn with
Π p counts Π(u/p) in the merge, between 1/`clip` and `clip`, so that the mean over draws is that of
uniform sampling. (The published code does not reweight, and is biased to what has
large gradients.) Deviations: draws beyond a client's budget are rejected; sampling of data by the
same idea is not done.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...supernet.space import Arch, Gene, Space
from .assigned import Assigned, Outcome, Round
from .drawing import TRIES, shrunk_to_fit

KEEP = 0.7
Scores = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Importance:
    """`floor` is the least share of a uniform probability, `clip` the most an update counts."""

    floor: float = 0.2
    clip: float = 10.0

    def assign(self, this: Round) -> dict[str, Assigned]:
        """One draw a client, with its weight."""
        scores: Scores = this.memory.get("scores", {})
        table = {g.name: self.probabilities(g, scores, this.progress) for g in this.space.genes}
        chosen = {}
        for client in this.clients:
            rng = this.stream("importance", client.name)

            def pick(gene: Gene) -> float:
                return rng.choices(gene.options, table[gene.name])[0]  # noqa: B023 - used at once

            for _ in range(TRIES):
                arch = this.space.arch_of(pick)
                if client.fits(arch):
                    break
            else:
                arch = shrunk_to_fit(this.space, arch, client.fits, rng)
            chosen[client.name] = Assigned(arch, weight=self.weight(this.space, arch, table))
        return chosen

    def probabilities(self, gene: Gene, scores: Scores, tau: float) -> list[float]:
        """Of each option, adding up to 1."""
        uniform = 1 / len(gene.options)
        known = scores.get(gene.name, {})
        mean = sum(known.values()) / len(known) if known else 1.0
        sizes = [known.get(str(option), mean) for option in gene.options]
        total = sum(sizes)
        if total == 0:
            return [uniform] * len(sizes)
        mixed = [tau * size / total + (1 - tau) * uniform for size in sizes]
        return [self.floor * uniform + (1 - self.floor) * p for p in mixed]

    def weight(self, space: Space, arch: Arch, table: Mapping[str, Sequence[float]]) -> float:
        """Π u/p over the genes that matter, clipped."""
        ratio = 0.0
        for gene in space.genes:
            if gene.name in arch:
                p = table[gene.name][gene.options.index(arch[gene.name])]
                ratio -= math.log(len(gene.options) * p)
        return min(max(math.exp(ratio), 1 / self.clip), self.clip)

    def observe(self, this: Round, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """Running means of the updates' size, by gene and option."""
        scores = {name: dict(known) for name, known in this.memory.get("scores", {}).items()}
        for outcome in outcomes:
            for name, option in outcome.assigned.arch.items():
                mine = scores.setdefault(name, {})
                old = mine.get(str(option), outcome.step_norm)
                mine[str(option)] = KEEP * old + (1 - KEEP) * outcome.step_norm
        return {"scores": scores}
