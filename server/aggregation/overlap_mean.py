"""The default rule: mean of each shared weight over the clients that trained it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...supernet.axes import Region, Regions, Weights, accumulate, shape_of

RegionKey = tuple[object, ...]


@dataclass(slots=True)
class _Sum:
    """Running sum of one tensor, and the total weight that each distinct region received."""

    total: Tensor
    weights: dict[RegionKey, tuple[Region, float]] = field(default_factory=dict)

    def add(self, values: Tensor, region: Region, weight: float) -> None:
        accumulate(self.total, region, values, weight)
        whole = values.shape == self.total.shape and tuple not in map(type, region)
        key = () if whole else _key(region)
        known = self.weights.get(key)
        self.weights[key] = (region, weight + (known[1] if known else 0.0))

    def counts(self) -> Tensor | float:
        """Weight received by each value; one number where every value received the same."""
        shape = tuple(self.total.shape)
        if all(shape_of(region) == shape for region, _ in self.weights.values()):
            return sum(weight for _, weight in self.weights.values())
        counts = torch.zeros_like(self.total)
        one = torch.ones((), dtype=counts.dtype)
        for region, weight in self.weights.values():
            accumulate(counts, region, one.expand(shape_of(region)), weight)
        return counts

    def mean(self, previous: Tensor) -> tuple[Tensor, Tensor | bool]:
        """The mean, made in the sum's own memory, and which of its values were trained.

        A value that nobody trained is the previous one.
        """
        counts = self.counts()
        if isinstance(counts, float):
            return self.total.div_(counts), True
        mask = counts > 0
        self.total.div_(counts.clamp_(min=torch.finfo(counts.dtype).tiny))
        return torch.where(mask, self.total, previous, out=self.total), mask


def _key(region: Region) -> RegionKey:
    return tuple((i.start, i.stop) if isinstance(i, slice) else i for i in region)


class OverlapMean:
    """Mean of each shared weight over the clients that trained it, weighted.

    Holds one running sum however many clients report: how often a value was trained follows from
    the few distinct regions, so no second array is kept. The order does not matter, but for the
    rounding of float32 sums; fold in a fixed order for equal bits. A weight that nobody trained
    keeps its previous value, bit for bit.
    """

    def __init__(self, shared: Mapping[str, Tensor]) -> None:
        self._shared = shared
        self._sums: dict[str, _Sum] = {}

    def add(self, update: Mapping[str, Tensor], where: Regions, weight: float) -> None:
        """Count one client's weights, `update[name]` lying at `where[name]`; weight > 0."""
        for name, region in where.items():
            if name not in self._sums:
                self._sums[name] = _Sum(torch.zeros_like(self._shared[name]))
            self._sums[name].add(update[name], region, weight)

    def result(self) -> tuple[Weights, dict[str, Tensor | bool]]:
        """The merged weights, and per tensor which values were trained (a mask, or all, or none).

        Ends the fold: the running sums become the result, tensor by tensor in the same memory.
        """
        merged: Weights = {}
        trained: dict[str, Tensor | bool] = {}
        for name, previous in self._shared.items():
            found = self._sums.pop(name, None)
            if found is None:
                merged[name], trained[name] = previous, False
                continue
            merged[name], trained[name] = found.mean(previous)
        return merged, trained
