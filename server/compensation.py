"""Kernels rounded by second moments from the devices, where that is better than the nearest levels."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..protos.subnets import Statistics, flat_statistics
from ..specialize.compensate import compensated as rounded_by
from ..supernet.axes import Weights, put, regions, take
from ..supernet.kernel_inputs import SecondMoments
from ..supernet.weights import Flat, gather
from .evaluation import FederatedEvaluator, Target
from .second_moments import asked, numbers

MOST_SUBNETS, MOST_NUMBERS = 8, 2**22
"""In one question to the devices: answers, and shared tensors with other kernels, are kept in memory."""

NO_ANSWER = "no device answered; see no_answer in the event log"
NONE_OBSERVED = "no kernel of 4 bits is of a layer whose inputs can be observed, or the file keeps a normalization"
LIKELIER = "the devices find the nearest levels likelier"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A subnet with kernels at the nearest levels: its norm statistics with these, and without `widths`."""

    target: Target
    statistics: Statistics
    plain: Statistics

    def values(self, evaluator: FederatedEvaluator) -> Flat:
        """Its own weights, then the statistics."""
        weights = self.target.weights or evaluator.weights
        own = gather(weights, regions(evaluator.space, self.target.arch))
        return np.concatenate([own, flat_statistics(self.statistics)])


@dataclass(frozen=True, slots=True)
class Outcome:
    """The values of a subnet to round, or why the nearest levels stay."""

    values: Flat | None = None
    why_not: str = ""


def compensated(
    evaluator: FederatedEvaluator, nearest: Mapping[int, Candidate], examples: int
) -> dict[int, Outcome]:
    """For each place: other levels, where the devices find the subnet more likely with them."""
    found = dict.fromkeys(nearest, Outcome(why_not=NONE_OBSERVED))
    for some in _questions(evaluator, nearest):
        found |= dict.fromkeys(some, Outcome(why_not=NO_ANSWER))
        targets, known = [nearest[at].target for at in some], [nearest[at].plain for at in some]
        moments = evaluator.inputs(targets, dict(enumerate(known)), examples)
        changed = {
            some[place]: replace(targets[place], weights=_weights(evaluator, targets[place], mine))
            for place, mine in moments.items()
        }
        statistics = evaluator.statistics(list(changed.values())) if changed else {}
        others = {
            at: replace(nearest[at], target=target, statistics=statistics[place])
            for place, (at, target) in enumerate(changed.items())
            if place in statistics
        }
        found |= _compared(evaluator, nearest, others)
    return found


def _questions(
    evaluator: FederatedEvaluator, nearest: Mapping[int, Candidate]
) -> Iterator[list[int]]:
    """Places whose answers fit into memory together; those without any kernel to ask about left out."""
    some, together = list[int](), 0
    for at, candidate in nearest.items():
        kernels = asked(evaluator.space, candidate.target.arch, candidate.target.widths)
        count = numbers(kernels) + sum(evaluator.weights[name].numel() for name in kernels)
        if some and (len(some) == MOST_SUBNETS or together + count > MOST_NUMBERS):
            yield some
            some, together = [], 0
        if kernels:
            some, together = [*some, at], together + count
    if some:
        yield some


def _weights(evaluator: FederatedEvaluator, target: Target, moments: SecondMoments) -> Weights:
    """The shared weights with the subnet's kernels of 4 bits at the levels that its moments give."""
    where = regions(evaluator.space, target.arch)
    weights = dict(evaluator.weights)
    for name, own in take(evaluator.weights, {name: where[name] for name in moments}).items():
        weights[name] = weights[name].detach().clone()
        put(weights[name], where[name], rounded_by(own, moments[name], target.widths[name]))
    return weights


def _compared(
    evaluator: FederatedEvaluator, nearest: Mapping[int, Candidate], others: Mapping[int, Candidate]
) -> dict[int, Outcome]:
    """Of those that the devices told both likelihoods of."""
    # Subnets of the same weights travel as one hull where they follow each other.
    both = [*(nearest[at] for at in others), *others.values()]
    if not both:
        return {}
    sums = evaluator.likelihoods(
        [one.target for one in both], {at: one.statistics for at, one in enumerate(both)}, [1.0]
    )
    found = {}
    for place, (at, other) in enumerate(others.items()):
        pair = sums.get(place), sums.get(place + len(others))
        if pair[0] is not None and pair[1] is not None:
            better = pair[1] < pair[0]
            found[at] = Outcome(other.values(evaluator)) if better else Outcome(why_not=LIKELIER)
    return found
