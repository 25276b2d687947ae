"""One pass over a traced graph, in order, that gives every tensor its dimensions."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import fx, nn

from ..errors import UsageError
from .declared_graph import WHERE, Graph, Layer, Op, Trace
from .declared_operations import BEHAVIOURS, LAYERS, UNKNOWN, behaviour, called, canonical
from .declared_rules import RULES, Seen, is_depthwise, of_layer
from .declared_ties import Dims, Ties, fixed


@dataclass(frozen=True)
class Followed:
    """A graph that was run once: shapes (batch included), MACs of unknown operations, blocks' ends."""

    graph: fx.Graph
    shapes: Mapping[fx.Node, tuple[int, ...]]
    macs: Mapping[fx.Node, int]
    blocks: Mapping[str, tuple[fx.Node, fx.Node]]


class Walk:
    """What is known after each operation."""

    def __init__(self, module: nn.Module, followed: Followed) -> None:
        self._modules = dict(module.named_modules())
        self._parameters = dict(module.named_parameters())
        self._followed, self._shapes = followed, followed.shapes
        self._ends = {last: (path, first) for path, (first, last) in followed.blocks.items()}
        self._ties = Ties()
        self._seen = Seen(self._ties, {}, followed.shapes)
        self._places: dict[fx.Node, int] = {}
        self._ops: list[Op] = []
        self._layers: dict[str, Layer] = {}
        self._blocks: dict[str, tuple[int, int]] = {}
        self._used: set[str] = set()

    def result(self) -> Trace:
        """Walk."""
        output = 0
        for node in self._followed.graph.nodes:
            if node.op == "output":
                output = self._end(node)
            elif node in self._shapes:
                self._step(node)
        if unused := sorted(self._parameters.keys() - self._used):
            raise UsageError(f"{WHERE}: {unused[0]} is used nowhere in forward; remove it")
        shapes = tuple(self._shapes[node] for node in self._places)
        graph = Graph(tuple(self._ops), self._blocks, output)
        return Trace(graph, shapes, self._layers, self._ties)

    def _step(self, node: fx.Node) -> None:
        op = self._of(node)
        self._seen.dims[node] = op.dims
        self._places[node] = len(self._ops)
        self._ops.append(op)
        if node in self._ends:
            self._close(node, *self._ends[node])

    def _of(self, node: fx.Node) -> Op:
        inputs = tuple(self._places[source] for source in self._seen.inputs(node))
        op = Op("", node.name, node.meta["path"], inputs, (), node.meta["block"])
        plain = tuple(map(fixed, self._shapes[node]))
        if node.op == "placeholder":
            if self._ops:
                raise UsageError(f"{WHERE}: forward takes more than one input")
            return replace(op, kind="input", dims=plain)
        if node.op == "get_attr":
            return replace(op, kind="table", dims=plain, params=self._table(node))
        target = self._modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(target, LAYERS):
            return replace(self._layer(node, target), inputs=inputs, block=op.block)
        found = behaviour(node, self._modules) or UNKNOWN
        if found.saves == "mask" and getattr(target, "p", 1.0) == 0.0:
            found = BEHAVIOURS["identity"]
        where = f"`{called(node)}` in {op.path or 'the outermost forward'}"
        where = op.path if target else where
        if not inputs:
            return replace(op, kind="unknown", dims=plain)
        return replace(
            op,
            kind=found.kind,
            dims=RULES[found.kind](self._seen, node, where),
            saves=found.saves,
            in_place=_in_place(node, target),
            macs=self._followed.macs.get(node, 0),
            params=self._own(node, target),
            name=canonical(type(target).__name__ if target else called(node)),
        )

    def _layer(self, node: fx.Node, layer: nn.Module) -> Op:
        path = str(node.target)
        if path in self._layers:
            raise UsageError(f"{WHERE}: layer {path} is called twice; only once is supported")
        dims = of_layer(self._seen, node, layer)
        inside = self._seen.dims[self._seen.inputs(node)[0]]
        kind = _kind(layer)
        outside = dims[-1 if kind in ("linear", "layernorm") else 1]
        tensors = tuple(dict(layer.named_parameters()))
        made = Layer(kind, inside, outside, tensors=tensors, own=_own_dims(layer, inside))
        if isinstance(layer, nn.Conv1d | nn.Conv2d):
            made = replace(
                made,
                kernel=tuple(layer.kernel_size),
                same=_same(layer),
                depthwise=is_depthwise(layer),
                groups=layer.groups,
            )
        self._layers[path] = made
        self._own(node, layer)
        return Op(kind, path, path, (), dims, "")

    def _own(self, node: fx.Node, layer: nn.Module | None) -> int:
        """Parameters of a module that is called, counted as used."""
        if layer is None:
            return 0
        own = {f"{node.target}.{name}": p.numel() for name, p in layer.named_parameters()}
        self._used |= own.keys()
        return sum(own.values())

    def _table(self, node: fx.Node) -> int:
        path = str(node.target)
        if path not in self._parameters or path in self._used:
            return 0
        self._used.add(path)
        return self._parameters[path].numel()

    def _close(self, node: fx.Node, path: str, first: fx.Node) -> None:
        """A block's output and input are one and the same, since it may be left out."""
        before, after = self._shapes[first], self._shapes[node]
        if before != after:
            raise UsageError(
                f"{WHERE}: depths: {path} turns {before[1:]} into {after[1:]}; only a block that "
                "keeps its input's shape can be left out"
            )
        for a, b in zip(self._seen.dims[first], self._seen.dims[node], strict=True):
            self._ties.tie(a, b, f"{path} may be left out, so its output is its input")
        self._blocks[path] = (self._places[first], self._places[node])

    def _end(self, node: fx.Node) -> int:
        source = node.args[0]
        if not isinstance(source, fx.Node) or len(self._shapes.get(source, ())) != 2:
            raise UsageError(f"{WHERE}: forward must return one tensor (batch, classes)")
        for dim in self._seen.dims[source]:
            self._ties.pin(dim, "it is the network's output")
        return self._places[source]


def _kind(layer: nn.Module) -> str:
    return next(kind.__name__ for kind in LAYERS if isinstance(layer, kind)).lower()


def _own_dims(layer: nn.Module, inside: Dims) -> Dims:
    if isinstance(layer, nn.LayerNorm):
        return inside[-len(layer.normalized_shape) :]
    return (fixed(1),) if isinstance(layer, nn.PReLU) and layer.num_parameters == 1 else inside[1:2]


def _in_place(node: fx.Node, layer: nn.Module | None) -> bool:
    name = called(node)
    asked = getattr(layer, "inplace", False) or node.kwargs.get("inplace", False)
    return bool(asked) or (layer is None and (name.endswith("_") or name in ("iadd", "imul")))


def _same(layer: nn.Conv1d | nn.Conv2d) -> bool:
    """Whether the kernel's centre stays where it is when its border is taken away."""
    if any(k != layer.kernel_size[0] or k % 2 == 0 for k in layer.kernel_size):
        return False
    centred = [d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    return layer.padding == "same" or list(layer.padding) == centred
