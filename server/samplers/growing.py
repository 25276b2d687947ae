"""Our own default, growing: cheap subnets on every device first, then each device up to its own.

A level is the largest rung of the width ladder that a client of the fleet can afford; a fleet of
four device classes has four levels. Training passes them in order: at a level a client trains its
own rung or the level's, whichever is smaller. A level takes as many rounds as make all levels cost
the same in multiply-accumulates, so most rounds are cheap ones, in which the weights that every
subnet shares see the data of every device. A share of the clients, drawn anew each round, trains in
place of the rung a random maximal subnet of no more MACs, so that subnets off the ladder are
trained too. Growing networks during federated training is ProgFed's idea (Wang et al. 2022), there
by depth and for one model; tiers are HeteroFL's (Diao et al. 2021).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ...supernet.cost import cost
from ...supernet.space import Arch, Space
from .assigned import Assigned, Client, Forgetful, Round
from .drawing import ladder, maximal_fit, rung_that_fits


@dataclass(frozen=True, slots=True)
class Growing(Forgetful):
    """`elastic` is the share of the clients that train a random subnet."""

    elastic: float = 0.25

    def assign(self, this: Round) -> dict[str, Assigned]:
        """The level's or the client's rung, or a random subnet of its size."""
        tops = {client.name: rung_that_fits(this.space, client.fits) for client in this.fleet}
        progress = 1.0 if this.number >= this.rounds else this.progress  # also of a single round
        level = current_level(this.space, list(tops.values()), progress)
        return {
            client.name: Assigned(self._one(this, client, min(level, tops[client.name])))
            for client in this.clients
        }

    def _one(self, this: Round, client: Client, rung: int) -> Arch:
        arch, rng = ladder(this.space)[rung], this.stream("growing", client.name)
        if rng.random() >= self.elastic:
            return arch
        most = _macs(this.space, rung)

        def fits(other: Arch) -> bool:
            return cost(this.space, other).macs <= most and client.fits(other)

        return maximal_fit(this.space, fits, rng)


def current_level(space: Space, tops: Sequence[int], progress: float) -> int:
    """The rung that training has come to at a progress from 0 to 1; the last round has the last.

    `tops` are the clients' own rungs.
    """
    levels = sorted(set(tops))
    inverse = [1 / sum(_macs(space, min(level, top)) for top in tops) for level in levels]
    reached, whole = 0.0, sum(inverse)
    for level, share in zip(levels, inverse, strict=True):
        reached += share / whole
        if progress < reached:
            return level
    return levels[-1]


@lru_cache(maxsize=1024)
def _macs(space: Space, rung: int) -> int:
    return cost(space, ladder(space)[rung]).macs
