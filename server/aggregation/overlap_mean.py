"""The default rule: mean change of each shared weight over the clients that trained it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ...supernet.axes import Region, Regions, Weights, accumulate, shape_of
from ...supernet.weights import Shapes
from .placement import Frame
from .update import Merged, Update

Counted = Mapping[str, list[tuple[Region, float]]]


@dataclass(frozen=True, slots=True)
class Partial:
    """The sum of some updates, to be merged with other sums: associative, in any order.

    `total` is the flat weighted sum over the whole supernet; `counted` says per tensor how much
    weight each region of it received, one entry for each distinct region. `weight` is that of all
    `updates` together.
    """

    total: Tensor
    counted: Counted
    updates: int
    weight: float


@runtime_checkable
class PartialFold(Protocol):
    """A rule that takes sums of updates, made elsewhere, in their place."""

    def add_partial(self, partial: Partial) -> None:
        """Count a sum of updates."""


@dataclass(slots=True)
class _Weights:
    """The weight that each distinct region of one tensor received."""

    regions: dict[tuple[object, ...], tuple[Region, float]] = field(default_factory=dict)

    def add(self, region: Region, weight: float) -> None:
        # Two positions must not be taken for the ends of a run.
        key = tuple(("run", i.start, i.stop) if isinstance(i, slice) else i for i in region)
        known = self.regions.get(key)
        self.regions[key] = (region, weight + (known[1] if known else 0.0))

    def counts(self, total: Tensor) -> Tensor | float:
        """Weight received by each value; one number where every value received the same."""
        shape = tuple(total.shape)
        if all(_is_whole(region, shape) for region, _ in self.regions.values()):
            return sum(weight for _, weight in self.regions.values())
        counts = torch.zeros_like(total)
        one = torch.ones((), dtype=counts.dtype)
        for region, weight in self.regions.values():
            accumulate(counts, region, one.expand(shape_of(region)), weight)
        return counts


def _is_whole(region: Region, shape: tuple[int, ...]) -> bool:
    return shape_of(region) == shape


class OverlapMean:
    """Mean change of each shared weight over the clients that trained it, weighted.

    Holds one running sum however many clients report: how often a value was trained follows from
    the few distinct regions, so no second array is kept. The order does not matter, but for the
    rounding of float sums; fold in a fixed order for equal bits. With `dtype` float64 the sums are
    exact (`Frame.add`), and so the same in any order and grouping; weights are rounded to float32 for
    it. `total` is memory to keep the sum in, of the supernet's size.
    """

    def __init__(
        self, shapes: Shapes, dtype: torch.dtype = torch.float32, total: Tensor | None = None
    ) -> None:
        self._frame = Frame(shapes)
        self._exact = dtype == torch.float64
        self._total = torch.zeros(self._frame.size, dtype=dtype) if total is None else total.zero_()
        self._parts = self._frame.tensors(self._total)
        self._by_place: dict[int, tuple[Regions, float]] = {}
        self._counted: dict[str, _Weights] = {}
        self.updates, self._weight = 0, 0.0

    def add(self, update: Update) -> None:
        """Count one client's update."""
        weight = float(np.float32(update.weight)) if self._exact else update.weight
        by = weight * update.scale
        self._frame.add(self._total, self._parts, update.delta, update.where, by)
        # Clients of one subnet share one object of regions: counted here, spelled out at the end.
        known = self._by_place.get(id(update.where))
        before = known[1] if known else 0.0
        self._by_place[id(update.where)] = (update.where, before + weight)
        self.updates, self._weight = self.updates + 1, self._weight + weight

    def add_partial(self, partial: Partial) -> None:
        """Count a sum of updates that was made elsewhere.

        Raises ValueError where it belongs to another supernet.
        """
        if partial.total.shape != self._total.shape:
            raise ValueError(
                f"a partial sum of {partial.total.numel()} values; this supernet has "
                f"{self._frame.size}"
            )
        self._total.add_(partial.total)
        for name, entries in partial.counted.items():
            for region, weight in entries:
                self._counted.setdefault(name, _Weights()).add(region, weight)
        self.updates += partial.updates
        self._weight += partial.weight

    def partial(self) -> Partial:
        """The sum so far; ends the fold."""
        self._spell_out()
        counted = {name: list(found.regions.values()) for name, found in self._counted.items()}
        return Partial(self._total, counted, self.updates, self._weight)

    def counts(self) -> Weights:
        """Per tensor that somebody trained, the weight that each of its values received so far."""
        self._spell_out()
        found = {name: w.counts(self._parts[name]) for name, w in self._counted.items()}
        return {
            name: torch.full_like(self._parts[name], c) if isinstance(c, float) else c
            for name, c in found.items()
        }

    def result(self) -> Merged:
        """The mean change. Ends the fold: the running sum becomes the result, in its memory."""
        self._spell_out()
        delta: Weights = {}
        trained: dict[str, Tensor | bool] = {}
        for name, total in self._parts.items():
            found = self._counted.get(name)
            if found is None:
                trained[name] = False
                continue
            counts = found.counts(total)
            if isinstance(counts, float):
                trained[name] = True
                total.div_(max(counts, torch.finfo(total.dtype).tiny))
            else:
                trained[name] = counts > 0
                total.div_(counts.clamp_(min=torch.finfo(counts.dtype).tiny))
            delta[name] = total.to(torch.float32)
        return Merged(delta, trained)

    def _spell_out(self) -> None:
        for where, weight in self._by_place.values():
            for name, region in where.items():
                self._counted.setdefault(name, _Weights()).add(region, weight)
        self._by_place.clear()
