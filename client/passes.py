"""How students run on the leaves that the assigned subnet is trained with: in turn, or in one pass.

Both are iterated: a pass is to be differentiated (`backward`) before the next one is asked for. Its
gradients are then added to those of the leaves.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import groupby, islice
from typing import NamedTuple

import torch
from torch import Tensor

from ..supernet.axes import Region, accumulate, shape_of, view
from ..supernet.batch import Batch
from ..supernet.cost import cost
from ..supernet.masked import check_masked, group_sizes, masked
from ..supernet.space import Arch, Space
from ..supernet.subnet import on_views, regions_within

Leaves = Mapping[str, Tensor]
FORWARD, FORWARD_AND_BACKWARD = 1, 3


class Part(NamedTuple):
    """A student's logits on some rows of the batch."""

    rows: slice
    logits_bc: Tensor


class Pass(NamedTuple):
    """One forward pass: its parts, and the multiply-accumulates of it and its backward pass."""

    parts: Sequence[Part]
    macs: int


class InTurn:
    """Each student on the whole batch, one after the other."""

    def __init__(self, space: Space, assigned: Arch, leaves: Leaves) -> None:
        self._space, self._assigned, self._leaves = space, assigned, leaves
        self._ready: dict[Arch, _Student] = {}

    def run(self, batch: Batch, students: Sequence[Arch]) -> Iterator[Pass]:
        """A pass for each student."""
        space = self._space
        self._ready = {
            arch: self._ready.get(arch) or _Student(space, arch, self._assigned, self._leaves)
            for arch in students
        }
        for arch, student in self._ready.items():
            logits_bc = student.logits(batch.inputs(space.input_shape(arch)))
            macs = FORWARD_AND_BACKWARD * len(batch) * cost(space, arch).macs
            yield Pass([Part(slice(None), logits_bc)], macs)
            student.deliver()


class _Student:
    """A student on leaves of its own, copied from the shared ones before each forward pass.

    Differentiated through views of the shared leaves, the gradient of each would be as large as the
    assigned subnet's, most of it zeros; and convolutions would copy weights that are not contiguous
    at each use.
    """

    def __init__(self, space: Space, arch: Arch, assigned: Arch, leaves: Leaves) -> None:
        self._leaves, self._where = leaves, regions_within(space, arch, assigned)
        self._own = {
            name: leaves[name]
            .new_empty(shape_of(region))
            .requires_grad_(leaves[name].requires_grad)
            for name, region in self._where.items()
        }
        # Slices share the leaves' memory; other indices copy, and are taken anew at each step.
        self._shared = {
            name: view(leaves[name].detach(), region)
            for name, region in self._where.items()
            if tuple not in map(type, region)
        }
        self._forward = on_views(space, arch, self._own, arch)

    def logits(self, x: Tensor) -> Tensor:
        """The student's forward pass."""
        with torch.no_grad():
            for name, own in self._own.items():
                if name in self._shared:
                    own.copy_(self._shared[name])
                else:
                    own.copy_(view(self._leaves[name], self._where[name]))
        return self._forward(x)

    def deliver(self) -> None:
        """Add the gradients to those of the shared leaves."""
        for name, region in self._where.items():
            gradient = self._own[name].grad
            if gradient is not None:
                self._own[name].grad = None
                _add(self._leaves[name], region, gradient)


def _add(leaf: Tensor, region: Region, gradient: Tensor) -> None:
    if leaf.grad is None:
        leaf.grad = torch.zeros_like(leaf)
    accumulate(leaf.grad, region, gradient, 1.0)


class OnePass:
    """Each student on its part of the batch, those of one input shape in one masked pass.

    Where the batch has less than two examples for each, the last students go without. The first
    batch is run by each student alone, too, to see that the space allows this.
    """

    def __init__(self, space: Space, assigned: Arch, leaves: Leaves) -> None:
        self._space, self._assigned, self._leaves = space, assigned, leaves
        self._checked = False

    def run(self, batch: Batch, students: Sequence[Arch]) -> Iterator[Pass]:
        """A pass for each input shape. UsageError where the space does not allow it."""
        input_shape = self._space.input_shape
        students = sorted(students[: len(batch) // 2], key=input_shape)
        sizes, begin = iter(group_sizes(len(batch), len(students))), 0
        for shape, alike in groupby(students, key=input_shape):
            members = tuple(alike)
            rows = slice(begin, begin + sum(islice(sizes, len(members))))
            yield self._together(members, batch.inputs(shape)[rows], rows.start)
            begin = rows.stop
        self._checked = True

    def _together(self, members: Sequence[Arch], x: Tensor, begin: int) -> Pass:
        space, sizes = self._space, group_sizes(len(x), len(members))
        hull = cost(space, reduce(space.hull, members)).macs
        macs = FORWARD_AND_BACKWARD * len(x) * hull
        if not self._checked:
            check_masked(space, members, self._leaves, self._assigned, x)
            alone = zip(sizes, members, strict=True)
            macs += FORWARD * sum(size * cost(space, arch).macs for size, arch in alone)
            macs += FORWARD * len(x) * hull
        parts = []
        for logits_bc in masked(space, members, self._leaves, self._assigned)(x):
            parts.append(Part(slice(begin, begin + len(logits_bc)), logits_bc))
            begin += len(logits_bc)
        return Pass(parts, macs)
