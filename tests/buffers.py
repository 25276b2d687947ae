"""Peak memory by stepping through a traced module and noting which buffers are alive."""

import operator

import torch
from torch import Tensor, fx, nn

IN_PLACE_LAYERS = (nn.BatchNorm2d, nn.BatchNorm1d, nn.GroupNorm, nn.ReLU, nn.Hardsigmoid)
IN_PLACE_CALLS = (operator.add, operator.sub, operator.mul, "rsqrt")
SAME_MEMORY = (operator.getitem, "chunk", "unsqueeze", "flatten")


class Buffers(fx.Interpreter):
    """Runs a traced module; which buffer each value lies in, and how many elements a buffer has.

    What needs no buffer of its own writes into a value of the same size that nobody reads later, or
    shares its source's.
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.order = {node: place for place, node in enumerate(traced.graph.nodes)}
        self.buffer: dict[fx.Node, fx.Node] = {}
        self.elements: dict[fx.Node, int] = {}
        self.sizes: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.sizes[n] = value.numel()
        self.buffer[n] = self._source(n) or n
        if self.buffer[n] is n:
            assert isinstance(value, Tensor)
            self.elements[n] = value.numel()
        return value

    def _source(self, node: fx.Node) -> fx.Node | None:
        layer = self.submodules.get(str(node.target)) if node.op == "call_module" else None
        if node.target in SAME_MEMORY or isinstance(layer, nn.Identity) or node.op == "output":
            return self.buffer[node.all_input_nodes[0]]
        if not isinstance(layer, IN_PLACE_LAYERS) and node.target not in IN_PLACE_CALLS:
            return None
        for source in node.all_input_nodes:
            free = max(self.order[user] for user in source.users) == self.order[node]
            if self.sizes[source] == self.sizes[node] and free:
                return self.buffer[source]
        return None

    def peak(self) -> int:
        """The largest sum of buffers alive at once."""
        last: dict[fx.Node, int] = {}
        for node, held in self.buffer.items():
            ends = [self.order[user] for user in node.users]
            last[held] = max([last.get(held, 0), self.order[node], *ends])
        return max(
            sum(
                size
                for held, size in self.elements.items()
                if self.order[held] <= now <= last[held]
            )
            for now in self.order.values()
        )


def peak_bytes(module: nn.Module, x: Tensor) -> int:
    """The largest sum of float32 buffers alive at once when the module runs on this input."""
    steps = Buffers(fx.symbolic_trace(module.eval()))
    with torch.no_grad():
        steps.run(x)
    return 4 * steps.peak()
