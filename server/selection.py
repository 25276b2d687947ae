"""Who trains which subnet, round after round: the sampler's memory, and the devices that rest."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..supernet.space import Space
from .assignment import assign, assign_some, remember
from .checkpoint import Checkpoint
from .config import RunConfig
from .fleet import Fleet, Member
from .open_round import Assignments
from .reputation import Reputation
from .samplers.assigned import Client, Outcome, Round


class Selection:
    """Chooses the subnets of a round, and learns from what came of them.

    `outcomes` are those of the last round that was learned from; `abandoned` counts the tries of the
    coming round that came to nothing.
    """

    def __init__(self, config: RunConfig, space: Space) -> None:
        self._config, self._space = config, space
        self.memory: Mapping[str, Any] = {}
        self.reputation = Reputation(config.reputation)
        self.outcomes: Sequence[Outcome] = ()
        self.abandoned = 0

    def restore(self, found: Checkpoint) -> None:
        """Go on from what a checkpoint notes."""
        self.memory = found.noted("sampler")
        self.reputation = Reputation(self._config.reputation, found.noted("reputation"))
        self.abandoned = 0

    @property
    def notes(self) -> dict[str, object]:
        """What a checkpoint must keep."""
        return {"sampler": self.memory, "reputation": self.reputation.memory}

    def assignments(
        self,
        number: int,
        fleet: Fleet,
        ages: Mapping[str, Tensor],
        busy: frozenset[int] = frozenset(),
        most: int | None = None,
    ) -> Assignments:
        """Node → (member, subnet) for round `number`, without busy nodes and those in quarantine.

        All others, or `most` of them; None: as many as the configuration says. `ages` are the rounds
        that each shared weight has waited.
        """
        resting = self.reputation.resting(number)
        out = busy | {m.node for m in fleet.members.values() if m.name in resting}
        free = [m for m in fleet.members.values() if m.node not in out]
        this = self._round(number, free, [m for m in fleet.members.values() if m.node in out])
        sampler = self._config.sampler
        most = self._config.round.clients if most is None else most
        if most is None:
            chosen = assign(sampler, this, ages)
        else:
            chosen = assign_some(sampler, this, ages, most, self.abandoned)
        return {m.node: (m, chosen[m.name]) for m in free if m.name in chosen}

    def release(self, number: int, fleet: Fleet, busy: frozenset[int]) -> list[str]:
        """Let devices out of quarantine where too few would be left for a round; who they are."""
        here = [m.name for m in fleet.members.values() if m.node not in busy]
        return self.reputation.release(here, self._config.round.min_replies, number)

    def learn(
        self,
        number: int,
        asked: Iterable[Member],
        ages: Mapping[str, Tensor],
        outcomes: Sequence[Outcome],
    ) -> None:
        """Remember what came of round `number`, which is done; `ages` as they were in it."""
        this = self._round(number, asked)
        self.memory = remember(self._config.sampler, this, ages, outcomes)
        self.outcomes, self.abandoned = outcomes, 0

    def _round(self, number: int, members: Iterable[Member], busy: Iterable[Member] = ()) -> Round:
        config = self._config
        return Round(
            self._space,
            self._clients(members),
            number,
            config.round.rounds,
            config.seed,
            self.memory,
            self._clients(busy),
        )

    def _clients(self, members: Iterable[Member]) -> list[Client]:
        return [
            Client(member.name, self._space, member.limits, member.profile.examples)
            for member in sorted(members, key=lambda member: member.name)
        ]
