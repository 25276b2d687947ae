"""Boost of the largest network with decay (MaxNet of SuperFedNAS, Khare et al. 2024).

Subnets are assigned by the sandwich spread over the fleet; the updates of the round's largest one
together get the share β(t) of all weight in the merge, which falls linearly from β₀ = 0.9 to what
they would have anyway. Deviation: the share is met on weights that every client trains; elsewhere
the largest one's share is larger still.
"""

from dataclasses import dataclass, replace

from ...supernet.cost import cost
from .assigned import Assigned, Forgetful, Round
from .sandwich import Sandwich


@dataclass(frozen=True, slots=True)
class MaxNet(Forgetful):
    """`share` is β₀."""

    share: float = 0.9

    def assign(self, this: Round) -> dict[str, Assigned]:
        """The sandwich, the largest subnet with more weight."""
        chosen = Sandwich(spread=True).assign(this)
        macs = {name: cost(this.space, found.arch).macs for name, found in chosen.items()}
        most = max(macs.values())
        examples = {client.name: client.examples for client in this.clients}
        total = sum(examples.values())
        largest = sum(examples[name] for name in chosen if macs[name] == most)
        if largest == total:
            return chosen
        fair = largest / total
        share = max(fair, self.share + (fair - self.share) * this.progress)
        boost = share / (1 - share) * (total - largest) / largest
        return {
            name: replace(found, weight=boost) if macs[name] == most else found
            for name, found in chosen.items()
        }
