"""What divides a run's work among its branches: the protocol that both ways keep to."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..events import EventLog
from ..fleet import Fleet, Member
from ..open_round import Assignments
from ..samplers.assigned import Assigned, Outcome
from ..selection import Selection
from ..training import Training

Parts = Mapping[str, Training]
"""Branch → its training state, in the order in which branches end their rounds."""


class Router(Protocol):
    """Says which branches there are, and which of them a device trains.

    Its state is `memory`, JSON values. What it decides for a round does not change within it.
    """

    def settle(self, fleet: Fleet, log: EventLog) -> Sequence[str]:
        """The branches' names; the first fleet decides, and later devices get their place."""

    def selection(self) -> Selection | None:
        """What all branches choose subnets with; None: each with a choice of its own."""

    def seed(self, branch: str, seed: int) -> int:
        """What a branch's initial weights are drawn from; the run's seed for the first one."""

    def assignments(
        self, parts: Parts, fleet: Fleet, busy: frozenset[int], most: int | None
    ) -> Assignments:
        """Node → (member, subnet) for the coming round."""

    def branch(self, member: Member, assigned: Assigned, number: int) -> str:
        """The branch that a device trains in round `number` with this subnet."""

    def serves(self, branch: str, fleet: Fleet) -> Fleet:
        """The devices that a branch's models are for."""

    def learn(self, branch: str, outcomes: Sequence[Outcome]) -> None:
        """What came of a branch's part of a round."""

    def told(self, number: int) -> dict[str, Any] | None:
        """What there is to say of how round `number` is divided; None: nothing new."""

    def explained(self, number: int) -> list[dict[str, Any]]:
        """How round `number` is, or would be, divided: rows of a table, for people."""

    @property
    def memory(self) -> dict[str, Any]:
        """What a checkpoint must keep."""

    def restore(self, memory: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
