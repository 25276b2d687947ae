"""Drawing architectures within a client's budget, and the ladder of nested widths."""

import random
from collections.abc import Callable
from functools import lru_cache, partial

from ...supernet.cost import cost
from ...supernet.errors import UsageError
from ...supernet.randomness import stream
from ...supernet.space import Arch, Gene, Space
from ..limits import Limits

Fits = Callable[[Arch], bool]
TRIES = 200
NOTHING_FITS = (
    "budget: a client can train no subnet of this space, not even the smallest; raise its bounds or "
    "choose a smaller space"
)


def uniform_fit(space: Space, fits: Fits, rng: random.Random) -> Arch:
    """A draw of uniform genes among the architectures that fit, by rejection.

    After 200 rejections (a budget that hardly any draw meets) random genes of a draw are shrunk
    until it fits: then no longer uniform. UsageError when even the smallest does not fit.
    """
    for _ in range(TRIES):
        arch = space.sample(rng)
        if fits(arch):
            return arch
    return shrunk_to_fit(space, space.sample(rng), fits, rng)


def shrunk_to_fit(space: Space, arch: Arch, fits: Fits, rng: random.Random) -> Arch:
    """The architecture with random genes shrunk until it fits."""
    while not fits(arch):
        smaller = space.shrunk(arch)
        if not smaller:
            raise UsageError(NOTHING_FITS)
        arch = rng.choice(smaller)
    return arch


def maximal_fit(space: Space, fits: Fits, rng: random.Random) -> Arch:
    """A random architecture that fits and of which no larger neighbour fits."""
    return space.grow_while(shrunk_to_fit(space, space.sample(rng), fits, rng), fits, rng)


@lru_cache(maxsize=1024)
def largest_fit(space: Space, limits: Limits, seed: int) -> Arch:
    """The one of most MACs among 16 maximal ones: the same for equal limits and seeds."""
    rng = stream(seed, "largest")
    found = [maximal_fit(space, partial(limits.fits, space), rng) for _ in range(16)]
    return max(found, key=lambda arch: (cost(space, arch).macs, cost(space, arch).params))


@lru_cache(maxsize=64)
def ladder(space: Space) -> tuple[Arch, ...]:
    """Nested architectures from the smallest to the largest; each contains the one before.

    The upper rungs have every layer scaled by one width ratio and everything else at its largest
    (slimmable networks, HeteroFL, FjORD); below the narrowest of those, the other dimensions
    shrink together.
    """
    widths = [gene for gene in space.genes if gene.role == "width"]
    others = [gene for gene in space.genes if gene.role != "width"]
    rungs: list[Arch] = []
    for scaled, fixed_at in ((others, 0.0), (widths, 1.0)):
        steps = max((len(gene.options) for gene in scaled), default=1)
        for step in range(steps):
            share = step / (steps - 1) if steps > 1 else 1.0
            rungs.append(_rung(space, scaled, share, fixed_at))
    return tuple(dict.fromkeys(rungs))


def _rung(space: Space, scaled: list[Gene], share: float, fixed_at: float) -> Arch:
    """The scaled genes at a share of their options, the others at their first or last."""
    names = {gene.name for gene in scaled}

    def place(gene: Gene) -> float:
        at = share if gene.name in names else fixed_at
        return gene.options[round(at * (len(gene.options) - 1))]

    return space.arch_of(place)


def rung_that_fits(space: Space, fits: Fits) -> int:
    """Place on the ladder of the largest rung that fits; UsageError where none does."""
    rungs = ladder(space)
    for place in reversed(range(len(rungs))):
        if fits(rungs[place]):
            return place
    raise UsageError(NOTHING_FITS)
