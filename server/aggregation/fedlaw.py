"""FedLAW: the clients' weights and a shrink factor, learned on examples that the server has.

Li et al. 2023: w = γ · Σ λ_i w_i, with γ = exp(g) and λ = softmax(v) minimizing the loss on a proxy set,
from v_i = log of the clients' shares of the examples and g = 0, by Adam (β = 0.5, 0.999), its learning
rate halved every 20 epochs. Here every update is a change d_i of the values that its subnet has, so

    w = γ · (w_old + Σ λ_i d_i)    of each value over the clients that hold it,

which is the paper's sum where all hold everything, since λ sums to 1. γ multiplies the weights and not
the change alone, as the paper has it and as `server.shrink` does as a constant; a value that nobody
trained keeps its bytes. v_i = log w_i + u_i with u learned from 0: softmax's normalization cancels in a
mean over the holders of a value, and without learning it is the weighted mean bit for bit.

Deviations. One λ for each client and one γ, not one for each layer. With server momentum the loss is
that of what the step will lead to: base + gain · Σ λ_i d_i in place of w_old + Σ λ_i d_i. What was
learned counts only where it lowers the loss over the whole proxy set, and is finite; else the weights
that the updates came with do, and a note says so. Nothing is kept from round to round.

Cost: the spooled updates are read twice for each batch of the proxy set.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ...supernet.axes import Weights
from ...supernet.optimizers import Adam
from ...supernet.weights import Shapes
from .mixture import Mean, Mixture, Offsets
from .overlap_mean import OverlapMean
from .spool import Spool
from .update import Merged, Update

BETAS, DECAY_EPOCHS, DECAY = (0.5, 0.999), 20, 0.5
Slope = Callable[[Weights], tuple[float, Mapping[str, Tensor]]]
"""Shared weights → loss of one batch, and its gradient in the tensors that it depends on."""


class ProxyLoss(Protocol):
    """A loss of the shared weights on examples of the server."""

    def whole(self, weights: Weights) -> float:
        """The mean loss over all examples."""

    def batches(self, epoch: int) -> Iterator[Slope]:
        """One pass over the examples, a loss for each batch."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a round's weights are learned from; `ahead` is `ServerOptimizer.ahead`."""

    loss: ProxyLoss
    previous: Weights
    ahead: Callable[[Mapping[str, Tensor]], tuple[Weights, float]]


@dataclass(frozen=True, slots=True)
class Pace:
    """How they are learned: epochs over the proxy set, Adam's rate, whether γ is learned too."""

    epochs: int
    lr: float
    shrink: bool


class FedLaw:
    """The weighted mean with learned weights and shrink factor; updates wait on disk."""

    def __init__(
        self, shapes: Shapes, lesson: Lesson, pace: Pace, dtype: torch.dtype = torch.float32
    ) -> None:
        self._shapes, self._lesson, self._pace, self._dtype = dict(shapes), lesson, pace, dtype
        self._spool = Spool(shapes)

    def add(self, update: Update) -> None:
        """Keep one client's update on disk until the end of the round."""
        self._spool.add(update)

    def result(self) -> Merged:
        """The mean with what was learned; a note tells the proxy loss, the weights and γ."""
        mixture = Mixture(self._spool, self._shapes)
        found = Learner(mixture, self._lesson, self._pace).learned()
        mean = OverlapMean(self._shapes, self._dtype)
        for update in mixture.updates(found.offset_k):
            mean.add(update)
        self._spool.close()
        return replace(mean.result(), shrink=found.shrink, notes=(found.note,))


@dataclass(frozen=True, slots=True)
class _Learned:
    offset_k: Offsets
    shrink: float
    note: str


