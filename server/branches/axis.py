"""Configurations: the values of those genes of a subnet that decide which copy it trains."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from ...supernet.errors import UsageError
from ...supernet.space import Arch, Gene, Space, Value

MOST = 64
DEFAULTS = ("resolution", "*depth", "*kernel")
Configuration = tuple[Value | None, ...]


@dataclass(frozen=True)
class Axis:
    """Genes, and all their joint configurations; None stands for a gene that does not matter."""

    genes: tuple[str, ...]
    configurations: tuple[Configuration, ...]

    def of(self, arch: Arch) -> int:
        """The place of a subnet's configuration among all."""
        return self._places[tuple(arch.get(gene) for gene in self.genes)]

    @property
    def labels(self) -> tuple[str, ...]:
        """Each configuration in words, for instance `s1.depth=2`."""
        return tuple(
            ",".join(f"{g}={v}" for g, v in zip(self.genes, values, strict=True) if v is not None)
            for values in self.configurations
        )

    @cached_property
    def _places(self) -> dict[Configuration, int]:
        return {values: place for place, values in enumerate(self.configurations)}


def axis_of(space: Space, glob: str | None) -> Axis:
    """The genes that a glob matches, or the first default that is elastic in this space.

    UsageError where it matches none, or none that varies, or more than 64 configurations.
    """
    for one in DEFAULTS if glob is None else (glob,):
        genes = [gene for gene in space.genes if fnmatchcase(gene.name, one)]
        found = list(_some_configurations(genes))
        if 1 < len(found) <= MOST:
            return Axis(tuple(gene.name for gene in genes), tuple(found))
    elastic = [gene.name for gene in space.genes if len(gene.options) > 1]
    if glob is None:
        wrong = f"branches.axis is needed for this space: none of {', '.join(DEFAULTS)} gives"
    else:
        wrong = f"branches.axis = {glob!r} gives {_count(found)} configurations, not"
    raise UsageError(
        f"{wrong} 2 to {MOST}; name a gene, or a few by a glob, of {', '.join(elastic[:12])}"
        + (", …" if len(elastic) > 12 else "")
    )


def _count(found: Sequence[Configuration]) -> str:
    return f"more than {MOST}" if len(found) > MOST else str(len(found) if found[0] else 0)


def _some_configurations(genes: Sequence[Gene]) -> Iterator[Configuration]:
    """All configurations, but of too many only one more than are allowed."""
    for count, values in enumerate(_configurations(genes, {})):
        if count > MOST:
            return
        yield values


def _configurations(
    genes: Sequence[Gene], chosen: dict[str, Value | None]
) -> Iterator[Configuration]:
    if len(chosen) == len(genes):
        yield tuple(chosen.values())
        return
    gene = genes[len(chosen)]
    for value in _options(gene, chosen):
        yield from _configurations(genes, {**chosen, gene.name: value})


def _options(gene: Gene, chosen: dict[str, Value | None]) -> Sequence[Value | None]:
    if gene.needs is None:
        return gene.options
    other, least = gene.needs
    if other not in chosen:  # another gene, which is not part of the axis, decides
        return (None, *gene.options)
    has = chosen[other]
    return gene.options if has is not None and has >= least else (None,)
