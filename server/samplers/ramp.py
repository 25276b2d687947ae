"""Ramp (structural pruning of language models by NAS, Klein et al. 2024): `random linear`.

In round t of T a client trains a random subnet with probability (t-1)/(T-1), else the largest that
it can afford: the whole network first, its parts more and more often.
"""

from .assigned import Assigned, Forgetful, Round
from .drawing import uniform_fit


class Ramp(Forgetful):
    """The first round trains the largest only, the last random subnets only."""

    def assign(self, this: Round) -> dict[str, Assigned]:
        """One draw a client."""
        chosen = {}
        for client in this.clients:
            rng = this.stream("ramp", client.name)
            random_one = rng.random() < this.progress
            arch = (
                uniform_fit(this.space, client.fits, rng)
                if random_one
                else client.largest(this.seed)
            )
            chosen[client.name] = Assigned(arch)
        return chosen
