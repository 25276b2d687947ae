"""The sandwich rule (Yu & Huang 2019; BigNAS, Yu et al. 2020), on the device or over the fleet.

On the device: each client is assigned its largest subnet, and the recipe adds the smallest and
random ones inside it, which learn its predictions. Over the fleet (as SuperFedNAS spreads it): in
each round one client trains the smallest subnet, one the largest that it can afford, the others
uniform draws; who plays which part rotates.
"""

from dataclasses import dataclass

from .assigned import Assigned, Forgetful, Round
from .drawing import uniform_fit


@dataclass(frozen=True, slots=True)
class Sandwich(Forgetful):
    """`spread` divides the sandwich between clients."""

    spread: bool = False

    def assign(self, this: Round) -> dict[str, Assigned]:
        """The largest for every client, or one part of the sandwich for each."""
        count, chosen = len(this.clients), {}
        for place, client in enumerate(this.clients):
            part = (place + this.number) % count if self.spread else 0
            if part == 0:
                arch = client.largest(this.seed)
            elif part == 1:
                arch = this.space.smallest()
            else:
                arch = uniform_fit(this.space, client.fits, this.stream("sandwich", client.name))
            chosen[client.name] = Assigned(arch)
        return chosen
