"""Where the values of an update lie in the supernet, worked out once for each subnet.

All shared tensors lie one after another in one flat array, and so do the values of an update. Large
tensors are added tensor by tensor. Small ones, two thirds of all tensors with hardly any values,
are added together through an index: slicing each would cost more than adding it up.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...supernet.axes import Region, Regions, Weights, accumulate, shape_of
from ...supernet.weights import Flat, Shapes, size_of
from .update import Merged

INDEXED_VALUES = 1500
"""Tensors of fewer values are added through an index (measured: both ways cost the same there)."""
REMEMBERED = 16
CHUNK_VALUES = 1 << 16
"""So many products are made at a time where they are rounded before they are summed."""


@dataclass(frozen=True, slots=True)
class Block:
    """A large tensor: its values at `start` in the update, at `region` of the shared tensor."""

    name: str
    start: int
    shape: tuple[int, ...]
    region: Region


@dataclass(frozen=True, slots=True)
class Placement:
    """How an update is added: the whole supernet at once, or large tensors and indexed values.

    Of the large tensors, the blocks, those are `sliced` whose region is slices alone. `cuts` are the
    lengths into which they divide the update: what lies before each, itself, and what lies after the
    last.
    """

    whole: bool
    source: Tensor | None = None
    target: Tensor | None = None
    sliced: tuple[Block, ...] = ()
    cuts: tuple[int, ...] = ()
    indexed: tuple[Block, ...] = ()

    @property
    def blocks(self) -> tuple[Block, ...]:
        """All of them."""
        return (*self.sliced, *self.indexed)


@dataclass(slots=True)
class _Known:
    """A subnet's placement, and its sliced blocks as views of the sum that it was last added to.

    The regions are kept: an id is an object's own only as long as that lives.
    """

    where: Regions
    placement: Placement
    total: Tensor | None = None
    views: tuple[Tensor, ...] = ()

    def targets(self, total: Tensor, parts: Weights) -> tuple[Tensor, ...]:
        """The views of `total`, whose tensors are `parts`."""
        if self.total is not total:
            self.total = total
            self.views = tuple(parts[b.name][b.region] for b in self.placement.sliced)
        return self.views


class Frame:
    """The shared tensors as parts of one flat array, in the layout's order."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = dict(shapes)
        self.size = size_of(self.shapes)
        self._places: OrderedDict[int, _Known] = OrderedDict()

    @cached_property
    def offsets(self) -> Mapping[str, int]:
        """Name → where its first value lies."""
        found, at = {}, 0
        for name, shape in self.shapes.items():
            found[name] = at
            at += math.prod(shape)
        return found

    def tensors(self, flat: Tensor) -> Weights:
        """The tensors of a flat array; they share its memory."""
        return {
            name: flat[at : at + math.prod(self.shapes[name])].view(self.shapes[name])
            for name, at in self.offsets.items()
        }

    def merged(self, delta: Tensor, trained: Tensor) -> Merged:
        """A flat change (float32, 0 where nothing was trained) and a flat mask as a rule's result."""
        masks, changed = self.tensors(trained), self.tensors(delta)
        told = {name: _all_or(mask) for name, mask in masks.items()}
        return Merged({name: changed[name] for name, t in told.items() if t is not False}, told)

    def placement(self, where: Regions) -> Placement:
        """How updates at `where` are added; remembered for the regions seen last."""
        return self._known(where).placement

    def _known(self, where: Regions) -> _Known:
        known = self._places.get(id(where))
        if known is None:
            known = self._places[id(where)] = _Known(where, self._placed(where))
            if len(self._places) > REMEMBERED:
                self._places.popitem(last=False)
        return known

    def add(self, total: Tensor, parts: Weights, delta: Flat, where: Regions, by: float) -> None:
        """total += by · delta at `where`; `parts` are the tensors of `total`.

        In a float64 total the products are float32: of their 24 bits each, sums of 53 bits lose
        none, so that neither order nor grouping decides a bit of them. (They are exact as long as
        the largest and the smallest product of one value differ by less than 2^29 / their number.)
        """
        known, values = self._known(where), torch.from_numpy(delta)
        place = known.placement
        rounded = total.dtype == torch.float64
        if place.whole:
            if not rounded:
                total.add_(values, alpha=by)
                return
            for at in range(0, len(values), CHUNK_VALUES):
                span = slice(at, at + CHUNK_VALUES)
                total[span].add_(values[span] * by)
            return
        if place.source is not None and place.target is not None:
            found = values[place.source]
            if rounded:
                total.index_add_(0, place.target, (found * by).to(total.dtype))
            else:
                total.index_add_(0, place.target, found.to(total.dtype), alpha=by)
        apart = place.blocks
        if not rounded and place.sliced:
            # In one call: there are many blocks, and each is little work.
            shares = values.split(place.cuts)[1::2]  # type: ignore[no-untyped-call]
            given = [share.view(b.shape) for share, b in zip(shares, place.sliced, strict=True)]
            torch._foreach_add_(known.targets(total, parts), given, alpha=by)
            apart = place.indexed
        for block in apart:
            part = values[block.start : block.start + math.prod(block.shape)].view(block.shape)
            if rounded:
                accumulate(parts[block.name], block.region, part * by, 1.0)
            else:
                accumulate(parts[block.name], block.region, part, by)

    def _placed(self, where: Regions) -> Placement:
        shapes = {name: shape_of(region) for name, region in where.items()}
        if shapes == self.shapes and not any(tuple in map(type, r) for r in where.values()):
            return Placement(whole=True)
        sliced, indexed = list[Block](), list[Block]()
        sources, targets, at = [], [], 0
        for name, region in where.items():
            size = math.prod(shapes[name])
            if size < INDEXED_VALUES:
                sources.append(np.arange(at, at + size))
                targets.append(self.offsets[name] + numbers(self.shapes[name], region))
            else:
                kind = indexed if tuple in map(type, region) else sliced
                kind.append(Block(name, at, shapes[name], region))
            at += size
        source = target = None
        if sources:
            source, target = (torch.from_numpy(np.concatenate(part)) for part in (sources, targets))
        cuts, begin = [], 0
        for block in sliced:
            size = math.prod(block.shape)
            cuts += [block.start - begin, size]
            begin = block.start + size
        return Placement(False, source, target, tuple(sliced), (*cuts, at - begin), tuple(indexed))


def _all_or(mask: Tensor) -> Tensor | bool:
    if bool(mask.all()):
        return True
    return mask if bool(mask.any()) else False


def numbers(shape: tuple[int, ...], region: Region) -> NDArray[np.int64]:
    """The number of each value of a region, counted through a tensor of `shape`, flat.

    Made of the region's own indices: where every device trains another subnet, this is worked out
    for each update, and must not cost what the whole tensor would.
    """
    found = np.zeros(1, np.int64)
    for size, index in zip(shape, region, strict=True):
        taken = (
            np.arange(index.start, index.stop) if isinstance(index, slice) else np.asarray(index)
        )
        found = (found[:, None] * size + taken).reshape(-1)
    return found
