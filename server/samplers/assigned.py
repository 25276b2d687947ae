"""What a sampler is given and what it gives: plain values, no Flower, no device."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...protos.recipe import Recipe
from ...supernet.axes import Regions, regions, rolled_regions
from ...supernet.randomness import stream
from ...supernet.space import Arch, Space
from ..limits import Limits
from .drawing import largest_fit


@dataclass(frozen=True, slots=True)
class Client:
    """A client that is free this round: its name, what it can train, how many examples it has."""

    name: str
    space: Space
    limits: Limits
    examples: int = 1

    def fits(self, arch: Arch) -> bool:
        """Whether it can train this subnet."""
        return self.limits.fits(self.space, arch)

    def largest(self, seed: int) -> Arch:
        """The largest subnet that it can train: equal for clients of equal limits."""
        return largest_fit(self.space, self.limits, seed)


@dataclass(frozen=True, slots=True)
class Assigned:
    """What one client trains.

    `offset` rolls the window of channels that the subnet takes (0: the first ones). `students` are
    subnets inside it for the recipe's list, which its students are drawn from: none at all where it
    is empty, the recipe's own where it is None. `student_weight` scales the recipe's. `weight`
    multiplies the update's weight in the merge.
    """

    arch: Arch
    offset: int = 0
    students: tuple[Arch, ...] | None = None
    student_weight: float = 1.0
    weight: float = 1.0

    def recipe(self, common: Recipe) -> Recipe:
        """The fleet's recipe for this client."""
        scale = 0.0 if self.students == () else self.student_weight
        change: dict[str, object] = {"student_weight": common.student_weight * scale}
        if self.students:
            change["listed"] = tuple(dict(arch) for arch in self.students)
        return common.model_copy(update=change)

    def regions(self, space: Space) -> Regions:
        """Where the subnet's tensors lie inside the shared weights."""
        if self.offset == 0:
            return regions(space, self.arch)
        return rolled_regions(space, self.arch, self.offset)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one accepted update.

    `loss` is the device's mean training loss; `step_norm` the root mean square of the change of
    its weights, for one step at a learning rate of 1.
    """

    assigned: Assigned
    loss: float
    step_norm: float


@dataclass(frozen=True, slots=True)
class Round:
    """One round to assign: the clients in order of name, and where training stands.

    `number` counts from 1. `memory` is what the sampler's `observe` returned last, JSON values.
    `busy` are the fleet's other clients, who get nothing this round.
    """

    space: Space
    clients: Sequence[Client]
    number: int
    rounds: int
    seed: int
    memory: Mapping[str, Any] = field(default_factory=dict)
    busy: Sequence[Client] = ()

    @property
    def fleet(self) -> Sequence[Client]:
        """All clients, so that what is decided for all does not hang on who is free."""
        return [*self.clients, *self.busy]

    def stream(self, *key: object) -> random.Random:
        """A random stream of this round for, say, a client's name."""
        return stream(self.seed, self.number, *key)

    @property
    def progress(self) -> float:
        """0 in the first round, 1 in the last."""
        return 0.0 if self.rounds <= 1 else min((self.number - 1) / (self.rounds - 1), 1.0)


class Sampler(Protocol):
    """One method of choosing subnets. Without state: what it remembers is in `Round.memory`."""

    def assign(self, this: Round) -> dict[str, Assigned]:
        """Client name → what it trains; every client gets something within its budget."""

    def observe(self, this: Round, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """The memory for the next round, from this round's accepted updates."""


class Forgetful:
    """A sampler that remembers nothing."""

    def observe(self, this: Round, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """Nothing."""
        return {}
