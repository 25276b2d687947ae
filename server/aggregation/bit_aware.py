"""Merging clients of few bits: only what agrees in sign with the others' mean counts.

The mask of ProWD (Yang et al. 2023): averaging pulls the weights towards the few levels of the
low-bit clients. A low-bit client's change of a value counts only where its sign is that of the mean
change of the high-bit clients; weights are renormalised value by value. Where no high-bit client
trained a value, and in a round without any, the low-bit clients' changes count as they are. The
paper's learned dequantizer is left out: it needs data on the server.
"""

import torch
from torch import Tensor

from ...supernet.axes import Weights, accumulate, view
from ...supernet.weights import Shapes, shapes_of, split
from .overlap_mean import OverlapMean, Partial
from .placement import Frame
from .spool import Spool
from .update import Merged, Update


class BitAwareMean:
    """The overlap-aware mean, with clients of at most `low_bits` bits masked by sign.

    Without such clients it is the overlap-aware mean itself, bit for bit.
    """

    def __init__(self, shapes: Shapes, low_bits: int, dtype: torch.dtype = torch.float32) -> None:
        self._shapes, self._low_bits = dict(shapes), low_bits
        self._high, self._low = OverlapMean(shapes, dtype), Spool(shapes)

    def add(self, update: Update) -> None:
        """Count one client's update; those of few bits wait on disk for the others."""
        if update.bits > self._low_bits:
            self._high.add(update)
        else:
            self._low.add(update)

    def add_partial(self, partial: Partial) -> None:
        """Count a sum of high-bit clients' updates that was made elsewhere."""
        self._high.add_partial(partial)

    def result(self) -> Merged:
        """The merged change; a note where no high-bit client was there to compare with."""
        if not len(self._low):
            return self._high.result()
        if not self._high.updates:
            for update in self._low.updates():
                self._high.add(update)
            self._low.close()
            found = self._high.result()
            note = f"only clients of at most {self._low_bits} bits: merged by the plain mean"
            return Merged(found.delta, found.trained, notes=(note,))
        total, weight = self._sums()
        self._low.close()
        return _normalised(total, weight)

    def _sums(self) -> tuple[Weights, Weights]:
        """Sums of changes and weights per value over all clients, in the fold's own precision."""
        counts, high = self._high.counts(), self._high.partial().total
        total = Frame(self._shapes).tensors(high)
        weight = {
            name: counts.get(name, torch.zeros(shape, dtype=high.dtype))
            for name, shape in self._shapes.items()
        }
        # Taken before the low-bit clients are added: they do not vouch for each other.
        signs = {name: torch.sign(total[name]) for name in counts}
        known = {name: count > 0 for name, count in counts.items()}
        for update in self._low.updates():
            for name, part in split(update.delta, shapes_of(update.where)).items():
                region, keep = update.where[name], torch.ones_like(part)
                if name in signs:
                    agrees = torch.sign(part) == view(signs[name], region)
                    keep = (agrees | ~view(known[name], region)).to(part.dtype)
                accumulate(total[name], region, part * keep, update.weight * update.scale)
                accumulate(weight[name], region, keep, update.weight)
        return total, weight


def _normalised(total: Weights, weight: Weights) -> Merged:
    delta: Weights = {}
    trained: dict[str, Tensor | bool] = {}
    for name, count in weight.items():
        mask = count > 0
        if not bool(mask.any()):
            trained[name] = False
            continue
        mean = total[name] / count.clamp(min=torch.finfo(count.dtype).tiny)
        delta[name] = mean.to(torch.float32)
        trained[name] = True if bool(mask.all()) else mask
    return Merged(delta, trained)
