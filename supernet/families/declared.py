"""A user's own module as a supernet: he names what may vary, the rest is found out.

A declaration names a function that returns the largest network, and what of it is elastic: output
channels of layers (prefixes, as in slimmable networks, Yu et al. 2019), kernel sizes (centres of
the largest, as in once-for-all, Cai et al. 2020), and blocks that may be left out (then they are
the identity). Which other layers and tensors have the same channels is found by following a tensor
through the module (`declared_trace`); `report` says what was understood.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn

from ..axes import Index, Selection, centred, indices, prefix
from ..cost import LayerPlan
from ..errors import UsageError
from ..space import Arch, Gene, Space
from ..structure import Structure, positions_of
from . import declared_fields as read
from .declared_choices import Choice
from .declared_layers import cut_layer, leave_out, tag_all, take_plain_memory
from .declared_meaning import Declaration, Meaning, meaning
from .declared_plans import plans
from .declared_source import check_trusted, made
from .declared_steps import Sizes

FIELDS = ("module", "input_size", "arguments", "widths", "kernels", "depths", "resolutions")


@dataclass(frozen=True)
class DeclaredSpace(Space):
    """The space of one module.

    `module` is `package.module:function`; it is called with the keyword `arguments` and returns the
    largest network, which takes (B, *input_size). `depths` are genes' names and the blocks that
    each of them adds, in this order. `resolutions` vary all but the first number of `input_size`.
    """

    module: str
    input_size: tuple[int, ...]
    arguments: read.Arguments = ()
    widths: tuple[Choice, ...] = ()
    kernels: tuple[Choice, ...] = ()
    depths: read.Depths = ()
    resolutions: tuple[int, ...] = ()

    family = "declared"

    def __post_init__(self) -> None:
        # The order of a table's lines means nothing.
        for field in ("arguments", "widths", "kernels", "depths"):
            object.__setattr__(self, field, tuple(sorted(getattr(self, field), key=_key)))
        check_trusted(self.module)
        _ = self.genes  # what cannot be is an error here, not at first use

    @cached_property
    def meaning(self) -> Meaning:
        """What was found out about the module."""
        return meaning(
            Declaration(
                self.module,
                self.arguments,
                self.input_size,
                self.resolutions,
                self.widths,
                self.kernels,
                self.depths,
            )
        )

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        """Resolution, then depths, widths and kernel sizes in order of execution."""
        return self.meaning.genes

    @property
    def rolls(self) -> bool:
        """Whether no axis follows others and none has groups."""
        return not self.meaning.composed and not self.meaning.wiring.units

    def select(self, arch: Arch) -> Selection:
        """Prefixes of channels, centres of kernels; a smaller depth leaves its last blocks out."""
        wiring = self.meaning.wiring
        index: dict[str, Index] = {}
        for width in wiring.widths:
            if width.gene in arch:
                index[width.axis] = prefix(width.sizes[arch[width.gene]])
        for kernel in wiring.kernels:
            if kernel.gene in arch:
                index[kernel.axis] = centred(kernel.sizes[arch[kernel.gene]], kernel.full)
        chosen = {axis: range(size) for axis, size in self._channels(arch).items()}
        full = {width.axis: width.full for width in wiring.widths}
        for name, stretches in self.meaning.composed.items():
            if all(s.axis is None or s.axis in chosen for s in stretches):
                index[name] = indices(positions_of(stretches, chosen, full))
        return Selection(index, self._absent(arch))

    def _channels(self, arch: Arch) -> dict[str, int]:
        widths = self.meaning.wiring.widths
        return {w.axis: w.sizes[arch[w.gene]] for w in widths if w.gene in arch}

    def _absent(self, arch: Arch) -> frozenset[str]:
        return frozenset(
            block for name, blocks in self.depths for block in blocks[arch.count(f"{name}.depth") :]
        )

    def build(self, arch: Arch) -> nn.Module:
        """The user's module, its layers cut to the architecture's sizes, without absent blocks."""
        module = made(self.module, read.thawed(self.arguments))
        selection, tensors = self.select(arch), self.meaning.tensors
        for path, axes in tensors.items():
            if selection.has(f"{path}."):
                cut_layer(module.get_submodule(path), axes, selection)
        for block in selection.absent:
            leave_out(module, block)
        tag_all(module, tensors)
        if self.meaning.views:
            take_plain_memory(module)
        return module

    def initial_values(self, seed: int) -> Mapping[str, Tensor]:
        """What the user's own constructors draw: nobody else knows how his tensors should start."""
        # Layers draw from torch's global generator, which is left as it was.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            return dict(self.build(self.largest()).named_parameters())

    def layers(self, arch: Arch) -> tuple[LayerPlan, ...]:
        """A row for each layer and each operation that needs memory of its own."""
        found = self.meaning
        kernels = {
            kernel.layers[0]: kernel.sizes[arch[kernel.gene]]
            for kernel in found.wiring.kernels
            if kernel.gene in arch
        }
        sizes = Sizes(self._channels(arch), kernels, self._absent(arch))
        graph = found.graphs[self.input_shape(arch)]
        return plans(graph, found.layers, sizes)

    def input_shape(self, arch: Arch) -> tuple[int, ...]:
        """The module's input, or one of its smaller resolutions."""
        if not self.resolutions:
            return self.input_size
        first, *rest = self.input_size
        return (first, *(arch.count("resolution") for _ in rest))

    def structure(self) -> Structure:
        """Which axes follow others: flattened maps and concatenations."""
        return Structure(self.meaning.composed)

    def report(self) -> str:
        """What was understood, a line per gene: its options, and the layers that vary with it."""
        wiring = self.meaning.wiring
        lines = []
        for gene in self.genes:
            parts = [", ".join(blocks) for n, blocks in self.depths if f"{n}.depth" == gene.name]
            parts += [", ".join(w.layers) for w in wiring.widths if w.gene == gene.name]
            parts += [", ".join(k.layers) for k in wiring.kernels if k.gene == gene.name]
            lines.append(f"{gene.name} {list(gene.options)}: {' | '.join(parts) or 'the input'}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """Family and every field, in the form of a configuration file."""
        return {
            "family": self.family,
            "module": self.module,
            "input_size": self.input_size,
            "arguments": read.thawed(self.arguments),
            "widths": read.lines(self.widths),
            "kernels": read.lines(self.kernels),
            "depths": dict(self.depths),
            "resolutions": self.resolutions,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> Self:
        """Read `to_dict`'s form; UsageError names an unknown or missing field."""
        for name in fields:
            if name not in FIELDS:
                raise UsageError(f"space declared: unknown field {name!r}; known: {FIELDS}")
        module = fields.get("module")
        if not isinstance(module, str):
            raise UsageError(f"space declared: module = {module!r}; 'mypackage.net:build' expected")
        return cls(
            module,
            read.sizes("input_size", fields.get("input_size")),
            read.arguments(fields.get("arguments", {})),
            read.choices("widths", fields.get("widths", {})),
            read.choices("kernels", fields.get("kernels", {})),
            read.depths(fields.get("depths", {})),
            read.sizes("resolutions", fields.get("resolutions", ()), ascending=True),
        )


def _key(line: Choice | tuple[str, object]) -> str:
    return line.layers if isinstance(line, Choice) else line[0]
