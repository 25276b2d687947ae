"""Following a batch of inputs through the user's module by torch.fx, on the meta device.

Nothing is computed: only shapes are found, and which operation reads what.
"""

from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import UsageError
from .declared_graph import BATCH, WHERE, Trace
from .declared_operations import LAYERS, UNKNOWN, behaviour, called
from .declared_source import said
from .declared_walk import Followed, Walk


def trace(module: nn.Module, input_shape: tuple[int, ...], blocks: Collection[str]) -> Trace:
    """Follow a batch of inputs through a module on the meta device.

    UsageError for a module that cannot be followed, with what stands in the way.
    """
    tracer = _Tracer(blocks)
    module.eval()
    try:
        graph = tracer.trace(module)
    except Exception as error:
        raise UsageError(
            f"{WHERE}: the module's forward cannot be traced by torch.fx: {said(error)}. "
            "Control flow must not depend on a tensor's values or sizes"
        ) from error
    run = _Run(fx.GraphModule(module, graph))
    x = torch.zeros(BATCH, *input_shape, device="meta")
    try:
        run.run(x)
    except Exception as error:
        raise UsageError(
            f"{WHERE}: forward fails at {run.at} on an input of shape {input_shape}: {said(error)}"
        ) from error
    return Walk(module, Followed(graph, run.shapes, run.macs, tracer.ends)).result()


class _Tracer(fx.Tracer):
    """Notes for each operation in which module and block it is, and each block's input and output."""

    def __init__(self, blocks: Collection[str]) -> None:
        super().__init__()
        self.blocks, self.ends = blocks, dict[str, tuple[fx.Node, fx.Node]]()
        self._path, self._block = "", ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Layers of torch, and the user's own subclasses that compute the same."""
        kept = any(isinstance(m, kind) and type(m).forward is kind.forward for kind in LAYERS)
        return kept or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """As torch.fx does it, in a named place."""
        path, outer = self.path_of_module(m), (self._path, self._block)
        if path in self.blocks:
            if path in self.ends:
                raise ValueError(f"{path} is called twice, so it cannot be left out")
            self._block = path
        self._path = path
        try:
            found = super().call_module(m, forward, args, kwargs)
        finally:
            self._path, self._block = outer
        if path in self.blocks:
            # The identity, which comes in its place, takes no more.
            if len(args) != 1 or kwargs or not all(isinstance(p, fx.Proxy) for p in (*args, found)):
                raise ValueError(f"{path} may be left out only if it turns one tensor into one")
            self.ends[path] = (args[0].node, found.node)
        return found

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """As torch.fx does it, with the place noted."""
        node = super().create_node(*args, **kwargs)
        node.meta["path"], node.meta["block"] = self._path, self._block
        return node


class _Run(fx.Interpreter):
    """Runs the traced module on the meta device; notes shapes, and MACs of what is no known layer."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.macs: Counter[fx.Node] = Counter()
        self.modules = dict(traced.named_modules())
        self.at = "its input"

    def run_node(self, n: fx.Node) -> Any:
        """Run one operation."""
        self.at = str(n.target) if n.op == "call_module" else f"`{called(n)}`"
        if behaviour(n, self.modules) is UNKNOWN:
            with FlopCounterMode(display=False) as counter:
                value = super().run_node(n)
            self.macs[n] = int(counter.get_total_flops()) // (2 * BATCH)
        else:
            value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)
        elif isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value):
            # Several tensors: an operation that is not understood. Only their number matters.
            elements = sum(v.numel() for v in value if isinstance(v, Tensor))
            self.shapes[n] = (BATCH, elements // BATCH)
        return value
