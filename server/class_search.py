"""The best subnet for each device class: measured on the devices, searched, measured again.

A few subnets that fit each class are measured; a predictor learned from them guides an evolution
within the class's budget; its finalists are measured in the same way as the largest subnet that
fits and random ones that fit, and the best measured one is chosen. Two exchanges with the fleet
for the first measurement, two for the second, however many subnets the evolution looks at.
"""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ..protos.subnets import Statistics
from ..specialize.predictor import Sample, fit
from ..specialize.search import Evolution, evolve, largest_that_fits, random_that_fits
from ..supernet.cost import Budget, cost
from ..supernet.randomness import stream
from ..supernet.space import Arch, Space
from .class_budgets import ClassBudget
from .config import RunConfig
from .evaluation import FederatedEvaluator, Target
from .figures import Measured

Fits = Callable[[Arch], bool]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A subnet that was measured for a class. `origin`: searched, largest or random."""

    arch: Arch
    origin: str
    macs: int
    measured: Measured


@dataclass(frozen=True, slots=True)
class Choice:
    """What a class gets, what stood beside it, and how much the search looked at."""

    device_class: str
    budget: Budget
    best: Candidate
    statistics: Statistics
    candidates: tuple[Candidate, ...]
    predictions: int

    @property
    def margin(self) -> tuple[float, float] | None:
        """Accuracy of the predictor's first choice over the mean of the random ones, and its error.

        Not of the best of all candidates, which is never below that mean. None where nothing else
        fits the budget.
        """
        first = self.candidates[0].measured
        others = [c.measured for c in self.candidates if c.origin == "random"]
        if not others:
            return None
        mean = sum(m.accuracy for m in others) / len(others)
        spread = sum(m.error**2 for m in others) / len(others) ** 2
        return first.accuracy - mean, (first.error**2 + spread) ** 0.5


def search_classes(
    config: RunConfig,
    space: Space,
    evaluator: FederatedEvaluator,
    classes: Mapping[str, ClassBudget],
    tell: Callable[[str], None],
    fail: Callable[[str, str], None],
) -> dict[str, Choice]:
    """Class → choice; one that no device could measure is reported to `fail` and left out."""
    tell("measuring sampled subnets")
    drawn = {name: _samples(config, space, name, bounds.fits) for name, bounds in classes.items()}
    measured = _measure(evaluator, classes, drawn, fail)
    if not measured:
        return {}
    known = [
        Sample(arch, name, accuracy.accuracy)
        for name, found in measured.items()
        for arch, (accuracy, _) in found.items()
    ]
    predictor = fit(space, known)
    tell("searching")
    searched = {
        name: _finalists(config, space, name, classes[name].fits, predictor) for name in measured
    }
    tell("measuring finalists")
    origins = {name: mine for name, (mine, _) in searched.items()}
    return {
        name: _choice(space, name, classes[name].budget, searched[name], found)
        for name, found in _measure(evaluator, classes, origins, fail).items()
    }


def _choice(
    space: Space,
    name: str,
    budget: Budget,
    searched: tuple[Mapping[Arch, str], int],
    found: "_Found",
) -> Choice:
    origins, looked = searched
    candidates = tuple(
        Candidate(arch, origin, cost(space, arch).macs, found[arch][0])
        for arch, origin in origins.items()
    )
    # Between equal measurements, fewer multiply-accumulates.
    best = max(candidates, key=lambda c: (c.measured.accuracy, -c.macs))
    return Choice(name, budget, best, found[best.arch][1], candidates, looked)


def _samples(config: RunConfig, space: Space, name: str, fits: Fits) -> list[Arch]:
    """Half anywhere within the budget, half at its edge, where the best usually are."""
    rng = stream(config.seed, "samples", name)
    each = max(4, config.search.samples // len(config.classes))
    drawn: dict[Arch, None] = {}
    for place in range(4 * each):
        if len(drawn) == each:
            break
        arch = random_that_fits(space, fits, rng)
        drawn[space.grow_while(arch, fits, rng) if place % 2 else arch] = None
    return list(drawn)


def _finalists(
    config: RunConfig, space: Space, name: str, fits: Fits, predictor: Callable[[Arch], float]
) -> tuple[dict[Arch, str], int]:
    search = config.search
    settings = Evolution(search.population, search.generations, search.mutation)
    largest = largest_that_fits(space, fits, lambda arch: cost(space, arch).macs)
    rng = stream(config.seed, "search", name)
    found = evolve(space, predictor, fits, settings, rng, (largest,))
    searched = [arch for arch, _ in found.ranked if arch != largest][: search.finalists]
    origins = {**dict.fromkeys(searched, "searched"), largest: "largest"}
    rng = stream(config.seed, "random", name)
    for arch in _others(space, fits, rng, origins, search.random_baseline):
        origins[arch] = "random"
    return origins, found.evaluations


def _others(
    space: Space, fits: Fits, rng: random.Random, taken: Mapping[Arch, str], count: int
) -> list[Arch]:
    drawn = [random_that_fits(space, fits, rng) for _ in range(8 * count)]
    fresh = [arch for arch in dict.fromkeys(drawn) if arch not in taken]
    return fresh[:count]  # fewer where hardly anything else fits


_Found = dict[Arch, tuple[Measured, Statistics]]


def _measure(
    evaluator: FederatedEvaluator,
    classes: Mapping[str, ClassBudget],
    archs: Mapping[str, Iterable[Arch]],
    fail: Callable[[str, str], None],
) -> dict[str, _Found]:
    """Class → subnet → accuracy and norm statistics, each class's on the same devices."""
    keys = [(name, arch) for name, mine in archs.items() for arch in mine]
    targets = [Target(arch, classes[name].budget) for name, arch in keys]
    statistics = evaluator.statistics(targets)
    measured = evaluator.accuracy(targets, statistics)
    found: dict[str, _Found] = {}
    for name in archs:
        places = [place for place, (owner, _) in enumerate(keys) if owner == name]
        if all(place in measured for place in places):
            found[name] = {keys[at][1]: (measured[at], statistics[at]) for at in places}
        else:
            fail(
                name,
                f"no device answered for {sum(at not in measured for at in places)} of its "
                f"{len(places)} subnets; start a device whose class may hold them",
            )
    return found
