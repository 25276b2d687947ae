"""Evolutionary search within a hard budget: functions in, a value out.

Regularised by nothing but the budget: a population of feasible architectures, the best half are
parents, children come by crossover and mutation and are shrunk until they fit (the search of SPOS,
Guo et al. 2020, and once-for-all, Cai et al. 2020).
"""

import random
from collections.abc import Callable, Container
from dataclasses import dataclass

from ..supernet.errors import UsageError
from ..supernet.space import Arch, Space

Score = Callable[[Arch], float]
Fits = Callable[[Arch], bool]
# Rejection keeps a draw uniform; in a tight budget it would go on for ever.
MAX_DRAWS = 20
# In a tight budget there may be nothing new to find.
CHILD_DRAWS = 8


@dataclass(frozen=True, slots=True)
class Evolution:
    """Settings: `mutation` is the chance that a gene of a mutated child is redrawn."""

    population: int
    generations: int
    mutation: float


@dataclass(frozen=True, slots=True)
class Found:
    """The best architectures, best first, and best-so-far after each generation."""

    ranked: tuple[tuple[Arch, float], ...]
    history: tuple[float, ...]
    evaluations: int


def largest_that_fits(space: Space, fits: Fits, size: Callable[[Arch], int]) -> Arch:
    """Greedy from the smallest: of all one-option growths that fit take the largest, until none.

    UsageError when even the smallest does not fit.
    """
    arch = space.smallest()
    if not fits(arch):
        raise UsageError("search: no architecture fits the budget, not even the smallest")
    while growths := [a for a in space.grown(arch) if fits(a)]:
        arch = max(growths, key=size)
    return arch


def random_that_fits(space: Space, fits: Fits, rng: random.Random) -> Arch:
    """A random architecture that fits: drawn anew, and after many misses shrunk until it does."""
    for _ in range(MAX_DRAWS):
        arch = space.sample(rng)
        if fits(arch):
            return arch
    return shrunk_to_fit(space, arch, fits, rng)


def shrunk_to_fit(space: Space, arch: Arch, fits: Fits, rng: random.Random) -> Arch:
    """Shrink random genes, one option at a time, until the architecture fits.

    UsageError when even the smallest does not fit.
    """
    while not fits(arch):
        genes = list(arch)
        rng.shuffle(genes)
        smaller = next((a for g in genes if (a := space.step(arch, g, -1)) is not None), None)
        if smaller is None:
            raise UsageError("search: no architecture fits the budget, not even the smallest")
        arch = smaller
    return arch


def evolve(
    space: Space,
    score: Score,
    fits: Fits,
    settings: Evolution,
    rng: random.Random,
    seeds: tuple[Arch, ...] = (),
) -> Found:
    """Search for the highest score among architectures that fit.

    `seeds` that fit are in the first population. Each architecture is scored once; equal scores
    keep the order of discovery, so the result depends on the arguments only.
    """
    known: dict[Arch, float] = {}

    def scored(arch: Arch) -> float:
        if arch not in known:
            known[arch] = score(arch)
        return known[arch]

    population = [arch for arch in seeds if fits(arch)]
    while len(population) < settings.population:
        population.append(random_that_fits(space, fits, rng))
    history = [max(scored(arch) for arch in population)]
    for _ in range(settings.generations):
        parents = sorted(dict.fromkeys(population), key=scored, reverse=True)
        parents = parents[: max(2, settings.population // 2)]
        population = list(parents)
        while len(population) < settings.population:
            population.append(_child(space, parents, fits, known, settings.mutation, rng))
            scored(population[-1])
        history.append(max(scored(arch) for arch in population))
    ranked = sorted(known.items(), key=lambda pair: pair[1], reverse=True)
    return Found(tuple(ranked), tuple(history), len(known))


def _child(
    space: Space,
    parents: list[Arch],
    fits: Fits,
    known: Container[Arch],
    mutation: float,
    rng: random.Random,
) -> Arch:
    """One that nobody scored yet, where a few draws find one: a known one tells nothing new."""
    for _ in range(CHILD_DRAWS):
        if rng.random() < 0.5:
            child = space.mutate(rng.choice(parents), mutation, rng)
        else:
            child = space.crossover(rng.choice(parents), rng.choice(parents), rng)
        child = shrunk_to_fit(space, child, fits, rng)
        if child not in known:
            return child
    return child
