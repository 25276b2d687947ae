"""Search spaces and architectures: what may vary, and one point of it.

A space lists its genes (elastic dimensions) with their options; an architecture gives each gene
that matters one of them. Sampling, mutation, growth and comparison are written here once, for
every family.
"""

import difflib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Self

from .errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from .axes import Selection
    from .cost import LayerPlan

Value = int | float


@dataclass(frozen=True, slots=True)
class Gene:
    """One elastic dimension: its name and its options, ascending in size.

    `needs` = (gene, least) says that this gene matters only where that other gene's value is at
    least `least`: block 3 of a stage has a kernel size only where the stage is 4 blocks deep.
    `role` = "width" marks the genes that scale a layer's channels, for methods that scale all of
    them alike (slimmable networks, HeteroFL, FjORD).
    """

    name: str
    options: tuple[Value, ...]
    needs: tuple[str, Value] | None = None
    role: Literal["", "width"] = ""

    def __post_init__(self) -> None:
        if not self.options or list(self.options) != sorted(set(self.options)):
            raise UsageError(
                f"gene {self.name}: options {list(self.options)} must be at least one value, "
                "ascending, without repeats"
            )


def block_needs(depth: str, depths: Sequence[int], block: int) -> tuple[str, Value] | None:
    """What the genes of a stage's block need: nothing where even the shallowest network has it."""
    return (depth, block + 1) if block >= depths[0] else None


class Arch(Mapping[str, Value]):
    """One architecture: gene name → chosen option, for the genes that matter in it.

    Frozen and hashable. Made by a `Space`, which checks it, so one that exists is valid.
    """

    __slots__ = ("_hash", "_values")

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = dict(values)
        self._hash = hash(tuple(sorted(self._values.items())))

    def __getitem__(self, gene: str) -> Value:
        return self._values[gene]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arch) and self._values == other._values

    def __repr__(self) -> str:
        return f"Arch({self._values})"

    def count(self, gene: str) -> int:
        """The value of a gene that counts something (channels, blocks, pixels)."""
        return int(self._values[gene])


