"""Which layers a line of a declaration means, what of them may vary, and to which sizes."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..errors import UsageError
from ..space import Value
from .declared_graph import WHERE, Layer
from .declared_ties import Ties


@dataclass(frozen=True, slots=True)
class Choice:
    """One line of a declaration: a layer's name or a pattern of names, and the options.

    Widths are whole numbers of channels, or fractions of the full number; kernels are odd sizes;
    the last option is the module's own size. Without `gene` each axis has a gene of its own; with
    it, all of them vary together.
    """

    layers: str
    options: tuple[Value, ...]
    gene: str = ""

    @property
    def pattern(self) -> bool:
        """Whether it may mean several layers."""
        return any(sign in self.layers for sign in "*?[")


@dataclass(frozen=True, slots=True)
class Elastic:
    """Something of a layer that varies: channels (`name`.out) or kernel size (`name`.k).

    `layers` are those that produce these channels, or the one convolution; `sizes` the size for
    each of the gene's options, ascending.
    """

    axis: str
    gene: str
    layers: tuple[str, ...]
    full: int
    sizes: Mapping[Value, int]


def elastic_widths(
    layers: Mapping[str, Layer], ties: Ties, choices: Sequence[Choice]
) -> tuple[Elastic, ...]:
    """The channels that vary, in order of execution.

    A layer's name goes before patterns, a longer pattern before a shorter one.
    """
    taken: dict[str, Choice] = {}
    named: dict[str, str] = {}
    for choice in sorted(choices, key=_weight):
        matched = _matching("widths", choice, ties.producers, layers, ties)
        able = [layer for layer in matched if ties.pinned(layer) is None]
        if not choice.pattern and not able:
            raise UsageError(
                f"{WHERE}: widths: {matched[0]} cannot vary: {ties.pinned(matched[0])}"
            )
        fresh = 0
        for layer in able:
            root = ties.root(layer)
            if root not in taken:
                taken[root], named[root] = choice, layer
                fresh += 1
            elif taken[root] is not choice and _weight(taken[root]) == _weight(choice):
                raise _tied(ties, named[root], layer, choice, taken[root])
        if not fresh:
            raise UsageError(f"{WHERE}: widths: {choice.layers!r} matches nothing that can vary")
    order = sorted(taken, key=ties.producers.index)
    found = tuple(_width(ties, named[root], taken[root]) for root in order)
    _check_distinct(found)
    return found


def _check_distinct(widths: Sequence[Elastic]) -> None:
    """Two options of a gene must differ somewhere: search would compare a network with itself."""
    for gene in dict.fromkeys(width.gene for width in widths):
        alike = [width for width in widths if width.gene == gene]
        options = list(alike[0].sizes)
        columns = list(zip(*(width.sizes.values() for width in alike), strict=False))
        for at, sizes in enumerate(columns[1:], 1):
            if sizes == columns[at - 1]:
                raise UsageError(
                    f"{WHERE}: widths: {options[at - 1]} and {options[at]} of {gene} are the same "
                    f"{sizes[0]} channels in {alike[0].layers[0]}; leave one of them out, if need be "
                    "in a line for this layer alone"
                )


def _weight(choice: Choice) -> tuple[bool, int]:
    # Names are all alike: two for one set of channels contradict each other.
    return (True, -len(choice.layers)) if choice.pattern else (False, 0)


def _tied(ties: Ties, first: str, layer: str, one: Choice, other: Choice) -> UsageError:
    if first == layer:
        return UsageError(
            f"{WHERE}: widths: both {other.layers!r} and {one.layers!r} match {layer}; "
            "write narrower patterns, or its name"
        )
    return UsageError(
        f"{WHERE}: widths: {first} and {layer} have the same channels: "
        f"{'; '.join(ties.chain(first, layer))}. Declare one of them only"
    )


def _width(ties: Ties, layer: str, choice: Choice) -> Elastic:
    full, unit = ties.channels[layer], ties.unit(layer)
    if any(isinstance(option, float) for option in choice.options):
        _ascending("widths", choice, last=1.0)
        # Never below one unit, and half a unit rounds up.
        sizes = [max(1, int(full * float(o) / unit + 0.5)) * unit for o in choice.options]
    else:
        _ascending("widths", choice, last=full, layer=layer)
        sizes = [int(option) for option in choice.options]
        if odd := [size for size in sizes if size % unit]:
            raise UsageError(
                f"{WHERE}: widths: {layer} = {list(choice.options)}; {odd[0]} is no multiple of "
                f"{unit}, the channels of one group of a group normalization"
            )
    members = tuple(ties.members(layer))
    gene = choice.gene or f"{layer}.width"
    return Elastic(
        f"{layer}.out", gene, members, full, dict(zip(choice.options, sizes, strict=True))
    )


def elastic_kernels(layers: Mapping[str, Layer], choices: Sequence[Choice]) -> tuple[Elastic, ...]:
    """The kernels that vary, in order of execution."""
    taken: dict[str, Choice] = {}
    for choice in sorted(choices, key=_weight):
        convolutions = [path for path, layer in layers.items() if layer.kernel]
        matched = _matching("kernels", choice, convolutions, layers)
        if not choice.pattern:
            _check_kernel(matched[0], layers[matched[0]], choice)
        # A pattern means the convolutions of its last size: the 1×1 ones beside them are not meant.
        able = [m for m in matched if layers[m].same and layers[m].kernel[0] == choice.options[-1]]
        fresh = [layer for layer in able if layer not in taken]
        if not fresh:
            raise UsageError(f"{WHERE}: kernels: {choice.layers!r} matches nothing that can vary")
        _ascending("kernels", choice, last=layers[fresh[0]].kernel[0])
        if wrong := [option for option in choice.options if option % 2 != 1]:
            raise UsageError(f"{WHERE}: kernels: {choice.layers} = {wrong[0]}; odd sizes only")
        taken.update(dict.fromkeys(fresh, choice))
    return tuple(
        Elastic(
            f"{path}.k",
            taken[path].gene or f"{path}.kernel",
            (path,),
            layers[path].kernel[0],
            {option: int(option) for option in taken[path].options},
        )
        for path in layers
        if path in taken
    )


def _check_kernel(path: str, layer: Layer, choice: Choice) -> None:
    if layer.kernel[0] != choice.options[-1]:
        raise UsageError(
            f"{WHERE}: kernels: {path} = {list(choice.options)}; the last must be the module's own "
            f"size, {layer.kernel[0]}"
        )
    if not layer.same:
        raise UsageError(
            f"{WHERE}: kernels: {path} cannot vary: its kernel must be square and odd, and its "
            f"padding dilation · (kernel - 1) / 2 on all sides, so that a smaller one has the same "
            f"centre; it is {layer.kernel}"
        )


def _matching(
    field: str,
    choice: Choice,
    names: Sequence[str],
    layers: Mapping[str, Layer],
    ties: Ties | None = None,
) -> list[str]:
    if choice.pattern:
        found = [name for name in names if fnmatchcase(name, choice.layers)]
        if found:
            return found
    elif choice.layers in names:
        return [choice.layers]
    elif ties and choice.layers in layers:
        dim = ties.resolved(layers[choice.layers].outside)
        makers = " and ".join(stretch.axis for stretch in dim if stretch.axis) or "the input"
        raise UsageError(
            f"{WHERE}: widths: {choice.layers} has the channels of {makers}; declare those"
        )
    near = [] if choice.pattern else difflib.get_close_matches(choice.layers, names, n=1)
    raise UsageError(
        f"{WHERE}: {field}: no layer is called {choice.layers!r}; "
        + (f"did you mean {near[0]!r}?" if near else f"known: {_some(names)}")
    )


def _some(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _ascending(field: str, choice: Choice, last: Value, layer: str = "") -> None:
    options = list(choice.options)
    if not options or options != sorted(set(options)) or options[-1] != last or options[0] <= 0:
        raise UsageError(
            f"{WHERE}: {field}: {layer or choice.layers} = {options}; ascending numbers above 0 "
            f"expected, the last of them {last} (the module's own)"
        )
