"""What a declaration means for its module, found out once and checked against a second module.

The check: the module is cut to its smallest sizes and followed again. Every tensor must then have
the shape that the declaration gives it; a size that is written in the user's forward as a number
shows here, and not in the middle of training.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from ..axes import Index, Selection, centred, indices, prefix
from ..errors import UsageError
from ..space import Gene
from ..structure import positions_of
from .declared_axes import Wiring, composed, layers_named, wire
from .declared_choices import Choice
from .declared_fields import Arguments, Depths, thawed
from .declared_graph import BATCH, WHERE, Graph, Layer
from .declared_layers import Axes, cut_layer, tensor_axes
from .declared_source import made, said
from .declared_steps import CONVOLUTIONS, Sizes
from .declared_ties import Dim
from .declared_trace import trace

AS_NUMBER = "a size is written there as a number; take it from the tensor's shape"
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Declaration:
    """A declared space's fields."""

    module: str
    arguments: Arguments
    input_size: Shape
    resolutions: tuple[int, ...]
    widths: tuple[Choice, ...]
    kernels: tuple[Choice, ...]
    depths: Depths

    def shapes(self) -> dict[Shape, int]:
        """Every input shape, the largest first, and its resolution."""
        first, *rest = self.input_size
        if not self.resolutions:
            return {self.input_size: 0}
        if not rest or set(rest) != {self.resolutions[-1]}:
            raise UsageError(
                f"{WHERE}: resolutions = {list(self.resolutions)}; the last must be the size of "
                f"input_size = {list(self.input_size)} in every dimension but the first"
            )
        return {(first, *(r for _ in rest)): r for r in reversed(self.resolutions)}

    def make(self) -> nn.Module:
        """The largest module, on the meta device."""
        with torch.device("meta"):
            return made(self.module, thawed(self.arguments))


@dataclass(frozen=True)
class Meaning:
    """Genes and axes; layers, and for each input shape the operations, in terms of axes.

    `tensors` are the axes of each layer's tensors, `composed` the axes that are made of others;
    `views` says that the forward views tensors in another shape, which needs them in plain order.
    """

    genes: tuple[Gene, ...]
    wiring: Wiring
    layers: Mapping[str, Layer]
    graphs: Mapping[Shape, Graph]
    tensors: Mapping[str, Mapping[str, Axes]]
    composed: Mapping[str, Dim]
    views: bool


@lru_cache(maxsize=32)
def meaning(declared: Declaration) -> Meaning:
    """Follow the module, apply the declaration, check it on the smallest sizes."""
    module = declared.make()
    blocks = _blocks(declared, module)
    traces = {shape: trace(module, shape, blocks) for shape in declared.shapes()}
    first = next(iter(traces.values()))
    _check_norms(first.graph)
    if unused := sorted(blocks - first.graph.blocks.keys()):
        raise UsageError(f"{WHERE}: depths: {unused[0]} is not called in forward")
    wiring = wire(first, declared.widths, declared.kernels, declared.depths)
    layers = layers_named(first.layers, wiring)
    kernels = {kernel.layers[0] for kernel in wiring.kernels}
    known = {p: tensor_axes(layer, p, p in kernels) for p, layer in layers.items()}
    dims = [d for layer in layers.values() for d in (*layer.inside, layer.outside)]
    found = Meaning(
        _genes(declared, wiring),
        wiring,
        layers,
        {shape: _named(one.graph, wiring) for shape, one in traces.items()},
        {p: axes for p, axes in known.items() if any(a for names in axes.values() for a in names)},
        composed(dims),
        views=any(op.name == "view" for op in first.graph.ops),
    )
    _check(declared, found)
    return found


def _blocks(declared: Declaration, module: nn.Module) -> set[str]:
    modules = dict(module.named_modules())
    found = {block for _, blocks in declared.depths for block in blocks}
    for block in found:
        if not block or block not in modules:
            raise UsageError(f"{WHERE}: depths: the module has no part {block!r}")
    return found


def _genes(declared: Declaration, wiring: Wiring) -> tuple[Gene, ...]:
    genes = wiring.genes
    if declared.resolutions:
        genes = (Gene("resolution", declared.resolutions), *genes)
    names = [gene.name for gene in genes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{WHERE}: two genes are called {twice[0]!r}; give one another name")
    return genes


def _named(graph: Graph, wiring: Wiring) -> Graph:
    ops = tuple(replace(op, dims=tuple(map(wiring.named, op.dims))) for op in graph.ops)
    return replace(graph, ops=ops)


def _check_norms(graph: Graph) -> None:
    """What is exported has no batch normalization: it must be one that can be folded."""
    readers = Counter(place for op in graph.ops for place in op.inputs)
    for op in graph.ops:
        if not op.kind.startswith("batchnorm"):
            continue
        (at,) = op.inputs
        source = graph.ops[at]
        if source.kind in CONVOLUTIONS and source.block != op.block:
            raise UsageError(
                f"{WHERE}: norm layer {op.path} is folded into {source.path} when a subnet is "
                f"exported; one of them is in {source.block or op.block}, which may be left out, "
                "and the other is not. Put both inside or both outside"
            )
        if source.kind == "linear" and len(op.dims) != 2:
            raise UsageError(
                f"{WHERE}: norm layer {op.path} normalizes dimension 1 of {source.path}'s output, "
                "which has its channels last, so it cannot be folded when a subnet is exported; "
                "use layer normalization"
            )
        if source.kind not in CONVOLUTIONS or readers[at] > 1:
            raise UsageError(
                f"{WHERE}: norm layer {op.path} must be the only reader of a convolution or linear "
                "layer, into which it is folded when a subnet is exported; elsewhere use group or "
                "layer normalization"
            )


def _check(declared: Declaration, found: Meaning) -> None:
    """Every tensor of the module at its smallest sizes has the shape that it should have."""
    wiring, module = found.wiring, declared.make()
    sizes = {width.axis: min(width.sizes.values()) for width in wiring.widths}
    index: dict[str, Index] = {axis: prefix(size) for axis, size in sizes.items()}
    for kernel in wiring.kernels:
        index[kernel.axis] = centred(min(kernel.sizes.values()), kernel.full)
    full = {width.axis: width.full for width in wiring.widths}
    chosen = {axis: range(size) for axis, size in sizes.items()}
    for name, stretches in found.composed.items():
        index[name] = indices(positions_of(stretches, chosen, full))
    for path, axes in found.tensors.items():
        cut_layer(module.get_submodule(path), axes, Selection(index))
    shape, graph = list(found.graphs.items())[-1]
    try:
        small = trace(module, shape, graph.blocks)
    except UsageError as error:
        raise UsageError(f"{error}. So it is with the smallest widths: {AS_NUMBER}") from error
    expected = Sizes(sizes, {}, ())
    for op, got in zip(graph.ops, small.shapes, strict=True):
        wanted = tuple(expected.of(dim) for dim in op.dims)
        if got != wanted:
            raise UsageError(
                f"{WHERE}: with the smallest widths `{op.name}` in {op.path or 'forward'} gives "
                f"{got[1:]} where {wanted[1:]} follows from the declaration: {AS_NUMBER}"
            )
    try:
        output = module.train()(torch.zeros(BATCH, *shape, device="meta"))
    except Exception as error:
        raise UsageError(f"{WHERE}: forward fails in training mode: {said(error)}") from error
    if not isinstance(output, Tensor) or tuple(output.shape) != small.shapes[graph.output]:
        raise UsageError(
            f"{WHERE}: in training mode forward returns something else than one tensor"
        )