class Space(ABC):
    """A search space: genes, and for each architecture its selection, module and layers.

    A family is a frozen dataclass that implements the abstract members; everything else in
    the project (regions, views, transport, aggregation, cost, search, export) follows from them.
    """

    family: str

    @property
    def rolls(self) -> bool:
        """Whether the channels of every axis may be taken from any place on, wrapping round.

        Not where their order has a meaning: heads, normalization groups, joined channels.
        """
        return False

    @cached_property
    @abstractmethod
    def genes(self) -> tuple[Gene, ...]:
        """The elastic dimensions, each after the gene that it needs."""

    @abstractmethod
    def select(self, arch: Arch) -> "Selection":
        """Which indices on which axes, and which blocks, this architecture uses."""

    @abstractmethod
    def build(self, arch: Arch) -> "nn.Module":
        """The static module of this architecture, its layers tagged with their axes.

        Its parameters bear the names of the shared weights. Input (B, *input_shape(arch)).
        """

    @abstractmethod
    def layers(self, arch: Arch) -> tuple["LayerPlan", ...]:
        """Sizes of every convolution, linear layer and pooling, in order of execution."""

    @abstractmethod
    def input_shape(self, arch: Arch) -> tuple[int, ...]:
        """Shape of one example, without the batch dimension."""

    def to_dict(self) -> dict[str, object]:
        """Family and every field, as plain values; `families.space_from_dict` reads it back."""
        return {"family": self.family, **asdict(self)}  # type: ignore[call-overload]

    def describe(self, arch: Arch) -> str:
        """A short text for tables."""
        return json.dumps(dict(arch), separators=(",", ":"))

    def arch(self, values: Mapping[str, Value]) -> Arch:
        """Check and complete nothing: every gene that matters must be given, and no other.

        Raises UsageError naming the gene, the value and what is allowed.
        """
        chosen: dict[str, Value] = {}
        for gene in self.genes:
            if not _matters(gene, chosen):
                continue
            if gene.name not in values:
                raise UsageError(f"architecture: {gene.name} is missing; one of {gene.options}")
            if values[gene.name] not in gene.options:
                raise UsageError(
                    f"architecture: {gene.name} = {values[gene.name]}; allowed: {gene.options}"
                )
            chosen[gene.name] = values[gene.name]
        for name in values:
            if name not in chosen:
                raise UsageError(f"architecture: {_unknown(name, chosen, self.genes)}")
        return Arch(chosen)

    def smallest(self) -> Arch:
        """The architecture with every gene at its first option."""
        return self._fill(lambda gene: gene.options[0])

    def largest(self) -> Arch:
        """The architecture with every gene at its last option; it holds every shared weight."""
        return self._fill(lambda gene: gene.options[-1])

    def arch_of(self, pick: "_Pick") -> Arch:
        """The architecture that takes `pick(gene)` for each gene that matters."""
        return self.arch(self._fill(pick))

    def sample(self, rng: random.Random) -> Arch:
        """Uniform over options, gene by gene (SPOS, Guo et al. 2020)."""
        return self._fill(lambda gene: rng.choice(gene.options))

    def mutate(self, arch: Arch, probability: float, rng: random.Random) -> Arch:
        """Redraw each gene with this probability; genes that begin to matter are drawn."""

        def pick(gene: Gene) -> Value:
            if gene.name in arch and rng.random() >= probability:
                return arch[gene.name]
            return rng.choice(gene.options)

        return self._fill(pick)

    def crossover(self, first: Arch, second: Arch, rng: random.Random) -> Arch:
        """Each gene from one of two parents; from either where only one has it."""

        def pick(gene: Gene) -> Value:
            parents = [parent for parent in (first, second) if gene.name in parent]
            return rng.choice(parents)[gene.name] if parents else rng.choice(gene.options)

        return self._fill(pick)

    def grown(self, arch: Arch) -> list[Arch]:
        """Every architecture one option larger in one gene; empty for the largest."""
        return [a for gene in arch if (a := self.step(arch, gene, +1)) is not None]

    def shrunk(self, arch: Arch) -> list[Arch]:
        """Every architecture one option smaller in one gene; empty for the smallest."""
        return [a for gene in arch if (a := self.step(arch, gene, -1)) is not None]

    def hull(self, first: Arch, second: Arch) -> Arch:
        """The smallest architecture that contains both, gene by gene."""

        def pick(gene: Gene) -> Value:
            return max(parent[gene.name] for parent in (first, second) if gene.name in parent)

        return self._fill(pick)

    def contains(self, outer: Arch, inner: Arch) -> bool:
        """Whether every gene of `inner` is at most that of `outer`."""
        return all(name in outer and value <= outer[name] for name, value in inner.items())

    def sample_within(self, outer: Arch, rng: random.Random) -> Arch:
        """Uniform over the options that are not larger than `outer`'s."""

        def pick(gene: Gene) -> Value:
            return rng.choice([o for o in gene.options if o <= outer[gene.name]])

        return self._fill(pick)

    def step(self, arch: Arch, gene: str, by: int) -> Arch | None:
        """The architecture with one gene moved by `by` options; None beyond its ends.

        Blocks that begin to matter start at their smallest options.
        """
        options = self._options[gene]
        place = options.index(arch[gene]) + by
        if not 0 <= place < len(options):
            return None
        changed = {**arch, gene: options[place]}
        return self._fill(lambda other: changed.get(other.name, other.options[0]))

    def grow_while(self, arch: Arch, fits: "Callable[[Arch], bool]", rng: random.Random) -> Arch:
        """Grow random genes, one option at a time, until no growth fits.

        What did not fit once is not tried again: costs only grow.
        """
        closed: set[str] = set()
        while open_genes := [gene for gene in arch if gene not in closed]:
            gene = rng.choice(open_genes)
            larger = self.step(arch, gene, +1)
            if larger is not None and fits(larger):
                arch = larger
            else:
                closed.add(gene)
        return arch

    @cached_property
    def _options(self) -> Mapping[str, tuple[Value, ...]]:
        return {gene.name: gene.options for gene in self.genes}

    def _fill(self, pick: "_Pick") -> Arch:
        chosen: dict[str, Value] = {}
        for gene in self.genes:
            if _matters(gene, chosen):
                chosen[gene.name] = pick(gene)
        return Arch(chosen)

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> Self:
        """Read `to_dict`'s form; UsageError names a wrong field."""
        raise UsageError(f"space family {cls.__name__} cannot be read from a description")


def plain(fields: Mapping[str, object]) -> dict[str, object]:
    """The same fields as JSON gives them back: tuples become lists."""
    found: dict[str, object] = json.loads(json.dumps(dict(fields)))
    return found


if TYPE_CHECKING:
    _Pick = Callable[[Gene], Value]


def _matters(gene: Gene, chosen: Mapping[str, Value]) -> bool:
    if gene.needs is None:
        return True
    other, least = gene.needs
    return other in chosen and chosen[other] >= least


def _unknown(name: str, chosen: Mapping[str, Value], genes: tuple[Gene, ...]) -> str:
    if any(gene.name == name for gene in genes):
        return f"{name} does not matter in this architecture (its block is not used); leave it out"
    near = difflib.get_close_matches(name, list(chosen), n=1)
    return f"unknown gene {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
