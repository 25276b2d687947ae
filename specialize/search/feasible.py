"""Architectures within a hard budget: drawn, shrunk, and one edit away from another."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from random import Random

from ...supernet.errors import UsageError
from ...supernet.space import Arch, Space, Value
from .contract import Fits

# Rejection keeps a draw uniform; in a tight budget it would go on for ever.
MAX_DRAWS = 20
# In a tight budget there may be nothing new to find.
NEW_DRAWS = 8


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


def random_that_fits(space: Space, fits: Fits, rng: Random) -> Arch:
    """A random architecture that fits: drawn anew, and after many misses shrunk until it does."""
    for _ in range(MAX_DRAWS):
        arch = space.sample(rng)
        if fits(arch):
            return arch
    return shrunk_to_fit(space, arch, fits, rng)


def shrunk_to_fit(space: Space, arch: Arch, fits: Fits, rng: Random) -> Arch:
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


def new_ones(
    draw: Callable[[], Arch], count: int, taken: Collection[Arch], draws: int = NEW_DRAWS
) -> list[Arch]:
    """Up to `count` different architectures that are not taken; fewer where draws only repeat."""
    found: dict[Arch, None] = {}
    for _ in range(draws * count):
        if len(found) >= count:
            break
        arch = draw()
        if arch not in taken:
            found[arch] = None
    return list(found)


@dataclass(frozen=True, slots=True)
class Edit:
    """One gene set to another option, and the architecture that this makes."""

    gene: str
    option: Value
    arch: Arch


def edits(space: Space, arch: Arch) -> Iterator[Edit]:
    """Every architecture that differs from this one in one gene.

    Genes that begin to matter through the edit start at their smallest options.
    """
    for gene in space.genes:
        for option in gene.options:
            if gene.name in arch and arch[gene.name] != option:
                yield Edit(gene.name, option, edited(space, arch, gene.name, option))


def edited(space: Space, arch: Arch, gene: str, option: Value) -> Arch:
    """The architecture with one gene set; genes that begin to matter start at their smallest."""
    changed = {**arch, gene: option}
    return space.arch_of(lambda other: changed.get(other.name, other.options[0]))
