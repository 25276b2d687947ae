"""Delayed shrinking (DεpS, Annavajjala et al. 2024): the largest network alone first.

Up to round T_w = `warm` · T a client trains the largest subnet that it can afford and no students.
Then the smallest and random ones inside it are distilled from it, their weight rising linearly over
`ramp` rounds to 1. Deviations: `warm` is a quarter, where the paper's runs take 150 of 270 epochs;
the ramp follows T_w, where the paper's ends at it; weak clients take part in the first phase with what they can afford,
in place of idling; channels are not reordered by importance when shrinking starts; the paper scales
the ramp by the learning rate.
"""

from dataclasses import dataclass

from .assigned import Assigned, Forgetful, Round


@dataclass(frozen=True, slots=True)
class Delayed(Forgetful):
    """`warm` is the share of the rounds before students, `ramp` the rounds until they count 1."""

    warm: float = 0.25
    ramp: int = 3

    def student_weight(self, number: int, rounds: int) -> float:
        """0 up to round T_w, then rising to 1."""
        since = number - round(self.warm * rounds)
        return min(max(since, 0) / self.ramp, 1.0)

    def assign(self, this: Round) -> dict[str, Assigned]:
        """The largest for every client, students with this round's weight."""
        weight = self.student_weight(this.number, this.rounds)
        return {c.name: Assigned(c.largest(this.seed), student_weight=weight) for c in this.clients}
