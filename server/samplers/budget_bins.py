"""Sampling uniform over cost (ShiftNAS, Zhang et al. 2023), shifted to what still learns.

Uniform draws of genes crowd where most architectures are. Here a bin of MACs is drawn first, of
`bins` equal ones between the space's smallest subnet and its largest, as far as the client's budget
goes, then an architecture within it. Bin k has probability floor + (1 - K·floor) · g_k / Σg, g_k being a running mean of the root
mean square of the weights' change by updates from that bin, for one step at a learning rate of 1
(in place of the gradient's size: what is still under-trained); all g equal before anything is
known. Deviations: rejection in place of the paper's LSTM generator (a bin that is hit in none of
200 draws gets its largest subnet grown from the smallest); probabilities in proportion to g, where
the paper learns them from gradients on validation data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...supernet.cost import cost
from ...supernet.space import Arch, Space
from .assigned import Assigned, Client, Outcome, Round
from .drawing import TRIES

KEEP = 0.7
"""Of a bin's running mean, when an update from it comes in."""


@dataclass(frozen=True, slots=True)
class BudgetBins:
    """`bins` equal intervals of MACs; none gets less than `floor` of the probability."""

    bins: int = 5
    floor: float = 0.05

    def assign(self, this: Round) -> dict[str, Assigned]:
        """A bin, and an architecture in it, for each client."""
        chosen = self.probabilities(this.memory)
        return {c.name: Assigned(self._draw(this, c, chosen)) for c in this.clients}

    def observe(self, this: Round, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """Running means of the change by bin."""
        sizes = dict(this.memory.get("change", {}))
        for outcome in outcomes:
            key = str(self.bin_of(this.space, outcome.assigned.arch))
            old = sizes.get(key, outcome.step_norm)
            sizes[key] = KEEP * old + (1 - KEEP) * outcome.step_norm
        return {"change": sizes}

    def probabilities(self, memory: Any) -> list[float]:
        """Of each bin; they add up to 1."""
        known = memory.get("change", {})
        mean = sum(known.values()) / len(known) if known else 1.0
        sizes = [known.get(str(k), mean) for k in range(self.bins)]
        total = sum(sizes) or 1.0
        return [self.floor + (1 - self.bins * self.floor) * size / total for size in sizes]

    def bin_of(self, space: Space, arch: Arch) -> int:
        """Which bin an architecture is in."""
        low, high = (cost(space, end).macs for end in (space.smallest(), space.largest()))
        share = (cost(space, arch).macs - low) / max(high - low, 1)
        return min(int(share * self.bins), self.bins - 1)

    def _draw(self, this: Round, client: Client, probabilities: list[float]) -> Arch:
        rng = this.stream("bins", client.name)
        most = self.bin_of(this.space, client.largest(this.seed))
        wanted = rng.choices(range(most + 1), probabilities[: most + 1])[0]
        for _ in range(TRIES):
            arch = this.space.sample(rng)
            if self.bin_of(this.space, arch) == wanted and client.fits(arch):
                return arch
        # Hardly any draw is in this bin: the smallest subnet, grown to the bin's upper edge.
        return this.space.grow_while(
            this.space.smallest(),
            lambda arch: client.fits(arch) and self.bin_of(this.space, arch) <= wanted,
            rng,
        )
