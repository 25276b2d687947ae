"""One weak target, trained inside larger subnets (NetDistiller, Zhang et al. 2023).

Each client is assigned the largest subnet within its own budget that contains the target, of at most
`most` times the target's MACs: the teacher, with the target as its one student on the same weights.
A client that can afford the target and nothing larger trains the target alone; one that cannot afford
the target is left out. How a step trains the two is the recipe's: students = listed, combine = project
is the published method.

Deviations: the paper widens channels by about 3 and trains on one machine; here any dimension of the
space grows, as far as each device's budget and `most` allow, so that teachers differ between devices
and what they share, the target, is merged over all of them. Nothing is thrown away afterwards: the
teachers are part of the supernet.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from ...supernet.cost import cost
from ...supernet.randomness import stream
from ...supernet.space import Arch, Space, Value
from ..limits import Limits
from .assigned import Assigned, Forgetful, Round
from .single import the_one

TRIES = 16


@dataclass(frozen=True, slots=True)
class Expanded(Forgetful):
    """`arch` is the target's genes, None for what the weakest client can train."""

    arch: Mapping[str, Value] | None = None
    most: float = 3.0

    def assign(self, this: Round) -> dict[str, Assigned]:
        """Each client's expansion of the target; UsageError where no client can train the target."""
        target, chosen = the_one(this, self.arch), dict[str, Assigned]()
        for client in this.clients:
            if not client.fits(target):
                continue
            larger = expansion(this.space, target, client.limits, self.most, this.seed)
            # The target of no students: the recipe would find it to be its own student.
            students = (target,) if larger != target else ()
            chosen[client.name] = Assigned(larger, students=students)
        return chosen


@lru_cache(maxsize=1024)
def expansion(space: Space, target: Arch, limits: Limits, most: float, seed: int) -> Arch:
    """The subnet of most MACs among 16 that cannot grow further: equal for equal limits and seeds.

    The target itself where nothing larger fits.
    """
    bound, rng = most * cost(space, target).macs, stream(seed, "expansion")

    def fits(arch: Arch) -> bool:
        return cost(space, arch).macs <= bound and limits.fits(space, arch)

    found = [space.grow_while(target, fits, rng) for _ in range(TRIES)]
    return max(found, key=lambda arch: (cost(space, arch).macs, cost(space, arch).params))
