"""Random search: architectures that fit, drawn without repeats. The control of every other method."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from ...supernet.space import Arch
from .contract import Known, Proposals, Task
from .feasible import new_ones, random_that_fits


@dataclass(frozen=True, slots=True)
class RandomSearch:
    """Uniform over options, gene by gene, of those that fit."""

    def __call__(self, task: Task, known: Known, rng: Random) -> Proposals:
        """Draw until the budget is spent or nothing new is found."""
        yield from begin(task)
        while drawn := drawn_at_random(task, known, task.at_once, rng):
            yield drawn


def begin(task: Task) -> Proposals:
    """The architectures that a search is to start with, where they fit."""
    if given := [arch for arch in task.start if task.fits(arch)]:
        yield given


def opening(task: Task, count: int, draw: Callable[[], Arch]) -> list[Arch]:
    """The architectures that a search is to start with, and as many drawn as make `count`."""
    given = [arch for arch in task.start if task.fits(arch)]
    return [*given, *new_ones(draw, max(0, count - len(given)), given)]


def drawn_at_random(task: Task, known: Known, count: int, rng: Random) -> list[Arch]:
    """Up to `count` random architectures that fit and are not known yet."""
    return new_ones(lambda: random_that_fits(task.space, task.fits, rng), count, known)
