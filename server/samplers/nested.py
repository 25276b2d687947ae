"""Nested random width (FjORD, Horváth et al. 2021): ordered dropout up to a client's own width.

The client is assigned the widest rung of the ladder that it can afford; in every step one rung up
to that one, drawn uniformly from those listed, is trained on labels (in the recipe: train_assigned
= false, students = random, random_subnets = 1, redraw = step, learn = labels).
Deviation: widths are the ladder's, as for static tiers; the optional distillation is the recipe's.
"""

from .assigned import Assigned, Forgetful, Round
from .drawing import ladder, rung_that_fits


class Nested(Forgetful):
    """Every width up to the widest that a client can afford."""

    def assign(self, this: Round) -> dict[str, Assigned]:
        """The widest, and the list of it and all narrower ones."""
        rungs, chosen = ladder(this.space), {}
        for client in this.clients:
            widest = rung_that_fits(this.space, client.fits)
            chosen[client.name] = Assigned(rungs[widest], students=rungs[: widest + 1])
        return chosen
