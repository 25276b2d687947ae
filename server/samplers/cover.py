"""Cover, our own: each client the largest it can afford, together covering what was left out."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...supernet.axes import put, regions, view
from ...supernet.cost import cost
from ...supernet.space import Arch, Space
from .assigned import Assigned, Forgetful, Round
from .drawing import maximal_fit


@dataclass(frozen=True, slots=True)
class Cover(Forgetful):
    """Clients choose in order of name, each the one of its `candidates` maximal subnets that
    trains most of what no earlier client trains this round, a weight counting one and its age.

    Deviation from the uniform path of once-for-all training: budgets are spent in full, and
    weights that have waited longest are preferred.
    """

    candidates: int
    ages: Mapping[str, Tensor]

    def assign(self, this: Round) -> dict[str, Assigned]:
        """One maximal subnet a client."""
        wanted = {name: age.to(torch.int32) + 1 for name, age in self.ages.items()}
        chosen = {}
        for client in this.clients:
            rng = this.stream("assign", client.name)
            options = {
                maximal_fit(this.space, client.fits, rng): None for _ in range(self.candidates)
            }
            best = max(options, key=lambda arch: _gain(this.space, arch, wanted))
            for tensor, region in regions(this.space, best).items():
                put(wanted[tensor], region, 0)
            chosen[client.name] = Assigned(best)
        return chosen


def _gain(space: Space, arch: Arch, wanted: Mapping[str, Tensor]) -> tuple[int, int]:
    gain = sum(int(view(wanted[name], r).sum()) for name, r in regions(space, arch).items())
    return gain, cost(space, arch).macs
