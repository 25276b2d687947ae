"""What each operation does to the dimensions of the tensors that it takes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import fx, nn

from .declared_operations import Kind
from .declared_ties import Dim, Dims, Ties, fixed, repeated, size_of


@dataclass
class Seen:
    """What is known while walking through a network: ties, and each tensor's dimensions."""

    ties: Ties
    dims: dict[fx.Node, Dims]
    shapes: Mapping[fx.Node, tuple[int, ...]]

    def inputs(self, node: fx.Node) -> list[fx.Node]:
        """The tensors that an operation takes."""
        return [source for source in node.all_input_nodes if source in self.dims]

    def unknown(self, node: fx.Node, where: str) -> Dims:
        """Pins all that comes in; what comes out does not vary."""
        for source in self.inputs(node):
            for dim in self.dims[source]:
                self.ties.pin(dim, f"{where} is not understood, so its inputs cannot vary")
        return tuple(map(fixed, self.shapes[node]))


def is_depthwise(layer: nn.Conv1d | nn.Conv2d) -> bool:
    """Whether each channel has a kernel of its own; a single channel is an ordinary convolution."""
    return layer.groups == layer.in_channels > 1


def of_layer(seen: Seen, node: fx.Node, layer: nn.Module) -> Dims:
    """Dimensions after a layer with parameters of its own."""
    source = seen.inputs(node)[0]
    dims, path = seen.dims[source], str(node.target)
    if isinstance(layer, nn.Linear):
        return (*dims[:-1], seen.ties.produce(path, layer.out_features))
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        if isinstance(layer, nn.GroupNorm) and layer.num_groups > 1:
            size = layer.num_channels // layer.num_groups
            seen.ties.group(dims[1], size, f"{path} normalizes groups of {size} channels")
        return dims
    space = [fixed(size) for size in seen.shapes[node][2:]]
    if is_depthwise(layer):
        return (dims[0], repeated(dims[1], layer.out_channels // layer.groups), *space)
    out = seen.ties.produce(path, layer.out_channels)
    if layer.groups > 1:
        for dim in (dims[1], out):
            seen.ties.pin(dim, f"{path} is a convolution in {layer.groups} groups")
    return (dims[0], out, *space)


def of_act(seen: Seen, node: fx.Node, where: str) -> Dims:
    """Element by element: nothing changes."""
    return seen.dims[seen.inputs(node)[0]]


def of_arithmetic(seen: Seen, node: fx.Node, where: str) -> Dims:
    """Element by element on two tensors, broadcast: equal dimensions are tied."""
    sources = seen.inputs(node)
    found = seen.dims[sources[0]]
    for other in sources[1:]:
        theirs = seen.dims[other]
        rank = max(len(found), len(theirs))
        pair = [(*[fixed(1)] * (rank - len(dims)), *dims) for dims in (found, theirs)]
        found = tuple(_broadcast(seen, a, b, where) for a, b in zip(*pair, strict=True))
    return found


def _broadcast(seen: Seen, a: Dim, b: Dim, where: str) -> Dim:
    if size_of(a) != size_of(b):
        return b if size_of(a) == 1 else a
    seen.ties.tie(a, b, f"{where} joins {_named(a)} and {_named(b)}")
    return a if any(stretch.axis for stretch in a) else b


def _named(dim: Dim) -> str:
    names = [stretch.axis or f"{stretch.channels} fixed channels" for stretch in dim]
    return " + ".join(names)


def of_new(seen: Seen, node: fx.Node, where: str) -> Dims:
    """A concatenation along one dimension, or padding and resizing of positions."""
    sources = seen.inputs(node)
    if len(sources) == 1 and not isinstance(node.args[0] if node.args else None, list | tuple):
        return of_positions(seen, node, where)
    whole, first = seen.shapes[node], seen.dims[sources[0]]
    along = [d for d, size in enumerate(whole) if size != size_of(first[d])]
    if len(sources) == 1 or len(along) != 1:
        return seen.unknown(node, where)
    for other in sources[1:]:
        for d, dim in enumerate(seen.dims[other]):
            if d not in along:
                _broadcast(seen, first[d], dim, where)
    joined = tuple(stretch for source in _listed(node) for stretch in seen.dims[source][along[0]])
    return tuple(joined if d in along else dim for d, dim in enumerate(first))


def _listed(node: fx.Node) -> list[fx.Node]:
    """The tensors to concatenate, with repetitions."""
    tensors = node.args[0] if node.args else node.kwargs["tensors"]
    return [t for t in tensors if isinstance(t, fx.Node)]  # type: ignore[union-attr]


def of_positions(seen: Seen, node: fx.Node, where: str) -> Dims:
    """Pooling, padding and resizing: the dimensions that change their size must not vary."""
    dims, shape = seen.dims[seen.inputs(node)[0]], seen.shapes[node]
    if len(shape) != len(dims):
        return seen.unknown(node, where)
    found = []
    for dim, size in zip(dims, shape, strict=True):
        if size != size_of(dim):
            seen.ties.pin(dim, f"{where} changes their number from {size_of(dim)} to {size}")
        found.append(dim if size == size_of(dim) else fixed(size))
    return tuple(found)


def of_view(seen: Seen, node: fx.Node, where: str) -> Dims:
    """The same elements in the same order: neighbouring dimensions are merged or split."""
    return _regrouped(seen, seen.dims[seen.inputs(node)[0]], seen.shapes[node], where)


def _regrouped(seen: Seen, dims: Dims, shape: tuple[int, ...], where: str) -> Dims:
    """Equal leading and trailing dimensions stay; those between them become others."""
    sizes, rank = [size_of(dim) for dim in dims], min(len(dims), len(shape))
    head = 0
    while head < rank and sizes[head] == shape[head]:
        head += 1
    tail = 0
    while tail < rank - head and sizes[-1 - tail] == shape[-1 - tail]:
        tail += 1
    between, target = dims[head : len(dims) - tail], shape[head : len(shape) - tail]
    kept = dims[len(dims) - tail :]
    if len(target) == 1 and between and math.prod(map(size_of, between)) == target[0]:
        return (*dims[:head], _flattened(seen, between, where), *kept)
    for dim in between:
        seen.ties.pin(dim, f"{where} regroups dimensions of sizes {sizes} to {list(shape)}")
    return (*dims[:head], *map(fixed, target), *kept)


def _flattened(seen: Seen, dims: Dims, where: str) -> Dim:
    first = next((i for i, dim in enumerate(dims) if size_of(dim) > 1), 0)
    rest = dims[first + 1 :]
    for dim in rest:
        seen.ties.pin(dim, f"{where} flattens them behind another dimension")
    return repeated(dims[first], math.prod(map(size_of, rest)))


def of_order(seen: Seen, node: fx.Node, where: str) -> Dims:
    """Exchanged or reduced dimensions, found by what happens to a tensor of distinct sizes."""
    source = seen.inputs(node)[0]
    if node.all_input_nodes != [source]:  # which dimension it is may follow from another value
        return seen.unknown(node, where)
    dims = seen.dims[source]
    probe = torch.empty(list(range(2, 2 + len(dims))), device="meta")
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda _: probe)
    call = getattr(torch.Tensor, str(node.target)) if node.op == "call_method" else node.target
    found = call(*args, **kwargs)  # type: ignore[operator]
    return tuple(dims[size - 2] if size > 1 else fixed(1) for size in found.shape)


RULES: Mapping[Kind, Callable[[Seen, fx.Node, str], Dims]] = MappingProxyType(
    {
        "act": of_act,
        "arithmetic": of_arithmetic,
        "pool": of_positions,
        "reduce": of_order,
        "new": of_new,
        "view": of_view,
        "order": of_order,
        "unknown": Seen.unknown,
    }
)
