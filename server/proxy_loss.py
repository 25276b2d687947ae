"""The loss of shared weights on the server's examples: what devices minimize, on a round's subnets.

A supernet has no loss of its own. Here it is the mean of the cross-entropies of two subnets, the
largest and the smallest (by MACs) that devices were asked to train in the round: a larger one that no
device trained would judge updates by weights which they did not touch. Norm layers use the batch's
statistics, as in training and in recalibration; label smoothing and logit adjustment are the recipe's.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..protos.recipe import Recipe
from ..supernet.axes import Weights
from ..supernet.batch import Batch, shuffled
from ..supernet.cost import cost
from ..supernet.losses.cross_entropy import cross_entropy
from ..supernet.losses.logit_adjustment import logit_shift
from ..supernet.randomness import array_stream
from ..supernet.space import Space
from ..supernet.subnet import Forward, filled, skeleton
from .aggregation.fedlaw import Slope
from .samplers.assigned import Assigned


@dataclass(frozen=True, slots=True)
class ProxySet:
    """Normalized examples (N, ...) and labels (N,) of the server, and how many a batch takes."""

    x: Tensor
    y: Tensor
    batch_size: int

    def batches(self, *key: object) -> Iterator[Batch]:
        """One pass in an order that depends on the key alone."""
        size = min(self.batch_size, len(self.y))
        return shuffled(self.x, self.y, size, array_stream(*key))


def sandwich(space: Space, trained: Sequence[Assigned]) -> tuple[Assigned, ...]:
    """The smallest and the largest of these by MACs; one where they are the same."""
    ordered = sorted(trained, key=lambda a: (cost(space, a.arch).macs, repr(a.arch), a.offset))
    ends = {(one.arch, one.offset): one for one in (ordered[0], ordered[-1])}
    return tuple(ends.values())


class SubnetLoss:
    """Mean loss of the sandwich of `trained`; `key` = (seed, round) names the random streams."""

    def __init__(
        self,
        space: Space,
        trained: Sequence[Assigned],
        proxy: ProxySet,
        recipe: Recipe,
        key: tuple[object, ...],
    ) -> None:
        self._space, self._trained, self._proxy = space, tuple(trained), proxy
        self._recipe, self._key = recipe, key
        classes = space.layers(space.largest())[-1].out_channels
        self._shift_c = logit_shift(proxy.y, classes, recipe.logit_adjustment)

    @cached_property
    def _subnets(self) -> Sequence[Assigned]:
        return sandwich(self._space, self._trained)

    @property
    def tensors(self) -> Collection[str]:
        """The shared tensors that the loss depends on."""
        return {name for one in self._subnets for name in one.regions(self._space)}

    def whole(self, weights: Weights) -> float:
        """The mean loss over all examples, by batches of one fixed order."""
        total, examples = 0.0, 0
        with torch.no_grad():
            of = self.on(weights)
            for batch in self._proxy.batches(self._key[0], "proxy"):
                total += len(batch) * of(batch).item()
                examples += len(batch)
        return total / examples

    def batches(self, epoch: int) -> Iterator[Slope]:
        """One pass over the examples: each batch's loss and gradient as a function of weights."""
        for batch in self.shuffled(epoch):
            yield lambda weights, batch=batch: self._slope(weights, batch)  # type: ignore[misc]

    def shuffled(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        return self._proxy.batches(*self._key, "proxy", epoch)

    def on(self, weights: Mapping[str, Tensor]) -> Callable[[Batch], Tensor]:
        """The loss of a batch on these weights, differentiable in them."""
        forwards = [(one, self._forward(one, weights)) for one in self._subnets]

        def of(batch: Batch) -> Tensor:
            losses = [
                cross_entropy(
                    forward(batch.inputs(self._space.input_shape(one.arch))),
                    batch.labels_b,
                    self._recipe.label_smoothing,
                    self._shift_c,
                )
                for one, forward in forwards
            ]
            return sum(losses[1:], losses[0]) / len(losses)

        return of

    def _slope(self, weights: Weights, batch: Batch) -> tuple[float, Mapping[str, Tensor]]:
        leaves = {name: weights[name].detach().requires_grad_() for name in self.tensors}
        loss = self.on(leaves)(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item(), {n: leaf.grad for n, leaf in leaves.items() if leaf.grad is not None}

    def _forward(self, one: Assigned, held: Mapping[str, Tensor]) -> Forward:
        module, places = skeleton(self._space, one.arch)
        return filled(module, places, held, one.regions(self._space))
