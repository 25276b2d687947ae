"""Spooled updates as a weighted mean whose weights can be moved, and its slope in each of them.

Client i's weight is a_i = w_i · exp(u_i), with w_i what the update came with. A value v that the
clients C(v) hold changes by m_v = Σ a_i d_iv / A_v over them, with A_v = Σ a_i and d_i the client's
change (scaled by what clipping left of it): their weights sum to 1 wherever anybody trained. For a
loss L of the mean, with g = ∂L/∂m,

    ∂L/∂u_i = Σ_v g_v · a_i / A_v · (d_iv - m_v)    over the values that i holds.

Memory: four arrays of the supernet's size and one update, however many clients there are; each call
reads every update from disk once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...supernet.axes import Regions, Weights
from ...supernet.weights import Shapes, gather, shapes_of, size_of
from .placement import Frame
from .spool import Spool
from .update import Update

Offsets = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Mean:
    """Flat over the whole supernet: the mean change, and the weight that each value received."""

    change: Tensor
    weight: Tensor

    @property
    def covered(self) -> Tensor:
        """Which values anybody holds, a mask."""
        return self.weight > 0


class Mixture:
    """A round's updates in order of device name, so that nothing hangs on who came first."""

    def __init__(self, spool: Spool, shapes: Shapes) -> None:
        light = spool.light()
        self._spool, self.frame = spool, Frame(shapes)
        self._order = sorted(range(len(light)), key=lambda place: light[place].device)
        self.devices = tuple(light[place].device for place in self._order)
        self.prior_k = np.asarray([light[place].weight for place in self._order])
        self._where = [light[place].where for place in self._order]

    def weights(self, offset_k: Offsets) -> Offsets:
        """a_i of each client; exactly what the updates came with where the offsets are 0."""
        weight_k: Offsets = self.prior_k * np.exp(offset_k)
        return weight_k

    def updates(self, offset_k: Offsets) -> Iterator[Update]:
        """The updates with these weights, one in memory at a time."""
        for update, weight in zip(
            self._spool.updates(self._order), self.weights(offset_k), strict=True
        ):
            yield replace(update, weight=float(weight))

    def mean(self, offset_k: Offsets) -> Mean:
        """The mean change with these offsets of log-weights; 0 where nobody holds a value."""
        total, weight = torch.zeros(self.frame.size), self._received(self.weights(offset_k))
        parts = self.frame.tensors(total)
        for update in self.updates(offset_k):
            by = update.weight * update.scale
            self.frame.add(total, parts, update.delta, update.where, by)
        total.div_(weight.clamp(min=torch.finfo(weight.dtype).tiny))
        return Mean(total, weight)

    def slopes(self, offset_k: Offsets, mean: Mean, gradient: Tensor) -> Offsets:
        """∂L/∂u_i of each client, from ∂L/∂m, flat; `mean` is that of the same offsets."""
        share = gradient / mean.weight.clamp(min=torch.finfo(mean.weight.dtype).tiny)
        shares = self.frame.tensors(share)
        of_mean = self._sums(self.frame.tensors(share * mean.change))
        found = [
            update.weight
            * (
                update.scale * float(np.dot(gather(shares, update.where), update.delta))
                - of_mean[id(update.where)]
            )
            for update in self.updates(offset_k)
        ]
        return np.asarray(found)

    def _received(self, weight_k: Sequence[float] | Offsets) -> Tensor:
        """The weight that each value received: added up region by region, which are few."""
        found, by_region = torch.zeros(self.frame.size), dict[int, tuple[Regions, float]]()
        for where, weight in zip(self._where, weight_k, strict=True):
            before = by_region.get(id(where), (where, 0.0))[1]
            by_region[id(where)] = where, before + float(weight)
        parts = self.frame.tensors(found)
        for where, weight in by_region.values():
            ones = np.ones(size_of(shapes_of(where)), np.float32)
            self.frame.add(found, parts, ones, where, weight)
        return found

    def _sums(self, tensors: Weights) -> Mapping[int, float]:
        """The sum of what each distinct region takes, by its identity."""
        distinct = {id(where): where for where in self._where}
        return {
            key: float(gather(tensors, where).sum(dtype=np.float64))
            for key, where in distinct.items()
        }
