"""Stepping through the operations that one architecture executes: memory alive, memory kept.

In inference, normalization, activation, addition and scaling write over their input where nobody
reads it again, as exported files do. In training only what is asked to does.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod

from .declared_graph import BATCH, Graph
from .declared_ties import Dim

CONVOLUTIONS = ("conv1d", "conv2d", "linear")
NORMS_PER_CHANNEL = ("batchnorm1d", "batchnorm2d", "groupnorm")
NORMS = (*NORMS_PER_CHANNEL, "layernorm", "prelu")
IN_PLACE = (*NORMS, "act", "arithmetic")
RESULT_IS_KEPT = ("leakyrelu", "elu", "selu", "celu")
"""Activations that keep their result where they are computed in place; others copy their input."""
Unit = tuple[str, int]
"""Something that autograd keeps: what it is, and the operation that it belongs to."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of one architecture: channels per axis, kernel per layer, blocks left out."""

    channels: Mapping[str, int]
    kernels: Mapping[str, int]
    absent: Collection[str]

    def of(self, dim: Dim) -> int:
        """Size of a dimension in terms of axes."""
        return sum(
            (stretch.channels if stretch.axis is None else self.channels[stretch.axis])
            * stretch.repeat
            for stretch in dim
        )


class Steps:
    """The operations that one architecture executes, and the memory that each needs."""

    def __init__(self, graph: Graph, sizes: Sizes) -> None:
        self.ops, self.sizes = graph.ops, sizes
        ends = [graph.blocks[block] for block in sizes.absent]
        skipped = {last: first for first, last in ends}

        def resolved(place: int) -> int:
            while place in skipped:
                place = skipped[place]
            return place

        self.order = [at for at, op in enumerate(self.ops) if op.block not in sizes.absent]
        self.inputs = {at: [resolved(place) for place in self.ops[at].inputs] for at in self.order}
        self.elements = {
            at: prod(sizes.of(dim) for dim in self.ops[at].dims) // BATCH for at in self.order
        }
        self.users: dict[int, list[int]] = {at: [] for at in self.order}
        for at in self.order:
            for source in self.inputs[at]:
                self.users[source].append(at)
        # The network's output stays.
        self.last = {at: max(self.users[at], default=at) for at in self.order}
        self.last[resolved(graph.output)] = len(self.ops)
        self.buffer: dict[int, int] = {}
        self.storage: dict[int, int] = {}
        self.alive = self._alive()

    def channels(self, at: int) -> int:
        """Channels of an operation's output."""
        op = self.ops[at]
        if op.kind == "table" or len(op.dims) < 2:
            return 1
        return self.sizes.of(op.dims[-1 if op.kind == "linear" else 1])

    def new(self, at: int) -> bool:
        """Whether an operation writes into memory of its own."""
        return self.buffer[at] == at and self.ops[at].kind != "table"

    def taken(self, at: int) -> int:
        """Elements of the distinct tensors that it reads; tables are weights, not activations."""
        read = {self.buffer[i] for i in self.inputs[at] if self.ops[i].kind != "table"}
        return sum(self.elements[buffer] for buffer in read)

    def _alive(self) -> dict[int, int]:
        """Elements alive while each operation runs."""
        until: dict[int, int] = {}
        for at in self.order:
            buffer = self._shared(at, until)
            self.buffer[at] = at if buffer is None else buffer
            self.storage[at] = self._stored(at)
            until[self.buffer[at]] = max(until.get(self.buffer[at], at), self.last[at])
        found, now = {}, 0
        ending: dict[int, list[int]] = {}
        for at in self.order:
            if self.new(at):
                now += self.elements[at]
                ending.setdefault(until[at], []).append(at)
            found[at] = now
            now -= sum(self.elements[buffer] for buffer in ending.get(at, ()))
        return found

    def _shared(self, at: int, until: Mapping[int, int]) -> int | None:
        """The buffer that an operation writes into or looks at, if not one of its own."""
        op = self.ops[at]
        sources = [i for i in self.inputs[at] if self.ops[i].kind != "table"]
        if not sources:
            return None
        # After an exchange of dimensions, a merged view is a copy.
        turned = op.name in ("reshape", "flatten", "contiguous") and (
            self.ops[sources[0]].kind == "order"
        )
        if (op.kind in ("view", "order") and not turned) or op.saves == "mask":
            return self.buffer[sources[0]]
        if op.kind not in IN_PLACE:
            return None
        for source in sources:
            free = until[self.buffer[source]] <= at
            if free and self.elements[source] == self.elements[at]:
                return self.buffer[source]
        return None

    def _stored(self, at: int) -> int:
        """The same in training, where only what is asked to is computed in place."""
        op = self.ops[at]
        sources = [i for i in self.inputs[at] if self.ops[i].kind != "table"]
        if sources and (op.kind in ("view", "order") or op.in_place):
            return self.storage[sources[0]]
        return at

    def kept(self, at: int) -> dict[Unit, int]:
        """What autograd keeps of an operation: unit → elements."""
        op = self.ops[at]
        inputs = {
            ("value", self.storage[i]): self.elements[self.storage[i]]
            for i in self.inputs[at]
            if self.ops[i].kind != "table"
        }
        own = {("value", self.storage[at]): self.elements[at]}
        if op.kind in (*CONVOLUTIONS, *NORMS) or op.saves == "input":
            if not op.in_place or op.kind in CONVOLUTIONS:
                return inputs
            return own if op.name in RESULT_IS_KEPT else {("copy", at): self.elements[at]}
        if op.saves == "output":
            return own
        if op.saves == "indices":  # int64
            return {**inputs, ("indices", at): 2 * self.elements[at]}
        if op.saves == "mask":
            return {("mask", at): self.elements[at]}
        if op.name == "adaptiveavgpool":  # to one position it is a mean
            return {} if self.elements[at] == self.channels(at) else inputs
        if op.saves == "inputs" and len(inputs) > 1:
            return inputs
        return {**inputs, **own} if op.saves == "all" else {}
