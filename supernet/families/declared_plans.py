"""What an architecture of a user's module costs, row by row, from its traced operations.

MACs and parameters are exact. Peak activation memory is what stepping through the operations finds;
training memory, every tensor that autograd keeps, once, however many layers share it. Operations
that are not understood are taken to keep their inputs and output, and to overwrite nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from types import MappingProxyType

from ..cost import LayerPlan
from .declared_graph import Graph, Layer, Op
from .declared_steps import CONVOLUTIONS, NORMS, NORMS_PER_CHANNEL, Sizes, Steps, Unit

PLAN_NAMES: Mapping[str, str] = MappingProxyType(
    {"hardswish": "hswish", "hardsigmoid": "hsigmoid", "sigmoid": "hsigmoid"}
)
"""The cost model's names of activations, where they differ from torch's."""


def plans(graph: Graph, layers: Mapping[str, Layer], sizes: Sizes) -> tuple[LayerPlan, ...]:
    """One row for each layer, and for each operation that needs memory of its own."""
    return _Rows(Steps(graph, sizes), layers).result()


class _Rows:
    """The rows of the cost model; each states what autograd keeps since the row before it."""

    def __init__(self, steps: Steps, layers: Mapping[str, Layer]) -> None:
        self._steps, self._layers = steps, layers
        self._merged: set[int] = set()

    def result(self) -> tuple[LayerPlan, ...]:
        """Rows in order of execution."""
        counted: set[Unit] = set()
        found: list[LayerPlan] = []
        kept = 0
        for at in self._steps.order:
            for unit, elements in self._steps.kept(at).items():
                kept += 0 if unit in counted else elements
                counted.add(unit)
            if row := self._row(at):
                found.append(replace(row, kept=kept))
                kept = 0
        found[-1] = replace(found[-1], kept=(found[-1].kept or 0) + kept)
        return tuple(found)

    def _row(self, at: int) -> LayerPlan | None:
        op = self._steps.ops[at]
        if at in self._merged or op.kind == "input":
            return None
        if op.kind == "table":
            table = LayerPlan(op.name, "table", 1, 0, 0, 0, 0, other_params=op.params)
            return table if op.params else None
        row = self._plain(at)
        if op.kind in CONVOLUTIONS:
            return self._convolution(at, row)
        if op.kind in NORMS:
            return replace(row, kind="norm", other_params=self._norm_params(op))
        if op.kind == "unknown":
            return replace(row, kind="matmul", other_macs=op.macs, other_params=op.params)
        return row if self._steps.new(at) else None

    def _plain(self, at: int) -> LayerPlan:
        """Memory alone: what an operation reads and writes, and what else is alive meanwhile."""
        steps, op = self._steps, self._steps.ops[at]
        taken, written = steps.taken(at), steps.elements[at] if steps.new(at) else 0
        return LayerPlan(
            op.path or op.name, "pool", steps.channels(at), 0, 0, taken, written,
            held=steps.alive[at] - taken - written,
        )  # fmt: skip

    def _convolution(self, at: int, row: LayerPlan) -> LayerPlan:
        """A convolution or linear layer, with the normalization and activation that follow it."""
        steps, layer = self._steps, self._layers[row.name]
        inside = steps.sizes.of(layer.inside[1 if layer.kernel else -1])
        kernel = steps.sizes.kernels.get(row.name)
        area = prod(layer.kernel) if kernel is None else kernel ** len(layer.kernel)
        norm = self._follower(at, self._is_norm)
        act = self._follower(at if norm is None else norm, self._is_act)
        name = "" if act is None else steps.ops[act].name
        groups = inside if layer.depthwise else layer.groups
        return replace(
            row,
            kind="depthwise" if layer.depthwise else "conv" if layer.kernel else "linear",
            in_per_group=inside // groups,
            kernel_area=area,
            bias="bias" in layer.tensors,
            norm=norm is not None,
            act=PLAN_NAMES.get(name, name),
        )

    def _follower(self, at: int, wanted: Callable[[Op], bool]) -> int | None:
        """The operation that overwrites this one's output, if it is of the wanted kind."""
        steps = self._steps
        for user in steps.users[at]:
            if steps.buffer[user] == steps.buffer[at] and wanted(steps.ops[user]):
                self._merged.add(user)
                return user
        return None

    def _is_norm(self, op: Op) -> bool:
        return op.kind in NORMS_PER_CHANNEL and bool(self._layers[op.path].tensors)

    def _is_act(self, op: Op) -> bool:
        return op.kind == "act" and op.saves != "mask"

    def _norm_params(self, op: Op) -> int:
        layer = self._layers[op.path]
        return len(layer.tensors) * prod(self._steps.sizes.of(dim) for dim in layer.own)
