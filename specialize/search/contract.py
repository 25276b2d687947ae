"""What every search method is given and what it gives back: functions in, a value out.

A method is a generator. It yields architectures that it wants evaluated and is sent what came of
them; the loop that drives it (`loop.py`) keeps the hard bounds, the number of evaluations and the
record. So no method can break a budget, evaluate twice, or forget its best, and evaluations that
take a round trip to a fleet can be made for several searches at once.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from ...supernet.cost import cost
from ...supernet.errors import UsageError
from ...supernet.space import Arch, Space
from ..predictors.contract import Sample

Fits = Callable[[Arch], bool]


@dataclass(frozen=True, slots=True)
class Scored:
    """What an evaluation says: a score, higher is better, and its standard error (0: exact)."""

    score: float
    error: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.score):
            raise UsageError(f"search: an evaluation gave {self.score}; a finite number expected")
        if not (math.isfinite(self.error) and self.error >= 0):
            raise UsageError(
                f"search: an evaluation's standard error is {self.error}; 0 or more expected"
            )


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An architecture with what its evaluation said."""

    arch: Arch
    score: float
    error: float


Known = Mapping[Arch, Evaluated]
"""Everything evaluated so far in a search, in that order; methods read it as it grows."""
Evaluate = Callable[[Sequence[Arch]], Sequence[Scored]]
Proposals = Generator[Sequence[Arch], Sequence[Evaluated], None]
"""Yields architectures that fit; is sent their evaluations, in the same order."""


def nothing_related() -> Sequence[Sample]:
    """No measurements but a search's own."""
    return ()


@dataclass(frozen=True, slots=True)
class Task:
    """A search's question.

    `fits` is the hard budget, several bounds at once if need be. `evaluations` bounds how many
    architectures are evaluated; `at_once` is how many a method proposes at a time where it could
    also wait for each. `start` are architectures to evaluate first, where they fit. `prior` is a
    score that needs no evaluation (`specialize/zero_cost.py`), for the methods that use one.
    `objectives` are further numbers to keep small, exact and cheap, for a Pareto front; without
    them it is MACs. `related` gives measurements of other groups of the same space, which
    predictors may learn from.
    """

    space: Space
    fits: Fits
    evaluations: int
    at_once: int = 1
    start: tuple[Arch, ...] = ()
    prior: Callable[[Arch], float] | None = None
    objectives: Callable[[Arch], tuple[float, ...]] | None = None
    related: Callable[[], Sequence[Sample]] = nothing_related

    def __post_init__(self) -> None:
        if self.evaluations < 1 or self.at_once < 1:
            raise UsageError(
                f"search: evaluations = {self.evaluations}, at_once = {self.at_once}; "
                "each must be at least 1"
            )
        if not self.fits(self.space.smallest()):
            raise UsageError("search: no architecture fits the budget, not even the smallest")

    def size(self, arch: Arch) -> int:
        """MACs: what bins, baselines and ties go by."""
        return cost(self.space, arch).macs

    def keep_small(self, arch: Arch) -> tuple[float, ...]:
        """The objectives besides the score; smaller is better."""
        return self.objectives(arch) if self.objectives else (float(self.size(arch)),)


class Method(Protocol):
    """A search method: a frozen dataclass of its settings that can be called."""

    def __call__(self, task: Task, known: Known, rng: Random) -> Proposals:
        """Propose until there is nothing left to ask; the loop ends it when the budget is spent."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search evaluated, in order."""

    evaluated: tuple[Evaluated, ...]

    @property
    def evaluations(self) -> int:
        """How many architectures were evaluated."""
        return len(self.evaluated)

    @property
    def ranked(self) -> tuple[Evaluated, ...]:
        """Best first; equal scores keep the order of discovery."""
        return tuple(sorted(self.evaluated, key=lambda one: one.score, reverse=True))

    @property
    def best(self) -> Evaluated:
        """The highest score, the first of equal ones."""
        return max(self.evaluated, key=lambda one: one.score)

    @property
    def best_so_far(self) -> tuple[Evaluated, ...]:
        """The best after each evaluation."""
        found: list[Evaluated] = []
        for one in self.evaluated:
            found.append(one if not found or one.score > found[-1].score else found[-1])
        return tuple(found)
