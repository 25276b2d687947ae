"""From layers' names to axes and genes: what a declaration means for one traced module.

An axis is a set of layers whose outputs are tied. It is named after the layer by which it was
declared. What nobody declared keeps its size.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import UsageError
from ..space import Gene, Value
from ..structure import Stretch
from .declared_choices import Choice, Elastic, elastic_kernels, elastic_widths
from .declared_graph import WHERE, Layer, Trace
from .declared_ties import Dim, Dims, Ties, fixed, size_of


@dataclass(frozen=True)
class Wiring:
    """What varies in a module and how."""

    widths: tuple[Elastic, ...]
    kernels: tuple[Elastic, ...]
    genes: tuple[Gene, ...]
    channels: Mapping[str, str]
    """Producing layer → its axis, for those that vary."""
    units: Mapping[str, int]
    ties: Ties

    def named(self, dim: Dim) -> Dim:
        """A dimension in terms of axes; what does not vary is a fixed number."""
        found = [self._axis(stretch) for stretch in self.ties.resolved(dim)]
        return tuple(found) if any(s.axis for s in found) else fixed(size_of(dim))

    def _axis(self, stretch: Stretch) -> Stretch:
        axis = self.channels.get(stretch.axis) if stretch.axis else None
        if axis is None:
            return Stretch(None, stretch.positions)
        return Stretch(axis, stretch.channels, stretch.repeat)


def wire(
    trace: Trace,
    widths: Sequence[Choice],
    kernels: Sequence[Choice],
    depths: Sequence[tuple[str, tuple[str, ...]]],
) -> Wiring:
    """Make axes and genes of a declaration; UsageError for what cannot vary, with the reason."""
    places = {block: (f"{name}.depth", at) for name, of in depths for at, block in enumerate(of)}
    elastic = elastic_widths(trace.layers, trace.ties, widths)
    kernel = elastic_kernels(trace.layers, kernels)
    genes = [Gene(f"{name}.depth", tuple(range(len(of) + 1))) for name, of in depths]
    options: dict[str, Gene] = {}
    for one in (*elastic, *kernel):
        role: Literal["", "width"] = "width" if one in elastic else ""
        gene = Gene(one.gene, tuple(one.sizes), _needs(one, places), role)
        known = options.setdefault(one.gene, gene)
        if known.options != gene.options:
            raise UsageError(
                f"{WHERE}: gene {one.gene!r} has options {list(known.options)} and "
                f"{list(gene.options)}; give one of the two another name"
            )
        if known.needs != gene.needs:
            options[one.gene] = replace(known, needs=_weaker(known.needs, gene.needs))
    return Wiring(
        elastic,
        kernel,
        (*genes, *options.values()),
        {layer: one.axis for one in elastic for layer in one.layers},
        {one.axis: unit for one in elastic if (unit := trace.ties.unit(one.layers[0])) > 1},
        trace.ties,
    )


def _needs(one: Elastic, places: Mapping[str, tuple[str, int]]) -> tuple[str, Value] | None:
    """The depth from which on any of its layers is there; None where one always is."""
    around = [
        next((place for block, place in places.items() if _within(layer, block)), None)
        for layer in one.layers
    ]
    first, *rest = around
    if first is None:
        return None
    found: tuple[str, Value] | None = (first[0], first[1] + 1)
    for other in rest:
        found = _weaker(found, None if other is None else (other[0], other[1] + 1))
    return found


def _weaker(
    one: tuple[str, Value] | None, other: tuple[str, Value] | None
) -> tuple[str, Value] | None:
    if one is None or other is None or one[0] != other[0]:
        return None
    return min(one, other)


def _within(path: str, block: str) -> bool:
    return path == block or path.startswith(f"{block}.")


def composed(dims: Iterable[Dim]) -> dict[str, Dim]:
    """Those dimensions (in terms of axes) that are more than one axis, by their name."""
    return {name: dim for dim in dims if (name := axis_of(dim)) and name != dim[0].axis}


def axis_of(dim: Dim) -> str | None:
    """The name of a dimension in terms of axes; None where it does not vary."""
    if all(stretch.axis is None for stretch in dim):
        return None
    parts = []
    for stretch in dim:
        repeat = f"*{stretch.repeat}" if stretch.repeat > 1 else ""
        parts.append(f"{stretch.axis or stretch.channels}{repeat}")
    return "+".join(parts)


def layers_named(layers: Mapping[str, Layer], wiring: Wiring) -> dict[str, Layer]:
    """The layers with their dimensions in terms of axes."""

    def named(dims: Dims) -> Dims:
        return tuple(map(wiring.named, dims))

    return {
        path: replace(
            layer,
            inside=named(layer.inside),
            outside=wiring.named(layer.outside),
            own=named(layer.own),
        )
        for path, layer in layers.items()
    }
