"""Uniform single path (SPOS, Guo et al. 2020): each client one architecture, drawn uniformly.

min over W of E over a ~ U(A_c) of the loss of N(a, W_a), A_c being what client c can afford.
Deviation: one path a client and round, not a step; uniform over options, gene by gene, so that a
shallow architecture is likelier than each of the more numerous deep ones. The released code of the
paper draws uniformly over bins of MACs, which is `budget_bins` here.
"""

from .assigned import Assigned, Forgetful, Round
from .drawing import uniform_fit


class Uniform(Forgetful):
    """Every option of a gene is equally likely, among architectures within a client's budget."""

    def assign(self, this: Round) -> dict[str, Assigned]:
        """One uniform draw a client."""
        return {
            c.name: Assigned(uniform_fit(this.space, c.fits, this.stream("uniform", c.name)))
            for c in this.clients
        }
