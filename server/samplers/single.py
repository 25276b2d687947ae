"""One subnet for everybody (FedAvg, McMahan et al. 2017): no supernet, one ordinary network.

Clients that cannot hold it are left out. Without an architecture it is the largest subnet of the
fleet's weakest client.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ...supernet.cost import cost
from ...supernet.errors import UsageError
from ...supernet.space import Arch, Value
from .assigned import Assigned, Forgetful, Round


@dataclass(frozen=True, slots=True)
class Single(Forgetful):
    """`arch` is the architecture's genes, None for what the weakest client can train."""

    arch: Mapping[str, Value] | None = None

    def assign(self, this: Round) -> dict[str, Assigned]:
        """The same subnet for each client that can hold it; UsageError where none can."""
        arch = the_one(this, self.arch)
        return {client.name: Assigned(arch) for client in this.clients if client.fits(arch)}


def the_one(this: Round, given: Mapping[str, Value] | None) -> Arch:
    """The subnet of these genes, or the largest of the fleet's weakest client.

    UsageError where no client of the fleet can train it.
    """
    if given is not None:
        arch = this.space.arch(given)
    else:
        arch = min(
            (client.largest(this.seed) for client in this.fleet),
            key=lambda found: cost(this.space, found).macs,
        )
    if not any(client.fits(arch) for client in this.fleet):
        raise UsageError(
            f"sampler.arch = {dict(arch)}: no client can train it; give a smaller one or raise "
            "a class's bounds"
        )
    return arch
