"""The sandwich rule (Yu & Huang 2019; BigNAS, Yu et al. 2020), on the device or over the fleet.

On the device: each client is assigned its largest subnet, and the recipe adds the smallest and
random ones inside it, which learn its predictions. Over the fleet (as SuperFedNAS spreads it): in
each round one client, of those that can afford the largest subnets, trains its largest, one the
smallest of all, the others uniform draws; who plays which part rotates.

Deviation: BigNAS starts each residual block's last normalization at zero; here it starts at one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...supernet.cost import cost
from ...supernet.space import Arch, Space
from .assigned import Assigned, Forgetful, Round
from .drawing import uniform_fit


@dataclass(frozen=True, slots=True)
class Sandwich(Forgetful):
    """`spread` divides the sandwich between clients."""

    spread: bool = False

    def assign(self, this: Round) -> dict[str, Assigned]:
        """The largest for every client, or one part of the sandwich for each."""
        largest = {client.name: client.largest(this.seed) for client in this.clients}
        if not self.spread:
            return {name: Assigned(arch) for name, arch in largest.items()}
        chosen = {
            client.name: Assigned(
                uniform_fit(this.space, client.fits, this.stream("sandwich", client.name))
            )
            for client in this.clients
        }
        first = in_turn(strongest(this.space, largest), this.number)
        chosen[first] = Assigned(largest[first])
        if others := [name for name in largest if name != first]:
            chosen[in_turn(others, this.number)] = Assigned(this.space.smallest())
        return chosen


def strongest(space: Space, largest: Mapping[str, Arch]) -> list[str]:
    """The clients whose largest subnet has the most MACs of all."""
    macs = {name: cost(space, arch).macs for name, arch in largest.items()}
    return [name for name in macs if macs[name] == max(macs.values())]


def in_turn(names: Sequence[str], number: int) -> str:
    """The one whose turn it is in a round."""
    return names[number % len(names)]