class Learner:
    """Descends the proxy loss in log γ and the offsets of the clients' log-weights."""

    def __init__(self, mixture: Mixture, lesson: Lesson, pace: Pace) -> None:
        self._mixture, self._lesson, self._pace = mixture, lesson, pace
        base, self._gain = lesson.ahead(lesson.previous)
        self._previous = self._flat(lesson.previous)
        # Without momentum both are the same, and one copy is enough.
        moved = any(base[name] is not lesson.previous[name] for name in base)
        self._base = self._flat(base) if moved else self._previous

    def learned(self) -> _Learned:
        """What the descent comes to, or where it began if that is no better."""
        start = np.zeros(len(self._mixture.devices))
        before = self.whole(start, 0.0)
        found = self.descended() if math.isfinite(before) else None
        if found is None:
            note = "fedlaw: the proxy loss is not finite; the weights were not learned"
            return _Learned(start, 1.0, note)
        offset_k, log_shrink = found
        after = self.whole(offset_k, log_shrink)
        if not after < before:
            note = f"fedlaw: proxy loss {before:.4f}, learned {after:.4f}, which does not count"
            return _Learned(start, 1.0, note)
        shrink = math.exp(log_shrink)
        told = f"fedlaw: proxy loss {before:.4f}, learned {after:.4f}; {self._told(offset_k)}"
        return _Learned(offset_k, shrink, f"{told}; shrink factor {shrink:.4f}")

    def slopes(self, offset_k: Offsets, log_shrink: float, of: Slope) -> tuple[float, Offsets]:
        """A batch's loss, and its slope in the offset of each client and, last, in log γ."""
        mixture, shrink = self._mixture, math.exp(log_shrink)
        mean = mixture.mean(offset_k)
        new = self._stepped(mean, shrink)
        loss, parts = of(mixture.frame.tensors(new))
        gradient = torch.where(mean.covered, self._flat(parts), 0.0)
        by_shrink = float(torch.dot(gradient, new))
        gradient.mul_(shrink * self._gain)
        return loss, np.append(mixture.slopes(offset_k, mean, gradient), by_shrink)

    def descended(self) -> tuple[Offsets, float] | None:
        """(u, log γ) after all epochs; None where a loss or a slope is not finite."""
        free = torch.zeros(len(self._mixture.devices) + 1, dtype=torch.float64)
        adam = Adam([free], self._pace.lr, betas=BETAS)
        for epoch in range(self._pace.epochs):
            adam.lr = self._pace.lr * DECAY ** (epoch // DECAY_EPOCHS)
            for of in self._lesson.loss.batches(epoch):
                loss, slopes = self.slopes(free[:-1].numpy(), float(free[-1]), of)
                if not (math.isfinite(loss) and np.isfinite(slopes).all()):
                    return None
                if not self._pace.shrink:
                    slopes[-1] = 0.0
                free.grad = torch.from_numpy(slopes)
                adam.step()
        return free[:-1].numpy(), float(free[-1])

    def whole(self, offset_k: Offsets, log_shrink: float) -> float:
        """The loss over the whole proxy set."""
        new = self._stepped(self._mixture.mean(offset_k), math.exp(log_shrink))
        return self._lesson.loss.whole(self._mixture.frame.tensors(new))

    def _stepped(self, mean: Mean, shrink: float) -> Tensor:
        """The shared weights that the server's step would lead to, flat."""
        new = torch.add(self._base, mean.change, alpha=self._gain).mul_(shrink)
        return torch.where(mean.covered, new, self._previous)

    def _flat(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Tensors in one array of the supernet's size; 0 where one is missing."""
        flat = torch.zeros(self._mixture.frame.size)
        for name, part in self._mixture.frame.tensors(flat).items():
            if name in tensors:
                part.copy_(tensors[name])
        return flat

    def _told(self, offset_k: Offsets) -> str:
        """By how much the clients' shares of all weight were moved, the least and the most."""
        weight_k = self._mixture.weights(offset_k)
        factor_k = np.exp(offset_k) * self._mixture.prior_k.sum() / weight_k.sum()
        least, most = int(factor_k.argmin()), int(factor_k.argmax())
        names = self._mixture.devices
        return (
            f"weights times {factor_k[least]:.2f} ({names[least]}) to {factor_k[most]:.2f} "
            f"({names[most]})"
        )
