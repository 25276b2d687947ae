"""Static tiers (HeteroFL, Diao et al. 2021): every client always the same width of one network.

The tier is the largest rung of the width ladder within the client's budget. Deviations: the ladder
is the search space's (its width options), and below its narrowest width the other dimensions shrink
too; no scaler in the layers, since norm statistics are recalibrated for each subnet; the local loss
is not masked to the labels that a client has (logit adjustment is there for that).
"""

from .assigned import Assigned, Forgetful, Round
from .drawing import ladder, rung_that_fits


class Tiers(Forgetful):
    """The same subnet for a client in every round."""

    def assign(self, this: Round) -> dict[str, Assigned]:
        """Each client's tier."""
        rungs = ladder(this.space)
        return {c.name: Assigned(rungs[rung_that_fits(this.space, c.fits)]) for c in this.clients}
