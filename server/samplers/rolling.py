"""Rolling window (FedRolex, Alam et al. 2022): the channels of a tier shift by one each round.

In round t the subnet of width w takes, on every channel axis of C channels, the indices
{t, t+1, ..., t+w-1} mod C, so that clients of one width train every weight in turn. Deviation: the
widths are the ladder's, as for static tiers; `stride` is how far the window moves a round. Serves spaces
whose channels have no order (`Space.rolls`).
"""

from dataclasses import dataclass, replace

from .assigned import Assigned, Forgetful, Round
from .tiers import Tiers


@dataclass(frozen=True, slots=True)
class Rolling(Forgetful):
    """Static tiers on a moving window."""

    stride: int = 1

    def assign(self, this: Round) -> dict[str, Assigned]:
        """Each client's tier, at this round's window."""
        offset = self.stride * (this.number - 1)
        return {
            name: replace(assigned, offset=offset)
            for name, assigned in Tiers().assign(this).items()
        }
